r"""Sets of tensor names as one pattern: `(attn_(k|q)|ffn_(gate|up)_exps)\.weight`.

Names are parted at what they share: first the ending (`.weight`), then the head up to the first `_`, then a
tail such as `_exps`. A character that a pattern cannot hold (a blank, `#`, anything not ASCII) is written
as `.`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_TAILS = ("_exps", "_shexp", "_chexps")
_PLAIN = re.compile(r"[A-Za-z0-9_/:,;<>~@!%&'\"`-]")


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
