"""fp8: 8-bit floats with scales beside them, given as the float32 weights they stand for.

The codes are F8_E4M3 in nearly all models; a few have F8_E5M2, with more range and fewer steps.

DeepSeek-V3 and models like it store a matrix as `X.weight` and `X.weight_scale_inv`, one float for each block
of 128 x 128 weights (`quantization_config.weight_block_size`); the last block of a row or column may be cut
short. compressed-tensors calls the same thing `X.weight_scale`, mostly with one scale for each row, and
NVIDIA's ModelOpt has one for the whole matrix or for each row. A weight is always
`float32(code) * float32(scale)`, one rounding, which is what llama.cpp's converter computes (b11434,
`conversion/base.py`, `dequant_model`): the same float32 here, bit for bit, but for any range of rows and
without the matrix of repeated scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.ggml_types import F32
from ggplan.model import RowSource, require_rows
from ggplan.sources.files import shown
from ggplan.sources.schemes.scheme import Group, QuantizationConfig, Recognised, Weights
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "F8_E4M3 or F8_E5M2 with scales"
_DTYPES = ("F8_E4M3", "F8_E5M2")
_DEFAULT_BLOCK = (128, 128)
_RUN = 1 << 18
_SCALE_DTYPES = ("F32", "BF16", "F16")
_SCALE_SUFFIXES = ("_scale_inv", "_scale")
# Scales of activations and caches, on which weights do not depend.
_UNUSED_SUFFIXES = ("activation_scale", "input_scale", "output_scale", ".k_scale", ".v_scale")
_MODELOPT_ALGORITHMS = (None, "FP8", "FP8_PER_CHANNEL_PER_TOKEN")
_FLOAT_FORMATS = ("float-quantized", "naive-quantized")  # of compressed-tensors
# Keys that are used, and keys that change no weight: they are about activations and caches, say who wrote the
# file, or list modules that are quantized or not, which the tensors show more reliably.
_KEYS = frozenset({
    "quant_method", "weight_block_size", "format", "config_groups", "transform_config",
    "activation_scheme", "kv_cache_scheme", "kv_cache_quant_algo", "fmt", "scale_fmt", "quant_algo",
    "dequantize",
    "producer", "version", "quantization_status", "global_compression_ratio",
    "sparsity_config", "moe_sparsity_config",
    "modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules", "packed_modules_mapping",
})  # fmt: skip

_MODELOPT_KEYS = frozenset({"quantized_layers", "group_size"})


def recognise(tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> Recognised | None:
    """Every tensor of 8-bit floats with its scales; see `Scheme`."""
    if not _is_named(config):
        return None
    _block(config)
    groups = [
        Group(name, tensor.dtype, {"weight": tensor, "scale": _scale_of(tensor, tensors)})
        for name, tensor in tensors.items()
        if tensor.dtype in _DTYPES
    ]
    scales = {group.parts["scale"].name for group in groups}
    for name, tensor in tensors.items():
        if name.endswith("_scale_inv") and name not in scales:
            raise CheckpointError(
                f"{shown(tensor.file)}: the scales '{shown(name)}' have no F8_E4M3 tensor beside them, nor "
                "one of F8_E5M2"
            )
    unused = [name for name in tensors if groups and name not in scales and name.endswith(_UNUSED_SUFFIXES)]
    return Recognised(groups, unused, _KEYS | _MODELOPT_KEYS if config.method == "modelopt" else _KEYS)


def join(group: Group, config: QuantizationConfig) -> Weights:
    """The products of codes and scales, in f32; see `Scheme`."""
    weight, scale = group.parts["weight"], group.parts["scale"]
    scaled = _scaled(weight, scale, _block(config))
    rows = RowSource(F32, weight.shape, scaled.read, scaled.fault)
    return Weights(rows, why_decoded="no ggml type has 8-bit floats")


@dataclass(frozen=True, slots=True)
class _Scaled:
    """An fp8 tensor and its scales, read as the product.

    The rows are cut into slices of `slice_rows` (the experts of a stacked tensor, or one slice for all), a
    slice into blocks of `block_rows` x `block_columns`; each block has one scale, in row-major order.
    """

    weight: StoredTensor
    scale: StoredTensor
    n_rows: int
    n_columns: int
    slice_rows: int
    block_rows: int
    block_columns: int

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` up to `stop`; a NaN or infinite code or scale gives NaN or infinite weights."""
        import numpy as np

        require_rows(start, stop, self.n_rows)
        n_columns = self.n_columns
        rows = self.weight.read_floats(start * n_columns, stop * n_columns).reshape(stop - start, n_columns)
        if rows.size == 0:
            return rows
        per_row = -(-n_columns // self.block_columns)
        first = self._scale_row(start)
        count = self._scale_row(stop - 1) + 1 - first
        scales = self.scale.read_floats(first * per_row, (first + count) * per_row).reshape(count, per_row)
        with np.errstate(over="ignore", invalid="ignore"):
            if per_row == 1:
                owners = [self._scale_row(row) - first for row in range(start, stop)]
                rows *= scales[owners]
                return rows
            at = start
            while at < stop:
                within = at % self.slice_rows
                block_end = min(within - within % self.block_rows + self.block_rows, self.slice_rows)
                end = min(stop, at - within + block_end)
                factors = np.repeat(scales[self._scale_row(at) - first], self.block_columns)
                rows[at - start : end - start] *= factors[:n_columns]
                at = end
        return rows

    def fault(self) -> str:
        """The number of scales that are not finite and positive, and the first of them; or ""."""
        import numpy as np

        n_scales = self.scale.n_weights
        count, first, value = 0, -1, 0.0
        for start in range(0, n_scales, _RUN):
            scales = self.scale.read_floats(start, min(start + _RUN, n_scales))
            with np.errstate(invalid="ignore"):
                wrong = ~((scales > 0) & (scales < np.inf))
            if first < 0 and wrong.any():
                first = start + int(wrong.argmax())
                value = float(scales[first - start])
            count += int(np.count_nonzero(wrong))
        if not count:
            return ""
        many = "1 scale that is" if count == 1 else f"{count:,} scales that are"
        return (
            f"'{shown(self.scale.name)}' has {many} not finite and positive, the first {value} at index "
            f"{first:,} ({shown(self.scale.file.name)})"
        )

    def _scale_row(self, row: int) -> int:
        """The row of scales that belongs to a row of weights."""
        slice_, within = divmod(row, self.slice_rows)
        return slice_ * -(-self.slice_rows // self.block_rows) + within // self.block_rows


def _scaled(tensor: StoredTensor, scale: StoredTensor, block: tuple[int, int] | None) -> _Scaled:
    if scale.dtype not in _SCALE_DTYPES:
        raise CheckpointError(
            f"{shown(scale.file)}: the scales '{shown(scale.name)}' are {scale.dtype}; "
            f"ggplan reads {', '.join(_SCALE_DTYPES)}"
        )
    shape = tensor.shape
    n_columns = shape[-1] if shape else 1
    n_rows = math.prod(shape[:-1])
    whole_row = max(n_columns, 1)

    def cut(slice_rows: int, block_rows: int, block_columns: int) -> _Scaled:
        return _Scaled(tensor, scale, n_rows, n_columns, slice_rows, block_rows, block_columns)

    if len(shape) >= 2 and block is not None:
        grid = (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
        if scale.shape == grid:
            return cut(shape[-2], *block)
    # Without blocks, dimensions are matched from the left: [rows], [rows, 1], [experts, 1, 1], [1] or [].
    slice_rows = shape[-2] if len(shape) >= 2 else 1
    extents = scale.shape + (1,) * (len(shape) - len(scale.shape))
    if all(extent == 1 for extent in extents):
        return cut(n_rows, max(n_rows, 1), whole_row)
    if extents == (*shape[:-1], 1):
        return cut(slice_rows, 1, whole_row)
    if extents == (*shape[:-2], 1, 1):
        return cut(slice_rows, max(slice_rows, 1), whole_row)
    blocks = f" in blocks of {block[0]} x {block[1]}" if block else ""
    raise CheckpointError(
        f"{shown(scale.file)}: the scales '{shown(scale.name)}' of shape {list(scale.shape)} do not fit "
        f"weights of shape {list(shape)}{blocks}"
    )


def _scale_of(tensor: StoredTensor, stored: Mapping[str, StoredTensor]) -> StoredTensor:
    found = [stored[tensor.name + suffix] for suffix in _SCALE_SUFFIXES if tensor.name + suffix in stored]
    if len(found) != 1:
        what = "has two sets of scales" if found else "has no scales"
        raise CheckpointError(
            f"{shown(tensor.file)}: the {tensor.dtype} tensor '{shown(tensor.name)}' {what}",
            hint=f"its scales should be '{shown(tensor.name)}_scale_inv'",
        )
    return found[0]


def _is_named(config: QuantizationConfig) -> bool:
    """Whether the config names fp8, or no method at all; then the tensors decide."""
    if config.method == "compressed-tensors":
        return config.values.get("format") in _FLOAT_FORMATS
    if config.method == "modelopt":
        return _only_fp8(config)
    return config.method in (None, "fp8")


def _only_fp8(config: QuantizationConfig) -> bool:
    """Whether a config of ModelOpt has 8-bit floats alone, for the model and for each layer that it names."""
    layers = config.values.get("quantized_layers")
    each = layers.values() if isinstance(layers, dict) else ()
    algorithms = [layer.get("quant_algo") for layer in each if isinstance(layer, dict)]
    whole = config.values.get("quant_algo")
    if whole != "MIXED_PRECISION" or not algorithms:
        algorithms.append(whole)
    return all(algorithm in _MODELOPT_ALGORITHMS for algorithm in algorithms)


def _block(config: QuantizationConfig) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None if the config says that there are no blocks."""
    if config.values.get("transform_config"):
        raise CheckpointError(
            f"{config.where}: its weights were transformed (transform_config in config.json), which ggplan "
            "does not undo",
            hint="use the original checkpoint in bf16",
        )
    if config.method == "compressed-tensors":
        block = _compressed_block(config)
    elif config.method == "modelopt":
        return None
    else:
        block = config.values.get("weight_block_size", list(_DEFAULT_BLOCK))
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise CheckpointError(
            f"{config.where}: config.json gives the impossible weight_block_size {shown(block)}"
        )
    return block[0], block[1]


def _compressed_block(config: QuantizationConfig) -> object:
    """The block of a compressed-tensors checkpoint with one group of fp8 weights; None for scales by row."""
    groups = config.values.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, dict) and len(groups) == 1 else None
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict) or (weights.get("type"), weights.get("num_bits")) != ("float", 8):
        raise CheckpointError(
            f"{config.where} is quantized by compressed-tensors, but not as one group of 8-bit floats",
            hint="use the original checkpoint in bf16",
        )
    return weights.get("block_structure")
