"""Options that state a machine, spelled alike in every command that plans for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ggplan.cli.options import as_one
from ggplan.cli.sizes import ByteCount
from ggplan.errors import MachineError
from ggplan.offload.cards import cards_of
from ggplan.offload.known_machine import Stated, stated_bandwidth
from ggplan.text import parse_bytes

_Command = TypeVar("_Command", bound=Callable[..., Any])

if TYPE_CHECKING:
    _Type = click.ParamType[tuple[int, ...]]
else:
    _Type = click.ParamType  # generic since click 8.2


class ByteCounts(_Type):
    """Byte counts with commas between them: `24G,12G`."""

    name = "sizes"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse an option's text."""
        if isinstance(value, tuple):
            return value
        one = ByteCount(1024)
        return tuple(one.convert(part, param, ctx) for part in str(value).split(","))


class RamCount(ByteCount):
    """Bytes of RAM, of which no engine needs none."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse an option's text."""
        if isinstance(value, str) and parse_bytes(value, self.kilo) == 0:
            said = "embeddings and buffers of the host are always in RAM; state what there is"
            has = {name for other in (ctx.command.params if ctx else ()) for name in other.opts}
            if {"--gpu-layers", "--pin"} <= has:
                said += ". Layers stay on the GPUs with --gpu-layers 99, experts with --pin '_exps=CUDA0'"
            self.fail(said, param, ctx)
        return super().convert(value, param, ctx)


def _known(check: Callable[[str], object]) -> Callable[..., str | None]:
    """A callback that refuses, as wrong usage, a text that `check` refuses."""

    def checked(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value is not None:
            try:
                check(value)
            except MachineError as error:
                raise click.BadParameter(error.message, context, parameter) from error
        return value

    return checked


def machine_options(command: _Command) -> Callable[..., Any]:
    """`--machine`, `--vram`, `--cards`, `--ram`, `--bandwidth`, `--cores`, as one argument `stated`."""
    found = as_one("stated", Stated)(command)
    for option in reversed(_OPTIONS):
        found = option(found)
    return found


_OPTIONS = (
    click.option(
        "--machine", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
        help="A machine's file [default: that of `ggplan machine --write`, else what is found here].",
    ),
    click.option(
        "--vram", type=ByteCounts(), default=(), metavar="SIZE,...", help="Memory of each GPU: 24G,12G."
    ),
    click.option(
        "--cards", metavar="NAME,...", callback=_known(cards_of),
        help="GPUs by their names: 3090,3060 or 2x3090, `RTX 4060 Ti 16G`."
    ),
    click.option("--ram", type=RamCount(1024), metavar="SIZE", help="RAM: 128G."),
    click.option(
        "--bandwidth", metavar="RATE", callback=_known(stated_bandwidth),
        help="What all cores together read from RAM: 80G (GB/s), or a kind: `DDR5-6000 x2`, `M3 Ultra`.",
    ),
    click.option("--cores", type=click.IntRange(1, 8192), metavar="N", help="Physical cores."),
)  # fmt: skip
