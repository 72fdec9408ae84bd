"""Printing a placement: what goes where, how fast it will be, the command, or ways out of a shortage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ggplan.offload.placement import Placement
    from ggplan.offload.speed import Rate
    from ggplan.offload.ways_out import WayOut


_OPTION_WIDTH = 16  # of the column of options in explanations


def print_placement(
    placement: Placement, file: str, ways: tuple[WayOut, ...], *, explain: bool, err: bool = False
) -> None:
    """All of it, as text; that it does not fit alone goes to stderr with `err`."""
    from ggplan.cli.output import echo_wrapped
    from ggplan.offload.placement import describe_shortage
    from ggplan.offload.starting import bench_command, bench_settings, server_command, shown
    from ggplan.text import printable

    if err:
        for shortage in placement.shortages:
            click.echo(f"error: {describe_shortage(shortage)}", err=True)
        return
    verdict = "fits" if placement.fits else "does not fit"
    click.echo(f"{printable(placement.header.name)}, {placement.profile.name}: {verdict}")
    _print_devices(placement)
    for line in _details(placement):
        echo_wrapped(line, then="  " + " " * (len(line) - len(line.lstrip())))
    if not placement.fits:
        click.echo()
        for shortage in placement.shortages:
            click.echo(describe_shortage(shortage))
        _print_ways(placement, ways)
        return
    click.echo()
    click.echo(shown(server_command(placement, file)))
    if explain:
        _print_explanations(placement, file)
    click.echo()
    measuring = bench_settings(placement)
    tokens = measuring.micro_batch
    if tokens < placement.settings.micro_batch:
        why = "llama-bench keeps the logits of every token, so there is room for fewer at a time"
        click.echo(f"measure it with -ub {tokens}: {why}")
    else:
        click.echo("measure it with")
    click.echo(shown(bench_command(placement, file, measuring)))


def _print_devices(placement: Placement) -> None:
    from ggplan.cli.output import print_table
    from ggplan.text import format_bytes

    rows = []
    for row in _rows(placement):
        left = row["left"]
        cells = [row[k] for k in ("memory", "weights", "context", "compute", "margin")]
        shown = [format_bytes(n) if n is not None else "?" for n in cells]
        at_end = "?" if left is None else f"-{format_bytes(-left)}" if left < 0 else format_bytes(left)
        rows.append(["RAM" if row["name"] == "host" else row["name"], *shown, at_end])
    columns = ("memory", "weights", "context", "compute", "margin", "left")
    print_table([("device", "left"), *((c, "right") for c in columns)], rows, least=("margin", "memory"))


def _rows(placement: Placement) -> Iterator[dict[str, Any]]:
    """One row a device, in bytes."""
    machine = placement.machine
    for i, device in enumerate(placement.reckoning.devices):
        is_gpu = i < len(machine.gpus)
        memory = machine.gpus[i].memory if is_gpu else machine.ram
        margin = machine.gpu_margin if is_gpu else machine.ram_margin
        yield {
            "name": device.name,
            "memory": memory,
            "weights": device.weights,
            "context": device.whole_context,
            "compute": device.whole_compute,
            "margin": margin,
            "left": None if memory is None else memory - margin - device.total,
        }


def _details(placement: Placement) -> Iterator[str]:
    from ggplan.offload.allocation import HOST
    from ggplan.text import format_bytes

    settings, reckoning = placement.settings, placement.reckoning
    if placement.in_ram:
        host = reckoning.devices[-1].weights
        how = "mapped from the file" if "mmap" in settings.load_mode else "pinned"
        experts = [n for n in placement.devices if ".ffn_" in n and "exps" in n]
        n_all = len({name.split(".")[1] for name in experts})
        n = len(placement.in_ram)
        yield f"{n} of {n_all} blocks have routed experts in RAM: {format_bytes(host)}, {how}"
    elif placement.machine.gpus and any(d == HOST for n, d in placement.devices.items() if "blk." in n):
        first = reckoning.devices[0].name
        copied = (
            placement.settings.op_offload
            and placement.settings.micro_batch >= placement.profile.offload_batch
        )
        copies = f", and are copied to {first} for prompts" if copied else ""
        yield f"{format_bytes(reckoning.devices[-1].weights)} of weights stay in RAM{copies}"
    if reckoning.streamed is not None:
        name, size = reckoning.streamed
        first = reckoning.devices[0].name
        yield f"streamed to {first} for prompts, one tensor at a time: {name}, {format_bytes(size)}"
    full = placement.generation_full
    if not placement.fits:
        yield "if it fitted:"
    yield (
        f"generation: {_range(placement.generation)} tokens per second, likely "
        f"{_figure(placement.generation.likely)}; {_figure(full.likely)} after "
        f"{placement.tokens_of_slot:,} tokens"
    )
    yield f"prompts: {_range(placement.prompt)} tokens per second, likely {_figure(placement.prompt.likely)}"
    for reason in dict.fromkeys((*placement.generation.reasons, *placement.prompt.reasons)):
        yield f"  {reason}"
    for note in placement.notes:
        yield f"  {note}"


def _range(rate: Rate) -> str:
    return f"{_figure(rate.low)} to {_figure(rate.high)}"


def _figure(rate: float) -> str:
    return f"{rate:.1f}" if rate < 20 else f"{rate:,.0f}"


def _print_ways(placement: Placement, ways: tuple[WayOut, ...]) -> None:
    from ggplan.cli.output import echo_wrapped
    from ggplan.ggml_types import parse_type
    from ggplan.offload.ways_out import SMALLER, bits_left

    if not ways:
        bits, least = bits_left(placement), parse_type(SMALLER[-1])
        why = ""
        if bits is not None and bits < least.bits_per_weight:
            why = (
                f" what is in RAM would have to take {bits:.1f} bits a weight, and {least.name} takes "
                f"{least.bits_per_weight:.1f};"
            )
        echo_wrapped(f"no change that was tried makes it fit:{why} it takes more memory, or a smaller model")
        return
    click.echo("what would make it fit:")
    for way in ways:
        option = f" ({way.options})" if way.options else ""
        speed = _figure(way.placement.generation.likely)
        echo_wrapped(f"  {way.what}{option}: {speed} tokens per second", then="    ")


def _print_explanations(placement: Placement, file: str) -> None:
    from ggplan.cli.output import echo_wrapped
    from ggplan.offload.explaining import explained

    click.echo()
    for option, why in explained(placement, file):
        # A path or a pattern may be wider than the terminal, and is not cut: it stands on a line of its own.
        if len(option) < _OPTION_WIDTH:
            echo_wrapped(f"  {option:<{_OPTION_WIDTH}}{why}", then=" " * (_OPTION_WIDTH + 2))
        else:
            click.echo(f"  {option}")
            echo_wrapped(" " * (_OPTION_WIDTH + 2) + why, then=" " * (_OPTION_WIDTH + 2))


def placement_json(placement: Placement, file: str, ways: tuple[WayOut, ...]) -> dict[str, Any]:
    """All of it, for programs. Sizes are bytes, rates tokens per second."""
    from ggplan.offload.starting import bench_command, server_command

    settings, streamed = placement.settings, placement.reckoning.streamed
    found: dict[str, Any] = {
        "name": placement.header.name,
        "engine": placement.profile.name,
        "fits": placement.fits,
        "devices": list(_rows(placement)),
        "streamed": None if streamed is None else {"tensor": streamed[0], "bytes": streamed[1]},
        "blocks_with_experts_in_ram": list(placement.in_ram),
        "context": settings.context,
        "micro_batch": settings.micro_batch,
        "generation": _rate_json(placement.generation),
        "generation_full_context": _rate_json(placement.generation_full),
        "prompt": _rate_json(placement.prompt),
        "notes": list(placement.notes),
        "shortages": [
            {"device": s.device, "needed": s.needed, "available": s.available, "short": s.short}
            for s in placement.shortages
        ],
    }
    if placement.fits:
        found |= {"command": server_command(placement, file), "measure": bench_command(placement, file)}
    else:
        found["ways_out"] = [
            {"what": w.what, "options": w.options, "generation": _rate_json(w.placement.generation)}
            for w in ways
        ]
    return found


def _rate_json(rate: Rate) -> dict[str, Any]:
    return {"low": rate.low, "likely": rate.likely, "high": rate.high, "reasons": list(rate.reasons)}
