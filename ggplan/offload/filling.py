r"""Filling: which experts go back from RAM to what is left of the GPUs.

A unit is what moves together: all experts of a block, or its gate and up experts, or its down experts. A
whole block saves more than its bytes: the token no longer leaves the GPU for it. What a unit is worth is
seconds a token saved per byte of GPU memory. Whole blocks are taken first, the best per byte, the last block
first among equals, so that the experts in RAM are those of the first blocks; parts take what room is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, log
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
_MOST_STEPS = 1 << 20


@dataclass(frozen=True, slots=True)
class Unit:
    """Experts of one block that move together.

    Attributes
    ----------
    block, part
        Which.
    n_bytes, largest
        On a GPU, of all of them and of the largest tensor.
    gain
        Seconds that a token takes less if they are on a GPU.
    """

    block: int
    part: Part
    n_bytes: int
    largest: int
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
    sizes = [gpu_bytes(t.type, t.shape) for t in tensors]
    return Unit(block, part, sum(sizes), max(sizes), seconds)


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


def rows_of(blocks: Mapping[int, Sequence[Unit]]) -> list[list[Unit]]:
    """The units on a GPU if it has all of its last blocks, and a part of the one before: all ways, from
    everything to nothing.
    """
    order = sorted(blocks)
    ways = []
    for n, block in enumerate(order):
        later = [blocks[other][0] for other in order[n + 1 :]]
        parts = sorted(blocks[block][1:], key=lambda unit: -unit.n_bytes)
        ways += [[unit, *later] for unit in (blocks[block][0], *parts)]
    return [*ways, []]


def with_ram_full(room: int, blocks: Mapping[int, Sequence[Unit]]) -> list[list[Unit]]:
    """The units on the GPU if what is left fills nearly all of `room` bytes of RAM; what takes least of the
    GPU first, with the tensor that is streamed for prompts, the largest in RAM.

    What is left are whole blocks, the last among equals, and a part of one at most: parts, and first blocks,
    take more of the compute buffers.
    """
    parts = {(unit.n_bytes, unit.largest): unit for units in blocks.values() for unit in units[1:]}
    found: dict[tuple[Unit, ...], int] = {}
    for largest in sorted({unit.largest for units in blocks.values() for unit in units}):
        may = {block for block, units in blocks.items() if units[0].largest <= largest}
        for part in (None, *(unit for unit in parts.values() if unit.largest <= largest)):
            left = room - (0 if part is None else part.n_bytes)
            if left < 0:
                continue
            moved = set() if part is None else {part.block}
            whole = [units[0] for block, units in sorted(blocks.items(), reverse=True) if block not in moved]
            in_ram = _fullest(left, [unit for unit in whole if unit.block in may])
            on_gpu = [unit for unit in whole if unit not in in_ram]
            if part is not None:  # the other part stays
                on_gpu += [unit for unit in blocks[part.block][1:] if unit.part != part.part]
            streamed = max((unit.largest for unit in (*in_ram, *([part] if part else ()))), default=0)
            found.setdefault(tuple(on_gpu), sum(unit.n_bytes for unit in on_gpu) + streamed)
    return [list(way) for way in sorted(found, key=lambda way: (found[way], len(way)))]


def _fullest(room: int, units: Sequence[Unit]) -> list[Unit]:
    """The units that take the most of `room` bytes.

    Which sums they can have, the bits of a whole number say, in steps of what divides all sizes.
    """
    step = max(gcd(*(unit.n_bytes for unit in units)), -(-room // _MOST_STEPS), 1)
    fits = (1 << room // step + 1) - 1
    sums = [1]
    for unit in reversed(units):
        sums.append(sums[-1] | sums[-1] << -(-unit.n_bytes // step) & fits)
    total, taken = sums[-1].bit_length() - 1, []
    for unit, before in zip(units, reversed(sums[:-1]), strict=True):
        rest = total - -(-unit.n_bytes // step)
        if rest >= 0 and before >> rest & 1:
            taken.append(unit)
            total = rest
    return taken


def layer_of(name: str, n_layers: int) -> int:
    """The layer that a tensor counts for: its block, else the output."""
    if name.startswith("blk."):
        return min(int(name.split(".")[1]), n_layers - 1)
    return n_layers - 1


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
