"""How tensors of compressed-tensors hold integers: what shapes and config say together.

Every number that stands in two places is compared: words and bits and columns, scales and groups, zero
points and scales, `weight_shape` and rows. Where the config has several groups, the tensors must fit one of
them; the names in its targets decide only where they fit more than one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ggplan.errors import CheckpointError
from ggplan.sources.files import read_at, shown
from ggplan.sources.schemes import packed_bits
from ggplan.sources.schemes.compressed_tensors import WeightGroup, group_of
from ggplan.sources.schemes.integers import Form
from ggplan.sources.schemes.packed_bits import Unpack
from ggplan.sources.schemes.scheme import QuantizationConfig
from ggplan.sources.tensors import StoredTensor

PACKED = ".weight_packed"
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})", re.ASCII)
_FIRST_DENSE = (0, 18)
_HINT = "download the file again, or use the original checkpoint in bf16"
_MAX_EXTENT = 1 << 31


@dataclass(frozen=True, slots=True)
class Layout:
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

    @property
    def n_groups(self) -> int:
        """Groups in a row."""
        return -(-self.shape[-1] // self.form.group) if self.form.group else 1


Known = dict[tuple[object, ...], dict[Layout, list[WeightGroup]]]


def layout_of(
    module: str,
    parts: Mapping[str, StoredTensor],
    shape: tuple[int, ...] | None,
    stated: Sequence[WeightGroup],
    config: QuantizationConfig,
    known: Known,
) -> Layout:
    """The layout on which the config's groups and the tensors' shapes agree.

    Parameters
    ----------
    parts
        "codes", "scale", and where they are there "zero" and "order".
    shape
        What `weight_shape` says; None where it is not there.
    known
        What was found for modules of the same shapes; more is added.

    Raises
    ------
    CheckpointError
        If they contradict each other.
    """
    codes = parts["codes"]
    key = (
        codes.name.endswith(PACKED), shape,
        tuple((name, part.dtype, part.shape) for name, part in parts.items()),
    )  # fmt: skip
    fitting = known.get(key)
    if fitting is None:
        fitting = known[key] = _fitting(module, parts, shape, stated, config)
    if len(fitting) == 1:
        return next(iter(fitting))
    named = group_of(module, stated, config.where)
    for layout, groups in fitting.items():
        if named in groups:
            return layout
    raise CheckpointError(
        f"{shown(codes.file)}: '{shown(codes.name)}' may have "
        f"{' or '.join(str(layout.form.bits) for layout in fitting)} bits, and the config does not say which"
    )


def _fitting(
    module: str,
    parts: Mapping[str, StoredTensor],
    shape: tuple[int, ...] | None,
    stated: Sequence[WeightGroup],
    config: QuantizationConfig,
) -> dict[Layout, list[WeightGroup]]:
    """The layouts that the tensors may have, and the groups that they fit; an error if there is none."""
    if not stated:
        raise CheckpointError(
            f"{config.where}: '{shown(parts['codes'].name)}' holds integers, but no group of config_groups "
            "in config.json does",
            hint="use the config.json that belongs to these weights",
        )
    fitting: dict[Layout, list[WeightGroup]] = {}
    faults: dict[int, CheckpointError] = {}
    for i, group in enumerate(stated):
        try:
            for layout in _layouts(parts, shape, group, config):
                fitting.setdefault(layout, []).append(group)
        except CheckpointError as error:
            faults[i] = error
    if not fitting:
        named = group_of(module, stated, config.where)
        raise faults[stated.index(named) if named is not None else 0]
    return fitting


def _layouts(
    parts: Mapping[str, StoredTensor],
    stated_shape: tuple[int, ...] | None,
    group: WeightGroup,
    config: QuantizationConfig,
) -> list[Layout]:
    """The ways in which the tensors can be read as a group says: none is an error, mostly there is one.

    Raises
    ------
    CheckpointError
        If the tensors contradict the group or one another.
    """
    codes = parts["codes"]
    if not 1 <= group.bits <= 8:
        raise _contradiction(codes, f"holds integers, the config says {group.bits} bits")
    is_packed = codes.name.endswith(PACKED)
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
    form = Form(
        group.bits, "zero" not in parts or group.symmetric, size, reordered, signed=packings == [None]
    )
    if "zero" not in parts:
        return [Layout(form, shape, block_rows, unpack, False) for unpack in packings]
    found = []
    n_groups = parts["scale"].shape[-1] if parts["scale"].shape else 1
    for unpack in packings:
        zero = parts["zero"]
        if unpack is not None and zero.dtype == "I32":
            words = packed_bits.n_words(unpack, group.bits, n_rows)
            if zero.shape == (*shape[:-2], words, n_groups):
                found.append(Layout(form, shape, block_rows, unpack, True))
                continue
        if zero.shape == parts["scale"].shape:
            found.append(Layout(form, shape, block_rows, unpack, False))
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


def read_shapes(tensors: Sequence[StoredTensor]) -> dict[str, tuple[int, ...]]:
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
