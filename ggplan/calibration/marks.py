"""A mark of a tensor's weights, which tells whether a calibration was made with them.

It is of the shape and the first row, rounded to bfloat16. So a checkpoint and the bf16 GGUF that was made of
it have the same marks, and a fine-tune of the model does not.
"""

from __future__ import annotations

import hashlib

from ggplan.errors import Error
from ggplan.model import Model, TensorInfo


def mark_of(tensor: TensorInfo) -> str:
    """The mark of one tensor; "" where its weights cannot be read."""
    from ggplan.quants.floats import narrowed

    if tensor.rows is None or not tensor.n_weights:
        return ""
    row = tensor.rows.read_float32(0, 1)
    shape = "x".join(map(str, tensor.shape))
    return hashlib.sha256(f"{shape}\n".encode("ascii") + narrowed(row).tobytes()).hexdigest()[:32]


def marks_of(model: Model) -> dict[str, str]:
    """The marks of all matrices of a model, by GGUF name.

    Raises
    ------
    CheckpointError
        If weights cannot be read.
    """
    marks = {t.name: mark_of(t) for t in model.tensors if len(t.shape) > 1}
    return {name: mark for name, mark in marks.items() if mark}


def differing(weights: dict[str, str], model: Model) -> list[str]:
    """The tensors of a model whose weights are not those that a calibration was made with."""
    found = []
    for tensor in model.tensors:
        if tensor.name in weights:
            try:
                mark = mark_of(tensor)
            except Error:
                continue  # told where it is read for its own sake
            if mark and mark != weights[tensor.name]:
                found.append(tensor.name)
    return found
