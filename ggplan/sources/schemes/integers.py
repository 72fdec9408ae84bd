"""Matrices of integers with scales, whatever their packing.

A weight is `(code - zero) * scale`, where neighbours in a row share a zero point and a scale. The difference
is a level; the product of a level and a scale of BF16 or F16 has at most 20 significant bits, so float32
holds it exactly, and what a library computes in the type of its scales is this product rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PIECE = 1 << 20
"""Weights that are unpacked at a time."""

Order = Callable[[], "NDArray[np.intp]"]


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """A matrix of integers with scales; rows are outputs of a layer, columns its inputs.

    Attributes
    ----------
    n_rows, n_columns, n_groups
        Of the weights, and the groups in a row.
    codes
        `codes(start, stop)` gives those rows as a new C-contiguous (stop - start, n_columns) int16 array.
    zeros
        `zeros(start, stop)` gives the zero points of the groups of those rows, (stop - start, n_groups)
        int16; or the one zero point of all weights.
    scales
        `scales(start, stop)` gives the scales likewise, as float32.
    group
        Columns in a group; the last may have less.
    order
        Gives the group of each column where groups are not neighbours; None where they are.
    """

    n_rows: int
    n_columns: int
    n_groups: int
    codes: Callable[[int, int], NDArray[np.int16]]
    zeros: int | Callable[[int, int], NDArray[np.int16]]
    scales: Callable[[int, int], NDArray[np.float32]]
    group: int
    order: Order | None = None

    def levels(self, start: int, stop: int) -> NDArray[np.int16]:
        """Codes less zero points."""
        codes = self.codes(start, stop)
        if isinstance(self.zeros, int):
            codes -= self.zeros
            return codes
        groups, zeros = self._by_group(codes, self.zeros(start, stop))
        groups -= zeros
        return codes

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """The weights of some rows."""
        import numpy as np

        weights = self.levels(start, stop).astype(np.float32)
        groups, scales = self._by_group(weights, self.scales(start, stop))
        with np.errstate(over="ignore", invalid="ignore"):
            groups *= scales
        return weights

    def _by_group(self, values: NDArray[Any], of_groups: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The same values in a shape, and those of their groups, that NumPy combines one by one."""
        if self.order is not None:
            return values, of_groups[:, self.order()]
        if of_groups.shape[1] == 1:
            return values, of_groups
        if self.n_columns == of_groups.shape[1] * self.group:
            return values.reshape(len(values), -1, self.group), of_groups[:, :, None]
        return values, of_groups.repeat(self.group, axis=1)[:, : self.n_columns]


@dataclass(frozen=True, slots=True)
class Form:
    """What is known of the integers of a tensor before any is read.

    Attributes
    ----------
    bits
        Of a code.
    symmetric
        Whether all zero points are `2 ** (bits - 1)` (of signed codes, 0).
    group
        Columns that share a scale; 0 for the whole row.
    reordered
        Why columns may be out of order, in plain words; "" where they are in order.
    signed
        Whether codes are signed bytes, which may hold more than their bits; else they are from 0 up.
    """

    bits: int
    symmetric: bool
    group: int
    reordered: str = ""
    signed: bool = False

    def told(self, block_rows: int = 1) -> str:
        """In words: `int4 group 128`; `block_rows` rows share a scale."""
        if not self.group:
            return f"int{self.bits} {'per row' if block_rows == 1 else 'per tensor'}"
        return f"int{self.bits} " + (
            f"group {self.group}" if block_rows == 1 else f"block {block_rows}x{self.group}"
        )

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code of so many bits."""
        lowest = -(1 << (self.bits - 1)) if self.signed else 0
        return lowest, lowest + (1 << self.bits) - 1

    @property
    def levels(self) -> tuple[int, int]:
        """The lowest and the highest level that there can be."""
        if self.symmetric:
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        return -(1 << self.bits) + 1, (1 << self.bits) - 1


def level_ranges(matrix: IntegerMatrix) -> Iterator[tuple[int, int]]:
    """The lowest and the highest level of one piece after the other, all codes read."""
    step = max(1, PIECE // max(1, matrix.n_columns))
    for start in range(0, matrix.n_rows, step):
        levels = matrix.levels(start, min(start + step, matrix.n_rows))
        if levels.size:
            yield int(levels.min()), int(levels.max())


def zero_range(matrix: IntegerMatrix) -> tuple[int, int]:
    """The lowest and the highest zero point, read in pieces."""
    if isinstance(matrix.zeros, int):
        return matrix.zeros, matrix.zeros
    step = max(1, PIECE // max(1, matrix.n_groups))
    ends: list[int] = []
    for start in range(0, matrix.n_rows, step):
        found = matrix.zeros(start, min(start + step, matrix.n_rows))
        ends += [int(found.min()), int(found.max())] if found.size else []
    return min(ends, default=0), max(ends, default=0)
