"""A mark of a tensor's weights, which tells whether a calibration was made with them.

It is of the shape and of eight rows all over the tensor, rounded to bfloat16. So a checkpoint and the bf16
GGUF that was made of it have the same marks, and a fine-tune of the model does not. `METADATA` marks what of
the metadata the graph uses: the frequencies of RoPE, the number of experts that are used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from ggplan.errors import Error
from ggplan.model import Model, TensorInfo
from ggplan.sources.remote import each, is_remote

METADATA = "metadata"
"""The name under which the mark of the metadata is, beside those of tensors."""
_ROWS = 8
_KIND = "8:"  # before a mark; those of an earlier kind were of the first row alone


def mark_of(tensor: TensorInfo) -> str:
    """The mark of one tensor; "" where its weights cannot be read."""
    from ggplan.quants.floats import narrowed

    if tensor.rows is None or not tensor.n_weights:
        return ""
    digest = hashlib.sha256()
    last = tensor.n_rows - 1
    for row in sorted({last * k // (_ROWS - 1) for k in range(_ROWS)}):
        digest.update(narrowed(tensor.rows.read_float32(row, row + 1)).tobytes())
    return f"{_beginning(tensor)}{digest.hexdigest()[:32]}"


def _beginning(tensor: TensorInfo) -> str:
    return f"{_KIND}{'x'.join(map(str, tensor.shape))}:"


def is_of_shape(mark: str, tensor: TensorInfo) -> bool:
    """Whether a mark is of a tensor with the shape of this one."""
    return mark.startswith(_beginning(tensor))


def marks_of(model: Model) -> dict[str, str]:
    """The marks of all tensors of a model, by GGUF name, and of its metadata.

    Raises
    ------
    CheckpointError
        If weights cannot be read.
    """
    marks = zip((t.name for t in model.tensors), _each(model, mark_of), strict=True)
    return {name: mark for name, mark in marks if mark} | {METADATA: _mark_of_metadata(model)}


def differing(weights: Mapping[str, str], model: Model) -> list[str]:
    """The tensors of a model whose weights are not those that a calibration was made with.

    `METADATA` is among them if what the graph uses of it differs.
    """

    def mark(tensor: TensorInfo) -> str:
        known = weights.get(tensor.name, "")
        try:
            return mark_of(tensor) if known.startswith(_KIND) else known
        except Error:
            return known  # told where it is read for its own sake

    found = [
        tensor.name
        for tensor, mark_ in zip(model.tensors, _each(model, mark), strict=True)
        if mark_ and mark_ != weights.get(tensor.name, mark_)
    ]
    if not model.reshaped and weights.get(METADATA) not in (None, _mark_of_metadata(model)):
        found.append(METADATA)
    return found


def _each(model: Model, read: Callable[[TensorInfo], str]) -> list[str]:
    return each(model.tensors, read, parallel=any(map(is_remote, model.files)))


def _mark_of_metadata(model: Model) -> str:
    digest = hashlib.sha256()
    for key in sorted(model.metadata):
        if key.startswith(f"{model.architecture}.") and not key.endswith(_NOT_OF_GRAPHS):
            digest.update(f"{key}\n".encode("utf-8", "surrogatepass"))
            digest.update(model.metadata[key].encode())
    return _KIND + digest.hexdigest()[:32]


_NOT_OF_GRAPHS = (".context_length", ".vocab_size", ".block_count", ".nextn_predict_layers")
