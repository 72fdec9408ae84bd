"""`ggplan fit --calibrate LOG`: what a benchmark teaches is kept in the machine's file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggplan.errors import CommandError, MachineError
from ggplan.offload.known_machine import Stated
from ggplan.offload.learning import Benchmark
from ggplan.text import decode_text, printable

if TYPE_CHECKING:
    from ggplan.ggml_types import Engine
    from ggplan.offload.header import Header
    from ggplan.offload.machine import Machine
    from ggplan.offload.placement import Wishes
    from ggplan.offload.settings import Settings

_LARGEST_LOG = 64 << 20


def benchmarks_in(path: Path) -> tuple[list[Benchmark], list[str]]:
    """The speeds in a log of llama-bench or llama-sweep-bench, and notes about what is left out.

    Raises
    ------
    MachineError
        If there are none, or several files or settings were measured: a log teaches about one.
    MeasureError
        If a table in it is damaged.
    OSError
        If it cannot be read.
    """
    from ggplan.measure.logs import read_log

    shown = printable(str(path))
    with path.open("rb") as file:
        raw = file.read(_LARGEST_LOG + 1)
    if len(raw) > _LARGEST_LOG:
        raise MachineError(f"{shown} is no log of a benchmark: it has more than 64 MiB")
    log = read_log(decode_text(raw))
    runs = [run for run in log.runs if run.speeds]
    if not runs:
        raise MachineError(
            f"{shown} has no result of a benchmark",
            hint="give the output of llama-bench or llama-sweep-bench",
        )
    if len(runs) > 1:
        names = [
            f"line {run.line}" + (f" ({printable(run.settings)})" if run.settings else "") for run in runs
        ]
        raise MachineError(
            f"{shown} has {len(runs)} benchmarks: {', '.join(names[:4])}{', ...' if len(runs) > 4 else ''}",
            hint="give a log with one file and one placement",
        )
    notes = [f"{shown}:{left.line}: {left.why}" for left in log.left_out]
    return [Benchmark(s.n_kv, s.pp, s.tg) for s in runs[0].speeds], notes


def learn(
    header: Header, log: Path, wishes: Wishes, line: str | None, engine: Engine, stated: Stated
) -> tuple[Machine, list[str]]:
    """The machine of a file with what a log teaches, which is written there; and notes.

    Parameters
    ----------
    line
        The command line that was measured; None is what is chosen for `wishes`.

    Raises
    ------
    MachineError, MeasureError, CommandError
        If the log, the file or the line cannot be understood.
    """
    from ggplan.cli.output import write_new
    from ggplan.offload.dimensions import dimensions_of
    from ggplan.offload.learning import learn_from
    from ggplan.offload.machine_file import default_path, read_machine, with_learned
    from ggplan.offload.profiles import PROFILES
    from ggplan.offload.weights import place_weights

    if stated != Stated(stated.file):
        raise click.UsageError("--calibrate is of the machine in its file; no option may state another")
    path = stated.file or default_path()
    if not path.is_file():
        raise click.UsageError(
            "--calibrate keeps what it learns in the machine's file: write one with `ggplan machine --write`"
        )
    rows, notes = benchmarks_in(log)
    machine = replace(read_machine(path), learned=None)
    settings = _settings(header, machine, wishes, line, engine)
    dimensions = dimensions_of(header)
    weights = place_weights(header, dimensions, settings, machine.gpus)
    source = printable(log.name)
    found, odd = learn_from(
        machine,
        weights,
        dimensions,
        settings,
        PROFILES[engine],
        rows,
        f"{source} of {printable(header.name)}",
    )
    text = decode_text(path.read_bytes())
    write_new(with_learned(text, found), str(path.resolve()), f": {source} teaches", force=True, quiet=True)
    return found, [*notes, *odd, f"{printable(str(path))}: {_told(found)}"]


def _settings(header: Header, machine: Machine, wishes: Wishes, line: str | None, engine: Engine) -> Settings:
    from ggplan.offload.commands import read_command
    from ggplan.offload.placing import place
    from ggplan.offload.profiles import PROFILES
    from ggplan.offload.starting import bench_settings

    if line is None:
        return bench_settings(place(header, machine, wishes, PROFILES[engine]))
    command = read_command(line, engine)
    if command.faults:
        raise CommandError(command.faults[0].message, hint=command.faults[0].hint)
    return command.settings


def _told(machine: Machine) -> str:
    learned = machine.learned
    assert learned is not None
    parts = (("generation", learned.generation), ("prompts", learned.prompt))
    said = [f"{name} {value:.2f}" for name, value in parts if value]
    return f"time measured over time reckoned: {', '.join(said)}"
