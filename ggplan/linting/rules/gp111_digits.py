r"""`[12]` as a whole block number is 1 or 2, and `{1,3}` behind a dot repeats the dot.

GP111: digits that are no block number
    `[12]` is one digit, 1 or 2, not block 12; `{3}` behind a dot repeats the dot.
    - blk\.[12]\.ffn_down_exps\.weight = q6_K
    + blk\.12\.ffn_down_exps\.weight = q6_K
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import join, part_of, rewritten
from ggplan.rules import Fix
from ggplan.rules.patterns import tokens


class Digits(Finding):
    """A piece of a pattern, what it is instead of a block number, and what was meant or else can be."""

    text: str
    told: str
    meant: str
    one_by_one: str
    says = "`{f.text}` {f.told}"

    def help(self, fix: Fix | None) -> str:
        other = "" if self.meant == self.one_by_one else f", or `{self.one_by_one}` for these digits"
        return f"write `{self.meant}`{other}"


def check(case: Case) -> Iterator[Digits]:
    for _, rule in case.rules():
        if rule.roles or rule.expanded:
            continue
        pieces = list(tokens(rule.pattern))
        for n, (kind, text, start) in enumerate(pieces):
            before = pieces[n - 1][1] if n else ""
            if kind == "set" and re.fullmatch(r"\[\d\d\d?\]", text) and _is_block(pieces, n):
                meant, digits = text[1:-1], sorted(set(text[1:-1]))
                if int(meant) >= case.blocks.count:
                    continue
                one_by_one = f"({'|'.join(digits)})"
                told = f"is one digit, {join(digits, 'or')}, not the block {meant}"
            elif kind == "set" and (ends := _written_range(text)) and _is_block(pieces, n):
                meant = one_by_one = f"{{{ends[0]}..{ends[1]}}}"
                told = f"is one digit; it is not the blocks {ends[0]} to {ends[1]}"
            elif kind == "repeat" and text[0] == "{" and before in (r"\.", "."):
                numbers = [number for number in text[1:-1].split(",") if number]
                meant = one_by_one = numbers[0] if len(numbers) == 1 else f"({'|'.join(numbers)})"
                told = "repeats the dot before it; it is no block number"
            else:
                continue
            head, tail = rule.pattern[:start], rule.pattern[start + len(text) :]
            patterns = [head + new + tail for new in dict.fromkeys((meant, one_by_one))]
            fixes = tuple(rewritten(rule, pattern, safe=False) for pattern in patterns)
            yield Digits(part_of(rule, start, len(text)), text, told, meant, one_by_one, fixes=fixes)


def _written_range(text: str) -> tuple[int, int] | None:
    """The numbers of a set like `[0-46]`, which is the digits 0 to 4 and 6."""
    found = re.fullmatch(r"\[(\d{1,4})-(\d{1,4})\]", text)
    if not found or len(found[0]) == len("[0-9]") or int(found[1]) >= int(found[2]):
        return None
    return int(found[1]), int(found[2])


def _is_block(pieces: list[tuple[str, str, int]], at: int) -> bool:
    r"""Whether the piece is a whole block number, between `blk\.` (or `(`, `|`) and `\.` (or `)`, `|`)."""
    before = "".join(text for _, text, _ in pieces[:at])
    after = pieces[at + 1][1] if at + 1 < len(pieces) else ""
    starts = re.search(r"blk\\?\.(\([^()]*[|(])?\(?$|blk\\?\.\($", before)
    return starts is not None and after in (r"\.", ".", ")", "|")


GP111 = LintRule("GP111", "warning", check, reads_patterns=True, shows_cost=True)
