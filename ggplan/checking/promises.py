"""Promises: what `@assert` and `@test` demand of the plan, and whether it keeps them."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ggplan.checking.case import Case
from ggplan.checking.wording import some
from ggplan.ggml_types import GgmlType
from ggplan.planning.roles import device_of
from ggplan.rules import Assertion, Diagnostic, Edit, Fix, TypeTest
from ggplan.rules.recipe import Location
from ggplan.rules.roles import expand_role
from ggplan.text import format_bytes, printable

_MOST_SUGGESTED = 10  # unknown tensors that get the nearest name
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
    "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """One promise: what was demanded, what is, and the finding where it is broken."""

    text: str
    actual: str
    finding: Diagnostic | None


def outcomes(case: Case) -> Iterator[Outcome]:
    """Every `@assert` and `@test` of the recipe, in order."""
    promises: list[tuple[int, Assertion | TypeTest]] = [
        *((a.location.line, a) for a in case.recipe.assertions),
        *((t.locations[0].line, t) for t in case.recipe.tests),
    ]
    facts = _Facts(case)
    for _, promise in sorted(promises, key=lambda pair: pair[0]):
        yield _assertion(facts, promise) if isinstance(promise, Assertion) else _test(facts, promise)


@dataclass(slots=True)
class _Facts:
    """What promises are held against, each measured once."""

    case: Case
    _indices: dict[str, int] = field(default_factory=dict)
    _measured: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    suggested: int = 0

    def find(self, name: str) -> int | None:
        """The tensor of this name."""
        if not self._indices:
            self._indices = {t.name: i for i, t in enumerate(self.case.tensors)}
        return self._indices.get(name)

    def measure(self, promise: Assertion) -> tuple[float, str]:
        """The number a promise is about, and how to show it."""
        key = (promise.quantity, promise.of)
        if key not in self._measured:
            self._measured[key] = _measure(self.case, promise)
        return self._measured[key]


def _assertion(facts: _Facts, promise: Assertion) -> Outcome:
    case = facts.case
    text = f"@assert {promise.text}"
    if isinstance(promise.value, GgmlType):
        index = facts.find(promise.of)
        if index is None:
            return Outcome(text, "no such tensor", _unknown(facts, "GP301", promise.of, promise.location))
        found = case.decisions[index].type
        if (found == promise.value) == (promise.comparison == "=="):
            return Outcome(text, found.name, None)
        instead = f"type({promise.of}) == {found}"
        finding = _broken("GP301", f"{printable(promise.of)} is {found}", promise.location, instead)
        return Outcome(text, found.name, finding)
    value, told = facts.measure(promise)
    if _COMPARE[promise.comparison](value, promise.value):
        return Outcome(text, told, None)
    message = f"{promise.text} does not hold: it is {told}"
    return Outcome(text, told, _broken("GP301", message, promise.location, _true_of(promise, value)))


def _measure(case: Case, promise: Assertion) -> tuple[float, str]:
    """The number a promise is about, and how to show it."""
    if promise.quantity == "uncovered":
        missing = case.uncovered()
        return len(missing), f"{len(missing)}" + (f", {some(case, missing)}" if missing else "")
    if promise.quantity == "fallbacks":
        replaced = [i for i, d in enumerate(case.decisions) if d.asked is not None]
        return len(replaced), f"{len(replaced)}" + (f", {some(case, replaced)}" if replaced else "")
    chosen = [d for i, d in enumerate(case.decisions) if not promise.of or _belongs(case, i, promise.of)]
    n_bytes = sum(d.type.tensor_bytes(d.tensor.shape) for d in chosen)
    if promise.quantity == "size":
        return n_bytes, format_bytes(n_bytes)
    n_weights = sum(d.tensor.n_weights for d in chosen)
    bpw = 8 * n_bytes / n_weights if n_weights else 0.0
    return bpw, f"{bpw:.4f}"


def _belongs(case: Case, index: int, of: str) -> bool:
    if of in ("gpu", "cpu"):
        return device_of(case.tensors[index].name) == of
    wanted = expand_role(of) or ()
    return any(role in wanted for role in case.roles(index))


def _test(facts: _Facts, promise: TypeTest) -> Outcome:
    case = facts.case
    text = f"@test {promise.name} -> {promise.type}"
    name_at, type_at = promise.locations
    index = facts.find(promise.name)
    if index is None:
        return Outcome(text, "no such tensor", _unknown(facts, "GP302", promise.name, name_at))
    found = case.decisions[index].type
    if found == promise.type:
        return Outcome(text, found.name, None)
    decision = case.decisions[index]
    by = "no rule" if decision.decision.rule is None else case.recipe.rules[decision.decision.rule].where
    if decision.decision.reason == "default":
        by = "@default"
    message = f"{printable(promise.name)} gets {found}, not {promise.type}: {by} decides"
    if decision.asked is not None:
        message += f" on {decision.asked}, which does not fit its rows of {decision.tensor.n_columns}"
    fix = Fix((Edit(type_at.file, type_at.line, type_at.column, type_at.length, found.name),), safe=False)
    at = type_at
    help = f"correct the rules, or write `{found}`"
    return Outcome(
        text,
        found.name,
        Diagnostic("GP302", "error", message, at.file, at.line, at.column, at.length, help, fix),
    )


def _unknown(facts: _Facts, code: str, name: str, at: Location) -> Diagnostic:
    near: list[str] = []
    facts.suggested += 1
    if facts.suggested <= _MOST_SUGGESTED:
        near = difflib.get_close_matches(name[:100], [t.name for t in facts.case.tensors], n=1)
    fix, help = None, "name a tensor of the model"
    if near:
        help = f"the nearest is `{printable(near[0])}`"
        if code == "GP302":
            fix = Fix((Edit(at.file, at.line, at.column, at.length, near[0]),), safe=False)
    message = f"the model has no tensor `{printable(name[:100])}`"
    return Diagnostic(code, "error", message, at.file, at.line, at.column, at.length, help, fix)


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


def _broken(code: str, message: str, at: Location, instead: str) -> Diagnostic:
    help, fix = "correct the rules, or what is demanded of them", None
    if instead:
        help = f"correct the rules, or write `@assert {printable(instead)}`"
        fix = Fix((Edit(at.file, at.line, at.column, at.length, instead),), safe=False)
    return Diagnostic(code, "error", message, at.file, at.line, at.column, at.length, help, fix)
