r"""Filling: which experts go back from RAM to what is left of the GPUs, and how layers are split over them.

A unit is what moves together: all experts of a block, or its gate and up experts, or its down experts. A
whole block saves more than its bytes: the token no longer leaves the GPU for it. What a unit is worth is
seconds a token saved per byte of GPU memory. Whole blocks are taken first, the best per byte, the last block
first among equals, so that the experts in RAM are those of the first blocks; parts take what room is left.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from math import log
from typing import Literal

from ggplan.offload.allocation import gpu_bytes
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.header import Header, HeaderTensor
from ggplan.offload.machine import Machine
from ggplan.offload.numbers import numbers_pattern
from ggplan.offload.options import first_blocks
from ggplan.offload.profiles import Profile
from ggplan.offload.settings import Override
from ggplan.offload.speed import FITTED, core_rate
from ggplan.planning.devices import EXPERTS

Part = Literal["all", "gate and up", "down"]
_NAMES: Mapping[Part, str] = {
    "all": EXPERTS,
    "gate and up": r"\.ffn_(up|gate|gate_up)_(ch|)exps",
    "down": r"\.ffn_down_(ch|)exps",
}
_EXPERT = re.compile(rf"blk\.(\d+){EXPERTS}")
# Where the bandwidths are not known, the choice is the same: only their ratio matters, and hardly.
_RAM, _GPU = 60e9, 600e9
_TIE = 0.06
_MOVED = 3  # layers, from a GPU to the next
_NEARBY = 3  # of the splits that this gives are worth a whole reckoning


@dataclass(frozen=True, slots=True)
class Unit:
    """Experts of one block that move together.

    Attributes
    ----------
    block, part
        Which.
    n_bytes
        On a GPU.
    gain
        Seconds that a token takes less if they are on a GPU.
    """

    block: int
    part: Part
    n_bytes: int
    gain: float


def expert_blocks(
    header: Header, dimensions: Dimensions, is_free: Iterable[str] | None = None
) -> dict[int, list[HeaderTensor]]:
    """Routed experts by block, without those that are never loaded or, if given, are not in `is_free`."""
    free = None if is_free is None else frozenset(is_free)
    found: dict[int, list[HeaderTensor]] = {}
    for tensor in header.tensors:
        match = _EXPERT.match(tensor.name)
        if match and int(match[1]) < dimensions.n_trunk and (free is None or tensor.name in free):
            found.setdefault(int(match[1]), []).append(tensor)
    return found


def units_of(
    block: int, tensors: Sequence[HeaderTensor], dimensions: Dimensions, machine: Machine, gpu: int,
    profile: Profile, threads: int | None,
) -> tuple[Unit, ...]:  # fmt: skip
    """The units of a block: the whole, and its parts where there are two."""
    parts: dict[Part, list[HeaderTensor]] = {"gate and up": [], "down": []}
    for tensor in tensors:
        parts["down" if "ffn_down" in tensor.name else "gate and up"].append(tensor)
    found = [_unit(block, "all", tensors, dimensions, machine, gpu, profile, threads)]
    if all(parts.values()):
        found += [_unit(block, p, ts, dimensions, machine, gpu, profile, threads) for p, ts in parts.items()]
    return tuple(found)


def _unit(
    block: int, part: Part, tensors: Sequence[HeaderTensor], dimensions: Dimensions, machine: Machine,
    gpu: int, profile: Profile, threads: int | None,
) -> Unit:  # fmt: skip
    used = dimensions.used[block] if block < len(dimensions.used) else 0
    share = used / dimensions.n_experts if dimensions.n_experts and used else 1.0
    memory = FITTED.ram * (machine.bandwidth or _RAM)
    seconds = 0.0
    for tensor in tensors:
        rate = memory
        if threads:
            rate = min(rate, threads * core_rate(tensor.type.name, machine, profile))
        on_gpu = FITTED.gpu * (machine.gpus[gpu].bandwidth or _GPU)
        seconds += tensor.n_bytes * share * (1 / rate - 1 / on_gpu)
    if part == "all":  # the way to the CPU and back
        seconds += 2 * FITTED.crossing
    return Unit(block, part, sum(gpu_bytes(t.type, t.shape) for t in tensors), seconds)


def fill(room: int, blocks: Mapping[int, Sequence[Unit]]) -> list[Unit]:
    """The units that fit into `room` bytes and save the most seconds, the most valuable first."""
    taken: list[Unit] = []
    whole = [units[0] for units in blocks.values() if units[0].gain > 0]
    # What is worth the same within some percent is the same: blocks in a row are easier to read.
    for unit in sorted(whole, key=lambda u: (-round(log(u.gain / u.n_bytes) / _TIE), -u.block)):
        if unit.n_bytes <= room:
            taken.append(unit)
            room -= unit.n_bytes
    done = {unit.block for unit in taken}
    parts = [u for block, units in blocks.items() if block not in done for u in units[1:] if u.gain > 0]
    for unit in sorted(parts, key=lambda u: (-u.gain, -u.block)):
        if unit.n_bytes <= room and unit.block not in done:
            taken.append(unit)
            done.add(unit.block)
            room -= unit.n_bytes
    return taken


def layer_of(name: str, n_layers: int) -> int:
    """The layer that a tensor counts for: its block, else the output."""
    if name.startswith("blk."):
        return min(int(name.split(".")[1]), n_layers - 1)
    return n_layers - 1


def splits_near(
    ways: Collection[tuple[float, ...]],
    dense: Sequence[int],
    rooms: Sequence[int],
    units: Sequence[Mapping[int, Sequence[Unit]]],
) -> list[tuple[float, ...]]:
    """Splits of layers near given ones, those with the most bytes of experts on the GPUs.

    Experts are large: from one layer to the next, what of them fits the GPUs changes by leaps.

    Parameters
    ----------
    dense
        Bytes of each layer without its experts; the output is the last.
    rooms
        Bytes that each GPU has.
    units
        Of each GPU, those of each block.
    """
    found: dict[tuple[float, ...], int] = {}
    for way in sorted(ways):
        for gpu, moved in product(range(len(way) - 1), range(-_MOVED, _MOVED + 1)):
            split = (*way[:gpu], way[gpu] + moved, way[gpu + 1] - moved, *way[gpu + 2 :])
            if min(split) < 0 or split in ways or split in found:
                continue
            on_gpus, start = 0, 0
            for room, own, n in zip(rooms, units, map(int, split), strict=True):
                layers = range(start, start + n)
                start += n
                left = room - sum(dense[i] for i in layers)
                on_gpus += sum(unit.n_bytes for unit in fill(left, {i: own[i] for i in layers if i in own}))
            found[split] = on_gpus
    return sorted(found, key=lambda split: -found[split])[:_NEARBY]


def ram_overrides(blocks: Iterable[int], on_gpu: Sequence[Unit], *, by_count: bool) -> tuple[Override, ...]:
    """The overrides that keep in RAM all experts of these blocks but the units on GPUs.

    Parameters
    ----------
    by_count
        Whether `-ncmoe` may say it, where the experts in RAM are those of the first blocks.
    """
    moved = {unit.block: unit.part for unit in on_gpu}
    whole = [b for b in blocks if b not in moved]
    halves: dict[Part, list[int]] = {
        "down": sorted(b for b, part in moved.items() if part == "gate and up"),
        "gate and up": sorted(b for b, part in moved.items() if part == "down"),
    }
    if not moved:
        return (Override(EXPERTS, "CPU"),) if whole else ()
    first = max(whole, default=-1) + 1
    if by_count and not any(halves.values()) and not any(b < first for b in moved):
        return first_blocks(first, EXPERTS)
    lists: list[tuple[Part, list[int]]] = [("all", whole), *halves.items()]
    return tuple(
        Override(rf"blk\.{numbers_pattern(numbers)}{_NAMES[part]}", "CPU")
        for part, numbers in lists
        if numbers
    )


def split_layers(sizes: Sequence[int], rooms: Sequence[int]) -> tuple[float, ...]:
    """How many layers in a row each GPU gets, so that each is filled to the same share of its room.

    Parameters
    ----------
    sizes
        Bytes of each block, and at the end of the output.
    rooms
        Bytes that each GPU has for them.

    Returns
    -------
    One number a GPU, which add up to the number of layers: the values of `-ts`.
    """
    rooms = [max(room, 0) for room in rooms]
    total, room = sum(sizes), sum(rooms)
    if not room or not total:
        return ()
    ends = [total * end / room for end in accumulate(rooms)]
    counts = [0] * len(rooms)
    gpu, before = 0, 0.0
    for size in sizes:
        # A layer belongs to the GPU in which its middle lies.
        while gpu < len(rooms) - 1 and before + size / 2 > ends[gpu]:
            gpu += 1
        counts[gpu] += 1
        before += size
    return tuple(float(n) for n in counts)


def compact_layers(sizes: Sequence[int], dense: Sequence[int], rooms: Sequence[int]) -> tuple[float, ...]:
    """How many layers each GPU gets if all but the first hold whole layers alone, with their experts.

    The first GPU, which is the fastest of most machines, then has the attention of all other layers. Where it
    has no room for that, the others take more.

    Parameters
    ----------
    sizes, dense
        Bytes of each layer with its experts and without; the output is the last.
    rooms
        Bytes that each GPU has.
    """
    counts = [0] * len(rooms)
    end = len(sizes)
    for gpu in range(len(rooms) - 1, 0, -1):
        room = rooms[gpu]
        while end > 0 and (sizes[end - 1] <= room or not counts[gpu]):
            room -= sizes[end - 1]
            counts[gpu] += 1
            end -= 1
    while end > 0 and sum(dense[:end]) > max(rooms[0], 0):
        end -= 1
        counts[1] += 1
    counts[0] = end
    return tuple(float(n) for n in counts)
