"""The engine: it finds the rules, asks them in order, and decides what of their findings is told.

1. Rules are asked in the order of what explains what: where a rule yields to others (`LintRule.yields_to`),
   these come first, and its finding is dropped on a line that they have found or would mend.
2. Then all fixes are tried together, and the rules that hang on the rest (`when_mended`) are asked: where a
   misspelt rule matches nothing, the tensors it was meant for are not also told as uncovered.
3. Costs are computed by trying fixes one by one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from graphlib import TopologicalSorter

from ggplan.linting import rules as home
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.trials import Trials
from ggplan.rules import Diagnostic, Fix

_COSTS = 8  # findings whose cost is computed


@cache
def lint_rules() -> dict[str, LintRule]:
    """All rules by their codes, ascending, with their pages: what the modules of `ggplan.linting.rules`
    hold.
    """
    names = [f"{home.__name__}.{found.name}" for found in pkgutil.iter_modules(home.__path__)]
    found = {
        value.code: value.with_page(module.__doc__ or "")
        for module in map(importlib.import_module, names)
        for value in vars(module).values()
        if isinstance(value, LintRule)
    }
    return dict(sorted(found.items()))


@cache
def _in_order() -> tuple[LintRule, ...]:
    """The rules that check, those that others yield to first, those that wait for all others last."""
    known = lint_rules()
    order = TopologicalSorter({code: rule.yields_to for code, rule in known.items()}).static_order()
    return tuple(sorted((known[code] for code in order if known[code].check), key=lambda r: r.when_mended))


@dataclass(frozen=True, slots=True)
class _Told:
    rule: LintRule
    finding: Finding
    fix: Fix | None

    def places(self) -> set[tuple[str, int]]:
        """The line it is about, and those its fix edits."""
        edits = self.fix.edits if self.fix is not None else ()
        return {(self.finding.at.file, self.finding.at.line), *((edit.file, edit.line) for edit in edits)}


def lint(case: Case, trials: Trials, *, text_only: bool = False) -> list[Diagnostic]:
    """Everything that the rules find, in no order.

    Parameters
    ----------
    text_only
        Ask only the rules that need no model.
    """
    if case.has_many_rules:
        trials.left = 0
    told: list[_Told] = []
    for rule in _in_order():
        if (rule.reads_patterns and case.has_many_rules) or (rule.needs_model and text_only):
            continue
        if rule.when_mended and (fixes := [t.fix for t in told if t.fix is not None]):
            case = replace(case, mended=trials.tried(fixes))
        assert rule.check is not None
        found = list(rule.check(case))
        case = replace(case, explained=case.explained.union(*(f.explains for f in found)))
        taken = {place for t in told if t.rule.code in rule.yields_to for place in t.places()}
        kept = [f for f in found if (f.at.file, f.at.line) not in taken]
        told += [_Told(rule, finding, finding.fix(case, trials)) for finding in kept]
    trials.left = min(trials.left, _COSTS)
    return [_with_cost(t, case, trials) for t in told]


def _with_cost(told: _Told, case: Case, trials: Trials) -> Diagnostic:
    """The finding with the bytes its mending would save or add."""
    finding = diagnostic(told.rule, told.finding, told.fix)
    if not told.rule.shows_cost or told.fix is None or told.fix.safe or finding.cost_bytes is not None:
        return finding
    tried = trials.tried([told.fix])
    return replace(finding, cost_bytes=(case.n_bytes() - tried.n_bytes()) or None) if tried else finding


def diagnostic(rule: LintRule, finding: Finding, fix: Fix | None) -> Diagnostic:
    """A finding in words."""
    at = finding.at
    where = (at.file, at.line, at.column, at.length)
    return Diagnostic(
        rule.code, rule.severity, finding.message, *where, finding.help(fix), fix, finding.cost_bytes
    )


def in_order_of_the_text(found: Iterable[Diagnostic], file: str) -> tuple[Diagnostic, ...]:
    """The recipe's own lines first, what is about the file as a whole last."""
    return tuple(sorted(found, key=lambda d: (d.file != file, d.file, d.line == 0, d.line, d.column, d.code)))
