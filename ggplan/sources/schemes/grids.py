"""Which scale belongs to which weight: scales lie over a matrix as a grid of blocks.

    one scale for the matrix        [] or [1] or [1, 1]
    one for each row                [rows] or [rows, 1]
    one for each slice of a stack   [experts] or [experts, 1, 1]
    one for each column of a slice  [experts, 1, columns]
    one for each block              [rows / block_rows, columns / block_columns], rounded up
    one for each run of a row       [rows, columns / run]

The shapes decide. A config is asked only for the size of blocks, which shapes with blocks that are cut short
do not give; what a config says must then fit the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Block = tuple[int, int]
DEFAULT_BLOCK: Block = (128, 128)


@dataclass(frozen=True, slots=True)
class Grid:
    """How scales lie over a matrix.

    The rows are cut into slices of `slice_rows` (the experts of a stacked tensor, or one slice for all), a
    slice into blocks of `block_rows` x `block_columns`; each block has one scale, in row-major order.
    """

    n_rows: int
    n_columns: int
    slice_rows: int
    block_rows: int
    block_columns: int

    @property
    def per_row(self) -> int:
        """Scales of one row of weights."""
        return -(-self.n_columns // self.block_columns)

    def scale_row(self, row: int) -> int:
        """The row of scales that belongs to a row of weights."""
        slice_, within = divmod(row, self.slice_rows)
        return slice_ * -(-self.slice_rows // self.block_rows) + within // self.block_rows

    def rows_of(self, scale_row: int) -> tuple[int, int]:
        """The rows of weights, from the first up to the last and 1, that a row of scales belongs to."""
        slice_, block = divmod(scale_row, -(-self.slice_rows // self.block_rows))
        first = slice_ * self.slice_rows
        start = first + block * self.block_rows
        return start, min(start + self.block_rows, first + self.slice_rows)

    def scales(self, read: Callable[[int, int], NDArray[Any]], start: int, stop: int) -> NDArray[Any]:
        """The scales of rows `start` up to `stop` (one or more), (stop - start, per_row).

        Parameters
        ----------
        read
            Gives scales from one index up to another, in the order of the file.
        """
        import numpy as np

        per_row, first = self.per_row, self.scale_row(start)
        end = self.scale_row(stop - 1) + 1
        rows = read(first * per_row, end * per_row).reshape(end - first, per_row)
        if end - first == 1:
            return np.broadcast_to(rows, (stop - start, per_row))
        slices, within = np.divmod(np.arange(start, stop), self.slice_rows)
        owners = slices * -(-self.slice_rows // self.block_rows) + within // self.block_rows
        return np.asarray(rows[owners - first])

    def multiply(self, rows: NDArray[np.float32], scales: NDArray[np.float32]) -> None:
        """Multiply rows of weights, in place, by their scales as `scales` gives them."""
        import numpy as np

        count, per_row = scales.shape
        with np.errstate(over="ignore", invalid="ignore"):
            if per_row == 1 or self.block_columns == 1:
                rows *= scales
            elif self.n_columns % self.block_columns == 0:
                blocks = rows.reshape(count, per_row, self.block_columns)
                blocks *= scales[:, :, None]
            else:
                rows *= np.repeat(scales, self.block_columns, axis=1)[:, : self.n_columns]


def fitted(
    shape: tuple[int, ...], scales: tuple[int, ...], blocks: Iterable[Block] = (), *, squeezed: bool = False
) -> Grid | None:
    """The grid that scales of a shape make over weights of a shape; None if they make none.

    Parameters
    ----------
    blocks
        The blocks that the config names, rows and columns; runs of a row are blocks of one row. Without any,
        runs of any size are taken, blocks of 128 x 128, and square blocks of a power of two.
    squeezed
        Take scales whose extents of 1 are lost, or are in between ([rows, 1, columns, 1]), as blocks even
        where they could be one for each row.
    """
    n_columns, n_rows = (shape[-1] if shape else 1), math.prod(shape[:-1])
    slice_rows = shape[-2] if len(shape) >= 2 else 1
    whole_row = max(n_columns, 1)

    def cut(slice_rows: int, block_rows: int, block_columns: int) -> Grid:
        return Grid(n_rows, n_columns, max(slice_rows, 1), max(block_rows, 1), block_columns)

    stated = tuple(blocks)
    if len(shape) >= 2:
        for block in stated:
            grid = _blocks_of(shape, block)
            if scales == grid or (squeezed and _is_squeezed(scales, grid)):
                return cut(slice_rows, *block)
    # Without blocks, dimensions are matched from the left: [rows], [rows, 1], [experts, 1, 1], [1] or [].
    extents = scales + (1,) * (len(shape) - len(scales))
    if all(extent == 1 for extent in extents):
        return cut(n_rows, n_rows, whole_row)
    if extents == (*shape[:-1], 1):
        return cut(slice_rows, 1, whole_row)
    if extents == (*shape[:-2], 1, 1):
        return cut(slice_rows, slice_rows, whole_row)
    if len(shape) < 2:
        return None
    if len(shape) >= 3 and scales == (*shape[:-2], 1, n_columns):
        return cut(slice_rows, slice_rows, 1)
    return None if stated else _unstated(shape, scales, cut)


def _unstated(
    shape: tuple[int, ...], scales: tuple[int, ...], cut: Callable[[int, int, int], Grid]
) -> Grid | None:
    """The grid of runs or blocks whose size no config names."""
    runs = scales[-1] if scales else 0
    if runs > 1 and shape[-1] % runs == 0 and scales == (*shape[:-1], runs):
        return cut(shape[-2], 1, shape[-1] // runs)
    candidates = [DEFAULT_BLOCK]
    if len(scales) == len(shape) and scales[-1] and shape[-1] % scales[-1] == 0:
        side = shape[-1] // scales[-1]
        if side >= 16 and side & (side - 1) == 0:
            candidates.append((side, side))
    for block in candidates:
        grid = _blocks_of(shape, block)
        if scales == grid or scales == (*grid[:-2], grid[-2], 1, grid[-1], 1):
            return cut(shape[-2], *block)
    return None


def _blocks_of(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    return *shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1])


def _is_squeezed(scales: tuple[int, ...], grid: tuple[int, ...]) -> bool:
    return [n for n in scales if n != 1] == [n for n in grid if n != 1]
