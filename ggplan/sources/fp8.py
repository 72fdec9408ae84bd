"""fp8 checkpoints: 8-bit floats with scales beside them, given as the float32 weights they stand for.

DeepSeek-V3 and its kin store a matrix as `X.weight` (F8_E4M3) and `X.weight_scale_inv`, one float for
each block of 128 x 128 weights (`quantization_config.weight_block_size`); the last block of a row or
column may be cut short. compressed-tensors calls the same thing `X.weight_scale`, mostly with one scale
for each row. Either way a weight is `float32(code) * float32(scale)`, one rounding, which is what
llama.cpp's converter computes (b11434, `conversion/base.py`, `dequant_model`): the same float32 here,
bit for bit, but for any range of rows and without the matrix of repeated scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.sources.files import shown
from ggplan.sources.tensors import CheckpointTensor, StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DTYPE = "F8_E4M3"
_RUN = 1 << 18
_SCALE_DTYPES = ("F32", "BF16", "F16")
_SCALE_SUFFIXES = ("_scale_inv", "_scale")
# Scales of activations and caches, which weights have no use for.
_UNUSED_SUFFIXES = ("activation_scale", "input_scale", "output_scale", ".k_scale", ".v_scale")


@dataclass(frozen=True, slots=True)
class ScaledTensor:
    """An fp8 tensor and its scales, read as the product.

    The rows are cut into slices of `slice_rows` (the experts of a stacked tensor, or one slice for all), a
    slice into blocks of `block_rows` x `block_columns`; each block has one scale, in row-major order.
    """

    weight: StoredTensor
    scale: StoredTensor
    slice_rows: int
    block_rows: int
    block_columns: int

    @property
    def name(self) -> str:
        """The name of the weight."""
        return self.weight.name

    @property
    def dtype(self) -> str:
        """`F8_E4M3`."""
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.weight.shape

    @property
    def file(self) -> Path:
        """The file of the weight; the scales may be in another."""
        return self.weight.file

    @property
    def n_columns(self) -> int:
        """Weights in a row."""
        return self.weight.n_columns

    @property
    def n_rows(self) -> int:
        """Rows of all slices together."""
        return self.weight.n_rows

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` up to `stop`, scaled, as a (stop - start, n_columns) float32 array.

        Raises
        ------
        CheckpointError
            If a file fails. A code or a scale that is NaN or infinite makes weights that are; who encodes
            them will refuse them.
        """
        import numpy as np

        rows = self.weight.read_rows(start, stop)
        if rows.size == 0:
            return rows
        per_row = -(-self.n_columns // self.block_columns)
        first = self._scale_row(start)
        count = self._scale_row(stop - 1) + 1 - first
        scales = self.scale.read_flat(first * per_row, (first + count) * per_row).reshape(count, per_row)
        with np.errstate(over="ignore", invalid="ignore"):
            if per_row == 1:
                owners = [self._scale_row(row) - first for row in range(start, stop)]
                rows *= scales[owners]
                return rows
            at = start
            while at < stop:
                within = at % self.slice_rows
                block_end = min(within - within % self.block_rows + self.block_rows, self.slice_rows)
                end = min(stop, at - within + block_end)
                factors = np.repeat(scales[self._scale_row(at) - first], self.block_columns)
                rows[at - start : end - start] *= factors[: self.n_columns]
                at = end
        return rows

    def scale_fault(self) -> str:
        """What is wrong with the scales: how many are not finite, zero or negative, and the first; or ""."""
        import numpy as np

        n_scales = self.scale.n_rows * self.scale.n_columns
        count, first, value = 0, -1, 0.0
        for start in range(0, n_scales, _RUN):
            scales = self.scale.read_flat(start, min(start + _RUN, n_scales))
            with np.errstate(invalid="ignore"):
                wrong = ~((scales > 0) & (scales < np.inf))
            if first < 0 and wrong.any():
                first = start + int(wrong.argmax())
                value = float(scales[first - start])
            count += int(np.count_nonzero(wrong))
        if not count:
            return ""
        many = "1 scale that is" if count == 1 else f"{count:,} scales that are"
        return (
            f"'{shown(self.scale.name)}' has {many} not finite and positive, the first {value} at index "
            f"{first:,} ({shown(self.scale.file.name)})"
        )

    def _scale_row(self, row: int) -> int:
        """Which row of scales belongs to a row of weights."""
        slice_, within = divmod(row, self.slice_rows)
        return slice_ * -(-self.slice_rows // self.block_rows) + within // self.block_rows


def apply_scales(
    stored: dict[str, StoredTensor], block: tuple[int, int] | None
) -> dict[str, CheckpointTensor]:
    """Join every fp8 tensor with its scales; the scales are no tensors of their own any more.

    Parameters
    ----------
    stored
        The tensors of all shards.
    block
        Rows and columns that share a scale, or None where the checkpoint has no blocks.

    Raises
    ------
    CheckpointError
        If an fp8 tensor has no scale, or scales have no tensor, or a shape or type that does not fit.
    """
    joined: dict[str, CheckpointTensor] = {}
    scale_names: set[str] = set()
    for name, tensor in stored.items():
        if tensor.dtype == DTYPE:
            scale = _scale_of(tensor, stored)
            scale_names.add(scale.name)
            joined[name] = _join(tensor, scale, block)
        else:
            joined[name] = tensor
    for name, tensor in stored.items():
        if name in scale_names or (scale_names and name.endswith(_UNUSED_SUFFIXES)):
            del joined[name]
        elif name.endswith("_scale_inv"):
            raise CheckpointError(
                f"{shown(tensor.file)}: the scales '{shown(name)}' have no {DTYPE} tensor beside them"
            )
    return joined


def _scale_of(tensor: StoredTensor, stored: dict[str, StoredTensor]) -> StoredTensor:
    found = [stored[tensor.name + suffix] for suffix in _SCALE_SUFFIXES if tensor.name + suffix in stored]
    if len(found) != 1:
        what = "has two sets of scales" if found else "has no scales"
        raise CheckpointError(
            f"{shown(tensor.file)}: the {DTYPE} tensor '{shown(tensor.name)}' {what}",
            hint=f"its scales should be '{shown(tensor.name)}_scale_inv'",
        )
    return found[0]


def _join(tensor: StoredTensor, scale: StoredTensor, block: tuple[int, int] | None) -> ScaledTensor:
    if scale.dtype not in _SCALE_DTYPES:
        raise CheckpointError(
            f"{shown(scale.file)}: the scales '{shown(scale.name)}' are {scale.dtype}; "
            f"ggplan reads {', '.join(_SCALE_DTYPES)}"
        )
    shape = tensor.shape
    if len(shape) >= 2 and block is not None:
        grid = (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
        if scale.shape == grid:
            return ScaledTensor(tensor, scale, shape[-2], *block)
    # Without blocks, dimensions are matched from the left: [rows], [rows, 1], [experts, 1, 1], [1] or [].
    slice_rows = shape[-2] if len(shape) >= 2 else 1
    whole_row = max(tensor.n_columns, 1)
    extents = scale.shape + (1,) * (len(shape) - len(scale.shape))
    if all(extent == 1 for extent in extents):
        return ScaledTensor(tensor, scale, tensor.n_rows, max(tensor.n_rows, 1), whole_row)
    if extents == (*shape[:-1], 1):
        return ScaledTensor(tensor, scale, slice_rows, 1, whole_row)
    if extents == (*shape[:-2], 1, 1):
        return ScaledTensor(tensor, scale, slice_rows, max(slice_rows, 1), whole_row)
    blocks = f" in blocks of {block[0]} x {block[1]}" if block else ""
    raise CheckpointError(
        f"{shown(scale.file)}: the scales '{shown(scale.name)}' of shape {list(scale.shape)} do not fit "
        f"weights of shape {list(shape)}{blocks}"
    )
