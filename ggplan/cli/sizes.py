"""Byte counts on the command line: `48G`, `1.5GiB`, `500M`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]?)(ib|b)?", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


if TYPE_CHECKING:
    _Type = click.ParamType[int]
else:
    _Type = click.ParamType  # generic since click 8.2


class ByteCount(_Type):
    """A positive number of bytes.

    `GiB` always counts in powers of 1024 and `GB` in powers of 1000. A bare `G` counts in powers of `kilo`:
    1024 for memory, 1000 for split sets, as llama.cpp does.
    """

    name = "size"

    def __init__(self, kilo: int) -> None:
        self.kilo = kilo

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse an option's text."""
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        kilo = self.kilo if found is None or not found[3] else 1024 if found[3].lower() == "ib" else 1000
        n_bytes = 0 if found is None else int(float(found[1]) * kilo ** _POWERS[found[2].lower()])
        if n_bytes < 1:
            self.fail(f"'{value}' is not a size; sizes look like 48G, 500M, 1.5GiB", param, ctx)
        return n_bytes
