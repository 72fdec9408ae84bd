"""The options of `ggplan optimize` that limit a file by a machine, as `ggplan fit` spells them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.machine_options import machine_options
from ggplan.cli.options import as_one, note
from ggplan.cli.sizes import PositiveNumber, TokenCount
from ggplan.offload.known_machine import Stated

if TYPE_CHECKING:
    from ggplan.allocation.machine_rows import Target
    from ggplan.allocation.problem import Problem
    from ggplan.offload.placement import Placement

_ON_DEVICE = re.compile(r"(.*)=\s*(CPU|CUDA\d+)\s*", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class MachineWishes:
    """The values of `machine_budget_options` beside the machine itself."""

    context: int | None
    kv_type: str | None
    ubatch: int | None
    slots: int
    gpu_layers: int | None
    n_gpus: int | None
    min_tps: float | None
    fast_types: bool

    def is_given(self, stated: Stated) -> bool:
        """Whether any of the options is given, so that the file must fit a machine."""
        return stated != Stated() or self != MachineWishes(None, None, None, 1, None, None, None, False)

    def target(self, stated: Stated, engine: str, device_pins: tuple[str, ...], *, quiet: bool) -> Target:
        """The machine, and what is asked of it."""
        from ggplan.allocation.machine_rows import Target
        from ggplan.cli.fit import WishOptions, known_machine, wishes_from
        from ggplan.text import format_bytes, printable

        machine = known_machine(stated, self.n_gpus, quiet=quiet)
        if machine.gpus and stated.ram is None and machine.ram is not None:
            source = printable(machine.sources.get("ram", "this machine"))
            note(
                f"RAM: {format_bytes(machine.ram)}, as of {source}; --ram states another. Layers stay on the"
                " GPUs with --gpu-layers 99, experts with --pin '_exps=CUDA0'",
                quiet=quiet,
            )
        if self.fast_types and not machine.cores:
            raise click.UsageError("--fast-types: the number of cores is not known (--cores)")
        wished = WishOptions(
            self.context, self.kv_type, self.ubatch, self.slots, self.gpu_layers, device_pins
        )
        wishes = wishes_from(wished, "ik_llama.cpp" if engine == "ik_llama.cpp" else "llama.cpp")
        return Target(machine, wishes, self.min_tps, self.fast_types)


def split_pins(pins: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The pins that name a device, and those that name a type."""
    on_devices = [pin for pin in pins if _ON_DEVICE.fullmatch(pin)]
    cleaned = tuple(_ON_DEVICE.sub(r"\1=\2", pin) for pin in on_devices)
    return cleaned, tuple(pin for pin in pins if pin not in on_devices)


def machine_budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options as the arguments `stated: Stated` and `wished: MachineWishes`."""
    command = machine_options(as_one("wished", MachineWishes)(command))
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option("-c", "--ctx", "context", type=TokenCount(), metavar="N",
                 help="Tokens of context: 32k [default: as trained, at most 32k]."),
    click.option("--kv-type", metavar="TYPE[,TYPE]", help="Type of keys and values: q8_0 [default: f16]."),
    click.option("--ubatch", type=click.IntRange(1, 65536), metavar="N",
                 help="Tokens of a prompt at a time [default: 512, or 2048 where it pays]."),
    click.option("--slots", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N",
                 help="Conversations at once."),
    click.option("--gpu-layers", type=click.IntRange(0, 999), metavar="N",
                 help="Layers on the GPUs, from the end [default: all, or as many as fit]."),
    click.option("--gpus", "n_gpus", type=click.IntRange(0, 16), metavar="N",
                 help="Use the first N GPUs alone."),
    click.option("--min-tps", type=PositiveNumber(), metavar="N",
                 help="The least tokens per second, written into an empty context: the likely figure of"
                 " `ggplan fit`."),
    click.option("--fast-types", is_flag=True,
                 help="In RAM only types that the cores decode as fast as they read RAM."),
)  # fmt: skip


def print_start(placement: Placement, name: str) -> None:
    """Where the file lies, how fast it is, and the command that starts it so; on stderr."""
    from ggplan.allocation.promises import heading_of, start_of
    from ggplan.cli.output import echo_wrapped

    for line in heading_of(placement):
        label, text = line[:16].strip(), line[16:]
        echo_wrapped(f"{label.lower()}: {text}", then="  ", err=True)
    click.echo("\n".join(start_of(placement, name)), err=True)


def start_json(placement: Placement, problem: Problem) -> dict[str, Any]:
    """The placement, for programs, as `ggplan fit --json` has it."""
    from ggplan.allocation.promises import file_of
    from ggplan.cli.placing import placement_json

    return placement_json(placement, file_of(problem.options.name), ())
