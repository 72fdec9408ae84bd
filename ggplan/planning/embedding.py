"""What reads the token embedding: the matrices that errors of its rows are multiplied with.

Rows of the embedding are looked up, so no text gives it an input. But a token's row goes through the first
norm to the matrices of layer 0 that read it: behind such a matrix W an error e of the row is W (gamma * e),
over the row's root mean square. So the rows of these matrices, times the norm's weights gamma, are to the
embedding what inputs are to other matrices. Layers behind read the row as a small part of what the layers
before them add to it: the mean of 1 / rms^2 falls from 456 at the norm of layer 0's attention to 0.2 at that
of its feed-forward network in glm4moe-tiny.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.model import Model, RowSource, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    F32Array = NDArray[np.float32]

EMBEDDING = "token_embd.weight"

_ROWS = 256  # that are read at a time
_NORM = "blk.0.attn_norm.weight"
_FIRST = ("attn_q", "attn_qkv", "attn_q_a", "attn_kv_a_mqa", "ssm_in", "shortconv.in_proj")
"""Names in layer 0 that what reads the embedding may have, with others that have the same input."""
_BETWEEN = ("token_embd_norm.weight", "position_embd.weight", "token_types.weight")
"""What stands between the embedding and layer 0; in LFM2 the first of them is the norm of the output."""


@dataclass(frozen=True, slots=True)
class EmbeddingReaders:
    """The matrices that read the token embedding.

    Attributes
    ----------
    tensors
        The matrices, (m, n) each, of as many columns as the embedding has.
    norm
        The norm before them, (n,); None where there is none.
    """

    tensors: tuple[TensorInfo, ...]
    norm: TensorInfo | None

    def rows(self) -> Iterator[Iterator[F32Array]]:
        """For each matrix its rows times the norm's weights, some at a time.

        Raises
        ------
        CheckpointError
            If weights cannot be read.
        """
        gamma = None
        if self.norm is not None and self.norm.rows is not None:
            gamma = self.norm.rows.read_float32(0, 1).reshape(-1)
        for tensor in self.tensors:
            if tensor.rows is not None:
                yield _rows(tensor.rows, tensor.n_rows, gamma)


def _rows(source: RowSource, n_rows: int, gamma: F32Array | None) -> Iterator[F32Array]:
    for start in range(0, n_rows, _ROWS):
        rows = source.read_float32(start, min(start + _ROWS, n_rows))
        yield rows if gamma is None else rows * gamma


def readers_of_embedding(model: Model, input_of: Callable[[str], object]) -> EmbeddingReaders | None:
    """The matrices that read a model's token embedding, and nothing but it.

    None where that is not known, where their weights are not at hand, and where the embedding is the output
    matrix too, which counts for more.

    Parameters
    ----------
    input_of
        What is equal for tensors with the same input; None for tensors that are not known.
    """
    there = {tensor.name: tensor for tensor in model.tensors}
    embedding = there.get(EMBEDDING)
    if embedding is None or "output.weight" not in there or any(name in there for name in _BETWEEN):
        return None
    n = embedding.n_columns
    names = (f"blk.0.{name}.weight" for name in _FIRST)
    shared = next((found for name in names if name in there and (found := input_of(name)) is not None), None)
    readers = tuple(t for t in model.tensors if t.name.startswith("blk.0.") and input_of(t.name) == shared)
    norm = there.get(_NORM)
    is_known = shared is not None and all(len(t.shape) == 2 and t.n_columns == n for t in readers)
    if not is_known or any(t.rows is None for t in readers):
        return None
    if norm is not None and (norm.shape != (n,) or norm.rows is None):
        return None
    return EmbeddingReaders(readers, norm)
