"""The memory that correcting a layer takes, and the threads that a budget is enough for.

To find which weight of a layer is which, numbers take the places of its weights, twice. Then its weights,
in float32, its blocks, and what the model has outside of its layers are held all the time. Beside them first
the tokens pass the layer, a batch in each thread; then its matrices are corrected. Matrices that all tokens
go to are corrected one after the other, by all threads together: H, C - H and a factor. Experts are corrected
by a thread each, whose moments are then prepared. As in other conversions one Hessian a thread comes on top
of the budget.

What transformers' modules take for a batch is an estimate, from the lengths of what they multiply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from ggplan.correcting.encoding import ENCODED_WEIGHTS, tensors_of_layer
from ggplan.correcting.layer import CHUNK_ROWS
from ggplan.errors import ConversionError
from ggplan.forward.checkpoint_model import CheckpointModel
from ggplan.forward.running import batch_windows
from ggplan.planning import Plan, PlannedTensor
from ggplan.planning.guidance import CALIBRATED_MEMORY
from ggplan.quants.prepared import memory_of, search_bytes
from ggplan.quants.searches.row_tiles import PANEL, TILE
from ggplan.text import format_bytes

_NUMBERED = 32  # bytes for each number of a slice whose weights are looked for
_ROUTES = 8  # experts that a token goes to, where the model does not say


def threads_within(
    plan: Plan, model: CheckpointModel, tokens_shape: tuple[int, ...], n_threads: int, memory: int | None
) -> int:
    """The most threads, up to `n_threads`, with which every layer fits into `memory` bytes.

    None is `CALIBRATED_MEMORY`, or what one thread takes where that is more.

    Raises
    ------
    ConversionError
        If one thread is too many.
    """
    numbers = range(len(model.layers))
    routes = _routes(plan)
    finding = max(map(partial(_finding, model), numbers))
    layers = [
        (_held(model, k, tensors), _passing(model, k, tensors, tokens_shape, routes), tensors)
        for k in numbers
        if (tensors := tensors_of_layer(plan, k))
    ]

    def needed(threads: int) -> int:
        of_layers = (
            held + max(threads * batch, _correcting(tensors, threads)) for held, batch, tensors in layers
        )
        return max((finding, *of_layers))

    if memory is None:
        memory = max(CALIBRATED_MEMORY, needed(1))
    if needed(1) > memory:
        weights = format_bytes(max(map(model.layer_bytes, numbers)))
        raise ConversionError(
            f"correcting a layer takes {format_bytes(needed(1))} besides a Hessian, {weights} of it for its "
            f"weights in float32, and memory is {format_bytes(memory)}",
            hint=f"give --memory {-(-needed(1) // 2**20)}M or more",
        )
    return max(threads for threads in range(1, n_threads + 1) if needed(threads) <= memory)


def _finding(model: CheckpointModel, layer: int) -> int:
    """Bytes that it takes to find which weight of a layer is which, and to fill it."""
    shapes = [tuple(p.shape) for p in model.layers[layer].parameters()]
    largest, of_slices = (max(math.prod(shape[first:]) for shape in shapes) for first in (0, -2))
    return model.outside_bytes() + 2 * model.layer_bytes(layer) + int(4 * largest + _NUMBERED * of_slices)


def _held(model: CheckpointModel, layer: int, tensors: Mapping[str, PlannedTensor]) -> int:
    """Bytes of the weights of a layer and outside, and of the blocks."""
    return model.outside_bytes() + model.layer_bytes(layer) + sum(t.n_bytes for t in tensors.values())


def _routes(plan: Plan) -> int:
    """How many experts a token goes to, in the layer with most of them."""
    value = plan.model.metadata.get(f"{plan.model.architecture}.expert_used_count")
    found = None if value is None else value.decode()
    counts = [n for n in (found if isinstance(found, list) else [found]) if isinstance(n, int)]
    return max(counts, default=_ROUTES)


def _passing(
    model: CheckpointModel,
    layer: int,
    tensors: Mapping[str, PlannedTensor],
    tokens_shape: tuple[int, ...],
    routes: int,
) -> int:
    """Bytes that a batch of tokens takes in a layer, with the inputs that are kept of it."""
    n_windows, n_tokens = tokens_shape
    kept = {(t.tensor.n_columns, _slices(t) > 1 and _has_own_inputs(name)) for name, t in tensors.items()}
    n_kept = sum(n * (routes if is_own else 1) for n, is_own in kept)
    widest = max(max(p.shape[-2:]) for p in model.layers[layer].parameters() if p.ndim > 1)
    n_rows = n_tokens * min(batch_windows(n_tokens), n_windows)
    return 4 * n_rows * (5 * int(widest) + 2 * n_kept)


def _correcting(tensors: Mapping[str, PlannedTensor], n_threads: int) -> int:
    """Bytes that correcting the matrices of a layer takes at most, besides a Hessian a thread."""
    most = 0
    for name, planned in tensors.items():
        n, n_rows = planned.tensor.n_columns, planned.tensor.shape[-2]
        hessian, run = 4 * n * n, 4 * PANEL * n
        encoding = search_bytes(n) * max(ENCODED_WEIGHTS, TILE * n)
        rows = 2 * 4 * CHUNK_ROWS * n + run + encoding
        if _slices(planned) == 1:
            needed = 2 * hessian + 4 * run + n_threads * rows
        elif _has_own_inputs(name):
            needed = n_threads * (2 * hessian + 3 * run + 2 * 4 * n_rows * n + encoding)
        else:
            needed = 2 * hessian + n_threads * (memory_of(n) - hessian + rows)
        most = max(most, needed)
    return most


def _slices(planned: PlannedTensor) -> int:
    return math.prod(planned.tensor.shape[:-2])


def _has_own_inputs(name: str) -> bool:
    """Whether each expert of a tensor has an input of its own: what it makes of the layer's."""
    return name.startswith("ffn_down")
