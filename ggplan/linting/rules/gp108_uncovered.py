"""Tensors that no rule speaks of, but for those whose lack of a rule another finding explains.

GP108: tensors without a rule
    They keep the type they have in the source, usually bf16, which is rarely meant.
    + @default q8_0
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import kind_of, rule_for, some
from ggplan.rules import Edit, Fix
from ggplan.rules.recipe import split_lines
from ggplan.text import format_bytes, printable


class Uncovered(Finding):
    """Tensors without a rule.

    Attributes
    ----------
    tensors
        They, in words.
    recipe
        The recipe's name.
    types, n_bytes
        What they are kept as, and how much that is.
    n_small
        Norms, biases and the like that no rule speaks of either.
    rules
        Rules that would keep them so.
    """

    tensors: str
    recipe: str
    types: tuple[str, ...]
    n_bytes: int
    n_small: int
    rules: tuple[str, ...]

    @property
    def message(self) -> str:
        small = f" (and {self.n_small} norms, biases and the like)" if self.n_small else ""
        kept = f"kept as {', '.join(self.types)}, {format_bytes(self.n_bytes)}"
        return f"{self.tensors}: no rule of {printable(self.recipe)} matches; {kept}{small}"

    def help(self, fix: Fix | None) -> str:
        more = f" and {len(self.rules) - 1} more" if len(self.rules) > 1 else ""
        return f"add `{self.rules[0]}`{more}, or `@default q8_0` for all the rest"


def check(case: Case) -> Iterator[Uncovered]:
    missing = [t for t in case.uncovered() if t not in case.explained]
    if case.mended is not None:
        missing = sorted(set(missing) & set(case.mended.uncovered()))
    if not missing:
        return
    fitted = case.fitted
    groups: dict[tuple[str, str], list[int]] = {}
    for t in missing:
        groups.setdefault((kind_of(case.tensors[t].name), fitted[t].type.name), []).append(t)
    rules = tuple(
        rule_for(case.tensors, members, fitted[members[0]].type.name) for members in groups.values()
    )
    lines = split_lines(case.recipe.text)
    lead = "" if not lines[-1].strip() else "\n"
    edit = Edit(case.recipe.file, len(lines), len(lines[-1]) + 1, 0, lead + "\n".join(rules) + "\n")
    yield Uncovered(
        case.file,
        some(case, missing),
        case.recipe.name,
        tuple(sorted({fitted[t].type.name for t in missing})),
        sum(fitted[t].type.tensor_bytes(case.tensors[t].shape) for t in missing),
        len(case.kept(protected=True)),
        rules,
        fixes=(Fix((edit,), safe=False),),
    )


GP108 = LintRule("GP108", "warning", check, when_mended=True)
