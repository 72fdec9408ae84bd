r"""Blocks that one rule forgot and its siblings did not.

A recipe that lists blocks, `blk\.([1-9]|[1-3][0-9]|4[0-5])\.`, is one digit away from leaving out the last.
The blocks of each kind (`ffn_up_exps.weight`) are known exactly, and so are those its rules decide.

GP107: blocks are left out
    A list of blocks misses some that its siblings have: one digit is easily lost in
    `([1-9]|[1-3][0-9]|4[0-5])`. Ranges such as `{1..46}` are easier to get right.
    - blk\.{1..45}\.ffn_up_exps\.weight = q4_K
    + blk\.{1..46}\.ffn_up_exps\.weight = q4_K
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import block_list, blocks_of, blocks_text, kinds, part_of, rewritten, some
from ggplan.rules.roles import block_of
from ggplan.text import printable

_GROUP = re.compile(r"_(gate|up|down|q|k|v|output)(?=_|\.|$)")
_MOST_LEFT_TO_DEFAULT = 2  # blocks; leaving more to `@default` is a way to write a recipe
_MOST_MISSING = 0.25  # of a kind's blocks; more is a plan, not a slip


class Gap(Finding):
    """A rule that lists blocks, the tensors of its kind that nothing decides, and the rule's pattern with
    them.

    Attributes
    ----------
    left
        The tensors, by index; `told` are the same in words.
    beside
        Kinds that have rules in the same blocks.
    """

    left: tuple[int, ...]
    told: str
    beside: tuple[str, ...]
    pattern: str
    advice = "write `{f.pattern}`"

    @property
    def message(self) -> str:
        told = f"{self.told} {'is' if len(self.left) == 1 else 'are'} left out"
        if not self.beside:
            return told
        kinds_ = ", ".join(f"`{printable(kind)}`" for kind in self.beside[:2])
        return f"{told}, while {kinds_} of the same blocks are not"

    @property
    def explains(self) -> frozenset[int]:
        return frozenset(self.left)


def check(case: Case) -> Iterator[Gap]:
    by_kind = kinds(case, (i for i, t in enumerate(case.tensors) if block_of(t.name) is not None))
    listing = {i: place for i, rule in case.rules() if (place := block_list(rule))}
    by_default = case.recipe.default is not None
    deciding = [d.decision.rule for d in case.fitted]
    for kind, members in by_kind.items():
        left = [t for t in members if case.fitted[t].decision.protected is None and deciding[t] is None]
        listed = listing.keys() & {deciding[t] for t in members}
        most = _MOST_LEFT_TO_DEFAULT if by_default else max(1, _MOST_MISSING * len(members))
        if not left or not listed or len(left) > most or len(left) >= len(members) / 2:
            continue
        blocks = blocks_of(case, left)
        beside = tuple(
            other
            for other, theirs in by_kind.items()
            if other != kind
            and _GROUP.sub("_*", other) == _GROUP.sub("_*", kind)
            and any(block_of(case.tensors[t].name) in blocks and deciding[t] is not None for t in theirs)
        )
        if not beside and by_default:
            continue
        index = max(listed, key=lambda i: (len(case.decided[i]), -i))
        rule, (start, stop) = case.recipe.rules[index], listing[index]
        numbers = blocks_text(blocks_of(case, case.members[index]) | blocks, rule.pattern[start:stop])
        pattern = rule.pattern[:start] + numbers + rule.pattern[stop:]
        at, fix = part_of(rule, start, stop - start), rewritten(rule, pattern, safe=False)
        yield Gap(at, tuple(left), some(case, left), beside, pattern, fixes=(fix,))


GP107 = LintRule(
    "GP107",
    "warning",
    check,
    yields_to=("GP101", "GP102", "GP104", "GP111"),
    reads_patterns=True,
    shows_cost=True,
)
