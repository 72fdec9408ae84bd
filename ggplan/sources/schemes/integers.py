"""Integers with scales: the weights and the codes of every form that stores them, whatever its packing.

A weight is `(code - zero) * scale`, where neighbours in a row share a zero point and a scale. The difference
is a level; the product of a level and a scale of BF16 or F16 has at most 20 significant bits, so float32
holds it exactly, and what a library computes in the type of its scales is this product rounded once.

Levels and scales move as they are into a ggml type with blocks of 32 weights, wherever a block lies in one
group and float16 holds the scale (llama.cpp's `ggml/src/ggml-common.h`, `block_q4_0` and others; the sign of
a scale is kept, AutoRound's are negative for half of all groups):

    q4_0   levels -8 to 7          symmetric codes of 2, 3 and 4 bits, asymmetric ones of 2 and 3
    q5_0   levels -16 to 15        symmetric codes of 5 bits, asymmetric ones of 4
    q8_0   levels -128 to 127      all others, but asymmetric codes of 8 bits
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ggplan.errors import CheckpointError
from ggplan.ggml_types import F32, GgmlType, parse_type
from ggplan.model import RowSource, empty_rows, require_rows
from ggplan.sources.codes import blocks_of, nearly_q4_1
from ggplan.sources.files import shown
from ggplan.sources.schemes.packed_bits import read_values
from ggplan.sources.schemes.scheme import Weights
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCALE_DTYPES = ("F32", "BF16", "F16")
_BLOCK = 32
PIECE = 1 << 20
"""Weights that are unpacked at a time."""
_ALIGNED = 32  # rows that begin a word, in every packing along rows
_RUN = 1 << 18
_TYPES = (("q4_0", 8), ("q5_0", 16), ("q8_0", 128))

Fault = Callable[[], str]
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
        Why columns are out of order, in plain words; "" where they are in order.
    """

    bits: int
    symmetric: bool
    group: int
    reordered: str = ""

    @property
    def levels(self) -> tuple[int, int]:
        """The lowest and the highest level that there can be."""
        if self.symmetric:
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        return -(1 << self.bits) + 1, (1 << self.bits) - 1


def weights_of(
    shape: tuple[int, ...],
    matrix: Callable[[int], IntegerMatrix],
    form: Form,
    *,
    fault: Fault,
    codes_fault: Fault,
    name: str,
) -> Weights:
    """The weights of a tensor.

    Parameters
    ----------
    shape
        Of the weights, rows first; three dimensions for stacked experts.
    matrix
        Gives the weights of expert `i`; of a matrix those of 0.
    fault, codes_fault
        What is wrong with the weights, and what keeps the codes out of a ggml type; see `RowSource`.
    name
        The tensor, for messages.
    """
    n_rows, n_columns = math.prod(shape[:-1]), shape[-1]

    def read(start: int, stop: int) -> NDArray[np.float32]:
        require_rows(start, stop, n_rows)
        rows: NDArray[np.float32] = empty_rows(F32, stop - start, n_columns)
        for i, first, end, at in _pieces(shape, start, stop):
            rows[at : at + end - first] = matrix(i).read(first, end)
        return rows

    rows = RowSource(F32, shape, read, fault)
    why, type_, offset = _type_for(form, n_columns)
    if type_ is None:
        return Weights(rows, why_decoded=why, bits=form.bits)
    chosen = type_

    def read_codes(start: int, stop: int) -> NDArray[np.uint8]:
        require_rows(start, stop, n_rows)
        blocks: NDArray[np.uint8] = empty_rows(chosen, stop - start, n_columns)
        for i, first, end, at in _pieces(shape, start, stop):
            slice_ = matrix(i)
            levels = slice_.levels(first, end)
            if levels.size and not (levels.min() >= -offset and levels.max() < offset):
                raise CheckpointError(
                    f"'{shown(name)}' has levels {levels.min()} to {levels.max()} in rows {first} to {end}; "
                    f"{chosen.name} holds {-offset} to {offset - 1}",
                    hint="write this tensor in another type",
                )
            blocks[at : at + end - first] = _blocks(levels, slice_.scales(first, end), slice_.group, chosen)
        return blocks

    codes = RowSource(chosen, shape, read_codes, codes_fault)
    has_4_bits = chosen.name == "q5_0" and form.bits <= 4
    return Weights(rows, codes, nearly=nearly_q4_1(codes) if has_4_bits else None, bits=form.bits)


def _pieces(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows `start` up to `stop` in pieces: the slice, its rows, and their place after `start`."""
    n_rows, n_columns = shape[-2:]
    step = max(1, PIECE // max(1, n_columns * _ALIGNED)) * _ALIGNED
    at = start
    while at < stop:
        i, first = divmod(at, n_rows)
        end = min(n_rows, first + stop - at, first - first % step + step)
        yield i, first, end, at - start
        at += end - first


def _type_for(form: Form, n_columns: int) -> tuple[str, GgmlType | None, int]:
    """Why no type holds the codes, or "", the type, and half the number of its levels."""
    if form.reordered:
        return form.reordered, None, 0
    if n_columns % _BLOCK:
        return f"rows of {n_columns} weights are no multiple of {_BLOCK}", None, 0
    if 0 < form.group < n_columns and form.group % _BLOCK:
        return f"group_size {form.group} is no multiple of {_BLOCK}", None, 0
    lowest, highest = form.levels
    for name, half in _TYPES:
        if -half <= lowest and highest < half:
            return "", parse_type(name), half
    return f"asymmetric integers of {form.bits} bits may be outside of q8_0's -128 to 127", None, 0


def _blocks(
    levels: NDArray[np.int16], scales: NDArray[np.float32], group: int, type_: GgmlType
) -> NDArray[np.uint8]:
    """Blocks of q4_0, q5_0 or q8_0 with these levels and scales, rows of bytes."""
    import numpy as np

    n_rows, n_columns = levels.shape
    n_blocks = n_columns // _BLOCK
    with np.errstate(over="ignore", invalid="ignore"):
        halves = np.ascontiguousarray(scales.astype(np.float16))
    if halves.shape[1] > 1:
        halves = halves.repeat(group // _BLOCK, axis=1)[:, :n_blocks]
    halves = np.ascontiguousarray(np.broadcast_to(halves, (n_rows, n_blocks)))
    integers = levels.astype(np.int8).reshape(-1, _BLOCK)
    return blocks_of(halves.view(np.uint8).reshape(-1, 2), integers, type_).reshape(n_rows, -1)


def slice_of(tensor: StoredTensor, i: int, n_slices: int) -> StoredTensor:
    """Slice `i` of a stacked tensor; a tensor that all slices share, by itself."""
    if not tensor.shape or tensor.shape[0] != n_slices:
        return tensor
    n_bytes = tensor.n_bytes // n_slices
    return replace(tensor, shape=tensor.shape[1:], offset=tensor.offset + i * n_bytes, n_bytes=n_bytes)


def group_indices(tensor: StoredTensor, n_groups: int, unset: int | None = None) -> NDArray[np.intp] | None:
    """The group of each column, as `g_idx` has it; None if one of them is `unset`.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or there is no such group.
    """
    found = indices_of(tensor)
    if unset is not None and (found == unset).any():
        return None
    if fault := _index_fault(tensor, found, n_groups):
        raise CheckpointError(fault, hint="download the file again")
    return found


def index_fault(tensor: StoredTensor, n_groups: int, unset: int | None = None) -> str:
    """The first column of `g_idx` that is in no group; "" if all are in one, or one is `unset`."""
    found = indices_of(tensor)
    if unset is not None and (found == unset).any():
        return ""
    return _index_fault(tensor, found, n_groups)


def indices_of(tensor: StoredTensor) -> NDArray[np.intp]:
    """The contents of `g_idx`, unchecked.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    """
    import numpy as np

    flat = replace(tensor, shape=(tensor.n_weights,))
    return np.asarray(read_values(flat, (0, 1), (0, tensor.n_weights))[0], np.intp)


def _index_fault(tensor: StoredTensor, found: NDArray[np.intp], n_groups: int) -> str:
    wrong = (found < 0) | (found >= n_groups)
    if not wrong.any():
        return ""
    at = int(wrong.argmax())
    return (
        f"'{shown(tensor.name)}' puts column {at:,} into group {found[at]:,} of {n_groups:,} "
        f"({shown(tensor.file.name)})"
    )


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


def scale_fault(tensor: StoredTensor, what: str = "scale") -> str:
    """How many scales are not finite, and the first; "" if all are. Any sign is right, and so is 0."""
    import numpy as np

    return _first_wrong(tensor, what, "not finite", lambda scales: ~np.isfinite(scales))


def half_fault(tensor: StoredTensor) -> str:
    """How many scales float16 does not hold exactly, and the first; "" if it holds all.

    Scales of F16 are not read: whether they are finite is a question of the weights.
    """
    import numpy as np

    if tensor.dtype == "F16":
        return ""

    def inexact(scales: NDArray[np.float32]) -> NDArray[np.bool_]:
        with np.errstate(over="ignore", invalid="ignore"):
            halves = scales.astype(np.float16).astype(np.float32)
        return np.not_equal(halves, scales) | ~np.isfinite(scales)

    return _first_wrong(tensor, "scale", "not exact in float16", inexact)


def _first_wrong(
    tensor: StoredTensor, what: str, fault: str, is_wrong: Callable[[NDArray[np.float32]], NDArray[np.bool_]]
) -> str:
    import numpy as np

    count, first, value = 0, -1, 0.0
    for start in range(0, tensor.n_weights, _RUN):
        scales = tensor.read_floats(start, min(start + _RUN, tensor.n_weights))
        wrong = is_wrong(scales)
        if first < 0 and wrong.any():
            first = start + int(wrong.argmax())
            value = float(scales[first - start])
        count += int(np.count_nonzero(wrong))
    if not count:
        return ""
    many = f"1 {what} that is" if count == 1 else f"{count:,} {what}s that are"
    return (
        f"'{shown(tensor.name)}' has {many} {fault}, the first {value} at index {first:,} "
        f"({shown(tensor.file.name)})"
    )


def require_dtype(tensor: StoredTensor, what: str, dtypes: Sequence[str]) -> None:
    """Raise CheckpointError unless a tensor has one of some types; `what` says what it is."""
    if tensor.dtype not in dtypes:
        raise CheckpointError(
            f"{shown(tensor.file)}: {what} '{shown(tensor.name)}' are {tensor.dtype}; "
            f"ggplan reads {', '.join(dtypes)}"
        )
