"""What reads the token embedding: the matrices of layer 0 that errors of its rows are multiplied with.

Rows of the embedding are looked up, so no text gives it an input. But a token's row goes through a norm to
each matrix of layer 0 that reads the residual stream (q, k and v; gate, up and the router): behind such a
matrix W an error e of the row is W (gamma * e), over the root mean square of what the norm gets. So the rows
of these matrices, times the norm's weights gamma, are to the embedding what inputs are to other matrices.
Later layers read the row as a small part of what the layers before them have added to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.model import Model, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    F32Array = NDArray[np.float32]

EMBEDDING = "token_embd.weight"

_ROWS = 256  # that are read at a time
_STRIDE = 1597
_MOST_ROWS = 4  # of a matrix, in parts of its columns; experts have more, and some from all over them will do
_FIRST = ("attn_q", "attn_qkv", "attn_q_a", "attn_kv_a_mqa", "ssm_in", "shortconv.in_proj")
"""Names that what reads the first norm may have, with others that have the same input."""
_FEED_FORWARD = (
    "ffn_gate", "ffn_up", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps",
    "ffn_gate_shexp", "ffn_up_shexp",
)  # fmt: skip
_BETWEEN = ("token_embd_norm.weight", "position_embd.weight", "token_types.weight")
"""What stands between the embedding and layer 0; in LFM2 the first of them is the norm of the output."""
_OTHER_NORMS = ("attn_norm_2", "ffn_norm_exps", "pre_ffw_norm_2")
"""Norms that some of the readers have, of Falcon, Arctic and Gemma 4. In DBRX that is attn_output_norm."""


@dataclass(frozen=True, slots=True)
class EmbeddingReader:
    """A matrix that reads the residual stream in layer 0.

    Attributes
    ----------
    tensor
        The matrix, or stack of matrices, of as many columns as the embedding has.
    norm
        The norm before it, (n,); None where there is none.
    zeroes
        Whether weights that are not finite are 0, as the plan writes them.
    """

    tensor: TensorInfo
    norm: TensorInfo | None
    zeroes: bool = False

    def gamma(self) -> F32Array | None:
        """The norm's weights (n,); None for ones."""
        return None if self.norm is None else self._by_policy(self.norm, 0, 1).reshape(-1)

    def runs(self) -> list[tuple[int, int]]:
        """The first row and the end of runs of its rows; of very many, of some from all over it."""
        n_rows = self.tensor.n_rows
        count = -(-_MOST_ROWS * max(_ROWS, self.tensor.n_columns) // _ROWS)
        step = n_rows // count
        if step < 2 * _ROWS:
            return [(start, min(start + _ROWS, n_rows)) for start in range(0, n_rows, _ROWS)]
        # Not always the same rows of experts, nor of one half where gate and up are joined.
        starts = (step * k + _STRIDE * k % (step - _ROWS) for k in range(count))
        return [(start, start + _ROWS) for start in starts]

    def read(self, run: tuple[int, int]) -> F32Array:
        """The rows (m, n) of a run.

        Raises
        ------
        CheckpointError
            If they cannot be read.
        """
        return self._by_policy(self.tensor, *run)

    def _by_policy(self, tensor: TensorInfo, start: int, stop: int) -> F32Array:
        import numpy as np

        assert tensor.rows is not None
        rows = tensor.rows.read_float32(start, stop)
        return np.where(np.isfinite(rows), rows, np.float32(0)) if self.zeroes else rows


def readers_of_embedding(
    model: Model, input_of: Callable[[str], object], *, zeroes: bool = False
) -> tuple[EmbeddingReader, ...]:
    """The matrices of layer 0 that read a model's token embedding.

    None of them where they are not known or their weights are not at hand, and where the embedding is the
    output matrix too, which counts for more.

    Parameters
    ----------
    input_of
        What is equal for tensors with the same input; None for tensors that are not known.
    zeroes
        Of the readers.
    """
    there = {tensor.name: tensor for tensor in model.tensors}
    embedding = there.get(EMBEDDING)
    if embedding is None or "output.weight" not in there or any(name in there for name in _BETWEEN):
        return ()
    names = (f"blk.0.{name}.weight" for name in _FIRST)
    shared = next((found for name in names if name in there and (found := input_of(name)) is not None), None)
    if shared is None:
        return ()
    before, between, behind, of_output, *others = (
        there.get(f"blk.0.{name}.weight")
        for name in ("attn_norm", "ffn_norm", "post_attention_norm", "attn_output_norm", *_OTHER_NORMS)
    )
    if any(others) or (of_output and not between):
        return ()
    # Where attention and feed-forward network stand side by side, both read the first norm.
    second = between or (behind if before is not None else None) or before
    found = {
        t.name: EmbeddingReader(t, before, zeroes)
        for t in model.tensors
        if t.name.startswith("blk.0.") and input_of(t.name) == shared
    }
    for name in _FEED_FORWARD:
        tensor = there.get(f"blk.0.{name}.weight")
        if tensor is not None and input_of(tensor.name) is not None:
            found.setdefault(tensor.name, EmbeddingReader(tensor, second, zeroes))
    has_both = any(f"blk.0.{name}.weight" in found for name in _FEED_FORWARD)
    readers = tuple(found.values())
    return readers if has_both and all(_is_whole(r, embedding.n_columns) for r in readers) else ()


def _is_whole(reader: EmbeddingReader, n: int) -> bool:
    """Whether a reader has weights, of the embedding's columns."""
    norm, tensor = reader.norm, reader.tensor
    has_norm = norm is None or (norm.shape == (n,) and norm.rows is not None)
    return has_norm and tensor.rows is not None and len(tensor.shape) > 1 and tensor.n_columns == n
