r"""Dots that stand for any character where only a dot is meant.

GP106: a dot is not escaped
    `.` stands for any character: `blk.1.` is found in `blk.10.`, `blk.11.` and so on. Write `\.` for a
    dot.
    - blk.1.ffn_down\.weight = q6_K
    + blk\.1\.ffn_down\.weight = q6_K
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import re2

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import part_of, rewritten
from ggplan.rules.patterns import tokens

_SEARCHES = 100_000  # names searched, all rules together


class BareDot(Finding):
    """The pattern with its dots escaped, and how many tensors match now and then."""

    escaped: str
    n_now: int
    n_then: int
    advice = "write `{f.escaped}`"

    @property
    def message(self) -> str:
        told = "`.` stands for any character"
        if self.n_now == self.n_then:
            return told
        return f"{told}: the pattern matches {self.n_now:,} tensors, with `\\.` {self.n_then:,}"


def check(case: Case) -> Iterator[BareDot]:
    searches = 0
    for i, rule in case.rules():
        if rule.roles or rule.expanded or not case.members[i]:
            continue
        places = _bare_dots(rule.pattern)
        searches += len(case.tensors) if places else 0
        if not places or searches > _SEARCHES:
            continue
        escaped = "".join(f"\\{c}" if at in places else c for at, c in enumerate(rule.pattern))
        search = re2.compile(replace(rule, pattern=escaped).regex(case.blocks.count)).search
        n_then = sum(bool(search(t.name.encode("utf-8", "surrogatepass"))) for t in case.tensors)
        if n_then:
            n_now = len(case.members[i])
            fix = rewritten(rule, escaped, safe=n_now == n_then)
            yield BareDot(part_of(rule, min(places), 1), escaped, n_now, n_then, fixes=(fix,))


def _bare_dots(pattern: str) -> frozenset[int]:
    """Where a dot stands for one character: not escaped, not in a set, not repeated."""
    pieces = list(tokens(pattern))
    return frozenset(
        start
        for n, (kind, text, start) in enumerate(pieces)
        if kind == "character" and text == "." and (n + 1 == len(pieces) or pieces[n + 1][0] != "repeat")
    )


GP106 = LintRule("GP106", "warning", check, yields_to=("GP111",), reads_patterns=True, shows_cost=True)
