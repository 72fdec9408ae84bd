"""Tensors of MTP blocks, which draft tokens, in types that draft badly.

GP217: a block that drafts tokens is below q8_0
    The tokens that an MTP block (nextn) predicts are used where the model itself would have chosen them.
    Quantized to 4 bits such a block is of no use: of GLM-4.6's drafts 0 % were accepted at 4 bits, and its
    quantizers left the block out. Give it q8_0 or more, or leave it out with `--mtp drop`. It is told of
    checkpoints and GGUF files; an inventory has no weights, and its blocks may be left out.
    + @role nextn = q8_0
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.ggml_types import GgmlType, parse_type
from ggplan.linting.case import NO_RECIPE, Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import some
from ggplan.planning import Fitted
from ggplan.rules import Edit, Fix
from ggplan.rules.recipe import split_lines

_ENOUGH = parse_type("q8_0")
_RULE = "@role nextn = q8_0"


class LowDraft(Finding):
    """Tensors of blocks that predict further tokens, their types, and whether a recipe chose them."""

    tensors: str
    types: str
    is_ruled: bool
    order: str
    is_alone: bool
    says = "{f.tensors}: {f.types} in an MTP block, whose drafts are hardly accepted below q8_0"

    def help(self, fix: Fix | None) -> str:
        if self.is_ruled:
            where = "above" if self.order == "first" else "below"
            ways = [f"write `{_RULE}` {where} the other rules"]
        else:
            ways = [f"write the types as a recipe with `ggplan rules from` and put `{_RULE}` above its rules"]
        drop = "leave the block out with `--mtp drop`"
        if not self.is_alone:  # a file of such blocks alone has nothing else
            ways = [*ways, drop] if self.is_ruled else [drop, *ways]
        return ", or ".join(ways)


def check(case: Case) -> Iterator[LowDraft]:
    if case.model.kind == "inventory":
        return
    groups: dict[int | None, list[int]] = {}
    for t, fitted in enumerate(case.fitted):
        if "nextn" in case.roles(t) and _is_low(fitted):
            groups.setdefault(fitted.decision.rule, []).append(t)
    is_ruled, is_alone = case.recipe is not NO_RECIPE, case.model.reshaped.get("mtp") == "only"
    for rule, members in groups.items():
        types = ", ".join(dict.fromkeys(case.fitted[t].type.name for t in members))
        fix = _fix(case) if is_ruled else None
        yield LowDraft(
            case.place(rule), some(case, members), types, is_ruled, case.recipe.order, is_alone, fixes=(fix,)
        )


def _is_low(fitted: Fitted) -> bool:
    """Whether a rule or a mix gave it a type below q8_0 which it does not have in the source."""
    given = fitted.decision.reason not in ("kept", "file") and fitted.type != fitted.tensor.type
    return given and _bits(fitted.type) < _bits(_ENOUGH) and fitted.type.kind != "integer"


def _bits(type_: GgmlType) -> float:
    return type_.bits_per_weight


def _fix(case: Case) -> Fix:
    """The rule above the first one of the recipe's own file, or at the end where the last match wins."""
    recipe = case.recipe
    lines = split_lines(recipe.text)
    own = [rule.line for _, rule in case.rules() if rule.file == recipe.file]
    if recipe.order == "first" and own:
        return Fix((Edit(recipe.file, min(own), 1, 0, f"{_RULE}\n"),), safe=False)
    lead = "" if not lines[-1].strip() else "\n"
    return Fix((Edit(recipe.file, len(lines), len(lines[-1]) + 1, 0, f"{lead}{_RULE}\n"),), safe=False)


GP217 = LintRule("GP217", "warning", check)
