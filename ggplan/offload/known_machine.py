"""The machine that a plan is for: of options, of a file, or the one at hand.

What options state replaces its part. Where they state both RAM and GPUs, the machine is another one than that
at hand, and nothing of the latter is taken: its bandwidth would be the wrong one. Else the rest is from
`--machine FILE`, from the file that `ggplan machine --write` wrote, or, where there is none, from what the
system says without measuring.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ggplan.errors import MachineError
from ggplan.offload.cards import cards_of, ram_bandwidth
from ggplan.offload.detecting import detect
from ggplan.offload.machine import Gpu, Machine
from ggplan.offload.machine_file import default_path, read_machine
from ggplan.text import parse_bytes, printable

_ALIKE = 0.12  # of the memory: a card that is stated to have so much more or less is another card
_SAME_SPEED = 1.15  # what is measured differs by less from run to run
_LEAST_RAM_SPEED, _MOST_RAM_SPEED = 1e9, 1e14


@dataclass(frozen=True, slots=True)
class Stated:
    """What options state of a machine; None and () where they state nothing.

    Attributes
    ----------
    file
        A machine's file.
    vram
        Bytes of each GPU.
    cards
        Names of cards (`3090,3060`, `2x3090`).
    ram
        Bytes.
    bandwidth
        Of RAM: `80G`, `80GB/s`, or a kind of memory (`DDR5-6000 x2`).
    cores
        Physical cores.
    """

    file: Path | None = None
    vram: tuple[int, ...] = ()
    cards: str | None = None
    ram: int | None = None
    bandwidth: str | None = None
    cores: int | None = None


def machine_for(
    stated: Stated, environment: Mapping[str, str] = os.environ
) -> tuple[Machine, tuple[str, ...]]:
    """The machine, and notes about it.

    Raises
    ------
    MachineError
        If a file or an option cannot be understood.
    OSError
        If the file cannot be read.
    """
    is_whole = bool(stated.vram or stated.cards) and stated.ram is not None and stated.file is None
    machine, notes = (Machine(), ()) if is_whole else _base(stated, environment)
    return with_stated(machine, stated), notes


def with_stated(machine: Machine, stated: Stated) -> Machine:
    """The machine with what options state in place of its parts; `stated.file` is not read.

    Raises
    ------
    MachineError
        If an option cannot be understood.
    """
    gpus, sources = _stated_gpus(stated)
    if gpus:
        machine = _with_gpus(machine, gpus, sources)
    found = dict(machine.sources)
    if stated.ram is not None:
        machine = replace(machine, ram=stated.ram)
        found["ram"] = "--ram"
    if stated.bandwidth is not None:
        bandwidth, source = stated_bandwidth(stated.bandwidth)
        # What was learned is of the bandwidth that it was reckoned with.
        machine = replace(machine, bandwidth=bandwidth, learned=None)
        found["bandwidth"] = source
    if stated.cores is not None:
        machine = replace(machine, cores=stated.cores)
        found["cores"] = "--cores"
    return replace(machine, sources=found)


def on_top_of(machine: Machine, before: Machine) -> tuple[Machine, list[str]]:
    """What was found now on top of what a file says, and notes: what was not found stays as it was there."""
    notes = []
    learned = before.learned
    if machine.bandwidth and before.bandwidth and learned is not None:
        ratio = machine.bandwidth / before.bandwidth
        if not 1 / _SAME_SPEED < ratio < _SAME_SPEED:
            dropped = f"what {printable(learned.source)} taught is dropped"
            notes.append(f"RAM is {ratio:.2f} times as fast as in the file: {dropped}")
            learned = None
    if machine.gpus and [g.name for g in machine.gpus] != [g.name for g in before.gpus] and before.gpus:
        notes.append(
            f"the file has {len(before.gpus)} GPUs and other names than the {len(machine.gpus)} here"
        )
    keeps_gpus = not machine.gpus
    sources = {k: v for k, v in before.sources.items() if keeps_gpus or not k.startswith("gpu ")}
    return (
        replace(
            machine,
            gpus=before.gpus if keeps_gpus else machine.gpus,
            ram=machine.ram or before.ram,
            bandwidth=machine.bandwidth or before.bandwidth,
            cores=machine.cores or before.cores,
            rates=machine.rates or before.rates,
            gpu_margin=before.gpu_margin,
            ram_margin=before.ram_margin,
            learned=learned,
            sources=sources | dict(machine.sources),
        ),
        notes,
    )


def stated_bandwidth(text: str) -> tuple[float, str]:
    """Bytes per second of `80G`, `80GB/s` or `DDR5-6000 x2`, and what the figure rests on.

    Raises
    ------
    MachineError
        If it is neither.
    """
    n_bytes = parse_bytes(re.sub(r"/s$", "", text.strip()), 1000)
    if n_bytes is not None:
        if not _LEAST_RAM_SPEED <= n_bytes <= _MOST_RAM_SPEED:
            raise MachineError(
                f"'{printable(text)[:60]}' is no bandwidth of RAM",
                hint="write bytes per second: 80G is 80 GB/s",
            )
        return float(n_bytes), "--bandwidth"
    found = ram_bandwidth(text)
    if found is None:
        raise MachineError(
            f"'{printable(text)[:60]}' is no bandwidth and no kind of memory that is known",
            hint="write 80G, or `DDR5-6000 x2` with the number of channels",
        )
    return found


def _base(stated: Stated, environment: Mapping[str, str]) -> tuple[Machine, tuple[str, ...]]:
    path = stated.file or default_path(environment)
    if stated.file is not None or path.is_file():
        machine = read_machine(path)
        shown = printable(str(path))
        named = {key: f"{source}, in {shown}" for key, source in machine.sources.items()}
        present = {k: shown for k in ("ram", "bandwidth", "cores") if getattr(machine, k) is not None}
        return replace(machine, sources=present | named), ()
    found = detect(environment=environment)
    return found.machine, found.notes


def _stated_gpus(stated: Stated) -> tuple[tuple[Gpu, ...], dict[str, str]]:
    cards = cards_of(stated.cards) if stated.cards is not None else ()
    if not cards:
        gpus = tuple(Gpu("", memory) for memory in stated.vram)
        return gpus, {f"gpu {i} memory": "--vram" for i in range(len(gpus))}
    sources = {
        f"gpu {i} {part}": "table of cards"
        for i in range(len(cards))
        for part in ("memory", "bandwidth", "pcie", "flops")
    }
    if not stated.vram:
        return cards, sources
    if len(stated.vram) != len(cards):
        raise MachineError(
            f"{len(stated.vram)} sizes for {len(cards)} cards",
            hint="give `--vram` one size for each, or leave it",
        )
    sources |= {f"gpu {i} memory": "--vram" for i in range(len(cards))}
    return tuple(replace(c, memory=m) for c, m in zip(cards, stated.vram, strict=True)), sources


def _with_gpus(machine: Machine, gpus: tuple[Gpu, ...], sources: dict[str, str]) -> Machine:
    """The machine with these GPUs; one that has a size alone stays the card that was there if that fits."""
    found, kept = [], {k: v for k, v in machine.sources.items() if not k.startswith("gpu ")}
    for i, gpu in enumerate(gpus):
        old = machine.gpus[i] if i < len(machine.gpus) else None
        if not gpu.name and old is not None and abs(old.memory - gpu.memory) <= _ALIKE * old.memory:
            gpu = replace(old, memory=gpu.memory)
            kept |= {k: v for k, v in machine.sources.items() if k.startswith(f"gpu {i} ")}
        found.append(gpu)
    return replace(machine, gpus=tuple(found), sources=kept | sources)
