"""Compute buffers: the graph of one full micro-batch, scheduled and allocated as the engine would."""

from __future__ import annotations

from collections.abc import Sequence

from ggplan.offload.allocation import HOST
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.graph.allocate import buffer_sizes
from ggplan.offload.graph.families import build
from ggplan.offload.graph.maker import Job, Maker, Placed
from ggplan.offload.graph.schedule import Rules, schedule
from ggplan.offload.holding import Holding
from ggplan.offload.profiles import Profile
from ggplan.offload.settings import Settings
from ggplan.offload.weights import Weights


def compute_bytes(
    dimensions: Dimensions,
    settings: Settings,
    holding: Holding,
    weights: Weights,
    names: Sequence[str],
    profile: Profile,
) -> dict[str, int]:
    """Bytes of each device's compute buffer. `names` are the GPUs'."""
    job = job_of(dimensions, settings, holding, weights, names, profile)
    maker = Maker(job)
    build(maker)
    rules = Rules(
        len(names), settings.op_offload, profile.offload_batch, is_pipelined(settings, weights, names)
    )
    sizes = buffer_sizes(schedule(maker.graph, rules), len(names))
    return dict(zip((*names, HOST), sizes, strict=True))


def job_of(
    dimensions: Dimensions,
    settings: Settings,
    holding: Holding,
    weights: Weights,
    names: Sequence[str],
    profile: Profile,
) -> Job:
    """What the graph is made for."""
    numbers = {name: i for i, name in enumerate((*names, HOST))}
    placed = {}
    for one in weights.loaded:
        found = Placed(one.tensor, numbers[one.device], not one.repacked)
        placed.setdefault(one.use, found)
    if "output.weight" not in placed and "token_embd.weight" in placed:
        placed["output.weight"] = placed["token_embd.weight"]
    blocks = tuple(numbers[device] for device in weights.blocks)
    return Job(dimensions, settings, holding, profile, placed, blocks, len(names))


def is_pipelined(settings: Settings, weights: Weights, names: Sequence[str]) -> bool:
    """Whether GPUs work one behind the other: several, all blocks on them, nothing overridden."""
    return (
        len(names) > 1
        and settings.split_mode == "layer"
        and settings.cache_on_gpu
        and not settings.overrides
        and all(device != HOST for device in (*weights.blocks, weights.output))
    )
