"""Integers of compressed-tensors: codes packed into 32-bit words, or one in a byte.

    pack-quantized                      int-quantized, naive-quantized
    X.weight_packed      I32            X.weight             I8, signed
    X.weight_shape       I64 [2]
    X.weight_scale                      X.weight_scale
    X.weight_zero_point                 X.weight_zero_point  I8
    X.weight_g_idx       I32 [columns]

Packed codes have `2 ** (bits - 1)` added and follow one another along a row; packed zero points do so too,
down a column. Both are dense since compressed-tensors 0.18 and padded before (see `packed_bits`), which the
width of a row tells, and where it does not the `version` of the config. Scales are one for the tensor, one
for a row, one for a group of neighbours in a row or one for a block. `weight_g_idx`, until 0.19, gives the
group of each column where columns were quantized in the order of their activations; -1 in it means that they
were not (compressed-tensors 0.9.4 to 0.20.1, `compressors/pack_quantized` and `naive_quantized`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.sources.files import shown
from ggplan.sources.schemes import compressed_tensors, integer_parts, packed_bits
from ggplan.sources.schemes.compressed_layouts import PACKED, Known, Layout, layout_of, read_shapes
from ggplan.sources.schemes.compressed_tensors import WeightGroup, weight_groups
from ggplan.sources.schemes.integer_weights import weights_of
from ggplan.sources.schemes.integers import IntegerMatrix
from ggplan.sources.schemes.packed_bits import as_words, read_values
from ggplan.sources.schemes.scheme import (
    Group,
    QuantizationConfig,
    Recognised,
    Weights,
    of_activations,
)
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "integers of compressed-tensors"
_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "mixed-precision", "")
_PLAIN = ".weight"
_INTEGERS = ("I8", "U8", "I16", "I32", "I64")


def recognise(tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> Recognised | None:
    """Every module with integers and scales; see `Scheme`."""
    stated = [group for group in weight_groups(config) if group.type == "int"]
    is_named = compressed_tensors.is_compressed_tensors(config)
    if not is_named and config.method not in (None, "auto-round"):
        return None
    for group in stated:
        if group.format not in _FORMATS:
            raise CheckpointError(
                f"{config.where}: its integers are stored as {shown(group.format)} (compressed-tensors), "
                "which ggplan does not read",
                hint="use the original checkpoint in bf16",
            )
    modules = [module for name in tensors if (module := _module(name, tensors))]
    if not modules:
        return Recognised([], [], compressed_tensors.KEYS) if stated else None
    if not is_named:
        stated = _groups_elsewhere(config)
    shapes = read_shapes([tensors[m + ".weight_shape"] for m in modules if m + ".weight_shape" in tensors])
    known: Known = {}
    groups = [_group(module, tensors, stated, shapes, config, known) for module in modules]
    return Recognised(groups, of_activations(tensors), compressed_tensors.KEYS if is_named else ())


def join(group: Group, config: QuantizationConfig) -> Weights:
    """The integers and what they stand for; see `Scheme`."""
    layout = group.form
    assert isinstance(layout, Layout)
    parts = group.parts

    def matrix(i: int) -> IntegerMatrix:
        return _matrix(_slice(parts, layout, i), layout)

    def fault() -> str:
        found = integer_parts.scale_fault(parts["scale"])
        order = parts.get("order")
        if not found and order is not None:
            found = integer_parts.index_fault(order, layout.n_groups, unset=-1)
        return found or _zero_fault(parts.get("zero"), layout)

    return weights_of(
        layout.shape, matrix, layout.form,
        fault=fault, scale=parts["scale"], zero=parts.get("zero"), name=group.name,
    )  # fmt: skip


def _module(name: str, tensors: Mapping[str, StoredTensor]) -> str:
    """The module whose integers a tensor holds; "" if it holds something else."""
    tensor = tensors[name]
    if name.endswith(PACKED) and tensor.dtype == "I32":
        return name.removesuffix(PACKED)
    if name.endswith(_PLAIN) and tensor.dtype == "I8":
        scale = tensors.get(name + "_scale")
        if scale is not None and scale.dtype in integer_parts.SCALE_DTYPES:
            return name.removesuffix(_PLAIN)
    return ""


def _groups_elsewhere(config: QuantizationConfig) -> list[WeightGroup]:
    """What a config of another kind says of such tensors, in groups without a name.

    AutoRound's export in this form states bits and groups; without a config any bits are tried.
    """
    bits, size = config.values.get("bits"), config.values.get("group_size")
    if type(bits) is int and type(size) is int and config.values.get("data_type", "int") == "int":
        strategy = "group" if size > 0 else "channel"
        symmetric = config.values.get("sym") is not False
        return [WeightGroup("", (), "", "int", bits, symmetric, strategy, max(size, 0))]
    return [WeightGroup("", (), "", "int", bits, True) for bits in range(1, 9)]


def _group(
    module: str,
    tensors: Mapping[str, StoredTensor],
    stated: Sequence[WeightGroup],
    shapes: Mapping[str, tuple[int, ...]],
    config: QuantizationConfig,
    known: Known,
) -> Group:
    is_packed = module + PACKED in tensors
    names = {
        "codes": module + (PACKED if is_packed else _PLAIN),
        "scale": module + ".weight_scale",
        "zero": module + ".weight_zero_point",
        "order": module + ".weight_g_idx",
        "shape": module + ".weight_shape",
    }
    parts = {part: tensors[name] for part, name in names.items() if name in tensors}
    if "scale" not in parts:
        raise CheckpointError(
            f"{shown(parts['codes'].file)}: the integers '{shown(parts['codes'].name)}' have no scales",
            hint=f"their scales should be '{shown(names['scale'])}'",
        )
    integer_parts.require_dtype(parts["scale"], "the scales", integer_parts.SCALE_DTYPES)
    for part, what in (("zero", "the zero points"), ("order", "the groups of columns")):
        if part in parts:
            integer_parts.require_dtype(parts[part], what, _INTEGERS)
    shape = shapes.get(names["shape"])
    if not is_packed and not any(group.name for group in stated):  # of bytes without a config
        stated = [group for group in stated if group.bits == 8]
    layout = layout_of(module, parts, shape, stated, config, known)
    if layout.form.reordered and _is_in_order(parts["order"], layout):
        layout = replace(layout, form=replace(layout.form, reordered=""))
    return Group(module + ".weight", layout.form.told(layout.block_rows), parts, layout)


def _is_in_order(order: StoredTensor, layout: Layout) -> bool:
    """Whether groups are neighbours though they are listed; False if only headers are there."""
    import numpy as np

    n_columns = layout.shape[-1]
    try:
        found = integer_parts.indices_of(order)
    except CheckpointError:
        return False
    in_order = np.tile(np.arange(n_columns) // layout.form.group, len(found) // n_columns)
    return bool((found == -1).any()) or np.array_equal(found, in_order)


def _slice(parts: Mapping[str, StoredTensor], layout: Layout, i: int) -> Mapping[str, StoredTensor]:
    """The parts of expert `i` of a stacked tensor; of a matrix those that it has."""
    if len(layout.shape) == 2:
        return parts
    return {
        name: part
        if name == "order" and len(part.shape) == 1
        else integer_parts.slice_of(part, i, layout.shape[0])
        for name, part in parts.items()
    }


def _matrix(parts: Mapping[str, StoredTensor], layout: Layout) -> IntegerMatrix:
    """One matrix of the layout, its parts those of the slice."""
    n_rows, n_columns = layout.shape[-2:]
    bits, unpack = layout.form.bits, layout.unpack
    codes, scale, zero = parts["codes"], parts["scale"], parts.get("zero")
    n_groups, block_rows = layout.n_groups, layout.block_rows
    middle = 0 if unpack is None else 1 << (bits - 1)

    def read_codes(start: int, stop: int) -> NDArray[np.int16]:
        import numpy as np

        values = read_values(codes, (start, stop), (0, codes.shape[-1]))
        if unpack is not None:
            values = unpack(as_words(values), bits, n_columns)
        return values.astype(np.int16, order="C")

    def by_row(tensor: StoredTensor, start: int, stop: int) -> NDArray[np.generic]:
        """Values of a tensor with one row for `block_rows` rows of weights."""
        import numpy as np

        flat = replace(tensor, shape=(math.prod(tensor.shape) // n_groups, n_groups))
        first, end = (
            start // block_rows,
            (stop - 1) // block_rows + 1 if stop > start else start // block_rows,
        )
        values = read_values(flat, (first, end), (0, n_groups))
        if block_rows == 1:
            return values
        return values[np.arange(start, stop) // block_rows - first]

    def read_scales(start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        return by_row(scale, start, stop).astype(np.float32, copy=False)

    def read_zeros(start: int, stop: int) -> NDArray[np.int16]:
        import numpy as np

        assert zero is not None
        if unpack is None or not layout.zeros_packed:
            return by_row(zero, start, stop).astype(np.int16) + np.int16(middle)
        first, end, before = packed_bits.span(unpack, bits, start, stop, zero.shape[0])
        words = as_words(read_values(zero, (first, end), (0, n_groups)).T)
        return unpack(words, bits, before + stop - start)[:, before:].T.astype(np.int16)

    def order() -> NDArray[np.intp]:
        import numpy as np

        found = integer_parts.group_indices(parts["order"], n_groups, unset=-1)
        return np.arange(n_columns) // layout.form.group if found is None else found

    return IntegerMatrix(
        n_rows, n_columns, n_groups, read_codes, middle if zero is None else read_zeros, read_scales,
        layout.form.group, order if layout.form.reordered else None,
    )  # fmt: skip


def _zero_fault(zero: StoredTensor | None, layout: Layout) -> str:
    """The first zero point, of those that are not packed, that the bits do not hold."""
    if zero is None or layout.zeros_packed:
        return ""
    flat = replace(zero, shape=(zero.n_weights,))
    found = read_values(flat, (0, 1), (0, zero.n_weights))[0].astype("i8")
    half = 1 << (layout.form.bits - 1)
    wrong = (found < -half) | (found >= half)
    if not wrong.any():
        return ""
    at = int(wrong.argmax())
    return (
        f"'{shown(zero.name)}' has the zero point {found[at]} at index {at:,}; {layout.form.bits} bits hold "
        f"{-half} to {half - 1} ({shown(zero.file.name)})"
    )
