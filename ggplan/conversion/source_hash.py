"""The hashes of a tensor's inputs for the manifest: of the weights that were encoded, and of the importance.

The rows are hashed as the encoder gets them, as float32. So the hash does not depend on how a checkpoint is
sharded or stored, and it covers every step between the file and the encoder, such as the scales of fp8
weights, stacked experts and permuted heads. Types without blocks have no such hash: encoding them takes no
longer than proving that their weights are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ggplan.conversion.chunks import read_rows
from ggplan.conversion.running_hash import RunningHash
from ggplan.planning import Plan, PlannedTensor
from ggplan.planning.importance import importance_of
from ggplan.quants.codecs import Rows
from ggplan.quants.row_hash import hash_rows, row_hash_bytes


def has_source_hash(planned: PlannedTensor) -> bool:
    """Whether the weights of a tensor are hashed on their way to the encoder."""
    return planned.type.is_quantized and not planned.is_copied and planned.tensor.n_weights > 0


def new_source_hash(planned: PlannedTensor) -> RunningHash:
    """A new hash for the rows of a tensor."""
    tensor = planned.tensor
    size = f"ggplan rows 2: {tensor.n_rows} x {tensor.n_columns}\n"
    kept = hashlib.sha256(size.encode("ascii"))
    return RunningHash(tensor.n_rows * row_hash_bytes(tensor.n_columns), 0, kept)


def add_rows(source: RunningHash, start: int, rows: Rows) -> float:
    """Add a tensor's rows from `start` on to the hash; returns their largest magnitude (see `hash_rows`)."""
    hashes, largest = hash_rows(rows)
    source.add(hashes.reshape(-1).data, start * hashes.shape[1])
    return largest


def source_hash_of(
    planned: PlannedTensor, run_weights: int, is_stopped: Callable[[], bool] = lambda: False
) -> str:
    """The hash of a tensor's weights, read in runs for this; "" if it was stopped.

    Raises
    ------
    CheckpointError
        If they cannot be read.
    """
    tensor, source = planned.tensor, new_source_hash(planned)
    step = max(1, run_weights // max(1, tensor.n_columns))
    for start in range(0, tensor.n_rows, step):
        if is_stopped():
            return ""
        add_rows(source, start, read_rows(planned, start, min(start + step, tensor.n_rows)))
    return source.mark().sha256


def importance_hash(plan: Plan, planned: PlannedTensor) -> str:
    """The SHA-256 of the importance a tensor is encoded with, in hex digits; "" if there is none."""
    importance = importance_of(planned.tensor, planned.type, plan.imatrix, plan.effort)
    if importance is None:
        return ""
    slices, columns = importance.shape
    digest = hashlib.sha256(f"ggplan importance 1: {slices} x {columns}\n".encode("ascii"))
    digest.update(importance.astype("<f4", order="C").data)
    return digest.hexdigest()
