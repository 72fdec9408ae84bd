"""GP201 and GP212: a shape forbids the type, and the fallback table has another, or none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.ggml_types import GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.trials import Trials
from ggplan.linting.wording import rechosen, some
from ggplan.planning import Fitted
from ggplan.planning.fitting import replaced
from ggplan.rules import Choice, Fix


@dataclass(frozen=True, slots=True)
class Fallback(Finding):
    """Tensors whose type the fallback table replaces.

    Attributes
    ----------
    choice
        What asked for the type; None where no recipe did.
    tensors
        They, in words.
    n_columns, n_weights
        Their row length, and weights together.
    chain
        What the choice would be with the fallbacks written out.
    """

    choice: Choice | None
    tensors: str
    n_columns: int
    n_weights: int
    asked: GgmlType
    got: GgmlType
    chain: str

    @property
    def message(self) -> str:
        return f"{self.tensors}: {replaced(self.asked, self.got, self.n_columns)}"

    def help(self, fix: Fix | None) -> str:
        return f"say what you want there: `{self.chain}`"

    def fix(self, case: Case, trials: Trials) -> Fix | None:
        return rechosen(self.choice, self.chain, safe=True)

    @property
    def cost_bytes(self) -> int:
        return round(self.n_weights * (self.got.bits_per_weight - self.asked.bits_per_weight) / 8)


@dataclass(frozen=True, slots=True)
class NoType(Finding):
    """The first tensor that cannot have its type, nor any in its place, and why."""

    choice: Choice
    fault: str
    advice: str

    @property
    def message(self) -> str:
        return self.fault

    def help(self, fix: Fix | None) -> str:
        return self.advice

    def fix(self, case: Case, trials: Trials) -> Fix | None:
        return rechosen(self.choice, _chain(self.choice, "f16"), safe=False)


def check_fallbacks(case: Case) -> Iterator[Fallback]:
    groups = case.grouped(_replaced)
    for (rule, asked, n_columns, got), members in groups.items():
        choice, n_weights = case.choice(rule), sum(case.tensors[t].n_weights for t in members)
        # Longer blocks first, so that the chain gives each shape what the fallback gave it.
        instead = dict.fromkeys(other for other_rule, _, _, other in groups if other_rule == rule)
        order = map(str, sorted(instead, key=lambda type_: -type_.block_size))
        chain = _chain(choice, *order) if choice is not None else f"{asked} | {got}"
        told = some(case, members)
        yield Fallback(case.place(rule), choice, told, n_columns, n_weights, asked, got, chain)


def _replaced(f: Fitted) -> tuple[int | None, GgmlType, int, GgmlType] | None:
    return None if f.asked is None else (f.decision.rule, f.asked, f.tensor.n_columns, f.type)


def check_no_type(case: Case) -> Iterator[NoType]:
    for t, f in enumerate(case.fitted):
        if f.fault is not None and (choice := case.choice(f.decision.rule)) is not None:
            fault = f"{some(case, [t])}: {f.fault.message}"
            yield NoType(choice.location, choice, fault, f.fault.hint)
            return


def _chain(choice: Choice, *more: str) -> str:
    return " | ".join([*map(str, choice.types), *more]) + "!" * choice.forced


GP201 = LintRule(
    "GP201",
    "warning",
    "a shape forbids the type",
    "A row must hold whole blocks of the type, and 1408 weights are no whole blocks of 256. The engine's "
    "fallback table puts another type in its place. Say in the rule which one you want there.",
    r"ffn_down_exps\.weight = q6_K",
    r"ffn_down_exps\.weight = q6_K | q8_0",
    check_fallbacks,
    yields_to=("GP212",),
)
GP212 = LintRule(
    "GP212",
    "error",
    "a shape forbids the type, and nothing takes its place",
    "The engine would stop here: its fallback table has no type for such rows. End the chain in one that "
    "fits.",
    "@target ik_llama.cpp\nffn_down_exps\\.weight = tq2_0",
    "@target ik_llama.cpp\nffn_down_exps\\.weight = tq2_0 | q8_0",
    check_no_type,
)
