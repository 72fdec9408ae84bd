"""A rule of thumb for compute buffers, where an architecture's graph is not known.

    mask        cells × tokens × 2 bytes (4 without flash attention)
    attention   4 · tokens · (2 · width + 2 · heads · head size); without flash attention, scores of all heads
    experts     4 · tokens · (2 · width + 2 · used · n_embd + 3 · used · n_ff)
    dense       4 · tokens · (2 · width + 3 · n_ff)
    logits      4 · outputs · (n_vocab + n_embd)
    streamed    the largest expert tensor in RAM, on the first GPU

A buffer holds the mask, the largest of the four in the middle, and what is streamed. `width` is n_embd for
each stream of the residual (hyper-connections). Where the graph is known, most of these are within a third;
families that do much else are far off.
"""

from __future__ import annotations

from ggplan.offload.graph.maker import Job
from ggplan.offload.graph.schedule import Rules

_FLOAT = 4


def thumb_sizes(job: Job, rules: Rules, streamed: int) -> list[int]:
    """Bytes of each device's compute buffer, the CPU's last. `streamed`: of the largest expert tensor."""
    dims, holding = job.dimensions, job.holding
    n = holding.n_tokens
    width = dims.n_embd * _streams(job)
    cells = holding.n_cells + (holding.n_window_cells if any(dims.slides) else 0)
    mask = cells * n * (2 if job.flash else _FLOAT)
    heads = max(dims.heads)
    head = max(dims.head_k, dims.head_v, dims.kv_rank + dims.n_rope if dims.is_mla else 0)
    parts = [
        _FLOAT * n * (2 * width + 2 * heads * head)
        + (0 if job.flash else _FLOAT * n * holding.n_cells * heads),
        _FLOAT * n * (2 * width + 3 * _longest(job, "ffn_down.weight")),
        _FLOAT * holding.n_outputs * (dims.n_vocab + dims.n_embd),
    ]
    used = max(dims.used)
    if used:
        parts.append(
            _FLOAT
            * n
            * (2 * width + 2 * used * dims.n_embd + 3 * used * _longest(job, "ffn_down_exps.weight"))
        )
    inner = mask + max(parts)
    inputs = 2 * _FLOAT * n * width + mask
    if not rules.n_gpus:
        return [inner]
    holders = {*job.blocks, *(placed.device for placed in job.weights.values())}
    found = [inner if device in holders else 0 for device in range(rules.n_gpus)]
    if streamed and rules.offloads and n >= rules.batch:
        found[0] = inner + streamed
    host = inner if job.cpu in job.blocks and not rules.offloads else inputs
    return [*found, host]


def _streams(job: Job) -> int:
    """Copies of the residual stream that a block reads and writes."""
    return max(1, job.dimensions.hyper_connections)


def _longest(job: Job, name: str) -> int:
    return max((p.tensor.shape[0] for full, p in job.weights.items() if full.endswith(name)), default=0)
