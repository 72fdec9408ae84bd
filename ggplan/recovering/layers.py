r"""Sets of layers as bits, and as the recipe language's ranges.

A set of layers is an int whose bit `i` stands for layer `i`; Python's ints make union, difference and "do
these overlap" one operation whatever the model's depth. In a pattern it is a range, `{0..4,7,40..46}` (see
`ggplan.rules.ranges`), which may not be one or two single numbers: these are `7` and `(1|3)`.
"""

from __future__ import annotations

from collections.abc import Iterable


def runs(needed: int, free: int) -> list[tuple[int, int]]:
    """First and last of each run of `needed` layers; a gap of `free` layers does not end a run."""
    found: list[tuple[int, int]] = []
    usable = needed | free
    while needed:
        first = (needed & -needed).bit_length() - 1
        ended = ~usable >> first << first & ((1 << needed.bit_length() + 1) - 1)
        end = (ended & -ended).bit_length() - 1 if ended else needed.bit_length()
        within = needed & ((1 << end) - 1)
        found.append((first, within.bit_length() - 1))
        needed ^= within
    return found


def layers_pattern(spans: Iterable[tuple[int, int]]) -> str:
    """A pattern for the numbers of these runs, in a group where it needs one."""
    items = []
    for first, last in spans:
        items += [f"{first}..{last}"] if last - first > 1 else [str(n) for n in range(first, last + 1)]
    if len(items) < 3 and ".." not in "".join(items):
        return items[0] if len(items) == 1 else f"({'|'.join(items)})"
    return f"{{{','.join(items)}}}"
