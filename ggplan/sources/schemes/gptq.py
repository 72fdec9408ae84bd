"""The layout of GPTQ, which AutoRound shares: codes packed along the inputs of a layer.

    X.qweight  I32 [inputs * bits / 32, outputs]     codes, transposed: rows of weights are columns here
    X.qzeros   I32 [groups, outputs * bits / 32]     zero points
    X.scales   F16 [groups, outputs]
    X.g_idx    I32 [inputs]                          the group of each input; absent where they are in order

weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o]), g the group of input i. Codes are unsigned, in a
stream of bits, or in planes where `checkpoint_format` is gptq_p.

Zero points are stored less 1 in the first format (gptq, or nothing said) and as they are in the second
(gptq_v2, and gptq_p). A zero point of 0 is then -1, which writers treat differently: GPTQModel subtracts 1
from all fields of a word at once, borrows included, and so adds 1 likewise, with carries (GPTQModel 7.7.0,
`utils/model.py`, `convert_gptq_v2_to_v1_format_module`). That is the only way that keeps such zero points,
and is done here too; where no zero point is 0 all ways agree. 3, 5, 6 and 7 bits do not fill a word: there
each field is added to by itself, and wraps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.sources.files import shown
from ggplan.sources.schemes import integers, packed_bits
from ggplan.sources.schemes.integer_parts import group_indices
from ggplan.sources.schemes.integers import Form, IntegerMatrix
from ggplan.sources.schemes.packed_bits import Unpack, as_words, read_values
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class GptqLayout:
    """How GPTQ's tensors hold a matrix.

    Attributes
    ----------
    form
        Bits, zero points and groups.
    n_rows, n_columns
        Of the weights: outputs and inputs.
    unpack
        The packing of codes and of zero points.
    adds_one
        Whether zero points are stored less 1.
    """

    form: Form
    n_rows: int
    n_columns: int
    unpack: Unpack
    adds_one: bool


def matrix_of(parts: Mapping[str, StoredTensor], layout: GptqLayout) -> IntegerMatrix:
    """The weights of a module."""
    codes, scale, zero = parts["codes"], parts["scale"], parts["zero"]
    bits, unpack = layout.form.bits, layout.unpack
    n_groups, n_words = scale.shape[0], codes.shape[0]

    def read_codes(start: int, stop: int) -> NDArray[np.int16]:
        import numpy as np

        words = as_words(read_values(codes, (0, n_words), (start, stop)).T)
        return unpack(words, bits, layout.n_columns).astype(np.int16, order="C")

    def read_zeros(start: int, stop: int) -> NDArray[np.int16]:
        import numpy as np

        first, end, before = packed_bits.span(unpack, bits, start, stop, zero.shape[1])
        words = as_words(read_values(zero, (0, n_groups), (first, end)))
        fields = zero_points(words, bits, unpack, before + stop - start, adds_one=layout.adds_one)
        return np.ascontiguousarray(fields[:, before:].T).astype(np.int16)

    def read_scales(start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        return np.ascontiguousarray(read_values(scale, (0, n_groups), (start, stop)).T)

    return IntegerMatrix(
        layout.n_rows, layout.n_columns, n_groups, read_codes, read_zeros, read_scales, layout.form.group,
        _order(parts, n_groups),
    )  # fmt: skip


def zero_points(
    words: NDArray[np.uint32], bits: int, unpack: Unpack, count: int, *, adds_one: bool
) -> NDArray[np.uint8]:
    """The zero points in the words of each group; see above for those that are stored less 1."""
    import numpy as np

    if adds_one and 32 % bits == 0:
        ones = sum(1 << at for at in range(0, 32, bits))
        words = words + np.uint32(ones)
    fields = unpack(words, bits, count)
    if adds_one and 32 % bits:
        fields = fields + np.uint8(1) & np.uint8((1 << bits) - 1)
    return fields


def _order(parts: Mapping[str, StoredTensor], n_groups: int) -> integers.Order | None:
    """The reader of `g_idx`, where there is more than one group."""
    if "order" not in parts or n_groups == 1:
        return None

    def order() -> NDArray[np.intp]:
        found = group_indices(parts["order"], n_groups)
        assert found is not None
        return found

    return order


def miscounted(name: str, matrix: IntegerMatrix, layout: GptqLayout) -> str:
    """Whether the zero points of symmetric weights are all one off: stored as the other format does."""
    middle = 1 << (layout.form.bits - 1)
    wrong = middle + 1 if layout.adds_one else middle - 1
    if integers.zero_range(matrix) != (wrong, wrong):
        return ""
    stated, other = ("gptq", "gptq_v2") if layout.adds_one else ("gptq_v2", "gptq")
    return (
        f"'{shown(name)}' has the zero point {wrong} everywhere, symmetric weights of {layout.form.bits} "
        f"bits have {middle}: they are stored as {other} does it, and the config says {stated}"
    )
