"""Other people's command lines under `ggplan fit`: what one allocates (--command), its traps (--check)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

_MOST_GPUS = 16
_UNKNOWN = 1 << 50  # bytes: nothing is too large for it

if TYPE_CHECKING:
    from ggplan.ggml_types import Engine
    from ggplan.offload.command_traps import Trap
    from ggplan.offload.commands import Command
    from ggplan.offload.header import Header
    from ggplan.offload.known_machine import Stated
    from ggplan.offload.machine import Gpu, Machine
    from ggplan.offload.settings import Settings


def show_reckoning(
    header: Header, line: str, engine: Engine | None, n_gpus: int | None, stated: Stated, *, as_json: bool
) -> None:
    """What a command line allocates, by device, in bytes for programs."""
    from ggplan.cli.output import print_json, print_table
    from ggplan.errors import CommandError
    from ggplan.offload.commands import read_command
    from ggplan.offload.known_machine import machine_for
    from ggplan.offload.profiles import PROFILES
    from ggplan.offload.reckon import reckon
    from ggplan.text import format_bytes, printable

    command = read_command(line, engine)
    if command.faults:
        raise CommandError(command.faults[0].message, hint=command.faults[0].hint)
    cards: tuple[Gpu, ...] | int = n_gpus if n_gpus is not None else machine_for(stated)[0].gpus
    if stated.vram or stated.cards:
        cards = machine_for(stated)[0].gpus[:n_gpus]
    settings = command.settings
    if command.devices is not None:
        cards, settings = _chosen(cards, command.devices, settings)
    reckoning = reckon(header, settings, cards, PROFILES[command.engine])
    if command.devices:
        named = zip(reckoning.devices, (*command.devices, "host"), strict=True)
        devices = tuple(replace(device, name=name) for device, name in named)
        reckoning = replace(reckoning, devices=devices)
    notes = (*reckoning.notes, *command.notes)
    if not cards and command.settings.gpu_layers > 0:
        notes = (*notes, "no GPU is stated, so all is in RAM: say how many with --gpus")
    if as_json:
        streamed = reckoning.streamed
        devices = [
            {
                "name": d.name,
                "weights": d.weights,
                "context": d.context,
                "compute": d.compute,
                "rollback": d.rollback,
                "draft_context": d.draft_context,
                "draft_compute": d.draft_compute,
            }
            for d in reckoning.devices
        ]
        found: dict[str, Any] = {"engine": reckoning.engine, "devices": devices}
        found["streamed"] = None if streamed is None else {"tensor": streamed[0], "bytes": streamed[1]}
        print_json({**found, "notes": list(notes)})
        return
    click.echo(f"{printable(header.name)}, {reckoning.engine}")
    rows = [
        [
            "RAM" if d.name == "host" else d.name,
            *map(format_bytes, (d.weights, d.whole_context, d.whole_compute, d.total)),
        ]
        for d in reckoning.devices
    ]
    columns = ("weights", "context", "compute", "total")
    print_table([("device", "left"), *((c, "right") for c in columns)], rows, least=("compute",))
    if reckoning.streamed is not None:
        name, size = reckoning.streamed
        first = reckoning.devices[0].name
        click.echo(
            f"copied to {first} for prompts, one tensor at a time: {printable(name)}, {format_bytes(size)}"
        )
    for text in notes:
        click.echo(f"note: {printable(text)}", err=True)


def _chosen(
    cards: Sequence[Gpu] | int, devices: Sequence[str], settings: Settings
) -> tuple[tuple[Gpu, ...] | int, Settings]:
    """The GPUs that `-dev` names, in its order, and the settings with overrides by their places in it."""
    from ggplan.errors import PlanError

    n = cards if isinstance(cards, int) else len(cards)
    known = {f"CUDA{i}": i for i in range(n)}
    for name in devices:
        if name not in known:
            hint = f"the devices are {', '.join(known)}" if known else "state the GPUs with --gpus"
            raise PlanError(f"-dev {name}: there is no such device", hint=hint)
    places = {"CPU": "CPU"} | {name: f"CUDA{i}" for i, name in enumerate(devices)}
    for override in settings.overrides:
        if override.device not in places:
            hint = f"-dev has {', '.join(devices) or 'none'}"
            raise PlanError(f"-ot ...={override.device}: -dev leaves this device out", hint=hint)
    overrides = tuple(replace(o, device=places[o.device]) for o in settings.overrides)
    chosen = len(devices) if isinstance(cards, int) else tuple(cards[known[name]] for name in devices)
    return chosen, replace(settings, overrides=overrides)


def show_traps(header: Header, line: str, engine: Engine | None, machine: Machine, *, as_json: bool) -> None:
    """The traps of a command line; ends with exit code 1 where one of them is a fault."""
    from ggplan.cli.output import print_json
    from ggplan.offload.command_checks import check_command
    from ggplan.offload.commands import read_command
    from ggplan.text import printable

    command = read_command(line, engine)
    machine, extra = _with_gpus(machine, command)
    if command.devices is not None:
        chosen, settings = _chosen(machine.gpus, command.devices, command.settings)
        gpus = chosen if isinstance(chosen, tuple) else ()
        machine, command = replace(machine, gpus=gpus), replace(command, settings=settings)
    traps = check_command(command, header, machine)
    notes = (*extra, *command.notes)
    faults = [trap for trap in traps if trap.severity != "note"]
    if as_json:
        found = [
            {"code": t.code, "severity": t.severity, "line": t.line, "message": t.message, "remedy": t.remedy}
            for t in traps
        ]
        print_json({"engine": command.engine, "traps": found, "notes": list(notes)})
    else:
        for trap in traps:
            _print_trap(trap)
        for text in notes:
            click.echo(f"note: {printable(text)}", err=True)
        n = len(faults)
        click.echo(f"{n or 'no'} fault{'s' * (n != 1)} in the command line", err=True)
    if faults:
        raise SystemExit(1)


def _with_gpus(machine: Machine, command: Command) -> tuple[Machine, tuple[str, ...]]:
    """The machine with GPUs of unknown size where it has none and the line is for some."""
    from ggplan.offload.machine import Gpu

    settings = command.settings
    listed = [int(name[4:]) for name in command.devices or () if re.fullmatch(r"CUDA\d{1,2}", name)]
    named = listed + [int(o.device[4:]) for o in settings.overrides if o.device.startswith("CUDA")]
    asks = named or command.has("-ngl") or command.has("-ncmoe") or command.has("-cmoe")
    if machine.gpus or settings.gpu_layers == 0 or not asks:
        return machine, ()
    n = max([1, len(settings.tensor_split), *(i + 1 for i in named)])
    n = min(n, _MOST_GPUS)
    note = (
        f"there is no GPU here and none is stated, so the line is checked for {n} of unknown size: state "
        "them with --vram or --cards, and --ram"
    )
    return replace(machine, gpus=(Gpu("", _UNKNOWN),) * n, ram=None), (note,)


def _print_trap(trap: Trap) -> None:
    from ggplan.text import printable

    click.echo(f"line {trap.line}: {trap.severity} {trap.code}: {printable(trap.message)}")
    click.echo(f"    {printable(trap.remedy)}")
