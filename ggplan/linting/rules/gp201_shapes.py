r"""A shape forbids the type, and the fallback table has another, or none.

GP201: a shape forbids the type
    A row must hold whole blocks of the type, and 1408 weights are no whole blocks of 256. The engine's
    fallback table puts another type in its place. Say in the rule which one you want there.
    - ffn_down_exps\.weight = q6_K
    + ffn_down_exps\.weight = q6_K | q8_0

GP212: a shape forbids the type, and nothing takes its place
    The engine would stop here: its fallback table has no type for such rows. End the chain in one that
    fits.
    - @target ik_llama.cpp
    - ffn_down_exps\.weight = tq2_0
    + @target ik_llama.cpp
    + ffn_down_exps\.weight = tq2_0 | q8_0
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import rechosen, some
from ggplan.planning import Fitted
from ggplan.planning.fitting import replaced
from ggplan.rules import Choice


class Fallback(Finding):
    """Tensors whose type the fallback table replaces, their weights, and the chain that says the same."""

    tensors: str
    n_columns: int
    n_weights: int
    asked: GgmlType
    got: GgmlType
    chain: str
    advice = "say what you want there: `{f.chain}`"

    @property
    def message(self) -> str:
        return f"{self.tensors}: {replaced(self.asked, self.got, self.n_columns)}"

    @property
    def cost_bytes(self) -> int:
        return round(self.n_weights * (self.got.bits_per_weight - self.asked.bits_per_weight) / 8)


class NoType(Finding):
    """The first tensor that cannot have its type, nor any in its place, and why."""

    tensor: str
    fault: PlanError
    foreign: str = ""
    says = "{f.tensor}: {f.fault.message}{f.foreign}"
    advice = "{f.fault.hint}"


def check_fallbacks(case: Case) -> Iterator[Fallback]:
    groups = case.grouped(_replaced)
    for (rule, asked, n_columns, got), members in groups.items():
        choice, n_weights = case.choice(rule), sum(case.tensors[t].n_weights for t in members)
        # Longer blocks first, so that the chain gives each shape what the fallback gave it.
        instead = dict.fromkeys(other for other_rule, _, _, other in groups if other_rule == rule)
        order = map(str, sorted(instead, key=lambda type_: -type_.block_size))
        chain = _chain(choice, *order) if choice is not None else f"{asked} | {got}"
        told, fix = some(case, members), rechosen(choice, chain, safe=True)
        yield Fallback(case.place(rule), told, n_columns, n_weights, asked, got, chain, fixes=(fix,))


def _replaced(f: Fitted) -> tuple[int | None, GgmlType, int, GgmlType] | None:
    if f.asked is None or f.asked.plain == f.type:  # rows that are not interleaved: GP214
        return None
    return f.decision.rule, f.asked, f.tensor.n_columns, f.type


def check_no_type(case: Case) -> Iterator[NoType]:
    for t, f in enumerate(case.fitted):
        if f.fault is not None and (choice := case.choice(f.decision.rule)) is not None:
            fix = rechosen(choice, _chain(choice, "f16"), safe=False)
            wanted = [type_ for type_ in choice.types if isinstance(type_, GgmlType)]
            theirs = [type_.name for type_ in wanted if type_.engine == "ik_llama.cpp"]
            foreign = ""
            if theirs and case.recipe.target != "ik_llama.cpp":
                foreign = f"; {theirs[0]} is ik_llama.cpp's, which a line `@target ik_llama.cpp` chooses"
            yield NoType(choice.location, some(case, [t]), f.fault, foreign=foreign, fixes=(fix,))
            return


def _chain(choice: Choice, *more: str) -> str:
    return " | ".join([*map(str, choice.types), *more]) + "!" * choice.forced


GP201 = LintRule("GP201", "warning", check_fallbacks, yields_to=("GP212",))
GP212 = LintRule("GP212", "error", check_no_type)
