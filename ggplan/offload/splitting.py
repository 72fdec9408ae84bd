"""Splitting: how the layers of a model are spread over several GPUs (`-ts`).

Layers go to the GPUs in a row. By room, each GPU is filled to the same share; whole layers on all but the
first GPU leave their experts no way to RAM; packed, each GPU takes what it holds, one after the other. Layers
are large, so what is near in layers can differ much in what fits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, product

from ggplan.offload.active import active_bytes
from ggplan.offload.allocation import HOST, gpu_name
from ggplan.offload.candidates import Candidate, Case
from ggplan.offload.filling import Unit, fill, ram_overrides
from ggplan.offload.placement import Placement, free_of_gpus
from ggplan.offload.reckon import reckon
from ggplan.offload.settings import Settings
from ggplan.offload.speed import generation
from ggplan.offload.weights import block_devices, place_weights

_MOVED = 3  # layers, from a GPU to the next
_NEARBY = 3  # of the splits that this gives are worth a whole reckoning


def spread(case: Case, settings: Settings, sizes: Sequence[int]) -> Candidate:
    """The settings with whole layers on the GPUs: in proportion to what each has room for, or packed if only
    that fits.

    Parameters
    ----------
    sizes
        Bytes of each layer that is on a GPU; the output is the last.
    """
    if len(case.gpus) < 2 or not sizes:
        return case.tried(settings)
    rooms = case.rooms(reckon(case.header, settings, case.gpus, case.profile))
    tried = case.tried(replace(settings, tensor_split=split_layers(sizes, rooms)))
    if tried.fits_gpus:
        return tried
    # With the compute buffers of this very split, which are not those of any other.
    for packed in packed_layers(sizes, case.rooms(tried.reckoning)):
        if packed != tried.settings.tensor_split:
            again = case.tried(replace(settings, tensor_split=packed))
            if again.fits_gpus:
                return again
    return tried


def splits(case: Case, settings: Settings) -> list[Settings]:
    """The ways to spread layers, the faster one first: by room, or whole layers on all but the first."""
    dense, sizes = (case.sizes(settings, experts=e) for e in (False, True))
    rooms = case.rooms(reckon(case.header, settings, case.gpus, case.profile))
    ways = {split_layers(dense, rooms), compact_layers(sizes, dense, rooms)}
    return sorted(
        (replace(settings, tensor_split=way) for way in sorted(ways)),
        key=lambda settings: -_speed_of(case, settings, dense, rooms),
    )


def _speed_of(case: Case, settings: Settings, dense: Sequence[int], rooms: Sequence[int]) -> float:
    """Tokens per second with the experts that would fit, by an estimate; 0 if a GPU is too small."""
    on = block_devices(case.dimensions, settings, case.gpus)
    units: list[Unit] = []
    for gpu, room in enumerate(rooms):
        mine = [i for i, device in enumerate(on) if device == gpu_name(gpu)]
        left = room - sum(dense[i] for i in mine)
        if left < 0:
            return 0.0
        units += fill(left, case.units(gpu, mine, settings.threads))
    overrides = ram_overrides(sorted(case.experts), units, by_count=False)
    filled = replace(settings, overrides=(*case.wishes.pins, *overrides))
    weights = place_weights(case.header, case.dimensions, filled, case.gpus)
    active = active_bytes(weights, case.dimensions, filled)
    return generation(active, case.machine, case.profile, filled).likely


def splits_nearby(case: Case, settings: Settings, short: Placement) -> list[Settings]:
    """Other ways to spread layers, near those of `splits`, for a placement for which RAM is too small.

    None where all that is left of the GPUs would not be enough either.
    """
    free = free_of_gpus(short.reckoning, case.machine)
    if any(s.device != HOST or s.short > free for s in short.shortages):
        return []
    dense = case.sizes(settings, experts=False)
    rooms = case.rooms(reckon(case.header, settings, case.gpus, case.profile))
    units = [case.units(gpu, case.experts, settings.threads) for gpu in range(len(rooms))]
    before = {way.tensor_split for way in splits(case, settings)}
    return [replace(settings, tensor_split=way) for way in splits_near(before, dense, rooms, units)]


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
                if left < 0:
                    break
                on_gpus += sum(unit.n_bytes for unit in fill(left, {i: own[i] for i in layers if i in own}))
            else:
                found[split] = on_gpus
    return sorted(found, key=lambda split: -found[split])[:_NEARBY]


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


def packed_layers(sizes: Sequence[int], rooms: Sequence[int]) -> list[tuple[float, ...]]:
    """How many layers each GPU gets if the first takes all it holds, then the next; and from the last on.

    Parameters
    ----------
    sizes
        Bytes of each layer; the output is the last.
    rooms
        Bytes that each GPU has.

    Returns
    -------
    One way, two, or none where so many layers do not fit.
    """
    ways = []
    for is_forward in (True, False):
        left = list(sizes if is_forward else reversed(sizes))
        counts = []
        for room in rooms if is_forward else reversed(rooms):
            n = 0
            while n < len(left) and left[n] <= room:
                room -= left[n]
                n += 1
            counts.append(float(n))
            left = left[n:]
        if not left:
            ways.append(tuple(counts if is_forward else reversed(counts)))
    return list(dict.fromkeys(ways))
