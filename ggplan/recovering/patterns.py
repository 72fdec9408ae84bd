r"""Sets of layers and sets of names as patterns of the recipe language.

A set of layers is an int whose bit `i` stands for layer `i`; Python's ints make union, difference and "do
these overlap" one operation each. In a pattern it is a range, `{0..4,7,40..46}` (see
`ggplan.rules.ranges`), which may not be one or two single numbers: these are `7` and `(1|3)`.

Names are split at what they share: first the ending (`.weight`), then the head up to the first `_`, then a
tail such as `_exps`: `(attn_(k|q)|ffn_(gate|up)_exps)\.weight`. A character that a pattern cannot hold (a
blank, `#`, anything not ASCII) is written as `.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_TAILS = ("_exps", "_shexp", "_chexps")
_PLAIN = re.compile(r"[A-Za-z0-9_/:,;<>~@!%&'\"`-]")


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


def escape(text: str) -> str:
    """`text` as a pattern."""
    return "".join(
        char if _PLAIN.match(char) else f"\\{char}" if char in ".\\+*?()[]{}|^$" else "." for char in text
    )


def names_pattern(names: Sequence[str]) -> str:
    """A pattern for exactly these names, sorted; a group where there are several."""
    endings: dict[str, list[str]] = {}
    for name in sorted(names):
        stem, dot, ending = name.rpartition(".")
        endings.setdefault(dot + ending if dot else "", []).append(stem if dot else name)
    parts = [_any_of(_headed(stems)) + escape(ending) for ending, stems in endings.items()]
    return _any_of(parts)


def _headed(stems: list[str]) -> list[str]:
    """Patterns for stems, those with a common head and tail joined: `attn_(k|q)`, `ffn_(gate|up)_exps`."""
    bodies_of: dict[tuple[str, str], list[str]] = {}
    parts = []
    for stem in stems:
        tail = next((t for t in _TAILS if stem.endswith(t)), "")
        head, underscore, body = stem.removesuffix(tail).partition("_")
        if body:
            bodies_of.setdefault((head + underscore, tail), []).append(body)
        else:
            parts.append(escape(stem))
    tails_of: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (head, tail), bodies in bodies_of.items():
        tails_of.setdefault((head, tuple(bodies)), []).append(tail)
    for (head, shared), tails in tails_of.items():
        ending = ""
        if any(tails):
            ending = _any_of([tail for tail in tails if tail])
            if "" in tails:
                ending = f"{ending if ending.startswith('(') else f'({ending})'}?"
        parts.append(escape(head) + _any_of([escape(body) for body in shared]) + ending)
    return parts


def _any_of(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"
