"""`ggplan machine`: what models are to run on here, detected and measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.machine_options import machine_options
from ggplan.cli.options import force_option, json_option, quiet_option
from ggplan.offload.known_machine import Stated

if TYPE_CHECKING:
    from ggplan.offload.machine import Machine

_EPILOG = """\b
Examples:
  ggplan machine                               what is here, and where each number is from
  ggplan machine --write                       keep it for `ggplan fit`
  ggplan machine --no-measure --json
  ggplan machine --vram 22G --write --force    the same with less of the GPU, in place of the file
  ggplan machine --cards 3090,3060 --ram 128G --bandwidth 'DDR5-6000 x2' -o other.toml
  ggplan machine --list-cards | grep 40
"""


@click.command("machine", epilog=_EPILOG, short_help="Detect and measure this machine.")
@machine_options
@click.option(
    "--measure/--no-measure",
    "measures",
    default=True,
    help="Measure the bandwidth of RAM and the speed of a core, in some seconds [default: measure].",
)
@click.option("--write", is_flag=True, help="Keep it in the file that other commands read.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it to this file."
)
@click.option("--list-cards", is_flag=True, help="List the cards that `--cards` knows, and end.")
@force_option()
@json_option("the machine")
@quiet_option
def machine_command(
    stated: Stated,
    measures: bool,
    write: bool,
    output: Path | None,
    list_cards: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Detect and measure this machine: GPUs, RAM, cores, and where each number is from.

    Options beat what is measured, that what is detected, and that the file of before, of which margins and
    what a benchmark taught are kept. A machine of which both RAM and GPUs are stated is another one: nothing
    is detected.

    Exits 0; 1 if it cannot be measured or the file exists; 2 for wrong usage.
    """
    from ggplan.cli.trouble import say
    from ggplan.offload.machine_file import default_path, machine_text
    from ggplan.text import printable

    if list_cards:
        _print_cards(quiet=quiet)
        return
    if write and output is not None:
        raise click.UsageError("--write and -o name two files: give one of them")
    path = default_path() if write else output
    if path is not None and path.exists() and not force:
        from ggplan.errors import MachineError

        raise MachineError(f"{printable(str(path))} exists", hint="give --force to replace it")
    machine, notes = _found(stated, measures=measures)
    if as_json:
        from ggplan.cli.output import print_json

        print_json(_as_json(machine, notes))
    else:
        _print_machine(machine, quiet=quiet)
    if not quiet:
        for note in notes:
            say(f"note: {note}")
    if path is None:
        if not (quiet or as_json) and not default_path().exists():
            say(f"note: `ggplan machine --write` keeps it in {printable(str(default_path()))}")
        return
    from ggplan.cli.output import write_new
    from ggplan.version import __version__

    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.resolve()  # a link to it stays one
    head = f"A machine that `ggplan fit` plans for; written by ggplan {__version__} (`ggplan machine`)."
    write_new(machine_text(machine, head), str(path), force=force, quiet=quiet)


def _found(stated: Stated, *, measures: bool) -> tuple[Machine, list[str]]:
    """The machine, and notes."""
    from dataclasses import replace

    from ggplan.offload.detecting import detect
    from ggplan.offload.known_machine import machine_for, on_top_of, with_stated
    from ggplan.offload.machine_file import default_path, read_machine

    is_other = stated.file is not None or (stated.ram is not None and bool(stated.vram or stated.cards))
    if is_other:
        machine, notes = machine_for(stated)
        return machine, list(notes)
    detected = detect()
    machine, notes_ = detected.machine, list(detected.notes)
    if measures and machine.cores and detected.free and stated.bandwidth is None:
        measured = _measured(machine.cores, detected.free, notes_)
        machine = replace(machine, **measured[0], sources={**machine.sources, **measured[1]})
    path = default_path()
    if path.is_file():
        machine, more = on_top_of(machine, read_machine(path))
        notes_ += more
    return with_stated(machine, stated), notes_


def _measured(cores: int, free: int, notes: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What is measured, by field, and its sources."""
    import os

    from ggplan.offload.measuring import measure, rates_of

    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.3 * cores:
        notes.append("other programs are at work: what is measured is less than the machine can do")
    found = measure(cores, free)
    core = f"{found.core:.2f} times a core of a Zen 3 server"
    return (
        {
            "bandwidth": float(round(found.bandwidth, -7)),
            "rates": {k: float(round(v, -7)) for k, v in rates_of(found.core).items()},
        },
        {"bandwidth": f"measured with {cores} threads", "rates": f"measured: {core}"},
    )


def _print_machine(machine: Machine, *, quiet: bool) -> None:
    from ggplan.cli.output import print_table

    print_table([("", "left"), ("", "left"), ("from", "left")], _rows(machine), wraps=("from",), quiet=quiet)


_SHOWN = ("q8_0", "q4_K")  # types whose rates are shown; the file has all


def _rows(machine: Machine) -> list[list[str]]:
    from ggplan.text import format_bytes

    def speed(value: float | None) -> str:
        return "unknown" if value is None else f"{value / 1e9:.4g} GB/s"

    sources = machine.sources
    rows = []
    for i, gpu in enumerate(machine.gpus):
        at = f"gpu {i}"
        rows.append([f"CUDA{i}", gpu.name or "a GPU", ""])
        rows.append(["  memory", format_bytes(gpu.memory), sources.get(f"{at} memory", "")])
        rows.append(["  its bandwidth", speed(gpu.bandwidth), sources.get(f"{at} bandwidth", "")])
        rows.append(["  PCIe", speed(gpu.pcie), sources.get(f"{at} pcie", "")])
        flops = "unknown" if gpu.flops is None else f"{gpu.flops / 1e12:.4g} TFLOPS"
        rows.append(["  half precision", flops, sources.get(f"{at} flops", "")])
    if not machine.gpus:
        rows.append(["GPUs", "none", ""])
    ram = "unknown" if machine.ram is None else format_bytes(machine.ram)
    rows.append(["RAM", ram, sources.get("ram", "")])
    rows.append(["  its bandwidth", speed(machine.bandwidth), sources.get("bandwidth", "")])
    rows.append(["cores", str(machine.cores or "unknown"), sources.get("cores", "")])
    if machine.rates:
        shown = [f"{kind} {machine.rates[kind] / 1e9:.3g}" for kind in _SHOWN if kind in machine.rates]
        rest = f" and {len(machine.rates) - len(shown)} types more" if len(machine.rates) > len(shown) else ""
        rows.append(
            ["  GB/s of one", (", ".join(shown) + rest).removeprefix(" and "), sources.get("rates", "")]
        )
    margins = f"{format_bytes(machine.gpu_margin)} a GPU, {format_bytes(machine.ram_margin)} of RAM"
    rows.append(["left free", margins, ""])
    if (learned := machine.learned) is not None:
        parts = (("generation", learned.generation), ("prompts", learned.prompt))
        said = [f"{name} {value:.2f}" for name, value in parts if value]
        rows.append(["measured / reckoned", ", ".join(said) or "nothing", learned.source])
    return rows


def _as_json(machine: Machine, notes: list[str]) -> dict[str, object]:
    import dataclasses

    fields = ("ram", "bandwidth", "cores", "gpu_margin", "ram_margin")
    return {
        "schema": "ggplan/machine@1",
        "gpus": [dataclasses.asdict(gpu) for gpu in machine.gpus],
        **{name: getattr(machine, name) for name in fields},
        "rates": dict(machine.rates),
        "learned": None if machine.learned is None else dataclasses.asdict(machine.learned),
        "sources": dict(machine.sources),
        "notes": notes,
    }


def _print_cards(*, quiet: bool) -> None:
    from ggplan.cli.output import print_table
    from ggplan.offload.cards import listed

    columns = ("memory", "GB/s", "PCIe GB/s", "TFLOPS")
    print_table(
        [("card", "left"), *((heading, "right") for heading in columns)],
        [
            [
                gpu.name,
                f"{gpu.memory >> 30} GiB",
                f"{(gpu.bandwidth or 0) / 1e9:.0f}",
                f"{(gpu.pcie or 0) / 1e9:.0f}",
                "" if gpu.flops is None else f"{gpu.flops / 1e12:.0f}",
            ]
            for gpu in listed()
        ],
        quiet=quiet,
    )
