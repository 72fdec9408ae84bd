r"""Numbers of blocks as a regex without commas or braces, which `-ot` would be cut at."""

from __future__ import annotations

from collections.abc import Iterable


def numbers_pattern(numbers: Iterable[int]) -> str:
    r"""A regex for these numbers and no others: `3`, `([3-9]|1[0-9]|2[0-3])`.

    It must stand between what cannot be a digit, as in `blk\\.` and `\\.`.
    """
    by_tens: dict[str, set[int]] = {}
    for number in numbers:
        by_tens.setdefault(str(number)[:-1], set()).add(number % 10)
    parts: list[str] = []
    tens = sorted(by_tens, key=lambda t: int(t or 0))
    while tens:
        first = tens.pop(0)
        digits, run = by_tens[first], [first]
        # Whole tens that follow each other share their digits: 1[0-9]|2[0-9] is [12][0-9].
        while first and tens and _follows(run[-1], tens[0]) and by_tens[tens[0]] == digits:
            run.append(tens.pop(0))
        lead = first[:-1] + _digits({int(t[-1]) for t in run}) if first else ""
        parts.append(lead + _digits(digits))
    return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"


def _follows(before: str, after: str) -> bool:
    """Whether two prefixes share all but the last digit, so that one class holds both."""
    return before[:-1] == after[:-1]


def _digits(digits: set[int]) -> str:
    """One digit, or a class of several: `[3-79]`."""
    if len(digits) == 1:
        return str(next(iter(digits)))
    runs: list[list[int]] = []
    for digit in sorted(digits):
        if runs and digit == runs[-1][-1] + 1:
            runs[-1].append(digit)
        else:
            runs.append([digit])
    inside = "".join("".join(map(str, run)) if len(run) < 3 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"[{inside}]"
