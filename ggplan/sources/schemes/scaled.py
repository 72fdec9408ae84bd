"""Weights that are codes times scales: `float32(code) * float32(scale)`, one rounding, for any rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.ggml_types import BF16, F32
from ggplan.model import RowSource, require_rows
from ggplan.sources.files import shown
from ggplan.sources.schemes.grids import Grid
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOAT_SCALES = ("F32", "BF16", "F16", "F8_E8M0")
_RUN = 1 << 18
# The exponent of bfloat16's smallest positive number, which is not normal.
_BF16_LOWEST = -133


@dataclass(frozen=True, slots=True)
class Scaled:
    """Codes and their scales, read as the product.

    Attributes
    ----------
    codes
        `codes(start, stop)` gives rows of codes as a new array (stop - start, n_columns) of float32.
    scale
        The scales, of a type that `read_floats` reads.
    grid
        Which scale belongs to which code.
    """

    codes: Callable[[int, int], NDArray[np.float32]]
    scale: StoredTensor
    grid: Grid

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` up to `stop`; a NaN or infinite code or scale gives NaN or infinite weights."""
        require_rows(start, stop, self.grid.n_rows)
        rows = self.codes(start, stop)
        if rows.size:
            self.grid.multiply(rows, self.grid.scales(self.scale.read_floats, start, stop))
        return rows

    def rows(self, shape: tuple[int, ...]) -> RowSource:
        """The product as rows of a tensor of this shape."""
        return RowSource(F32, shape, self.read, self.fault)

    def bf16_rows(self, shape: tuple[int, ...], unit: int) -> RowSource:
        """The product in bf16, exact if every scale is a power of two that leaves it there.

        Parameters
        ----------
        unit
            All codes are multiples of 2^unit, with few enough digits for bf16.
        """

        def read(start: int, stop: int) -> NDArray[np.uint16]:
            import numpy as np

            return (self.read(start, stop).view(np.uint32) >> 16).astype(np.uint16)

        return RowSource(BF16, shape, read, lambda: self.fault() or self._bf16_fault(unit))

    def fault(self) -> str:
        """The number of scales that are not finite and positive, and the first of them; or "".

        A scale of 0 is sound where all its codes are 0: some quantizers give it to a block of zeros.
        """
        import numpy as np

        n_scales = self.scale.n_weights
        count, first, value = 0, -1, 0.0
        for start in range(0, n_scales, _RUN):
            scales = self.scale.read_floats(start, min(start + _RUN, n_scales))
            with np.errstate(invalid="ignore"):
                wrong = ~((scales > 0) & (scales < np.inf))
            empty = np.flatnonzero(scales == 0)
            wrong[empty] = [self._has_codes(start + int(at)) for at in empty]
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

    def _has_codes(self, index: int) -> bool:
        """Whether a block, by the index of its scale, has a code that is not 0."""
        row, column = divmod(index, self.grid.per_row)
        start, stop = self.grid.rows_of(row)
        first, last = column * self.grid.block_columns, (column + 1) * self.grid.block_columns
        step = max(1, _RUN // max(self.grid.n_columns, 1))
        return any(
            self.codes(at, min(at + step, stop))[:, first:last].any() for at in range(start, stop, step)
        )

    def _bf16_fault(self, unit: int) -> str:
        import numpy as np

        n_scales = self.scale.n_weights
        for start in range(0, n_scales, _RUN):
            scales = self.scale.read_floats(start, min(start + _RUN, n_scales))
            fractions, exponents = np.frexp(scales)
            wrong = (scales != 0) & ((fractions != 0.5) | (exponents - 1 + unit < _BF16_LOWEST))
            if wrong.any():
                at = int(wrong.argmax())
                what = "no power of two" if fractions[at] != 0.5 else "too small for bf16"
                return (
                    f"'{shown(self.scale.name)}' has the scale {scales[at]} at index {start + at:,}, which "
                    f"is {what}: only f32 holds the weights"
                )
        return ""


def float_rows(tensor: StoredTensor) -> Callable[[int, int], NDArray[np.float32]]:
    """The values of a tensor's rows as float32, whatever float type it has."""
    n_columns = tensor.shape[-1] if tensor.shape else 1

    def read(start: int, stop: int) -> NDArray[np.float32]:
        return tensor.read_floats(start * n_columns, stop * n_columns).reshape(stop - start, n_columns)

    return read


def as_scales(tensor: StoredTensor) -> StoredTensor:
    """A tensor of scales, bytes as the powers of two that they stand for (F8_E8M0).

    Raises
    ------
    CheckpointError
        If scales of its type are not read.
    """
    if tensor.dtype == "U8":
        return replace(tensor, dtype="F8_E8M0")
    if tensor.dtype not in FLOAT_SCALES:
        raise CheckpointError(
            f"{shown(tensor.file)}: the scales '{shown(tensor.name)}' are {tensor.dtype}; "
            f"ggplan reads {', '.join(FLOAT_SCALES)}"
        )
    return tensor


def misfit(scale: StoredTensor, shape: tuple[int, ...], how: str = "") -> CheckpointError:
    """The error of scales that do not fit weights of a shape."""
    return CheckpointError(
        f"{shown(scale.file)}: the scales '{shown(scale.name)}' of shape {shown(list(scale.shape))} do not "
        f"fit weights of shape {shown(list(shape))}{how}"
    )
