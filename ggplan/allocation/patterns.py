r"""Patterns for exactly some of a model's tensors: `^blk\.{1..44}\.ffn_(gate|up)_exps\.weight$`.

No two rules of a recipe that is written here match one tensor, so their order is free and each says all that
it decides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ggplan.recovering.patterns import escape, layers_pattern, names_pattern, runs

_BLOCK = re.compile(r"(.*?\bblk\.)(0|[1-9]\d{0,3})\.(.+)", re.ASCII | re.DOTALL)
_LONGEST = 900  # characters of a pattern; a recipe allows 1,000


def split_name(name: str) -> tuple[str, int | None, str]:
    """What stands before a tensor's layer, the layer, and the kind: `blk.`, 7, `attn_q.weight`.

    Outside the layers "", None and the whole name.
    """
    found = _BLOCK.fullmatch(name)
    return (found[1], int(found[2]), found[3]) if found else ("", None, name)


def exact_patterns(names: Collection[str], all_names: Collection[str]) -> list[str]:
    """Patterns that are found in these names, and in no others of all.

    Kinds that are in the same layers share one.
    """
    needed: dict[tuple[str, str], int] = {}
    barred: dict[tuple[str, str], int] = {}
    outside: list[str] = []
    wanted = frozenset(names)
    for name in all_names:
        prefix, layer, kind = split_name(name)
        if layer is not None:
            of = needed if name in wanted else barred
            of[prefix, kind] = of.get((prefix, kind), 0) | 1 << layer
        elif name in wanted:
            outside.append(name)
    alike: dict[tuple[str, int, int], list[str]] = {}
    for (prefix, kind), layers in needed.items():
        alike.setdefault((prefix, layers, barred.get((prefix, kind), 0)), []).append(kind)
    found = []
    for (prefix, layers, others), kinds in alike.items():
        head = f"^{escape(prefix)}{_layers(layers, others)}\\."
        found += [f"{head}{part}$" for part in _within_length(kinds, _LONGEST - len(head))]
    return found + [f"^{part}$" for part in _within_length(outside, _LONGEST)]


def _layers(needed: int, barred: int) -> str:
    """A pattern for layers; those that no tensor of the kinds is in may be in it."""
    if not barred:
        return r"\d+"
    last = max(needed.bit_length(), barred.bit_length())
    free = ((1 << last) - 1) & ~(needed | barred)
    return layers_pattern(runs(needed, free))


def _within_length(names: Sequence[str], most: int) -> list[str]:
    """A pattern for names, or where it would be too long, several."""
    if not names:
        return []
    pattern = names_pattern(sorted(names))
    if len(pattern) <= most or len(names) == 1:
        return [pattern]
    middle = len(names) // 2
    return [*_within_length(names[:middle], most), *_within_length(names[middle:], most)]
