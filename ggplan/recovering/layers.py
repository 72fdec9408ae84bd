r"""Sets of layers as bits, and as patterns that people can read.

A set of layers is an int whose bit `i` stands for layer `i`; Python's ints make union, difference and "do
these overlap" one operation whatever the model's depth. A run of layers becomes alternatives of equal
length, as in `([5-9]|[1-3][0-9]|4[0-6])` for 5 to 46.
"""

from __future__ import annotations

from collections.abc import Iterable


def bits_of(layers: Iterable[int]) -> int:
    """The set of these layers."""
    bits = 0
    for layer in layers:
        bits |= 1 << layer
    return bits


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
    pieces = [piece for first, last in spans for piece in _decades(first, last)]
    return pieces[0] if len(pieces) == 1 else f"({'|'.join(pieces)})"


def _decades(first: int, last: int) -> list[str]:
    """Patterns, each of one number of digits, for the numbers `first` to `last`."""
    pieces = []
    while first <= last:
        # The largest power of ten in whose steps the digits before the last ones can count.
        size = 1
        while first and first % (size * 10) == 0 and first + size * 10 - 1 <= last:
            size *= 10
        head, low = divmod(first // size, 10)
        count = min(10 - low, (last - first + 1) // size)
        tail = "[0-9]" * (len(str(size)) - 1)
        # Two digits are written as two numbers: `[12]` is too often a slip for 12.
        digits = [f"[{low}-{low + count - 1}]"] if count > 2 else [str(low + i) for i in range(count)]
        pieces += [f"{head or ''}{digit}{tail}" for digit in digits]
        first += count * size
    return pieces
