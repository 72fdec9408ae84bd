"""`ggplan inspect` of a table of sensitivities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggplan.allocation import Figure, Sensitivities, Sensitivity


def show_sensitivities(
    path: str, *, figure: Figure | None, all_places: bool, as_json: bool, quiet: bool = False
) -> None:
    """Print a table: what its figures are, and how they lie by role and by type."""
    from ggplan.allocation import read_sensitivities, sensitivities_json
    from ggplan.allocation.sensitivity_tables import figure_of_name
    from ggplan.cli.options import note
    from ggplan.cli.output import print_json

    tables = read_sensitivities(path, figure=figure)
    by_name = figure_of_name(path)
    if figure and by_name not in (None, figure, tables[0].figure):
        note(f"by its name the file holds {by_name}; it is read as {figure}", quiet=quiet)
    if as_json:
        values = [sensitivities_json(table) for table in tables]
        print_json(values[0] if len(values) == 1 else values)
        return
    for table in tables:
        _show(path, table, all_places=all_places)


def _show(path: str, table: Sensitivities, *, all_places: bool) -> None:
    from ggplan.allocation.sensitivities import FIGURES, SITUATIONS
    from ggplan.cli.output import echo_wrapped
    from ggplan.text import printable

    of = f" of {printable(table.model)}" if table.model else ""
    echo_wrapped(f"{printable(path)} · sensitivities{of}")
    echo_wrapped(f"{FIGURES[table.figure]}, {SITUATIONS[table.of]}")
    for remark in table.remarks:
        echo_wrapped(f"# {printable(remark)}", then="# ")
    if table.marks:
        marks = ", ".join(f"{n:,} by {mark}" for mark, n in table.marks.items())
        echo_wrapped(f"not measured: {sum(table.marks.values()):,} figures ({marks})")
    if all_places:
        _print_places(table)
    elif len(table.places) == 1:
        _print_curve(table, table.places[0])
    else:
        _print_roles(table)


def _print_curve(table: Sensitivities, place: Sensitivity) -> None:
    """The figure of each type, the largest type first."""
    from ggplan.cli.output import print_table
    from ggplan.ggml_types import parse_type

    def bits(name: str) -> float:
        return table.bpw.get(name) or parse_type(name).bits_per_weight

    columns = [("type", "left"), ("bits per weight", "right"), (table.figure, "right")]
    rows = [[name, f"{bits(name):.3f}", _figure(place.figures.get(name))] for name in table.types]
    print_table(columns, sorted(rows, key=lambda row: (-float(row[1]), row[0])))


def _print_roles(table: Sensitivities) -> None:
    """The figures of all tensors of one name, whatever their block, for each type."""
    from ggplan.cli.output import echo_wrapped, print_table

    kinds: dict[tuple[str, str], list[float]] = {}
    n_missing: dict[tuple[str, str], int] = {}
    for place in table.places:
        kind = re.sub(r"\.\d+\.", ".*.", place.name)
        for type_, figure in place.figures.items():
            kinds.setdefault((kind, type_), []).append(figure)
        for type_ in place.missing:
            kinds.setdefault((kind, type_), [])
            n_missing[kind, type_] = n_missing.get((kind, type_), 0) + 1
    columns = [("tensors", "left"), ("type", "left"), ("measured", "right"), ("missing", "right")]
    columns += [("smallest", "right"), ("median", "right"), ("largest", "right")]
    print_table(
        columns,
        (
            [kind, type_, f"{len(found):,}", f"{n_missing.get((kind, type_), 0):,}", *_spread(found)]
            for (kind, type_), found in sorted(kinds.items(), key=lambda i: -median(i[1] or [-1.0]))
        ),
        least=("missing", "measured", "smallest", "largest"),
    )
    echo_wrapped(f"{len(table.places):,} places, {len(table.types):,} types; --tensors lists every one")


def _print_places(table: Sensitivities) -> None:
    from ggplan.cli.output import print_table

    columns = [("tensors", "left"), ("type", "left"), (table.figure, "right")]
    print_table(
        columns,
        (
            [place.name or "whole model", type_, _figure(place.figures.get(type_))]
            for place in table.places
            for type_ in (*place.figures, *place.missing)
        ),
    )


def _spread(figures: Sequence[float]) -> list[str]:
    if not figures:
        return ["", "", ""]
    return [_figure(min(figures)), _figure(median(figures)), _figure(max(figures))]


def _figure(figure: float | None) -> str:
    return "not measured" if figure is None else f"{figure:.6g}"
