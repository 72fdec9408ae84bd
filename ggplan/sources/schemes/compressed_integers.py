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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.sources.files import read_at, shown
from ggplan.sources.schemes import compressed_tensors, integers, packed_bits
from ggplan.sources.schemes.compressed_tensors import WeightGroup, group_of, weight_groups
from ggplan.sources.schemes.integers import Form, IntegerMatrix
from ggplan.sources.schemes.packed_bits import Unpack, as_words, read_values
from ggplan.sources.schemes.scheme import Group, QuantizationConfig, Recognised, Weights
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "integers of compressed-tensors"
_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "mixed-precision", "")
_PACKED, _PLAIN = ".weight_packed", ".weight"
_INTEGERS = ("I8", "U8", "I16", "I32", "I64")
# Scales and zero points of activations and caches, on which weights do not depend.
_UNUSED = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point")
_UNUSED_SUFFIXES = (".k_scale", ".v_scale", ".q_scale", ".k_zero_point", ".v_zero_point")
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})", re.ASCII)
_FIRST_DENSE = (0, 18)
_HINT = "download the file again, or use the original checkpoint in bf16"
_MAX_EXTENT = 1 << 31


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the tensors of one module hold its weights.

    Attributes
    ----------
    form
        Bits, zero points and groups.
    shape
        Of the weights; three dimensions for stacked experts.
    block_rows
        Rows that share a scale.
    unpack
        The packing of codes; None for a code in each byte.
    zeros_packed
        Whether zero points are packed as codes are.
    """

    form: Form
    shape: tuple[int, ...]
    block_rows: int
    unpack: Unpack | None
    zeros_packed: bool


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
    shapes = _read_shapes([tensors[m + ".weight_shape"] for m in modules if m + ".weight_shape" in tensors])
    groups = [_group(module, tensors, stated, shapes, config) for module in modules]
    unused = [f"{module}.{name}" for module in modules for name in _UNUSED if f"{module}.{name}" in tensors]
    unused += [name for name in tensors if name.endswith(_UNUSED_SUFFIXES)]
    return Recognised(groups, unused, compressed_tensors.KEYS if is_named else ())


def join(group: Group, config: QuantizationConfig) -> Weights:
    """The integers and what they stand for; see `Scheme`."""
    layout = group.form
    assert isinstance(layout, _Layout)
    parts = group.parts
    matrices = [_matrix(slice_, layout) for slice_ in _slices(parts, layout)]

    def fault() -> str:
        found = integers.scale_fault(parts["scale"])
        order = parts.get("order")
        if not found and order is not None:
            found = integers.index_fault(order, _n_groups(layout), unset=-1)
        return found or _zero_fault(parts.get("zero"), layout)

    def codes_fault() -> str:
        return integers.half_fault(parts["scale"]) or _level_fault(group.name, matrices, parts, layout)

    return integers.weights_of(
        layout.shape, matrices, layout.form, fault=fault, codes_fault=codes_fault, name=group.name
    )


def _module(name: str, tensors: Mapping[str, StoredTensor]) -> str:
    """The module whose integers a tensor holds; "" if it holds something else."""
    tensor = tensors[name]
    if name.endswith(_PACKED) and tensor.dtype == "I32":
        return name.removesuffix(_PACKED)
    if name.endswith(_PLAIN) and tensor.dtype == "I8":
        scale = tensors.get(name + "_scale")
        if scale is not None and scale.dtype in integers.SCALE_DTYPES:
            return name.removesuffix(_PLAIN)
    return ""


def _groups_elsewhere(config: QuantizationConfig) -> list[WeightGroup]:
    """What a config of another kind says of such tensors: AutoRound's export in this form, or nothing."""
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
) -> Group:
    is_packed = module + _PACKED in tensors
    names = {
        "codes": module + (_PACKED if is_packed else _PLAIN),
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
    integers.require_dtype(parts["scale"], "the scales", integers.SCALE_DTYPES)
    for part, what in (("zero", "the zero points"), ("order", "the groups of columns")):
        if part in parts:
            integers.require_dtype(parts[part], what, _INTEGERS)
    shape = shapes.get(names["shape"])
    layout = _layout(module, parts, shape, stated, config)
    return Group(module + ".weight", f"int{layout.form.bits}", parts, layout)


def _layout(
    module: str,
    parts: Mapping[str, StoredTensor],
    shape: tuple[int, ...] | None,
    stated: Sequence[WeightGroup],
    config: QuantizationConfig,
) -> _Layout:
    """The layout that the config's groups and the tensors' shapes agree on."""
    if not stated:
        raise CheckpointError(
            f"{config.where}: '{shown(parts['codes'].name)}' holds integers, but no group of config_groups "
            "in config.json does",
            hint="use the config.json that belongs to these weights",
        )
    fitting: dict[_Layout, list[WeightGroup]] = {}
    faults: dict[int, CheckpointError] = {}
    for i, group in enumerate(stated):
        try:
            for layout in _layouts(parts, shape, group, config):
                fitting.setdefault(layout, []).append(group)
        except CheckpointError as error:
            faults[i] = error
    if len(fitting) == 1:
        return next(iter(fitting))
    named = group_of(module, stated, config.where)
    if not fitting:
        raise faults[stated.index(named) if named is not None else 0]
    for layout, groups in fitting.items():
        if named in groups:
            return layout
    raise CheckpointError(
        f"{shown(parts['codes'].file)}: '{shown(parts['codes'].name)}' may have "
        f"{' or '.join(str(layout.form.bits) for layout in fitting)} bits, and the config does not say which"
    )


def _layouts(
    parts: Mapping[str, StoredTensor],
    stated_shape: tuple[int, ...] | None,
    group: WeightGroup,
    config: QuantizationConfig,
) -> list[_Layout]:
    """The ways in which the tensors can be read as a group says: none is an error, mostly there is one.

    Raises
    ------
    CheckpointError
        If the tensors contradict the group or one another.
    """
    codes = parts["codes"]
    if not 1 <= group.bits <= 8:
        raise _contradiction(codes, f"holds integers, the config says {group.bits} bits")
    is_packed = codes.name.endswith(_PACKED)
    if len(codes.shape) not in (2, 3):
        raise _contradiction(codes, f"has the shape {list(codes.shape)}, and is no matrix")
    shape = codes.shape
    packings: list[Unpack | None] = [None]
    if is_packed:
        shape = (*shape[:-1], _n_columns(codes, stated_shape, parts["scale"], group))
        packings = list(_packings(codes, shape[-1], group.bits, config))
    n_rows, n_columns = shape[-2:]
    block_rows, size = _scale_blocks(parts["scale"], shape, group)
    if "zero" not in parts and not group.symmetric:
        raise _contradiction(codes, f"has no '{shown(codes.name.rpartition('.')[0])}.weight_zero_point', "
                                    "the config says that it is asymmetric")  # fmt: skip
    order = parts.get("order")
    reordered = ""
    if order is not None and size:
        if order.shape not in ((n_columns,), (*shape[:-2], n_columns)):
            raise _contradiction(
                order, f"has the shape {list(order.shape)}, the weights have {n_columns} columns"
            )
        reordered = "columns are in the order of their activations (weight_g_idx)"
    form = Form(group.bits, "zero" not in parts or group.symmetric, size, reordered)
    if "zero" not in parts:
        return [_Layout(form, shape, block_rows, unpack, False) for unpack in packings]
    found = []
    n_groups = parts["scale"].shape[-1] if parts["scale"].shape else 1
    for unpack in packings:
        zero = parts["zero"]
        if unpack is not None and zero.dtype == "I32":
            words = packed_bits.n_words(unpack, group.bits, n_rows)
            if zero.shape == (*shape[:-2], words, n_groups):
                found.append(_Layout(form, shape, block_rows, unpack, True))
                continue
        if zero.shape == parts["scale"].shape:
            found.append(_Layout(form, shape, block_rows, unpack, False))
    if not found:
        raise _contradiction(
            parts["zero"],
            f"has the shape {list(parts['zero'].shape)}, which does not fit scales of shape "
            f"{list(parts['scale'].shape)} and {group.bits} bits",
        )
    return found


def _n_columns(
    codes: StoredTensor, stated: tuple[int, ...] | None, scale: StoredTensor, group: WeightGroup
) -> int:
    """The columns of packed weights, as `weight_shape` says; without it as words and groups fit."""
    if stated is None:
        n_groups = scale.shape[-1] if len(scale.shape) >= 2 else 1
        by_groups = n_groups * group.group_size
        if by_groups and codes.shape[-1] in (
            packed_bits.n_words(unpack, group.bits, by_groups)
            for unpack in (packed_bits.dense, packed_bits.padded)
        ):
            return by_groups
        return codes.shape[-1] * 32 // group.bits
    if stated[-2] != codes.shape[-2] or (len(stated) == 3 and stated != (*codes.shape[:-1], stated[-1])):
        raise _contradiction(
            codes, f"has {list(codes.shape[:-1])} rows, its weight_shape says {list(stated[:-1])}"
        )
    return stated[-1]


def _packings(codes: StoredTensor, n_columns: int, bits: int, config: QuantizationConfig) -> Sequence[Unpack]:
    """The packings that give a row its width; the one of the config's version where both do."""
    dense, padded = (
        packed_bits.n_words(unpack, bits, n_columns) for unpack in (packed_bits.dense, packed_bits.padded)
    )
    width = codes.shape[-1]
    if width not in (dense, padded):
        said = f"{dense}" if dense == padded else f"{dense} or {padded}"
        raise _contradiction(
            codes, f"has {width} words in a row, {n_columns} weights of {bits} bits need {said}"
        )
    if dense != padded:
        return [packed_bits.dense if width == dense else packed_bits.padded]
    if 32 % bits == 0 or n_columns <= 32 // bits:
        return [packed_bits.dense]
    version = _VERSION.match(str(config.values.get("version") or ""))
    if version is None:
        raise _contradiction(
            codes,
            f"has {width} words in a row, which can be packed in two ways, and the config has no version",
        )
    is_dense = (int(version[1]), int(version[2])) >= _FIRST_DENSE
    return [packed_bits.dense if is_dense else packed_bits.padded]


def _scale_blocks(scale: StoredTensor, shape: tuple[int, ...], group: WeightGroup) -> tuple[int, int]:
    """Rows that share a scale, and columns that do; 0 for all columns."""
    n_rows, n_columns = shape[-2:]
    extents = scale.shape
    stack = shape[:-2]
    one = ((), (1,), (1, 1)) if not stack else (stack, (*stack, 1), (*stack, 1, 1))
    per_row = ((*stack, n_rows), (*stack, n_rows, 1))
    size, block = group.group_size, group.block
    fits = {
        "tensor": extents in one,
        "channel": extents in per_row,
        "group": bool(size) and extents == (*stack, n_rows, -(-n_columns // size)),
        "block": block is not None
        and extents == (*stack, -(-n_rows // block[0]), -(-n_columns // block[1])),
    }  # fmt: skip
    strategy = group.strategy
    if not strategy:
        strategy = next((name for name, does in fits.items() if does), "")
        is_even = len(extents) == len(shape) and extents[-1] and n_columns % extents[-1] == 0
        if not strategy and is_even and extents[:-1] == shape[:-1]:
            return 1, n_columns // extents[-1]
    if fits.get(strategy):
        if strategy == "block":
            assert block is not None
            return block[0], 0 if extents[-1] == 1 else block[1]
        if strategy == "group":
            return 1, 0 if extents[-1] == 1 else size
        return (max(n_rows, 1) if strategy == "tensor" else 1), 0
    how = {"group": f" in groups of {size}", "block": f" in blocks of {block}"}.get(strategy, "")
    raise _contradiction(
        scale,
        f"has the shape {list(extents)}, which does not fit weights of shape {list(shape)} with scales by "
        f"{strategy or 'row or group'}{how}",
    )


def _contradiction(tensor: StoredTensor, what: str) -> CheckpointError:
    return CheckpointError(f"{shown(tensor.file)}: '{shown(tensor.name)}' {what}", hint=_HINT)


def _n_groups(layout: _Layout) -> int:
    return -(-layout.shape[-1] // layout.form.group) if layout.form.group else 1


def _slices(parts: Mapping[str, StoredTensor], layout: _Layout) -> list[Mapping[str, StoredTensor]]:
    """The parts of each expert of a stacked tensor; of a matrix those that it has."""
    if len(layout.shape) == 2:
        return [parts]
    shared = {name for name in parts if name == "order" and len(parts[name].shape) == 1}
    return [
        {
            name: part if name in shared else integers.slice_of(part, i, layout.shape[0])
            for name, part in parts.items()
        }
        for i in range(layout.shape[0])
    ]


def _matrix(parts: Mapping[str, StoredTensor], layout: _Layout) -> IntegerMatrix:
    """One matrix of the layout, its parts those of the slice."""
    n_rows, n_columns = layout.shape[-2:]
    bits, unpack = layout.form.bits, layout.unpack
    codes, scale, zero = parts["codes"], parts["scale"], parts.get("zero")
    n_groups, block_rows = _n_groups(layout), layout.block_rows
    middle = 0 if unpack is None else 1 << (bits - 1)

    def read_codes(start: int, stop: int) -> NDArray[np.int16]:
        import numpy as np

        values = read_values(codes, (start, stop), (0, codes.shape[-1]))
        if unpack is not None:
            values = unpack(as_words(values), bits, n_columns)
        return values.astype(np.int16)

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

        found = integers.group_indices(parts["order"], n_groups, unset=-1)
        return np.arange(n_columns) // layout.form.group if found is None else found

    return IntegerMatrix(
        n_rows, n_columns, read_codes, middle if zero is None else read_zeros, read_scales,
        layout.form.group, order if layout.form.reordered else None,
    )  # fmt: skip


def _zero_fault(zero: StoredTensor | None, layout: _Layout) -> str:
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


def _level_fault(
    name: str, matrices: Sequence[IntegerMatrix], parts: Mapping[str, StoredTensor], layout: _Layout
) -> str:
    """What makes levels leave the range that the form promises: zero points, or bytes of fewer bits."""
    lowest, highest = layout.form.levels
    is_loose = layout.unpack is None and layout.form.bits < 8
    if not is_loose and not (layout.form.symmetric and "zero" in parts):
        return ""
    for matrix in matrices:
        step = max(1, integers.PIECE // max(1, matrix.n_columns))
        for start in range(0, matrix.n_rows, step):
            levels = matrix.levels(start, min(start + step, matrix.n_rows))
            if levels.size and not (lowest <= levels.min() and levels.max() <= highest):
                return (
                    f"'{shown(name)}' has levels {levels.min()} to {levels.max()}; symmetric integers of "
                    f"{layout.form.bits} bits are {lowest} to {highest}"
                )
    return ""


def _read_shapes(tensors: Sequence[StoredTensor]) -> dict[str, tuple[int, ...]]:
    """The contents of `weight_shape` tensors; those that cannot be read are left out.

    safetensors puts them side by side, for they have the widest type, so one read gets those of a file.
    """
    import numpy as np

    found: dict[str, tuple[int, ...]] = {}
    ordered = sorted(tensors, key=lambda tensor: (tensor.file, tensor.offset))
    at = 0
    while at < len(ordered):
        end = at + 1
        while end < len(ordered) and (
            ordered[end].file == ordered[at].file
            and ordered[end].offset == ordered[end - 1].offset + ordered[end - 1].n_bytes
        ):
            end += 1
        run, at = ordered[at:end], end
        try:
            raw = read_at(run[0].file, run[0].offset, sum(tensor.n_bytes for tensor in run))
        except CheckpointError:  # only headers are there; shapes then follow from words and groups
            continue
        for tensor in run:
            if tensor.dtype not in ("I64", "I32") or tensor.shape not in ((2,), (3,)):
                raise _contradiction(tensor, f"is {tensor.dtype} {list(tensor.shape)}, not I64 [2]")
            begin = tensor.offset - run[0].offset
            values = np.frombuffer(
                raw[begin : begin + tensor.n_bytes], "<i8" if tensor.dtype == "I64" else "<i4"
            )
            if not all(0 < value < _MAX_EXTENT for value in values.tolist()):
                raise _contradiction(tensor, f"says the impossible shape {values.tolist()}")
            found[tensor.name] = tuple(values.tolist())
    return found
