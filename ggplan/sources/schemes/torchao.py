"""torchao's tensor subclasses in safetensors: int8, integers of 1 to 8 bits in bytes, and float8.

A parameter `module.weight` is several tensors, `module._weight_qdata`, `module._weight_scale` and for
integers `module._weight_zero_point` (`module.weight:qdata` and so on in files of torchao 0.14 and 0.15), and
the file's `__metadata__` says in JSON under the parameter's name what they are:

    {"_type": "IntxUnpackedToInt8Tensor", "_data": {"target_dtype": ..., "block_size": [1, 32], ...},
     "_tensor_data_names": ["qdata", "scale", "zero_point"]}

A block of `block_size` weights has a scale and a zero point, which have the shape of the weights divided by
it. A weight is `(code - zero) * scale`, in float32; torchao rounds it to the tensor's dtype. Layouts for
kernels (Int4Tensor, tile-packed) are refused by their names.

Source: torchao 0.18.0, `prototype/safetensors`, `quantization/quantize_/workflows`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.sources.files import listed, read_array, shown
from ggplan.sources.json_files import parse_object
from ggplan.sources.safetensors import read_metadata
from ggplan.sources.schemes.grids import Grid
from ggplan.sources.schemes.integer_parts import SCALE_DTYPES, scale_fault
from ggplan.sources.schemes.integer_weights import weights_of
from ggplan.sources.schemes.integers import Form, IntegerMatrix
from ggplan.sources.schemes.scaled import Scaled, float_rows
from ggplan.sources.schemes.scheme import Group, QuantizationConfig, Recognised, Weights
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "torchao int8, intx and float8"
_TYPES = {
    "Int8Tensor": ("I8",),
    "IntxUnpackedToInt8Tensor": ("I8",),
    "Float8Tensor": ("F8_E4M3", "F8_E5M2"),
}
_TARGET = re.compile(r"int([1-8])", re.ASCII)
_DATA = ("qdata", "scale", "zero_point")
# Parts that are refused; they come before those whose names their own end in.
_OTHER_DATA = ("act_pre_scale", "act_quant_scale", "act_scale", "act_zero_point", "scale_and_zero")
# Facts of a tensor on which its weights do not depend: how products are computed, and what the codes span.
_UNUSED_FACTS = (
    "act_quant_kwargs", "activation_quantization", "reduce_range", "mm_config", "kernel_preference", "dtype",
    "target_dtype", "hp_value_lb", "hp_value_ub", "granularity", "shape", "orig_dtype",
)  # fmt: skip
_KEYS = frozenset({
    "quant_method", "quant_type", "quant_type_kwargs", "modules_to_not_convert",
    "include_input_output_embeddings", "untie_embedding_weights",
})  # fmt: skip


def recognise(tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> Recognised | None:
    """Every parameter that the files' metadata gives as a tensor subclass; see `Scheme`."""
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        if (split := _parameter(name)) is not None:
            found.setdefault(split[0], {})[split[1]] = tensor
    metadata = _Metadata()
    groups = [_group(parameter, data, metadata) for parameter, data in found.items() if "qdata" in data]
    return Recognised(groups, (), _KEYS) if groups else None


def join(group: Group, config: QuantizationConfig) -> Weights:
    """The products in float32, and the integers where a ggml type holds them; see `Scheme`."""
    codes, scale, zero = (group.parts.get(key) for key in _DATA)
    assert codes is not None
    assert scale is not None
    grid = _grid(codes, scale)
    if codes.dtype != "I8":
        rows = Scaled(float_rows(codes), scale, grid).rows(codes.shape)
        return Weights(
            rows, why_decoded="no ggml type has 8-bit floats with scales that are no powers of two"
        )
    bits = group.form
    assert isinstance(bits, int)
    form = Form(bits, zero is None or not _is_asymmetric(config.values), grid.block_columns, signed=True)

    def matrix(expert: int) -> IntegerMatrix:
        return _matrix(codes, scale, zero, grid, expert)

    return weights_of(
        codes.shape, matrix, form,
        fault=lambda: scale_fault(scale), scale=scale, zero=zero, name=group.name,
    )  # fmt: skip


def _matrix(
    codes: StoredTensor, scale: StoredTensor, zero: StoredTensor | None, grid: Grid, expert: int
) -> IntegerMatrix:
    """The integers of a tensor, of a stacked one those of an expert."""
    n_rows, n_columns = codes.shape[-2:]
    read_codes, base = _integers_of(codes), expert * n_rows

    def rows(start: int, stop: int) -> NDArray[np.int16]:
        first, last = (base + start) * n_columns, (base + stop) * n_columns
        return read_codes(first, last).reshape(stop - start, n_columns)

    def scales(start: int, stop: int) -> NDArray[np.float32]:
        return grid.scales(scale.read_floats, base + start, base + stop)

    zeros: int | Callable[[int, int], NDArray[np.int16]] = 0
    if zero is not None:
        read_zeros = _integers_of(zero)

        def zeros(start: int, stop: int) -> NDArray[np.int16]:
            return grid.scales(read_zeros, base + start, base + stop)

    return IntegerMatrix(n_rows, n_columns, grid.per_row, rows, zeros, scales, grid.block_columns)


def _integers_of(tensor: StoredTensor) -> Callable[[int, int], NDArray[np.int16]]:
    def read(start: int, stop: int) -> NDArray[np.int16]:
        import numpy as np

        return read_array(tensor.file, tensor.offset + start, stop - start).view(np.int8).astype(np.int16)

    return read


def _is_asymmetric(value: object) -> bool:
    """Whether the config says so anywhere: `"mapping_type": {"_data": "ASYMMETRIC", ...}`."""
    left = [value]  # not a recursion: a config may be nested as deeply as its parser allows
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            mapping = part.get("mapping_type")
            if (mapping.get("_data") if isinstance(mapping, dict) else mapping) == "ASYMMETRIC":
                return True
            left += part.values()
        elif isinstance(part, list):
            left += part
    return False


def _parameter(name: str) -> tuple[str, str] | None:
    """The parameter that a tensor is a part of, and which part: `a.weight`, `scale` of `a._weight_scale`."""
    if "._" not in name and ":" not in name and not name.startswith("_"):
        return None
    stem, colon, key = name.rpartition(":")
    if colon:
        return (stem, key) if key != "_data" else None
    module, _, last = name.rpartition(".")
    if not last.startswith("_"):
        return None
    for key in (*_OTHER_DATA, *_DATA):
        if last.endswith("_" + key) and len(last) > len(key) + 2:
            parameter = last[1 : -len(key) - 1]
            return (f"{module}.{parameter}" if module else parameter), key
    return None


class _Metadata:
    """The metadata of files, each read once."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, str]] = {}

    def of(self, codes: StoredTensor, parameter: str) -> dict[str, object]:
        """The type of a parameter, `_type`, the names of its data, `_names`, and its facts."""
        where = f"{shown(codes.file)}: '{shown(codes.name)}'"
        if codes.file not in self._files:
            is_safetensors = codes.file.name.endswith(".safetensors")
            self._files[codes.file] = read_metadata(codes.file) if is_safetensors else {}
        text = self._files[codes.file].get(parameter)
        if text is None:
            raise CheckpointError(
                f"{where} is a part of a torchao tensor, but the file's __metadata__ does not say of which "
                f"type"
            )
        stated = parse_object(text.encode("utf-8", "surrogatepass"), f"the metadata of {where}")
        facts, names = stated.get("_data"), stated.get("_tensor_data_names")
        if not isinstance(facts, dict):
            facts = {}
        return {**facts, "_type": stated.get("_type"), "_names": names if isinstance(names, list) else None}


def _group(parameter: str, data: Mapping[str, StoredTensor], metadata: _Metadata) -> Group:
    codes = data["qdata"]
    where = f"{shown(codes.file)}: '{shown(codes.name)}'"
    facts = metadata.of(codes, parameter)
    kind, names = facts.pop("_type"), facts.pop("_names")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise CheckpointError(
            f"{where} is of torchao's type {shown(kind)}, which ggplan does not read; it reads "
            f"{', '.join(_TYPES)}",
            hint="use the original checkpoint in bf16",
        )
    if unknown := [key for key in facts if key not in ("block_size", *_UNUSED_FACTS)]:
        raise CheckpointError(
            f"{where} says {listed(unknown)} in the file's __metadata__, which ggplan does not know"
        )
    stated = {str(name) for name in names} if isinstance(names, list) else set(data)
    if stated != set(data):
        raise CheckpointError(
            f"{where} should have the parts {listed(sorted(stated))} by the file's __metadata__, but has "
            f"{listed(sorted(data))}"
        )
    if "scale" not in data or not set(data) <= set(_DATA):
        raise CheckpointError(
            f"{where} has the parts {listed(sorted(data))}; ggplan reads {', '.join(_DATA)}"
        )
    if codes.dtype not in _TYPES[kind]:
        raise CheckpointError(f"{where} is {codes.dtype}, but of torchao's type {kind}")
    if data["scale"].dtype not in SCALE_DTYPES:
        raise CheckpointError(
            f"{where} has scales of {data['scale'].dtype}; ggplan reads {', '.join(SCALE_DTYPES)}"
        )
    parts = {key: data[key] for key in _DATA if key in data}
    _require_blocks(codes, data["scale"], facts.get("block_size"))
    if codes.dtype != "I8":
        if "zero_point" in data:
            raise CheckpointError(
                f"{where} is {codes.dtype} and has zero points, which 8-bit floats cannot have"
            )
        return Group(parameter, "torchao float8", parts)
    zero = data.get("zero_point")
    if zero is not None and (zero.dtype != "I8" or zero.shape != data["scale"].shape):
        raise CheckpointError(
            f"{where} has zero points of {zero.dtype} and shape {shown(list(zero.shape))}, but scales of "
            f"shape {shown(list(data['scale'].shape))}"
        )
    bits = _bits(facts.get("target_dtype"), where)
    grid = _grid(codes, data["scale"])
    size = grid.block_columns if grid.block_columns < codes.shape[-1] else 0
    return Group(parameter, f"torchao {Form(bits, True, size).told(grid.block_rows)}", parts, bits)


def _bits(target: object, where: str) -> int:
    """The bits of a code: 8, or those of a target such as `{"_type": "torch.dtype", "_data": "int4"}`."""
    if target is None:
        return 8
    name = target.get("_data") if isinstance(target, dict) else target
    if not isinstance(name, str) or (found := _TARGET.fullmatch(name)) is None:
        raise CheckpointError(f"{where} has the target_dtype {shown(name)}; ggplan reads int1 to int8")
    return int(found[1])


def _require_blocks(codes: StoredTensor, scale: StoredTensor, block: object) -> None:
    """Refuse scales that are not one for each block of the size that the metadata says."""
    where, shape = f"{shown(codes.file)}: '{shown(codes.name)}'", codes.shape
    if not isinstance(block, list) or not all(type(n) is int and n > 0 for n in block):
        raise CheckpointError(f"{where} has the impossible block_size {shown(block)}")
    if len(block) == len(shape) >= 2:
        sizes = [min(n, max(extent, 1)) for n, extent in zip(block, shape, strict=True)]
        grid = tuple(extent // n for extent, n in zip(shape, sizes, strict=True))
        is_whole = not any(extent % n for extent, n in zip(shape, sizes, strict=True))
        if is_whole and (scale.shape == grid or math.prod(scale.shape) == math.prod(grid) == 1):
            return
    raise CheckpointError(
        f"{where} has blocks of {shown(block)} in weights of shape {shown(list(shape))}, but scales of shape "
        f"{shown(list(scale.shape))}"
    )


def _grid(codes: StoredTensor, scale: StoredTensor) -> Grid:
    """The grid of scales whose shape is that of the weights divided by a block."""
    shape = codes.shape
    n_rows, n_columns = math.prod(shape[:-1]), shape[-1]
    if scale.n_weights == 1:
        return Grid(n_rows, n_columns, max(n_rows, 1), max(n_rows, 1), max(n_columns, 1))
    sizes = [extent // n for extent, n in zip(shape, scale.shape, strict=True)]
    if any(size != 1 for size in sizes[:-2]):
        raise CheckpointError(
            f"{shown(codes.file)}: '{shown(codes.name)}' has blocks of {shown(sizes)}, which ggplan does "
            f"not read"
        )
    return Grid(n_rows, n_columns, shape[-2], sizes[-2], sizes[-1])
