"""The layouts of AWQ, all of 4 bits; what the method scales is folded into other weights and leaves no trace.

    GEMM       X.qweight I32 [inputs, outputs / 8]   transposed, packed along the outputs, nibbles interleaved
               X.qzeros  I32 [groups, outputs / 8]   likewise; as they are, without GPTQ's 1
               X.scales  F16 [groups, outputs]
    GEMV       X.qweight I32 [outputs, inputs / 8]   nibbles in order
               X.qzeros  I32 [outputs, words]        filled up to whole words, or two or four of them
               X.scales  F16 [outputs, 8 * words]
    GEMV-fast  X.qweight I16 [outputs / 4, inputs]   four rows together, in pieces of 64 inputs
               X.qzeros  F16 [8 * words, outputs]    the products -zero * scale, rounded; llm-awq, which this
               X.scales  F16 [8 * words, outputs]    layout is from, calls them `X.scaled_zeros`

weight[o, i] = scale * (code - zero), in GEMV-fast scale * code + product (AutoAWQ 0.2.9, `awq/modules/linear`
and `awq/utils/packing_utils.py`). GPTQModel 7 writes GEMM files of 2 to 8 bits as well, those of other than 4
bits as a plain stream of bits along the outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ggplan.ggml_types import F32
from ggplan.model import RowSource, empty_rows, require_rows
from ggplan.sources.schemes import integers, packed_bits
from ggplan.sources.schemes.integer_parts import scale_fault
from ggplan.sources.schemes.integers import Form, IntegerMatrix
from ggplan.sources.schemes.packed_bits import as_words, dense, interleaved, read_values
from ggplan.sources.schemes.scheme import Weights
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Version = Literal["gemm", "gemv", "gemv_fast"]
FAST_ROWS = 4
FAST_COLUMNS = 64
_PERIOD = 32


@dataclass(frozen=True, slots=True)
class AwqLayout:
    """How AWQ's tensors hold a matrix of `n_rows` outputs and `n_columns` inputs."""

    form: Form
    version: Version
    n_rows: int
    n_columns: int
    n_groups: int


def zero_words(n_columns: int, group: int) -> int:
    """Words of zero points in a row of GEMV: a whole number for 64 inputs of a piece, as AutoAWQ pads them.

    `calculate_zeros_width` in `awq/modules/linear/gemv.py`; 0 for a group that it does not know.
    """
    if group < 32:
        return 0
    multiple = 1 if group >= 128 else 2 if group >= 64 else 4
    words = -(-(n_columns // group) // 8)
    return -(-words // multiple) * multiple


def matrix_of(parts: Mapping[str, StoredTensor], layout: AwqLayout) -> IntegerMatrix:
    """The weights of a module in GEMM's or GEMV's layout."""
    readers = _gemm if layout.version == "gemm" else _gemv
    return readers(parts, layout)


def _gemm(parts: Mapping[str, StoredTensor], layout: AwqLayout) -> IntegerMatrix:
    scale, bits = parts["scale"], layout.form.bits

    def transposed(tensor: StoredTensor, start: int, stop: int) -> NDArray[np.int16]:
        """Fields `start` up to `stop` of each row of a tensor, as rows."""
        import numpy as np

        first, end, before = packed_bits.span(dense, bits, start, stop, tensor.shape[1])
        words = as_words(read_values(tensor, (0, tensor.shape[0]), (first, end)))
        if bits == 4:
            rows = interleaved(np.ascontiguousarray(words.T))[before:]
            return rows[: stop - start].astype(np.int16)
        fields = dense(words, bits, before + stop - start)[:, before:]
        return np.ascontiguousarray(fields.T, np.int16)

    def read_scales(start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        return np.ascontiguousarray(read_values(scale, (0, scale.shape[0]), (start, stop)).T)

    return IntegerMatrix(
        layout.n_rows, layout.n_columns, layout.n_groups,
        functools.partial(transposed, parts["codes"]), functools.partial(transposed, parts["zero"]),
        read_scales, layout.form.group,
    )  # fmt: skip


def _gemv(parts: Mapping[str, StoredTensor], layout: AwqLayout) -> IntegerMatrix:
    def fields(tensor: StoredTensor, count: int, start: int, stop: int) -> NDArray[np.int16]:
        import numpy as np

        words = as_words(read_values(tensor, (start, stop), (0, tensor.shape[1])))
        return dense(words, layout.form.bits, count).astype(np.int16, order="C")

    def read_scales(start: int, stop: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = read_values(parts["scale"], (start, stop), (0, layout.n_groups))
        return found

    return IntegerMatrix(
        layout.n_rows, layout.n_columns, layout.n_groups,
        functools.partial(fields, parts["codes"], layout.n_columns),
        functools.partial(fields, parts["zero"], layout.n_groups), read_scales, layout.form.group,
    )  # fmt: skip


def fast_weights(parts: Mapping[str, StoredTensor], layout: AwqLayout) -> Weights:
    """The weights of a module in GEMV-fast's layout: two products are added, so no ggml type holds them."""
    codes, scale, zero = parts["codes"], parts["scale"], parts["zero"]
    group = layout.form.group or layout.n_columns

    def by_column(tensor: StoredTensor, start: int, stop: int) -> NDArray[np.float32]:
        values: NDArray[np.float32] = read_values(tensor, (0, layout.n_groups), (start, stop)).T
        return values.repeat(group, axis=1)[:, : layout.n_columns]

    def read(start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        require_rows(start, stop, layout.n_rows)
        rows: NDArray[np.float32] = empty_rows(F32, stop - start, layout.n_columns)
        step = max(1, integers.PIECE // layout.n_columns)
        for first in range(start, stop, step):
            end = min(first + step, stop)
            above, below = first // FAST_ROWS, -(-end // FAST_ROWS)
            words = read_values(codes, (above, below), (0, layout.n_columns)).view("<u2")
            found = _fast_codes(words)[first - above * FAST_ROWS : end - above * FAST_ROWS]
            piece = found.astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                piece *= by_column(scale, first, end)
                piece += by_column(zero, first, end)
            rows[first - start : end - start] = piece
        return rows

    def fault() -> str:
        return scale_fault(scale) or scale_fault(zero, "zero point")

    return Weights(
        RowSource(F32, (layout.n_rows, layout.n_columns), read, fault),
        why_decoded="zero points are rounded products (GEMV-fast)",
    )


def _fast_codes(words: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The codes in rows of words, four rows of codes for each: (n, columns) to (4 n, columns)."""
    import numpy as np

    n, n_columns = words.shape
    codes = np.empty((n, n_columns, 4), np.uint8)
    for i in range(4):
        codes[:, :, i] = words >> (4 * i) & 15
    pieces = codes.reshape(n, n_columns // FAST_COLUMNS, FAST_ROWS, FAST_COLUMNS)
    rows = np.ascontiguousarray(pieces.transpose(0, 2, 1, 3)).reshape(-1, n_columns // _PERIOD, _PERIOD)
    return rows[:, :, _fast_places()].reshape(-1, n_columns)


@functools.cache
def _fast_places() -> NDArray[np.intp]:
    """Where code j of 32 lies: after a shuffle of 4 x 4 pairs, and 0 2 4 6 1 3 5 7 within each 8."""
    import numpy as np

    after_eights = np.arange(_PERIOD).reshape(4, 2, 4).transpose(0, 2, 1)
    places: NDArray[np.intp] = after_eights.reshape(4, 4, 2).transpose(1, 0, 2).reshape(-1)
    return places
