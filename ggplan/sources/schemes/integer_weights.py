"""The weights of matrices of integers, and their codes in the ggml type that holds them.

Levels and scales move as they are into a ggml type with blocks of 32 weights, wherever a block lies in one
group and float16 holds the scale (llama.cpp's `ggml/src/ggml-common.h`, `block_q4_0` and others; the sign of
a scale is kept, AutoRound's are negative for half of all groups):

    q4_0   levels -8 to 7          symmetric codes of 2, 3 and 4 bits, asymmetric ones of 2 and 3
    q5_0   levels -16 to 15        symmetric codes of 5 bits, asymmetric ones of 4
    q8_0   levels -128 to 127      all others, asymmetric codes of 8 bits only if their levels happen to fit

Whether codes are symmetric the config says for all modules at once, and often wrongly. So `Weights.codes` has
the type that the config lets expect, and `Weights.integers` what is needed to choose it again once the zero
points are read (`ggplan.planning.settling`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.ggml_types import F32, GgmlType
from ggplan.model import Integers, Levels, RowSource, empty_rows, require_rows
from ggplan.sources.codes import Q4_0, Q4_1, Q5_0, Q8_0, blocks_of, holding, nearly_q4_1
from ggplan.sources.files import shown
from ggplan.sources.schemes.integer_parts import half_fault, largest_scale
from ggplan.sources.schemes.integers import PIECE, Form, IntegerMatrix, level_ranges, zero_range
from ggplan.sources.schemes.scheme import Weights
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK = 32
_ALIGNED = 32  # rows that begin a word, in every packing along rows
_REORDERED = "columns are in the order of their activations"
_HOLDS = {Q4_0: "-8 to 7", Q5_0: "-16 to 15", Q8_0: "-128 to 127"}

Matrices = Callable[[int], IntegerMatrix]


def weights_of(
    shape: tuple[int, ...],
    matrix: Matrices,
    form: Form,
    *,
    fault: Callable[[], str],
    scale: StoredTensor,
    zero: StoredTensor | None,
    name: str,
) -> Weights:
    """The weights of a tensor.

    Parameters
    ----------
    shape
        Of the weights, rows first; three dimensions for stacked experts.
    matrix
        Gives the weights of expert `i`; of a matrix those of 0.
    fault
        What is wrong with the weights; see `RowSource`.
    scale, zero
        The tensors of scales and of zero points, of all experts.
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
    if why := _mixes_groups(form, n_columns):
        return Weights(rows, why_decoded=form.reordered or why, bits=form.bits)
    zeros = f"'{shown(zero.name if zero is not None else name)}'"
    levels = tuple(
        partial(_levels_of, matrix, i, form, zeros, f"'{shown(name)}'")
        for i in range(shape[0] if len(shape) == 3 else 1)
    )
    expected = holding(*form.levels)
    n_bytes = scale.n_bytes + (0 if zero is None else zero.n_bytes)
    if expected is None or _is_loose(form):
        n_bytes += n_rows * n_columns
    integers = Integers(form.bits, _rows_in(shape, matrix, scale, name), levels, n_bytes)
    if form.reordered or expected is None:
        why = f"asymmetric integers of {form.bits} bits may be outside of q8_0's {_HOLDS[Q8_0]}"
        return Weights(rows, why_decoded=form.reordered or why, integers=integers, bits=form.bits)
    held = integers.rows_in(expected)
    codes = RowSource(expected, shape, held.read, lambda: held.fault() or _unexpected(integers, form))
    nearly = nearly_q4_1(codes) if expected == Q5_0 and form.bits <= 4 else None
    return Weights(rows, codes, nearly=nearly, integers=integers, bits=form.bits)


def _is_loose(form: Form) -> bool:
    """Whether codes may be outside of what their bits hold."""
    return form.signed and form.bits < 8


def _mixes_groups(form: Form, n_columns: int) -> str:
    """Why a block of 32 weights does not lie in one group, or there is no such block; "" where it does."""
    if n_columns % _BLOCK:
        return f"rows of {n_columns} weights are no multiple of {_BLOCK}"
    if 0 < form.group < n_columns and form.group % _BLOCK:
        return f"group_size {form.group} is no multiple of {_BLOCK}"
    return ""


def _rows_in(
    shape: tuple[int, ...], matrix: Matrices, scale: StoredTensor, name: str
) -> Callable[[GgmlType], RowSource]:
    """What gives the codes as rows of a type."""
    n_rows, n_columns = math.prod(shape[:-1]), shape[-1]
    scale_fault, largest = cache(partial(half_fault, scale)), cache(partial(largest_scale, scale))

    def rows_in(type_: GgmlType) -> RowSource:
        if type_ == Q4_1:
            return nearly_q4_1(rows_in(Q5_0), largest)

        def read(start: int, stop: int) -> NDArray[np.uint8]:
            require_rows(start, stop, n_rows)
            blocks: NDArray[np.uint8] = empty_rows(type_, stop - start, n_columns)
            for i, first, end, at in _pieces(shape, start, stop):
                slice_ = matrix(i)
                levels = slice_.levels(first, end)
                if levels.size and holding(int(levels.min()), int(levels.max())) not in _UP_TO[type_]:
                    raise CheckpointError(
                        f"'{shown(name)}' has levels {levels.min()} to {levels.max()} in rows {first} to "
                        f"{end}; {type_.name} holds {_HOLDS[type_]}",
                        hint="write this tensor in another type",
                    )
                blocks[at : at + end - first] = _blocks(
                    levels, slice_.scales(first, end), slice_.group, type_
                )
            return blocks

        return RowSource(type_, shape, read, scale_fault)

    return rows_in


_UP_TO = {Q4_0: (Q4_0,), Q5_0: (Q4_0, Q5_0), Q8_0: (Q4_0, Q5_0, Q8_0)}  # the types that each one includes


def _levels_of(matrix: Matrices, i: int, form: Form, zeros_of: str, codes_of: str) -> Levels:
    """The levels of expert `i`: by its zero points, and by its codes where these do not decide the type."""
    import numpy as np

    own = matrix(i)
    if own.order is not None:
        in_order = np.arange(own.n_columns) // (form.group or own.n_columns)
        if not np.array_equal(own.order(), in_order):
            return Levels(0, 0, why_not=f"{form.reordered or _REORDERED}: {codes_of}")
    first, last = zero_range(own)
    lowest, highest = form.codes[0] - last, form.codes[1] - first
    if not _is_loose(form) and holding(lowest, highest) is not None:
        return Levels(lowest, highest, f"{zeros_of} has zero points {first} to {last}")
    found = [0, 0]
    for low, high in level_ranges(own):
        found = [min(found[0], low), max(found[1], high)]
        if holding(*found) is None:
            break
    return Levels(found[0], found[1], f"{codes_of} has levels {found[0]} to {found[1]}", of_codes=True)


def _unexpected(integers: Integers, form: Form) -> str:
    """What is unlike the form that the config lets expect; "" if nothing is."""
    lowest, highest = form.levels
    for read in integers.levels:
        found = read()
        if found.why_not:
            return found.why_not
        if lowest <= found.lowest and found.highest <= highest:
            continue
        if found.of_codes:
            kind = "symmetric integers" if form.symmetric else "integers"
            return f"{found.told}; {kind} of {form.bits} bits are {lowest} to {highest}"
        return f"{found.told}; of symmetric weights of {form.bits} bits all are {form.codes[0] - lowest}"
    return ""


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
