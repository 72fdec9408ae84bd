"""The embedding as a reader of the output will find it: what the quantized stream starts from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import starmap

import numpy as np

from ggplan.correcting.encoding import Target, encode_target
from ggplan.errors import ConversionError
from ggplan.forward.checkpoint_model import CheckpointModel
from ggplan.planning import Plan, PlannedTensor
from ggplan.planning.embedding import EMBEDDING
from ggplan.planning.guidance import readings_of_embedding
from ggplan.quants import dequantize
from ggplan.quants.feedback import takes_moments
from ggplan.quants.matrix_moments import Reading, prepared_for
from ggplan.sources.files import shown

_CHUNK_WEIGHTS = 1 << 18  # that one thread encodes


def put_embedding(plan: Plan, model: CheckpointModel, threads: int) -> bool:
    """Put what the output will hold in place of the model's embedding; False where that is the same.

    `model.fill_outside` brings the original back. Rows that only the output has, or only the model, which
    are there to make the vocabulary a round number, belong to no token.

    Raises
    ------
    ConversionError
        If the embedding of transformers' model is another one than the plan's.
    """
    planned = next((t for t in plan.tensors if t.name == EMBEDDING), None)
    if planned is None or planned.is_copied or not planned.type.is_quantized:
        return False
    tensor, matrix = planned.tensor, model.model.get_input_embeddings().weight.detach().numpy()
    source = tensor.rows
    assert source is not None
    target = _target(plan, planned, threads)
    n_rows, step = min(tensor.n_rows, len(matrix)), max(1, _CHUNK_WEIGHTS // tensor.n_columns)

    def work(start: int) -> None:
        stop = min(start + step, n_rows)
        weights = source.read_float32(start, stop)
        if not np.array_equal(weights, matrix[start:stop]):  # NaN among them too
            raise ConversionError(
                f"{shown(EMBEDDING)} has other weights than the embedding of transformers' model, or some "
                "that are not finite",
                hint="leave --correct out",
            )
        blocks = encode_target(plan, planned, 0, weights, target)
        matrix[start:stop] = dequantize(blocks, planned.type)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(0, n_rows, step)))
    return True


def _target(plan: Plan, planned: PlannedTensor, threads: int) -> Target:
    """As the writer encodes it."""
    feedback = plan.feedback
    if feedback is None or not feedback.embedding or not takes_moments(planned.type):
        return Target()
    readings, n = starmap(Reading, readings_of_embedding(feedback)), planned.tensor.n_columns
    return Target(
        prepared=prepared_for(EMBEDDING, readings, n, feedback.lam, threads), method=feedback.method
    )
