"""Ways out of a placement that does not fit: what would have to change, each reckoned whole.

From the cheapest to the dearest: the largest GPU first, keys and values in q8_0, a smaller micro-batch
(slower prompts), a shorter context, fewer layers on the GPUs (slower), no pins, no GPU at all, fewer bits for
what lies where memory is short, then for all routed experts, then with keys and values in q8_0. A change that
is not enough alone is tried together with those before it. Only what fits is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ggplan.ggml_types import F16, GgmlType, parse_type
from ggplan.offload.allocation import HOST
from ggplan.offload.dimensions import dimensions_of
from ggplan.offload.header import Header
from ggplan.offload.placement import Placement, Wishes, left_of
from ggplan.offload.placing import place
from ggplan.text import format_bytes

N_WAYS = 3
_STEP = 1024  # tokens: contexts are offered in multiples of it
_SMALLEST_CONTEXT = 2048
_SMALLER = ("q8_0", "q6_K", "q5_K", "q4_K", "iq4_xs", "q3_K", "iq3_xxs", "q2_K", "iq2_xxs")
# What llama-quantize takes where 256 does not divide a row; iq4_nl for all others.
_IN_SMALL_BLOCKS = {"q8_0": "q8_0", "q6_K": "q8_0", "q5_K": "q5_1", "q4_K": "q5_0"}

_Change = Callable[[Placement, Wishes, str, str], "WayOut | None"]


@dataclass(frozen=True, slots=True)
class WayOut:
    """One way to make it fit.

    Attributes
    ----------
    what
        The change in words.
    options
        Options of `ggplan fit` that make it; "" where it is another file.
    placement
        What it gives; it fits.
    """

    what: str
    options: str
    placement: Placement


def ways_out(placement: Placement, n: int = N_WAYS) -> tuple[WayOut, ...]:
    """The `n` cheapest ways out of a placement that does not fit; () if it fits, or if there are none."""
    if placement.fits:
        return ()
    found: list[WayOut] = []
    for way in _tried(placement):
        found.append(way)
        if len(found) == n:
            break
    return tuple(found)


def _tried(placement: Placement) -> Iterator[WayOut]:
    settings = placement.settings
    wishes = replace(placement.wishes, context=settings.context, micro_batch=settings.micro_batch)
    of_gpus = any(s.device != HOST for s in placement.shortages)
    if of_gpus and (way := _largest_first(placement)) is not None:
        yield way
    changes: list[_Change] = []
    if _helps(placement):
        changes = [_smaller_batch, _shorter] if placement.machine.gpus else [_shorter]
    if of_gpus:
        changes.append(_fewer_layers)
    found = False
    quantized = None
    if changes and wishes.cache_k is F16 and wishes.cache_v is F16 and _takes_q8_0(placement):
        quantized = replace(wishes, cache_k=parse_type("q8_0"), cache_v=parse_type("q8_0"))
        way = _way(placement, quantized, "keys and values in q8_0", "--kv-type q8_0")
        if way is not None:
            found = True
            yield way
    for change in changes:
        if (way := change(placement, wishes, "", "")) is not None:
            found = True
            yield way
    if not found and quantized is not None:
        for change in changes:
            way = change(placement, quantized, "keys and values in q8_0, and ", "--kv-type q8_0 ")
            if way is not None:
                yield way
    if wishes.pins:
        way = _way(placement, replace(wishes, pins=()), "nothing pinned", "no --pin")
        if way is not None:
            yield way
    if of_gpus and (way := _no_gpu(placement)) is not None:
        yield way
    tries = [placement.wishes] if quantized is None else [placement.wishes, quantized]
    for less in tries:
        if (way := _fewer_bits(placement, less)) is not None:
            yield way
            break


def _helps(placement: Placement) -> bool:
    """Whether less context could be enough. What it frees on a GPU takes experts out of RAM."""
    machine, devices = placement.machine, placement.reckoning.devices
    freed = sum(d.context + d.compute for d in devices)
    # Where a GPU is short nothing was put back on the others yet.
    left = sum(max(left_of(d, gpu, machine), 0) for d, gpu in zip(devices[:-1], machine.gpus, strict=True))
    return all(s.short < freed + (left if s.device == HOST else 0) for s in placement.shortages)


def _largest_first(placement: Placement) -> WayOut | None:
    """The GPUs in the order of their memory: the first has the tensor that is streamed for prompts."""
    gpus = placement.machine.gpus
    order = sorted(range(len(gpus)), key=lambda i: -gpus[i].memory)
    if order == list(range(len(gpus))) or placement.wishes.pins:
        return None
    machine = replace(placement.machine, gpus=tuple(gpus[i] for i in order))
    made = place(placement.header, machine, placement.wishes, placement.profile)
    if not made.fits:
        return None
    shown = f"CUDA_VISIBLE_DEVICES={','.join(map(str, order))}"
    sizes = ",".join(f"{gpus[i].memory / 2**30:g}G" for i in order)
    return WayOut(f"the largest GPU first ({shown})", f"--vram {sizes}", made)


def _no_gpu(placement: Placement) -> WayOut | None:
    """All of it in RAM."""
    wishes = replace(placement.wishes, pins=(), gpu_layers=None)
    if placement.machine.ram is None:
        return None
    made = place(placement.header, replace(placement.machine, gpus=()), wishes, placement.profile)
    if not made.fits:
        return None
    options = "--gpus 0" + (" and no --pin" if placement.wishes.pins else "")
    return WayOut("all in RAM, with the GPUs hidden (CUDA_VISIBLE_DEVICES=-1)", options, made)


def _way(placement: Placement, wishes: Wishes, what: str, options: str) -> WayOut | None:
    made = place(placement.header, placement.machine, wishes, placement.profile)
    return WayOut(what, options, made) if made.fits else None


def _takes_q8_0(placement: Placement) -> bool:
    dimensions = dimensions_of(placement.header)
    return all(
        dimensions.key_size(i) % 32 == 0 and dimensions.value_size(i) % 32 == 0
        for i in range(dimensions.n_trunk)
    )


def _smaller_batch(placement: Placement, wishes: Wishes, words: str, options: str) -> WayOut | None:
    tokens = placement.settings.micro_batch
    while tokens > 128:
        tokens //= 2
        what = f"{words}a micro-batch of {tokens}"
        way = _way(placement, replace(wishes, micro_batch=tokens), what, f"{options}--ubatch {tokens}")
        if way is not None:
            return way
    return None


def _shorter(placement: Placement, wishes: Wishes, words: str, options: str) -> WayOut | None:
    """The longest context that fits, in steps of 1,024 tokens."""
    devices = placement.reckoning.devices
    held = sum(d.context for d in devices) * (0.53 if wishes.cache_k is not F16 else 1.0)
    short = sum(s.short for s in placement.shortages)
    if not held or not wishes.context:
        return None
    # What is short is some share of what the context takes, its masks among it.
    guess = int(wishes.context * min(max(1 - short / held, 0.0), 0.97)) // _STEP

    def at(steps: int) -> WayOut | None:
        return _at(placement, wishes, steps * _STEP, words, options)

    return _largest(guess, _SMALLEST_CONTEXT // _STEP, wishes.context // _STEP, at)


def _largest(guess: int, least: int, most: int, at: Callable[[int], WayOut | None]) -> WayOut | None:
    """The way out with about the largest number that fits; few are tried, as each takes time."""
    step = max(1, guess // 24)
    n = min(max(guess, least), most)
    best = at(n)
    while best is not None and n + step < most:
        n += step
        more = at(n)
        if more is None:
            return best
        best, step = more, step * 2
    while best is None and n > least:
        n = max(n - step, least)
        best, step = at(n), step * 2
    return best


def _at(placement: Placement, wishes: Wishes, context: int, words: str, options: str) -> WayOut | None:
    if wishes.context is not None and context >= wishes.context:
        return None
    what, option = f"{words}a context of {context:,}", f"{options}--ctx {context}"
    return _way(placement, replace(wishes, context=context), what, option)


def _fewer_layers(placement: Placement, wishes: Wishes, words: str, options: str) -> WayOut | None:
    """As many layers on the GPUs as fit; the others, with their part of the context, in RAM."""
    n_layers = dimensions_of(placement.header).n_blocks + 1
    share = min(s.available / s.needed for s in placement.shortages if s.device != HOST)

    def at(n: int) -> WayOut | None:
        what = f"{words}{n} layers on the GPU, the others in RAM"
        return _way(placement, replace(wishes, gpu_layers=n), what, f"{options}--gpu-layers {n}")

    return _largest(int(n_layers * share), 1, n_layers, at)


def _fewer_bits(placement: Placement, wishes: Wishes) -> WayOut | None:
    """The file with less in the largest type that fits: what lies where memory is short, or all experts."""
    short = {s.device for s in placement.shortages}
    matrices = {t.name for t in placement.header.tensors if len(t.shape) > 1}
    matrices = {name for name in matrices & placement.devices.keys() if not name.startswith("token_embd")}
    meant = frozenset(name for name in matrices if placement.devices[name] in short)
    part = "what is " + " and ".join("in RAM" if d == HOST else f"on {d}" for d in sorted(short))
    if short == {HOST} and all("_exps" in name for name in meant):
        part = "the experts in RAM"
    experts = frozenset(name for name in matrices if "_exps" in name)
    kv = "" if wishes is placement.wishes else ", and keys and values in q8_0"
    for names, called in ((meant, part), (meant | experts, f"{part} and all experts")):
        if names == meant and called != part:
            return None
        for name in _SMALLER:
            smaller = _with_types(placement.header, names, parse_type(name))
            if smaller is None or not _is_enough(placement, smaller, wishes):
                continue
            made = place(smaller, placement.machine, wishes, placement.profile)
            if made.fits:
                size = format_bytes(sum(t.n_bytes for t in smaller.tensors))
                what = f"a recipe with {called} in {name} at most (a file of {size}){kv}"
                return WayOut(what, "--kv-type q8_0" if kv else "", made)
    return None


def _is_enough(placement: Placement, smaller: Header, wishes: Wishes) -> bool:
    """Whether a smaller file may save what is short, before it is placed: smaller experts free GPUs too."""
    saved: dict[str, int] = {}
    for old, new in zip(placement.header.tensors, smaller.tensors, strict=True):
        if (device := placement.devices.get(old.name)) is not None:
            saved[device] = saved.get(device, 0) + old.n_bytes - new.n_bytes
    if wishes is not placement.wishes:
        for d in placement.reckoning.devices:
            saved[d.name] = saved.get(d.name, 0) + d.context // 2
    # What is saved on a GPU makes room there for what is in RAM.
    saved[HOST] = sum(saved.values())
    return all(saved.get(s.device, 0) >= 0.7 * s.short for s in placement.shortages)


def _with_types(header: Header, meant: frozenset[str], type_: GgmlType) -> Header | None:
    """The header with larger tensors in this type, where their shape allows it; None if nothing changes."""
    tensors = []
    for tensor in header.tensors:
        columns = tensor.shape[0] if tensor.shape else 1
        new = type_ if columns % type_.block_size == 0 else _in_small_blocks(type_)
        changes = (
            tensor.name in meant
            and columns % new.block_size == 0
            and new.row_bytes(columns) < tensor.type.row_bytes(columns)
        )
        tensors.append(replace(tensor, type=new) if changes else tensor)
    return replace(header, tensors=tuple(tensors)) if tuple(tensors) != header.tensors else None


def _in_small_blocks(type_: GgmlType) -> GgmlType:
    """What llama-quantize takes where a superblock does not divide a row."""
    return parse_type(_IN_SMALL_BLOCKS.get(type_.name, "iq4_nl"))
