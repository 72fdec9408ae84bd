"""fp8: 8-bit floats with scales beside them, given as the float32 weights they stand for.

The codes are F8_E4M3 in nearly all models; a few have F8_E5M2, with more range and fewer steps.

    DeepSeek-V3 and models like it   X.weight, X.weight_scale_inv   one float for a block of 128 x 128
    DeepSeek-V4                      X.weight, X.scale              the same, powers of two (F8_E8M0)
    compressed-tensors, ModelOpt     X.weight, X.weight_scale       for a row, a block, or the whole matrix
    fbgemm (Llama 3.1 and 4)         X.weight, X.weight_scale       for a row; of stacked experts that are
                                                                    stored transposed, for a column
    MXFP8                            X.weight, X.weight_scale       U8: a power of two for 32 of a row
    Mistral's own files              X.weight, X.qscale_weight      for the whole matrix

The last block of a row or column may be cut short. A scale multiplies whatever its name says. A weight is
always `float32(code) * float32(scale)`, one rounding, which is what llama.cpp's converter computes (b11434,
`conversion/base.py`, `dequant_model`): the same float32 here, bit for bit, but for any range of rows and
without the matrix of repeated scales. Where scales are powers of two the product has the few digits of the
code, so bf16 holds it exactly; with other scales only f32 does.

Where a checkpoint states no quantization and has no scales at all, the codes themselves are the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.ggml_types import F32
from ggplan.model import RowSource, require_rows
from ggplan.sources.files import read_array, shown
from ggplan.sources.schemes import compressed_tensors
from ggplan.sources.schemes.compressed_tensors import (
    WeightGroup,
    is_compressed_tensors,
    require_untransformed,
    weight_groups,
)
from ggplan.sources.schemes.grids import DEFAULT_BLOCK, Block, Grid, fitted
from ggplan.sources.schemes.scaled import Scaled, as_scales, float_rows, misfit
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

NAME = "F8_E4M3 or F8_E5M2 with scales"
# Each type, and the exponent of the power of two that all its values are multiples of.
_UNITS = {"F8_E4M3": -9, "F8_E5M2": -16, "F8_E4M3FNUZ": -10, "F8_E5M2FNUZ": -17}
_CODES = (*_UNITS, "F8_E8M0")
_MX_RUN = 32
_RUN = 1 << 18
_WEIGHT = ".weight"
# The names of scales: what is appended to the name of the weights, or stands in the place of `.weight`.
_APPENDED = ("_scale_inv", "_scale")
_IN_PLACE = (".scale", ".qscale_weight")
_NO_WEIGHTS = (*_APPENDED, *_IN_PLACE, "_scale_2", "_scales", "_zero_point", "_scale_ub", "_qdata", ":qdata")
# Methods whose checkpoints may have 8-bit floats, some among weights that are stored otherwise.
_METHODS = (
    None, "fp8", "mxfp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "auto-round", "intel/auto-round",
    "autoround", "mxfp4",
)  # fmt: skip
_BLOCKWISE = ("FP8_PB_WO", "FP8_PB_REAL_QUANT")
_MODELOPT_ALGORITHMS = (None, "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "MXFP8", *_BLOCKWISE)
_FLOAT_FORMATS = ("float-quantized", "naive-quantized", "mxfp8-quantized")  # of compressed-tensors
# Keys that are used, and keys that change no weight: they are about activations and caches, say who wrote the
# file, or list modules that are quantized or not, which the tensors show more reliably.
_KEYS = frozenset({
    *compressed_tensors.KEYS, "weight_block_size", "activation_scheme", "activation_scale_ub", "fmt",
    "scale_fmt", "expert_dtype", "quant_algo", "kv_cache_quant_algo", "producer",
    "modules_to_convert", "modules_to_not_convert", "ignored_layers", "exclude_modules",
})  # fmt: skip
_MODELOPT_KEYS = frozenset({"quantized_layers", "group_size"})


def recognise(tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> Recognised | None:
    """Every tensor of 8-bit floats with its scales; see `Scheme`."""
    if config.method not in _METHODS:
        return None
    candidates = [t for t in tensors.values() if t.dtype in _CODES and not t.name.endswith(_NO_WEIGHTS)]
    weights = [tensor for tensor in candidates if tensor.dtype in _UNITS]
    blocks = _blocks(config)
    if not weights and not _is_named(config):
        return None
    scales = {tensor.name: _scales_of(tensor, tensors) for tensor in weights}
    if not config.values and not any(scales.values()):
        return Recognised([Group(t.name, t.dtype, {"weight": t}) for t in candidates]) if candidates else None
    layers, whole = _layers(config), _upper(config.values.get("quant_algo"))
    groups = []
    for tensor in weights:
        parts = _parts(tensor, scales[tensor.name], tensors)
        is_blockwise = whole in _BLOCKWISE or _algorithm_of(tensor.name, layers) in _BLOCKWISE
        grid = _grid(tensor, parts["scale"], blocks, is_blockwise=is_blockwise)
        groups.append(Group(tensor.name, _name_of(tensor, parts["scale"], grid), parts, grid))
    notes = _doubts(groups, config)
    claimed = {part.name for group in groups for part in group.parts.values()}
    _refuse_orphans(tensors, claimed)
    unused = [name for name in of_activations(tensors) if groups and name not in claimed]
    keys = _KEYS | _MODELOPT_KEYS if config.method == "modelopt" else _KEYS
    return Recognised(groups, unused, keys, notes)


def _doubts(groups: Sequence[Group], config: QuantizationConfig) -> list[str]:
    """The note of blocks whose size nothing states, where blocks of another size divide a matrix evenly."""
    if "weight_block_size" in config.values or is_compressed_tensors(config):
        return []
    for group in groups:
        grid = group.form
        if not isinstance(grid, Grid) or (grid.block_rows, grid.block_columns) != DEFAULT_BLOCK:
            continue
        counts = ((grid.slice_rows, -(-grid.slice_rows // DEFAULT_BLOCK[0])), (grid.n_columns, grid.per_row))
        sides = {extent // count if extent % count == 0 else 0 for extent, count in counts if count > 1}
        side = max(sides, default=0)
        if len(sides) == 1 and 0 < side < DEFAULT_BLOCK[0] and all(-(-n // side) == k for n, k in counts):
            return [
                f"{config.where}: config.json states no weight_block_size; scales are read as those of "
                f"blocks of 128 x 128, though blocks of {side} x {side} fit '{shown(group.name)}' too"
            ]
    return []


def join(group: Group, config: QuantizationConfig) -> Weights:
    """The products of codes and scales, in f32, and in bf16 where that is exact; see `Scheme`."""
    weight, grid = group.parts["weight"], group.form
    if not isinstance(grid, Grid):
        return Weights(_plain_rows(weight), why_decoded="no ggml type has 8-bit floats")
    scale = as_scales(group.parts["scale"])
    scaled = Scaled(float_rows(weight), scale, grid)
    rows = scaled.rows(weight.shape)
    if (zero := group.parts.get("zero_point")) is not None:
        rows = RowSource(F32, weight.shape, scaled.read, lambda: scaled.fault() or _zero_fault(zero))
        return Weights(rows, why_decoded="no ggml type has 8-bit floats with zero points")
    if scale.dtype == "F8_E8M0" or config.values.get("scale_fmt") == "ue8m0":
        return Weights(rows, scaled.bf16_rows(weight.shape, _UNITS[weight.dtype]))
    return Weights(rows, why_decoded="no ggml type has 8-bit floats with scales that are no powers of two")


def _name_of(tensor: StoredTensor, scale: StoredTensor, grid: Grid) -> str:
    is_mx = scale.dtype in ("U8", "F8_E8M0") and (grid.block_rows, grid.block_columns) == (1, _MX_RUN)
    return "MXFP8" if is_mx else tensor.dtype


def _parts(
    tensor: StoredTensor, found: Sequence[StoredTensor], stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    if len(found) != 1:
        raise CheckpointError(
            f"{shown(tensor.file)}: the {tensor.dtype} tensor '{shown(tensor.name)}' has "
            f"{'two sets of scales' if found else 'no scales'}",
            hint=f"its scales should be '{shown(tensor.name)}_scale_inv'",
        )
    if (second := stored.get(tensor.name + "_scale_2")) is not None:
        raise CheckpointError(
            f"{shown(second.file)}: '{shown(second.name)}' is a second scale of the {tensor.dtype} tensor "
            f"'{shown(tensor.name)}', which ggplan does not read"
        )
    parts = {"weight": tensor, "scale": found[0]}
    if (zero := stored.get(tensor.name + "_zero_point")) is not None:
        parts["zero_point"] = zero
    return parts


def _scales_of(tensor: StoredTensor, stored: Mapping[str, StoredTensor]) -> list[StoredTensor]:
    """The scales of a tensor, by their names; one set if all is well."""
    names = [tensor.name + suffix for suffix in _APPENDED]
    if tensor.name.endswith(_WEIGHT):
        names += [tensor.name.removesuffix(_WEIGHT) + name for name in _IN_PLACE]
    return [stored[name] for name in names if name in stored]


def _refuse_orphans(tensors: Mapping[str, StoredTensor], claimed: set[str]) -> None:
    """Refuse scales by fp8's own name that belong to no fp8, nor to bytes of another scheme."""
    for name, tensor in tensors.items():
        if not name.endswith("_scale_inv") or name in claimed:
            continue
        weight = tensors.get(name.removesuffix("_scale_inv"))
        if weight is None or weight.dtype not in ("I8", "U8"):
            raise CheckpointError(
                f"{shown(tensor.file)}: the scales '{shown(name)}' have no F8_E4M3 tensor beside them, nor "
                "one of F8_E5M2"
            )


def _grid(weight: StoredTensor, scale: StoredTensor, blocks: Sequence[Block], *, is_blockwise: bool) -> Grid:
    scale = as_scales(scale)
    if is_blockwise:
        blocks = blocks or (DEFAULT_BLOCK,)
    grid = fitted(weight.shape, scale.shape, blocks, squeezed=is_blockwise)
    if grid is None and scale.dtype == "F8_E8M0":  # MXFP8 may lie among weights in blocks
        grid = fitted(weight.shape, scale.shape, [(1, _MX_RUN)])
    if grid is None:
        sizes = " or ".join(f"{rows} x {columns}" for rows, columns in dict.fromkeys(blocks))
        raise misfit(scale, weight.shape, f" in blocks of {sizes}" if sizes else "")
    return grid


def _plain_rows(tensor: StoredTensor) -> RowSource:
    rows = float_rows(tensor)
    source = RowSource(F32, tensor.shape, rows)

    def read(start: int, stop: int) -> NDArray[np.float32]:
        require_rows(start, stop, source.n_rows)
        return rows(start, stop)

    return RowSource(F32, tensor.shape, read)


def _zero_fault(zero: StoredTensor) -> str:
    """What is wrong with zero points beside floats: any that is not 0, of whatever type it is."""
    for start in range(0, zero.n_bytes, _RUN):
        raw = read_array(zero.file, zero.offset + start, min(_RUN, zero.n_bytes - start))
        if raw.any():
            return f"'{shown(zero.name)}' has zero points that are not 0, which 8-bit floats cannot have"
    return ""


def _is_named(config: QuantizationConfig) -> bool:
    """Whether the config names fp8, or no method at all, so that a checkpoint without any is read too."""
    if is_compressed_tensors(config):
        return config.values.get("format") in _FLOAT_FORMATS and bool(_float_groups(config))
    if config.method == "modelopt":
        return _only_fp8(config)
    return config.method in (None, "fp8", "mxfp8", "fbgemm_fp8")


def _only_fp8(config: QuantizationConfig) -> bool:
    """Whether a config of ModelOpt has 8-bit floats alone, for the model and for each layer that it names."""
    algorithms = list(_layers(config).values())
    whole = config.values.get("quant_algo")
    if whole != "MIXED_PRECISION" or not algorithms:
        algorithms.append(_upper(whole))
    return all(algorithm in _MODELOPT_ALGORITHMS for algorithm in algorithms)


def _layers(config: QuantizationConfig) -> dict[str, str | None]:
    """The algorithm of each layer that a config of ModelOpt names, in capitals."""
    layers = config.values.get("quantized_layers")
    stated = layers.items() if isinstance(layers, dict) else ()
    return {name: _upper(layer.get("quant_algo")) for name, layer in stated if isinstance(layer, dict)}


def _algorithm_of(name: str, layers: Mapping[str, str | None]) -> str | None:
    """ModelOpt's algorithm for a tensor: of its module, or of a module that holds it."""
    while layers and "." in name:
        name = name.rpartition(".")[0]
        if name in layers:
            return layers[name]
    return None


def _upper(value: object) -> str | None:
    return value.upper() if isinstance(value, str) else None


def _blocks(config: QuantizationConfig) -> tuple[Block, ...]:
    """Rows and columns that share a scale, all that the config names; none if it says there are no blocks."""
    require_untransformed(config)
    if is_compressed_tensors(config):
        groups = _float_groups(config)
        runs = [(1, group.group_size) for group in groups if group.strategy == "group" and group.group_size]
        return (*(group.block for group in groups if group.block is not None), *runs)
    default = list(DEFAULT_BLOCK) if config.method in (None, "fp8") else None
    block = config.values.get("weight_block_size", default)
    return () if block is None else (_block(config, block),)


def _block(config: QuantizationConfig, value: object) -> Block:
    """The block of a config, [128, 128]."""
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
        raise CheckpointError(
            f"{config.where}: config.json gives the impossible weight_block_size {shown(value)}"
        )
    return value[0], value[1]


def _float_groups(config: QuantizationConfig) -> list[WeightGroup]:
    """What a config of compressed-tensors says of weights in 8-bit floats, an item for each group of it."""
    return [group for group in weight_groups(config) if (group.type, group.bits) == ("float", 8)]
