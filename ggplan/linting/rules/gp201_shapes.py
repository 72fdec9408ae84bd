"""GP201 and GP212: a shape forbids the type, and the fallback table has another, or none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.ggml_types import GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.trials import Trials
from ggplan.linting.wording import rechosen, some
from ggplan.planning.fallback import remainder
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
        return (
            f"{self.tensors}: rows of {self.n_columns} do not fit {self.asked} "
            f"({remainder(self.asked, self.n_columns)}); {self.got} takes its place"
        )

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
    groups: dict[tuple[int | None, str, int, str], list[int]] = {}
    instead: dict[int | None, dict[str, GgmlType]] = {}
    for t, d in enumerate(case.decisions):
        if d.asked is not None:
            groups.setdefault((d.rule, d.asked.name, d.tensor.n_columns, d.type.name), []).append(t)
            instead.setdefault(d.rule, {})[d.type.name] = d.type
    for (rule, _, n_columns, _), members in groups.items():
        choice, first = case.choice(rule), case.decisions[members[0]]
        assert first.asked is not None
        # Longer blocks first, so that the chain gives each shape what the fallback gave it.
        order = sorted(instead[rule].values(), key=lambda type_: -type_.block_size)
        chain = _chain(choice, *map(str, order)) if choice is not None else f"{first.asked} | {first.type}"
        n_weights = sum(case.tensors[t].n_weights for t in members)
        yield Fallback(
            case.place(rule),
            choice,
            some(case, members),
            n_columns,
            n_weights,
            first.asked,
            first.type,
            chain,
        )


def check_no_type(case: Case) -> Iterator[NoType]:
    for d in case.decisions:
        choice = case.choice(d.rule)
        if d.fault and choice is not None:
            yield NoType(choice.location, choice, d.fault, d.hint)
            return


def _chain(choice: Choice, *more: str) -> str:
    return " | ".join([*map(str, choice.types), *more]) + "!" * choice.forced


GP201 = LintRule(
    "GP201",
    "warning",
    "a shape forbids the type",
    "A row must hold whole blocks of the type, and 1408 weights are no whole blocks of 256. The engine's fallback "
    "table puts another type in its place. Say in the rule which one you want there.",
    r"ffn_down_exps\.weight = q6_K",
    r"ffn_down_exps\.weight = q6_K | q8_0",
    check_fallbacks,
    yields_to=("GP212",),
)
GP212 = LintRule(
    "GP212",
    "error",
    "a shape forbids the type, and nothing takes its place",
    "The engine would stop here: its fallback table has no type for such rows. End the chain in one that fits.",
    "@target ik_llama.cpp\nattn_q\\.weight = q8_0",
    "@target ik_llama.cpp\nattn_q\\.weight = q8_0 | f16",
    check_no_type,
)
