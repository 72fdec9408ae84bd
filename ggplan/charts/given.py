"""What a caller of a chart may give: records, or the files that hold them; and one of a few words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ggplan.errors import ChartError
from ggplan.measure.parsing import parse_files
from ggplan.measure.record import Record
from ggplan.text import nearest, printable

GivenRecord = Record | str | Path
"""A record, or the file of one, or a log or table that `ggplan.measure.parse_files` reads."""


def records_of(given: GivenRecord | Sequence[GivenRecord]) -> list[Record]:
    """The records, those of files read.

    Raises
    ------
    MeasureError
        If a file cannot be read.
    TypeError
        If something is neither a record nor a path.
    """
    items = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for item in items:
        if not isinstance(item, Record | str | Path):
            raise TypeError(
                f"{printable(repr(item))[:80]} is neither a record nor the path of one;"
                " ggplan.measure.load_record reads a record"
            )
    # Files are read together, so that equal names in several of them are told apart.
    records = [item for item in items if isinstance(item, Record)]
    return records + parse_files(paths_of(given))


def paths_of(given: GivenRecord | Sequence[GivenRecord]) -> list[str | Path]:
    """The paths among what was given."""
    items = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    return [item for item in items if isinstance(item, str | Path)]


def require_choice(argument: str, value: object, choices: object) -> None:
    """Raise ChartError unless an argument has one of the values of a `Literal`."""
    values = get_args(choices)
    if value in values:
        return
    near = nearest(str(value), values)
    hint = f"the nearest is {near}" if near else f"choose from {', '.join(values)}"
    raise ChartError(f"{argument} cannot be {printable(str(value))}", hint=hint)
