"""Compute buffers: the graph of one full micro-batch, scheduled and allocated as the engine would."""

from __future__ import annotations

from collections.abc import Sequence

from ggplan.offload.allocation import HOST
from ggplan.offload.graph.allocate import buffer_sizes
from ggplan.offload.graph.families import build, build_draft
from ggplan.offload.graph.maker import Job, Maker, Placed
from ggplan.offload.graph.repeats import enough_rounds, first_rounds, runs_of
from ggplan.offload.graph.schedule import COPIES, Rules, schedule
from ggplan.offload.settings import Settings
from ggplan.offload.weights import Weights

_FEW_INPUTS = 12  # copies on one GPU that belong to a graph, and not to its blocks


def placed_weights(weights: Weights, names: Sequence[str]) -> dict[str, Placed]:
    """The weights by name, devices as numbers; `names` are the GPUs'. A tied output is `output.weight`."""
    numbers = {name: i for i, name in enumerate((*names, HOST))}
    found: dict[str, Placed] = {}
    for one in weights.loaded:
        found.setdefault(one.use, Placed(one.tensor, numbers[one.device], not one.repacked))
    if "output.weight" not in found and "token_embd.weight" in found:
        found["output.weight"] = found["token_embd.weight"]
    return found


def compute_sizes(job: Job, rules: Rules) -> list[int]:
    """Bytes of each device's compute buffer, the CPU's last.

    Raises
    ------
    LookupError
        If a weight is missing that the architecture's graph reads.
    """
    runs = runs_of(job)
    rounds = first_rounds(runs)
    while True:
        maker = Maker(job)
        ends = build(maker, (i for run, n in zip(runs, rounds, strict=True) for i in run.blocks(n)))
        steps = schedule(maker.graph, rules)
        sizes, states = buffer_sizes(steps, job.cpu, ends)
        if rules.pipelined and len(steps.first) > _FEW_INPUTS * COPIES * (rules.n_gpus + 1):
            states = {}  # Each block has copies that are there from the start: all of them count.
        enough = enough_rounds(runs, rounds, states)
        if enough == rounds:
            return sizes
        rounds = enough


def draft_sizes(job: Job, rules: Rules) -> list[int]:
    """The same for the draft context of multi-token prediction."""
    maker = Maker(job)
    build_draft(maker)
    return buffer_sizes(schedule(maker.graph, rules), job.cpu)[0]


def is_pipelined(settings: Settings, weights: Weights, n_gpus: int) -> bool:
    """Whether GPUs work one behind the other: several, all blocks on them, nothing overridden."""
    return (
        n_gpus > 1
        and settings.split_mode == "layer"
        and settings.cache_on_gpu
        and not settings.overrides
        and all(device != HOST for device in (*weights.blocks, weights.output))
    )
