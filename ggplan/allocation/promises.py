"""What a recipe for a machine says of it: where the file lies, how fast it is, and `@assert` lines of both.

The lines are only written if they hold as `ggplan rules check` judges them, by `offload.promised`: with
llama.cpp, and for the machine that the words can describe. What they cannot (other margins, what a benchmark
taught, GPUs of several speeds) may make a difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ggplan.allocation.budget import bound_text
from ggplan.allocation.machine_rows import Target
from ggplan.errors import Error
from ggplan.ggml_types import F16
from ggplan.offload.allocation import HOST
from ggplan.offload.placement import Placement, placed_memory
from ggplan.offload.promised import placed_as
from ggplan.offload.speed import likely_bandwidths
from ggplan.offload.starting import server_command, shown
from ggplan.rules.conditions import Conditions
from ggplan.text import format_bytes

_WIDTH = 90


@dataclass(frozen=True, slots=True)
class Promises:
    """The lines of `@assert`, and notes about those that are missing."""

    lines: tuple[str, ...]
    notes: tuple[str, ...]


def promises_of(placement: Placement, target: Target) -> Promises:
    """The promises of a file on its machine."""
    unsaid = _unsaid(placement)
    if unsaid:
        return Promises((), (f"the recipe does not assert that it fits: conditions cannot say {unsaid}",))
    conditions = _conditions(placement)
    lines, notes = [], []
    if _holds(placement, conditions, 0.0):
        lines.append(f"@assert fits({conditions})")
        if placement.wishes.gpu_layers is not None:
            notes.append("the recipe asserts that it fits, not how many layers are on the GPUs then")
    else:
        notes.append(
            f"the recipe does not assert that it fits: fits({conditions}) does not hold for a machine of"
            " which no more is known"
        )
    if target.min_tps is not None:
        ram, gpu = likely_bandwidths(placement.machine)
        fast = replace(
            conditions, bandwidth=round(ram), vram_bandwidth=round(gpu), cores=placement.machine.cores
        )
        if _holds(placement, fast, target.min_tps):
            lines.append(f"@assert tokens_per_second({fast}) >= {bound_text(target.min_tps, up=False)}")
        else:
            notes.append(
                f"the recipe does not assert {target.min_tps:g} tokens per second: they are not likely with"
                f" tokens_per_second({fast}) alone"
            )
    return Promises(tuple(lines), tuple(notes))


def _unsaid(placement: Placement) -> str:
    """What of a machine or of wishes no condition says."""
    wishes, machine = placement.wishes, placement.machine
    if placement.profile.engine != "llama.cpp":
        return placement.profile.engine
    if wishes.pins:
        return "which tensors are pinned where"
    if not machine.gpus and machine.ram is None:
        return "a machine of which no memory is known"
    return ""


def _conditions(placement: Placement) -> Conditions:
    settings, machine = placement.settings, placement.machine
    kv = (settings.cache_k, settings.cache_v)
    return Conditions(
        vram=tuple(gpu.memory for gpu in machine.gpus),
        ram=machine.ram,
        ctx=settings.context,
        kv=None if kv == (F16, F16) else kv,
        ub=settings.micro_batch,
        slots=settings.slots if (settings.slots or 1) > 1 else None,
    )


def _holds(placement: Placement, conditions: Conditions, tps: float) -> bool:
    try:
        found = placed_as(placement.header, conditions)
    except Error:
        return False
    return found.fits and found.generation.likely >= tps


def heading_of(placement: Placement) -> Iterator[str]:
    """Lines for a recipe's heading: where the file lies, and how fast it is."""
    used = []
    for device, memory in zip(placement.reckoning.devices, placed_memory(placement), strict=True):
        where = "RAM" if device.name == HOST else device.name
        of = "" if memory is None else f" of {format_bytes(memory)}"
        used.append(f"{where} {format_bytes(device.total)}{of}")
    yield f"Memory          {', '.join(used)}, beside the margins, with weights, context and buffers"
    settings = placement.settings
    types = dict.fromkeys((settings.cache_k.name, settings.cache_v.name))
    yield f"Context         {settings.context:,} tokens, keys and values in {' and '.join(types)}"
    if placement.in_ram:
        yield f"Experts         those of {len(placement.in_ram)} blocks are in RAM, in whole or in part"
    rate, full = placement.generation, placement.generation_full
    yield (
        f"Speed           {rate.likely:.1f} tokens per second likely ({rate.low:.1f} to {rate.high:.1f}), "
        f"{full.likely:.1f} after {placement.tokens_of_slot:,} tokens"
    )


def file_of(name: str) -> str:
    """What the file of a recipe of this name is called."""
    return f"{re.sub(r'[^A-Za-z0-9._+-]+', '-', name).strip('-.') or 'model'}.gguf"


def start_of(placement: Placement, name: str) -> list[str]:
    """The command that starts the file of a recipe as it is placed, in lines."""
    return shown(server_command(placement, file_of(name)), _WIDTH).splitlines()
