r"""Rules that never decide, because rules above take all they match; rules there twice.

Exact, for it asks what rules match and decide on the names of a model, never what a pattern looks like.
`output\.weight = q8_0` at the top of a recipe takes all `attn_output` tensors: of 379 published recipes 51
hold that slip. A rule that loses tensors only because they are protected is not shadowed, and neither is an
inherited one: to be overruled is what `@base` is for.

GP102: a rule never decides
    The first rule that matches decides (under `@order last` the last), and others take every tensor
    this one matches. The classic: an unanchored `output\.weight` is found in every `attn_output.weight`.
    - output\.weight = q8_0
    - attn_output\.weight = iq4_xs
    + ^output\.weight$ = q8_0
    + attn_output\.weight = iq4_xs

GP104: a rule is there twice
    A rule above matches exactly the same tensors, so this one never decides. If the types differ, one
    of the two is not meant.
    - attn_q\.weight = q8_0
    - attn_q\.weight$ = q6_K
    + attn_q\.weight$ = q6_K
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import re2

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.rules.gp105_roles import whole_word_pattern
from ggplan.linting.trials import Trials
from ggplan.linting.wording import deleted, lines_of, rewritten
from ggplan.rules import Edit, Fix, Rule
from ggplan.rules.recipe import split_lines

_MANY_BELOW = 3
_MOST_SEARCHED = 50  # shadowed rules that get more than "delete it"


class ShadowedRule(Finding):
    """A rule whose tensors rules above take.

    Attributes
    ----------
    takers
        The rules above, and how many tensors each takes.
    n_matched
        Tensors it matches; those that nobody takes are protected.
    same_types
        Whether all takers give the same types.
    is_searched
        Whether a fix is looked for.
    may_anchor
        Whether `^` before the first taker's pattern would let some of these tensors go, and only these.
    """

    index: int
    rule: Rule
    takers: tuple[tuple[Rule, int], ...]
    n_matched: int
    same_types: bool
    is_searched: bool
    may_anchor: bool
    order: str

    @property
    def message(self) -> str:
        first, n_first = self.takers[0]
        line, n_taken = lines_of(first, self.rule), sum(n for _, n in self.takers)
        tensors = "the only tensor" if self.n_matched == 1 else f"all {self.n_matched:,} tensors"
        rest = ""
        if n_taken < self.n_matched:
            tensors = f"{n_taken:,} of the {self.n_matched:,} tensors"
            rest = ", the others are protected"
        if len(self.takers) == 1:
            return f"the rule never decides: {line} takes {tensors} it matches{rest}"
        where = "above" if self.order == "first" else "below"
        told = f"rules {where} take {tensors} it matches, first {line} ({n_first:,}){rest}"
        return f"the rule never decides: {told}"

    def help(self, fix: Fix | None) -> str:
        first, _ = self.takers[0]
        line = lines_of(first, self.rule)
        if fix is not None and len(fix.edits) == 1:
            (edit,) = fix.edits
            if edit.length is not None:
                return f"{line} reaches too far: write `{edit.text}` there"
            if (edit.file, edit.line) == (first.file, first.line):
                return f"delete {first.where}: this rule gives its tensors the same type"
            return "delete it: its tensors get this type already" if self.same_types else "delete it"
        how = f"anchor the pattern of {line} with `^`" if self.may_anchor else f"narrow the pattern of {line}"
        where = "above" if self.order == "first" else "below"
        return f"the {self.order} match wins: {how}, or put this rule {where} it"

    def fix(self, case: Case, trials: Trials) -> Fix:
        """Narrow the rule that takes too much, or move the narrow rule above the broad one, or delete it."""
        rule, first = self.rule, self.takers[0][0]
        fixes: list[Fix | None] = []
        if self.is_searched and len(self.takers) == 1:
            taker = next(iter(case.takers(self.index)))
            if narrow := whole_word_pattern(first, case, taker):
                fixes.append(rewritten(first, narrow, safe=False))
            movable = first.file == rule.file and not rule.expanded
            if case.members[self.index] < case.members[taker] and movable:
                line = case.recipe.source_line(rule.line, rule.file)
                insert = Edit(first.file, first.line, 1, 0, f"{line}\n")
                if self.order == "last":
                    end = len(case.recipe.source_line(first.line, first.file)) + 1
                    insert = Edit(first.file, first.line, end, 0, f"\n{line}")
                fixes.append(Fix((Edit(rule.file, rule.line, 1, None, ""), insert), safe=False))
        if self.is_searched and self.same_types:
            fixes.append(deleted(rule, safe=True))
            if len(self.takers) == 1 and (own := _own_line_deleted(case, trials, first, rule)):
                fixes.append(own)
        known = [fix for fix in fixes if fix]
        # Other recipes may draw in what this one does, so what mends this one's own lines comes first.
        in_own_file = [fix for fix in known if all(edit.file == case.recipe.file for edit in fix.edits)]
        return trials.best(in_own_file or known) or deleted(rule, safe=False)


class CatchAll(Finding):
    """A rule that matches most of the model and leaves nothing to several below: told once, at its line."""

    n_matched: int
    n_below: int
    order: str

    @property
    def message(self) -> str:
        where = "below" if self.order == "first" else "above"
        return f"the rule matches {self.n_matched:,} tensors and leaves nothing to {self.n_below} {where}"

    def help(self, fix: Fix | None) -> str:
        return f"move it {'below' if self.order == 'first' else 'above'} them all"


class Duplicate(Finding):
    """A rule that matches the same tensors as one above, and the types of that one if they are others."""

    rule: Rule
    first: Rule

    @property
    def types(self) -> str:
        """The other one's types, or "" if they are the same."""
        first = self.first.choice
        return "" if self.rule.choice.types == first.types else first.text

    @property
    def message(self) -> str:
        other = lines_of(self.first, self.rule)
        return f"{other} matches the same tensors" + (f", as {self.types}" if self.types else "")

    def help(self, fix: Fix | None) -> str:
        if self.types or fix is None:
            return "delete the one you do not mean"
        is_other = fix is not None and fix.edits[0].file != self.rule.file
        return f"delete {self.first.where}" if is_other else "delete it"

    def fix(self, case: Case, trials: Trials) -> Fix | None:
        """Delete the one below; where that is drawn in and the one above is the recipe's own, delete that."""
        is_same = not self.types
        if self.rule.file != case.recipe.file and self.first.file == case.recipe.file:
            return _own_line_deleted(case, trials, self.first, self.rule) if is_same else None
        return deleted(self.rule, safe=is_same)


def check_shadowed(case: Case) -> Iterator[ShadowedRule | CatchAll]:
    rules = case.recipe.rules
    for index, n_below in _catch_all(case).items():
        fix = _moved_down(case, rules[index])
        yield CatchAll(
            rules[index].location, len(case.members[index]), n_below, case.recipe.order, fixes=(fix,)
        )
    searched = 0
    for index, takers in _shadowed(case):
        if _twin(case, index) is not None:
            continue
        searched += 1
        yield ShadowedRule(
            rules[index].location,
            index,
            rules[index],
            tuple((rules[t], n) for t, n in takers.items()),
            len(case.members[index]),
            all(rules[t].choice.types == rules[index].choice.types for t in takers),
            searched <= _MOST_SEARCHED,
            searched <= _MOST_SEARCHED and _may_anchor(case, index, next(iter(takers))),
            case.recipe.order,
        )


def check_twice(case: Case) -> Iterator[Duplicate]:
    for index, _ in _shadowed(case):
        if (twin := _twin(case, index)) is not None:
            rule, first = case.recipe.rules[index], case.recipe.rules[twin]
            yield Duplicate(rule.location, rule, first)


def _own_line_deleted(case: Case, trials: Trials, own: Rule, drawn_in: Rule) -> Fix | None:
    """The fix that deletes a recipe's own rule where one that it draws in decides the same without it."""
    if own.file != case.recipe.file or drawn_in.file == own.file:
        return None
    tried = trials.tried([fix := deleted(own, safe=True)])
    stays = tried is not None and [f.type for f in tried.fitted] == [f.type for f in case.fitted]
    return fix if stays else None


def _may_anchor(case: Case, index: int, taker: int) -> bool:
    """Whether `^` before the taker's pattern keeps all else that it decides, and lets go of a tensor of the
    rule's.
    """
    rule, members = case.recipe.rules[taker], case.members[index]
    others = case.decided[taker] - members
    if rule.roles or rule.expanded or rule.whole or rule.pattern.startswith("^") or not others:
        return False
    search = re2.compile(replace(rule, pattern=f"^{rule.pattern}").regex(case.blocks.count)).search
    names = case.tensors
    return all(search(names[t].name) for t in others) and not all(
        search(names[t].name) for t in case.decided[taker] & members
    )


def _moved_down(case: Case, rule: Rule) -> Fix | None:
    """The fix that lets all other rules go first."""
    if rule.file != case.recipe.file or rule.expanded:
        return None
    lines = split_lines(case.recipe.text)
    if case.recipe.order == "last":
        top = min(r.line for _, r in case.rules() if r.file == rule.file)
        raised = Edit(rule.file, top, 1, 0, f"{lines[rule.line - 1]}\n")
        return Fix((Edit(rule.file, rule.line, 1, None, ""), raised), safe=False)
    end = "" if not lines[-1].strip() else "\n"
    moved = Edit(rule.file, len(lines), len(lines[-1]) + 1, 0, f"{end}{lines[rule.line - 1]}\n")
    return Fix((Edit(rule.file, rule.line, 1, None, ""), moved), safe=False)


def _shadowed(case: Case) -> Iterator[tuple[int, dict[int, int]]]:
    """The shadowed rules, but those below a rule that catches all."""
    catching = _catch_all(case)
    for index, _ in case.rules():
        takers = case.takers(index)
        if case.is_shadowed(index) and not (len(takers) == 1 and next(iter(takers)) in catching):
            yield index, takers


def _twin(case: Case, index: int) -> int | None:
    """The rule above that matches the same tensors."""
    return next((t for t in case.takers(index) if case.members[t] == case.members[index]), None)


def _catch_all(case: Case) -> dict[int, int]:
    """Rules that match half the model or more, and how many rules below they alone shadow."""
    below: Counter[int] = Counter()
    for index, _ in case.rules():
        takers = case.takers(index)
        if case.is_shadowed(index) and len(takers) == 1:
            below[next(iter(takers))] += 1
    return {
        index: n
        for index, n in below.items()
        if n >= _MANY_BELOW and 2 * len(case.members[index]) >= len(case.tensors)
    }


GP102 = LintRule("GP102", "warning", check_shadowed, yields_to=("GP111",), shows_cost=True)
GP104 = LintRule("GP104", "warning", check_twice, yields_to=("GP111", "GP219"), shows_cost=True)
