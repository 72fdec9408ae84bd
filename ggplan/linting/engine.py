"""The engine: it finds the rules, asks them in order, and decides what of their findings is told.

1. Rules are asked in the order of what explains what: where a rule yields to others (`LintRule.yields_to`),
   these come first, and its finding is dropped on a line that they have found or would mend.
2. Then all fixes are tried together, and the rules that hang on the rest (`when_mended`) are asked: where a
   misspelt rule matches nothing, the tensors it was meant for are not also told as uncovered.
3. What the run has not selected, or a comment silences, is dropped, and comments that silence nothing are
   found (`about_comments`).
4. Costs are computed by trying fixes one by one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from graphlib import TopologicalSorter

from ggplan.linting import rules as home
from ggplan.linting.case import Case
from ggplan.linting.ignoring import EVERYTHING, IgnoreComment, Selection
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.trials import Trials
from ggplan.rules import Diagnostic, Fix, Location

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
    checking = [known[code] for code in order if known[code].check]
    return tuple(sorted(checking, key=lambda r: (r.about_comments, r.when_mended)))


@dataclass(frozen=True, slots=True)
class _Found:
    rule: LintRule
    finding: Finding
    fix: Fix | None
    is_told: bool

    def places(self) -> set[tuple[str, int]]:
        """The lines it is about, and those its fix edits."""
        edits = self.fix.edits if self.fix is not None else ()
        lines = [self.finding.at, *self.finding.also_at]
        return {(at.file, at.line) for at in lines} | {(edit.file, edit.line) for edit in edits}


@dataclass(slots=True)
class _Silence:
    """The comments that silence findings, and what they have silenced.

    Attributes
    ----------
    named, used
        File, line (0 for the whole file) and code of what comments name, and of what they have silenced.
    """

    comments: tuple[IgnoreComment, ...]
    named: set[tuple[str, int, str]] = field(init=False)
    used: set[tuple[str, int, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.comments = tuple(comment for comment in self.comments if comment.is_valid)
        self.named = {key for comment in self.comments for key, _ in _codes_at(comment)}

    def covers(self, code: str, at: Location) -> bool:
        """Whether a comment silences a finding; every comment that does is then of use."""
        hits = self.named & {(at.file, 0, code), (at.file, at.line, code)}
        self.used |= hits
        return bool(hits)

    def idle(self, asked: set[str]) -> tuple[tuple[IgnoreComment, tuple[str, ...]], ...]:
        """The comments with codes that were looked for, and of which they have silenced none."""
        found = [
            (comment, tuple(t for key, t in _codes_at(comment) if key[2] in asked and key not in self.used))
            for comment in self.comments
        ]
        return tuple((comment, idle) for comment, idle in found if idle)


def _codes_at(comment: IgnoreComment) -> Iterator[tuple[tuple[str, int, str], str]]:
    """What a comment silences, as file, line and code, each with the code as written."""
    for text, _ in comment.codes:
        yield (comment.at.file, comment.line, text.upper()), text


def lint(
    case: Case, trials: Trials, *, text_only: bool = False, selection: Selection = EVERYTHING
) -> tuple[list[Diagnostic], int]:
    """Everything that the rules find, in no order, and how many findings comments have silenced.

    Parameters
    ----------
    text_only
        Ask only the rules that need no model.
    selection
        The codes that are told. A finding that is not told, or that a comment silences, still explains
        others, but is not taken as mended.
    """
    if case.has_many_rules:
        trials.left = 0
    silence = _Silence(case.comments())
    found: list[_Found] = []
    asked: set[str] = set()
    n_silenced = 0
    for rule in _in_order():
        if (rule.reads_patterns and case.has_many_rules) or (rule.needs_model and text_only):
            continue
        if rule.when_mended and (fixes := [f.fix for f in found if f.fix is not None and f.is_told]):
            case = replace(case, mended=trials.tried(fixes))
        if rule.about_comments:
            case = replace(case, idle_codes=silence.idle(asked))
        is_selected = selection.covers(rule.code)
        if is_selected and not (rule.needs_imatrix and case.imatrix is None):
            asked.add(rule.code)
        assert rule.check is not None
        findings = list(rule.check(case))
        taken = {place for f in found if f.rule.code in rule.yields_to for place in f.places()}
        for finding in findings:
            if (finding.at.file, finding.at.line) in taken:
                continue
            is_silenced = is_selected and silence.covers(rule.code, finding.at)
            n_silenced += is_silenced
            is_told = is_selected and not is_silenced
            found.append(_Found(rule, finding, finding.fix(case, trials), is_told))
        case = replace(case, explained=case.explained.union(*(f.explains for f in findings)))
    trials.left = min(trials.left, _COSTS)
    return [_with_cost(f, case, trials) for f in found if f.is_told], n_silenced


def _with_cost(told: _Found, case: Case, trials: Trials) -> Diagnostic:
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
