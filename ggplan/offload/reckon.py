"""reckon: what an engine allocates for a header and its settings on some GPUs, by device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ggplan.offload.allocation import HOST, device_bytes, gpu_name
from ggplan.offload.cache.classes import cache_tensors, draft_tensors, is_known
from ggplan.offload.cache.tensors import CacheTensor
from ggplan.offload.dimensions import Dimensions, dimensions_of
from ggplan.offload.header import Header
from ggplan.offload.holding import holding_of
from ggplan.offload.machine import Gpu
from ggplan.offload.profiles import LLAMA_CPP, Profile
from ggplan.offload.reckoning import DeviceBytes, Reckoning
from ggplan.offload.settings import Settings
from ggplan.offload.weights import Weights, place_weights, streamed_tensor
from ggplan.text import printable


def reckon(
    header: Header,
    settings: Settings,
    gpus: Sequence[Gpu] | int = 0,
    profile: Profile = LLAMA_CPP,
) -> Reckoning:
    """What `profile`'s build allocates.

    Parameters
    ----------
    gpus
        The GPUs in the engine's order; a number stands for as many of one size.

    Raises
    ------
    CheckpointError
        If a metadata key is missing or cannot be.
    PlanError
        If an override names a device that is not there, or is no regex.
    """
    cards = [Gpu("", 24 << 30)] * gpus if isinstance(gpus, int) else list(gpus)
    dimensions = dimensions_of(header)
    holding = holding_of(dimensions, settings)
    weights = place_weights(header, dimensions, settings, cards)
    cache = cache_tensors(dimensions, settings, holding)
    sums = weights.by_device()
    context = _context(cache, weights, settings)
    draft: dict[str, int] = {}
    if settings.mtp and dimensions.n_mtp:
        draft = _context(draft_tensors(dimensions, settings, holding), weights, settings)
    names = [*(gpu_name(i) for i in range(len(cards))), HOST]
    devices = tuple(
        DeviceBytes(name, sums.get(name, 0), context.get(name, 0), 0, draft_context=draft.get(name, 0))
        for name in names
    )
    streams = cards and settings.op_offload and holding.n_tokens >= profile.offload_batch
    notes = tuple(_notes(dimensions))
    return Reckoning(profile.name, devices, streamed_tensor(weights) if streams else None, notes)


def _context(cache: Iterable[CacheTensor], weights: Weights, settings: Settings) -> dict[str, int]:
    """Bytes of the context on each device: that of the block, the CPU with `-nkvo`."""
    sums: dict[str, int] = {}
    for tensor in cache:
        device = weights.blocks[tensor.block] if settings.cache_on_gpu else HOST
        sums[device] = sums.get(device, 0) + device_bytes(device, tensor.type, tensor.shape)
    return sums


def _notes(dimensions: Dimensions) -> Iterable[str]:
    if not is_known(dimensions.architecture):
        shown = printable(dimensions.architecture)
        yield f"{shown} is no architecture that is known here: its context is reckoned as plain attention"
