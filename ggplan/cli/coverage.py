"""How coverage is printed: what each kind of tensor saw, and what is to be warned of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from ggplan.cli.options import note

if TYPE_CHECKING:
    from ggplan.imatrix.coverage import Coverage

_MOST_LINES = 10


def coverage_json(coverage: Coverage) -> dict[str, Any]:
    """One entry as JSON values."""
    return {
        "tensor": coverage.name,
        "columns": coverage.n_columns,
        "tokens": list(coverage.counts),
        "half_of_energy_in_columns": list(coverage.half),
        "largest_column": list(coverage.column),
        "largest_share": list(coverage.share),
    }


def print_coverage(entries: Sequence[Coverage], *, every: bool = False, quiet: bool = False) -> None:
    """A table: a row for all tensors of one name, whatever their layer; with `every`, for each tensor."""
    from ggplan.cli.output import print_table

    kinds: dict[str, list[Coverage]] = {}
    for entry in entries:
        kinds.setdefault(entry.name if every else _kind(entry.name), []).append(entry)
    columns = [("tensors", "left"), ("count", "right"), ("columns", "right"), ("matrices", "right")]
    columns += [("fewest tokens", "right"), ("median", "right"), ("most", "right"), ("unseen", "right")]
    columns += [("few", "right"), ("half of energy in", "right"), ("largest column", "right")]
    print_table(
        columns,
        (_row(kind, found) for kind, found in kinds.items()),
        least=("count", "most", "columns", "half of energy in", "median", "largest column", "matrices"),
        quiet=quiet,
    )


def _kind(name: str) -> str:
    return re.sub(r"^blk\.\d+\.", "blk.*.", name)


def _row(kind: str, found: Sequence[Coverage]) -> list[str]:
    counts = [n for entry in found for n in entry.counts]
    half = [n for entry in found for n in entry.half if n]
    share = max((share for entry in found for share in entry.share), default=0.0)
    columns = sorted({entry.n_columns for entry in found})
    of_each = [f"{min(counts):,}", f"{int(median(counts)):,}", f"{max(counts):,}"]
    of_each += [f"{sum(len(entry.without_data) for entry in found):,}"]
    of_each += [f"{sum(len(entry.with_few()) for entry in found):,}"]
    if any(entry.is_counted_as_one for entry in found):
        of_each = ["?"] * len(of_each)
    return [
        kind,
        f"{len(found):,}",
        "..".join(f"{n:,}" for n in (columns if len(columns) == 1 else (columns[0], columns[-1]))),
        f"{sum(len(entry.share) for entry in found):,}",
        *of_each,
        f"{int(median(half)):,} columns" if half else "",
        f"{100 * share:.1f} %",
    ]


def note_coverage(entries: Sequence[Coverage], *, quiet: bool = False) -> None:
    """Tell of experts without data or with too little, on stderr."""
    from ggplan.imatrix.coverage import FEW_TOKENS

    as_one = [entry for entry in entries if entry.is_counted_as_one]
    if as_one:
        note(
            f"{', '.join(_kinds(as_one))}: one count for all experts of a layer, so what each of them saw, "
            "and which saw nothing, is not known",
            quiet=quiet,
        )
    experts = [entry for entry in entries if len(entry.counts) > 1]
    total = sum(len(entry.counts) for entry in experts)
    unseen = [entry for entry in experts if entry.without_data]
    if unseen:
        n = sum(len(entry.without_data) for entry in unseen)
        note(
            f"{n:,} of {total:,} matrices of experts saw no token ({_places(unseen, 'without_data')}): all "
            "their columns count alike. Run more text, or a text of more kinds",
            quiet=quiet,
        )
    few = [entry for entry in experts if entry.with_few()]
    if few:
        n = sum(len(entry.with_few()) for entry in few)
        note(
            f"{n:,} of {total:,} matrices of experts saw fewer than {FEW_TOKENS} tokens a column "
            f"({', '.join(_kinds(few))}): little can be chosen by them. Run more text",
            quiet=quiet,
        )


def _kinds(entries: Sequence[Coverage]) -> list[str]:
    return list(dict.fromkeys(_kind(entry.name) for entry in entries))


def _places(entries: Sequence[Coverage], which: str) -> str:
    shown = [
        f"{entry.name}: {', '.join(map(str, getattr(entry, which)[:8]))}"
        f"{', …' if len(getattr(entry, which)) > 8 else ''}"
        for entry in entries[:3]
    ]
    return "; ".join(shown) + ("; …" if len(entries) > 3 else "")


def dominating_lines(entries: Sequence[Coverage]) -> list[str]:
    """The columns that dominate their matrices, those with the largest share first."""
    found = [
        (entry.share[i], entry.name, i, entry.column[i], len(entry.share))
        for entry in entries
        for i in entry.dominated
    ]
    found.sort(key=lambda each: (-each[0], each[1], each[2]))
    lines = [
        f"{name}{f', expert {i}' if n > 1 else ''}: column {column:,} has {100 * share:.0f} % of the energy"
        for share, name, i, column, n in found[:_MOST_LINES]
    ]
    if len(found) > _MOST_LINES:
        lines.append(f"and {len(found) - _MOST_LINES:,} more matrices; --json has all")
    return lines
