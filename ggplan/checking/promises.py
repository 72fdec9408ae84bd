"""Promises: what `@assert` and `@test` demand of the plan, and whether it keeps them."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ggplan.checking.case import Case
from ggplan.checking.wording import some
from ggplan.ggml_types import GgmlType
from ggplan.planning.roles import device_of
from ggplan.rules import Assertion, Diagnostic, Edit, Fix, TypeTest
from ggplan.rules.recipe import Location
from ggplan.rules.roles import expand_role
from ggplan.text import format_bytes, printable

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
    for _, promise in sorted(promises, key=lambda pair: pair[0]):
        yield _assertion(case, promise) if isinstance(promise, Assertion) else _test(case, promise)


def _assertion(case: Case, promise: Assertion) -> Outcome:
    text = f"@assert {promise.text}"
    if isinstance(promise.value, GgmlType):
        index = _find(case, promise.of)
        if index is None:
            return Outcome(text, "no such tensor", _unknown(case, "GP301", promise.of, promise.location))
        found = case.decisions[index].type
        if (found == promise.value) == (promise.comparison == "=="):
            return Outcome(text, found.name, None)
        finding = _broken("GP301", f"{printable(promise.of)} is {found}", promise.location)
        return Outcome(text, found.name, finding)
    value, told = _measure(case, promise)
    if _COMPARE[promise.comparison](value, promise.value):
        return Outcome(text, told, None)
    return Outcome(
        text, told, _broken("GP301", f"{promise.text} does not hold: it is {told}", promise.location)
    )


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


def _test(case: Case, promise: TypeTest) -> Outcome:
    text = f"@test {promise.name} -> {promise.type}"
    name_at, type_at = promise.locations
    index = _find(case, promise.name)
    if index is None:
        return Outcome(text, "no such tensor", _unknown(case, "GP302", promise.name, name_at))
    found = case.decisions[index].type
    if found == promise.type:
        return Outcome(text, found.name, None)
    decision = case.decisions[index]
    by = "no rule" if decision.rule is None else case.recipe.rules[decision.rule].where
    if decision.by_default:
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


def _find(case: Case, name: str) -> int | None:
    return next((i for i, t in enumerate(case.tensors) if t.name == name), None)


def _unknown(case: Case, code: str, name: str, at: Location) -> Diagnostic:
    near = difflib.get_close_matches(name[:100], [t.name for t in case.tensors], n=1)
    fix, help = None, "name a tensor of the model"
    if near:
        help = f"the nearest is `{printable(near[0])}`"
        if code == "GP302":
            fix = Fix((Edit(at.file, at.line, at.column, at.length, near[0]),), safe=False)
    message = f"the model has no tensor `{printable(name[:100])}`"
    return Diagnostic(code, "error", message, at.file, at.line, at.column, at.length, help, fix)


def _broken(code: str, message: str, at: Location) -> Diagnostic:
    help = "correct the rules, or what is demanded of them"
    return Diagnostic(code, "error", message, at.file, at.line, at.column, at.length, help)
