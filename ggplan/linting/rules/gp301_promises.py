"""What `@assert` and `@test` demand of the plan, where it is not so once all else is
mended.

GP301: an assertion does not hold
    `@assert` says what must be true of the plan: its bpw or size, that no tensor is uncovered, one tensor's
    type, that it fits a machine, or how fast it is there.
    - @assert bpw <= 4.5

GP302: a test fails
    `@test NAME -> TYPE` says which type one tensor must get, with fallbacks. Correct the rules, or the
    test.
    - @test blk.7.ffn_down_exps.weight -> q6_K
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ggplan.ggml_types import GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import some
from ggplan.planning import Fitted, devices_in
from ggplan.rules import Assertion, Fix, TypeTest
from ggplan.rules.draft import replacing
from ggplan.rules.recipe import Location
from ggplan.rules.roles import expand_role
from ggplan.text import format_bytes, printable

if TYPE_CHECKING:
    from ggplan.linting.machines import MachineFact

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_MOST_DIGITS = 15
_MOST_SUGGESTED = 10  # unknown tensors that get the nearest name
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
    "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


class UnknownTensor(Finding):
    """A tensor that the model lacks, and the nearest one."""

    name: str
    near: str
    says = "the model has no tensor `{f.name}`"

    def help(self, fix: Fix | None) -> str:
        return f"the nearest is `{printable(self.near)}`" if self.near else "name a tensor of the model"


class FalseAssertion(Finding):
    """An assertion, what is true instead, and an assertion that holds, if one would say much."""

    fact: str
    instead: str
    says = "{f.fact}"

    def help(self, fix: Fix | None) -> str:
        instead = f"write `@assert {printable(self.instead)}`" if self.instead else "what is demanded of them"
        return f"correct the rules, or {instead}"


class FailedTest(Finding):
    """The type a tensor gets, the one it was to get, who decided, and what does not fit."""

    tensor: str
    got: GgmlType
    wanted: GgmlType
    by: str
    asked: GgmlType | None
    n_columns: int
    advice = "correct the rules, or write `{f.got}`"

    @property
    def message(self) -> str:
        told = f"{self.tensor} gets {self.got}, not {self.wanted}: {self.by} decides"
        if self.asked is None:
            return told
        return f"{told} on {self.asked}, which does not fit its rows of {self.n_columns}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One promise: the code it is told under, what was demanded, what is, and the finding if it is broken."""

    code: str
    text: str
    actual: str
    finding: Finding | None


def outcomes(case: Case, *, suggest: bool = True) -> Iterator[Outcome]:
    """Every `@assert` and `@test` of the recipe, in order.

    Parameters
    ----------
    suggest
        Look for the nearest names of tensors that the model lacks, which takes long.
    """
    promises: list[tuple[int, Assertion | TypeTest]] = [
        *((a.location.line, a) for a in case.recipe.assertions),
        *((t.locations[0].line, t) for t in case.recipe.tests),
    ]
    facts = _Facts(case, n_suggested=0 if suggest else _MOST_SUGGESTED)
    for _, promise in sorted(promises, key=lambda pair: pair[0]):
        yield _assertion(facts, promise) if isinstance(promise, Assertion) else _test(facts, promise)


def check_assertions(case: Case) -> Iterator[Finding]:
    return _broken(case, lambda c: replace(c, recipe=replace(c.recipe, tests=())))


def check_tests(case: Case) -> Iterator[Finding]:
    return _broken(case, lambda c: replace(c, recipe=replace(c.recipe, assertions=())))


def _broken(case: Case, only: Callable[[Case], Case]) -> Iterator[Finding]:
    """What is broken of the promises that `only` leaves, and stays so."""
    broken = [(o.text, o.finding) for o in outcomes(only(case)) if o.finding is not None]
    stays = {text for text, _ in broken}
    if broken and case.mended is not None:
        later = outcomes(only(case.mended), suggest=False)
        stays = {outcome.text for outcome in later if outcome.finding is not None}
    return (finding for text, finding in broken if text in stays)


@dataclass(slots=True)
class _Facts:
    """What promises are held against, each measured once."""

    case: Case
    _indices: dict[str, int] = field(default_factory=dict)
    _measured: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    _on_machines: dict[tuple[str, str], MachineFact] = field(default_factory=dict)
    n_suggested: int = 0

    def find(self, name: str) -> int | None:
        """The tensor of this name."""
        if not self._indices:
            self._indices = {t.name: i for i, t in enumerate(self.case.tensors)}
        return self._indices.get(name)

    def nearest(self, name: str) -> str:
        """The most similar name of a tensor, or ""; of a few only."""
        self.n_suggested += 1
        if self.n_suggested > _MOST_SUGGESTED:
            return ""
        return next(iter(difflib.get_close_matches(name[:100], [t.name for t in self.case.tensors], n=1)), "")

    def measure(self, promise: Assertion) -> tuple[float, str]:
        """The number a promise is about, and how to show it."""
        key = (promise.quantity, promise.of)
        if key not in self._measured:
            self._measured[key] = _measure(self.case, promise)
        return self._measured[key]

    def on_machine(self, promise: Assertion) -> MachineFact:
        """What is so on the machine that a promise is about."""
        from ggplan.linting.machines import fact_of

        key = (promise.quantity, promise.of)
        if key not in self._on_machines:
            self._on_machines[key] = fact_of(self.case, promise)
        return self._on_machines[key]


def _assertion(facts: _Facts, promise: Assertion) -> Outcome:
    text, at = f"@assert {promise.text}", promise.location
    if isinstance(promise.value, GgmlType):
        index = facts.find(promise.of)
        if index is None:
            finding = UnknownTensor(at, printable(promise.of[:100]), facts.nearest(promise.of))
            return Outcome("GP301", text, "no such tensor", finding)
        found = facts.case.fitted[index].type
        if (found == promise.value) == (promise.comparison == "=="):
            return Outcome("GP301", text, found.name, None)
        fact, instead = f"{printable(promise.of)} is {found}", f"type({promise.of}) == {found}"
        return Outcome("GP301", text, found.name, _false(at, fact, instead))
    if promise.conditions is not None:
        return _of_machine(facts, promise, promise.value)
    value, told = facts.measure(promise)
    if _COMPARE[promise.comparison](value, promise.value):
        return Outcome("GP301", text, told, None)
    told = _told_apart(promise, value, told)
    fact = f"{promise.text} does not hold: it is {told}"
    return Outcome("GP301", text, told, _false(at, fact, _true_of(promise, value)))


def _of_machine(facts: _Facts, promise: Assertion, wanted: float) -> Outcome:
    text, at = f"@assert {promise.text}", promise.location
    fact = facts.on_machine(promise)
    shown = printable(promise.text)
    if fact.value is None:
        return Outcome("GP301", text, fact.told, _false(at, f"{shown} does not hold: {fact.told}", ""))
    if _COMPARE[promise.comparison](fact.value, wanted):
        return Outcome("GP301", text, fact.told, None)
    if promise.quantity == "fits":
        told, instead = fact.told, f"fits({fact.instead})" if fact.instead else ""
    else:
        told = f"it is {_apart(promise, fact, wanted)}"
        instead = _true_of(promise, fact.value) if fact.value else ""
    return Outcome("GP301", text, fact.told, _false(at, f"{shown} does not hold: {told}", instead))


def _apart(promise: Assertion, fact: MachineFact, wanted: float) -> str:
    """What is, with enough digits of the speed to see that the promise does not hold."""
    shown, blank, rest = fact.told.partition(" ")
    digits = 2
    while fact.value and _COMPARE[promise.comparison](float(shown), wanted) and digits < _MOST_DIGITS:
        digits += 1
        shown = f"{fact.value:.{digits}f}"
    return shown + blank + rest


def _false(at: Location, fact: str, instead: str) -> FalseAssertion:
    return FalseAssertion(at, fact, instead)  # no fix: what is promised, its author alone takes back


def _told_apart(promise: Assertion, value: float, told: str) -> str:
    """What is, with enough digits to see that the promise does not hold: not `it is 68.8 GiB` of 68.8 GiB."""
    assert isinstance(promise.value, int | float)
    if promise.quantity not in ("size", "bpw"):
        return told
    shown, blank, unit = told.partition(" ")
    scale = 1024 ** ["", "B", *_UNITS].index(unit) / (1024 if unit else 1)
    digits = len(shown.partition(".")[2])
    while _COMPARE[promise.comparison](float(shown) * scale, promise.value) and digits < _MOST_DIGITS:
        digits += 1
        shown = f"{value / scale:.{digits}f}"
    return shown + blank + unit


def _measure(case: Case, promise: Assertion) -> tuple[float, str]:
    """The number a promise is about, and how to show it."""
    if promise.quantity in ("uncovered", "fallbacks"):
        replaced = [i for i, d in enumerate(case.fitted) if d.asked is not None]
        found = case.uncovered() if promise.quantity == "uncovered" else replaced
        return len(found), f"{len(found)}" + (f", {some(case, found)}" if found else "")
    chosen = _members(case, promise.of)
    n_bytes = sum(d.type.tensor_bytes(d.tensor.shape) for d in chosen)
    if promise.quantity == "size":
        return n_bytes, format_bytes(n_bytes)
    n_weights = sum(d.tensor.n_weights for d in chosen)
    bpw = 8 * n_bytes / n_weights if n_weights else 0.0
    return bpw, f"{bpw:.4f}"


def _members(case: Case, of: str) -> list[Fitted]:
    """The tensors of a role or in a memory; all for ""."""
    if not of:
        return list(case.fitted)
    if of in ("gpu", "cpu"):
        devices = devices_in(case.model)
        return [d for d in case.fitted if of in devices[d.tensor.name]]
    wanted = frozenset(expand_role(of) or ())
    return [d for i, d in enumerate(case.fitted) if not wanted.isdisjoint(case.roles(i))]


def _test(facts: _Facts, promise: TypeTest) -> Outcome:
    text = f"@test {promise.name} -> {promise.type}"
    name_at, type_at = promise.locations
    index = facts.find(promise.name)
    if index is None:
        near = facts.nearest(promise.name)
        fix = replacing(name_at, near, safe=False) if near else None
        finding = UnknownTensor(name_at, printable(promise.name[:100]), near, fixes=(fix,))
        return Outcome("GP302", text, "no such tensor", finding)
    d = facts.case.fitted[index]
    if d.type == promise.type:
        return Outcome("GP302", text, d.type.name, None)
    by = "@default" if d.decision.reason == "default" else "no rule"
    if d.decision.rule is not None:
        by = facts.case.recipe.rules[d.decision.rule].where
    name, n_columns = printable(promise.name), d.tensor.n_columns
    failed = FailedTest(type_at, name, d.type, promise.type, by, d.asked, n_columns)
    return Outcome("GP302", text, d.type.name, failed)


def _true_of(promise: Assertion, value: float) -> str:
    """The promise with a value that holds, rounded away from what is; "" where none would say much."""
    subject = f"{promise.quantity}({promise.of})" if promise.of else promise.quantity
    if promise.quantity in ("uncovered", "fallbacks"):
        op = "==" if promise.comparison in ("==", "!=") else promise.comparison[0] + "="
        return f"{subject} {op} {value:.0f}"
    if promise.comparison in ("==", "!="):
        return ""
    unit, suffix, digits = (1 << 30, " GiB", 10) if promise.quantity == "size" else (1, "", 100)
    away = math.ceil if promise.comparison.startswith("<") else math.floor
    return f"{subject} {promise.comparison[0]}= {away(value / unit * digits) / digits:g}{suffix}"


GP301 = LintRule("GP301", "error", check_assertions, when_mended=True)
GP302 = LintRule("GP302", "error", check_tests, when_mended=True)
