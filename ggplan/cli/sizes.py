"""Counts on a command line: bytes (`48G`, `1.5GiB`), tokens (`32k`), and sizes of files that logs are of."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ggplan.text import has_unit, parse_bytes

# A smaller number without a unit was meant to have one.
_LEAST_BARE = 1024
_Command = TypeVar("_Command", bound=Callable[..., Any])

if TYPE_CHECKING:
    _Type = click.ParamType[int]
    _NamedType = click.ParamType[tuple[str, int]]
    _FileType = click.ParamType[tuple[str, str]]
    _Several = click.ParamType[tuple[int, ...]]
else:
    _Type = _NamedType = _FileType = _Several = click.ParamType  # generic since click 8.2


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
        n_bytes = parse_bytes(str(value), self.kilo)
        if n_bytes is None or n_bytes < 1:
            self.fail(f"'{value}' is not a size; sizes look like 48G, 500M, 1.5GiB", param, ctx)
        if n_bytes < _LEAST_BARE and not has_unit(str(value)):
            self.fail(f"'{value}' has no unit: {value}G, {value}M, or {value}B for bytes", param, ctx)
        return n_bytes


class TokenCount(_Type):
    """A number of tokens: `32768`, `32k` (× 1,024), `1M`."""

    name = "tokens"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse an option's text."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,9})\s*([kKmM]?)", str(value).strip())
        n = int(found[1]) * {"": 1, "k": 1024, "m": 1024**2}[found[2].lower()] if found else 0
        if not 0 < n < 1 << 31:
            self.fail(f"'{value}' is no number of tokens; write 32768 or 32k", param, ctx)
        return n


class TokenCounts(_Several):
    """Numbers of tokens with commas between them: `8k,32k`."""

    name = "tokens"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse an option's text."""
        one = TokenCount()
        return tuple(one.convert(part, param, ctx) for part in str(value).split(","))


class PositiveNumber(click.FloatRange):
    """A number above 0 that is one: neither `nan` nor `inf`, which a range lets through."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse an option's text."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"'{value}' is not a number above 0", param, ctx)
        return number


class NamedSize(_NamedType):
    """`NAME=24.6MiB`: a name, which may hold `=` itself, and a number of bytes."""

    name = "named size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Parse an option's text."""
        if isinstance(value, tuple):
            return value
        name, _, size = str(value).rpartition("=")
        if not name:
            self.fail(f"'{value}' is not NAME=SIZE, such as Q4_K_M=24.6MiB", param, ctx)
        return name, ByteCount(1024).convert(size, param, ctx)


class NamedFile(_FileType):
    """`NAME=FILE`, or a file alone; a file whose own name has `=` in it is taken as it is."""

    name = "named file"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Parse an option's text."""
        if isinstance(value, tuple):
            return value
        import os

        name, equals, path = str(value).partition("=")
        return (name, path) if equals and not os.path.exists(str(value)) else ("", str(value))


def measured_file_options(command: _Command) -> _Command:
    """`--size` and `--gguf`, the files that logs are of, as `sizes` and `ggufs`, each with a name."""
    command = click.option(
        "--gguf",
        "ggufs",
        multiple=True,
        type=NamedFile(),
        metavar="[NAME=]FILE",
        help="Of logs: the file that was measured, for its size and digest; can be repeated.",
    )(command)
    return click.option(
        "--size", "sizes", multiple=True, type=NamedSize(), metavar="NAME=SIZE",
        help="Of logs: the size of the file called NAME, such as Q4_K_M=24.6MiB; can be repeated.",
    )(command)  # fmt: skip
