"""NVFP4: 4-bit floats (see `e2m1`) with an 8-bit float as the scale of 16 weights, and one for the tensor.

                            ModelOpt                      compressed-tensors
    codes                   X.weight U8 [R, C/2]          X.weight_packed U8 [R, C/2]
    scales of groups, s     X.weight_scale F8_E4M3 [R, C/16], both
    scale of the tensor     X.weight_scale_2 F32 []       X.weight_global_scale F32 [1]
    weight                  code * (s * scale_2)          code * (s / global_scale)
    of activations          X.input_scale F32 []          X.input_global_scale F32 [1], its reciprocal

Products are in f32, as the libraries compute them (nvidia-modelopt 0.47, compressed-tensors 0.20). Stacked
experts may have one scale of the tensor each.

ggml's nvfp4 holds the codes and s of 64 weights in 36 bytes: four scales without their sign, then four groups
of 8 bytes. The scale of the tensor becomes a tensor of its own, `X.scale`, which llama.cpp multiplies in
after the matrix product, and that of the activations `X.input_scale` (b11434, `conversion/base.py`,
`_nvfp4_pack` and `_repack_nvfp4`).

ModelOpt's AWQ variant multiplies the input by `pre_quant_scale`, one number for each column, where it could
not fold that into the layer before; the weights then are those products, and no codes of nvfp4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.ggml_types import F32, parse_type
from ggplan.model import RowSource, require_rows
from ggplan.sources.files import shown
from ggplan.sources.schemes.compressed_tensors import require_untransformed
from ggplan.sources.schemes.e2m1 import (
    KEYS,
    read_raw,
    regrouped,
    require_floats,
    require_shape,
    rows_in,
    values_of,
)
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

NAME = "NVFP4"
_GROUP = 16
_SUPERBLOCK = 64
_NVFP4 = parse_type("nvfp4")
_EXPERT = re.compile(r"\.experts\.\d+\.", re.ASCII)
_RUN = 1 << 22  # bytes of scales that are looked at together


def recognise(tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> Recognised | None:
    """Every tensor of such codes with its scales; see `Scheme`."""
    groups = list(_groups(tensors))
    if not groups:
        return None
    require_untransformed(config)
    used = {part.name for group in groups for part in group.parts.values()}
    unused = [name for name in of_activations(tensors) if name not in used]
    return Recognised(groups, unused, KEYS)


def join(group: Group, config: QuantizationConfig) -> Weights:
    """The weights in f32, and their codes as nvfp4 with the scales of the tensor; see `Scheme`."""
    tensor = _tensor(group)
    shape, columns = tensor.shape, group.parts.get("columns")
    rows = RowSource(F32, shape, tensor.read, tensor.fault)
    if columns is not None:
        return Weights(rows, why_decoded="its columns have scales of their own (pre_quant_scale)")
    if shape[-1] % _SUPERBLOCK:
        return Weights(rows, why_decoded=f"rows of {shape[-1]:,} are no multiple of {_SUPERBLOCK}")
    codes = RowSource(_NVFP4, shape, tensor.read_codes, tensor.codes_fault)
    companions = {"scale": _numbers(tensor.whole, tensor.is_divisor)}
    if (activations := group.parts.get("input")) is not None:
        companions["input_scale"] = _numbers(activations, tensor.is_divisor)
    is_full = _algorithm(group.name, config) == "W4A16_NVFP4"
    return Weights(rows, codes, companions=companions, full_activations=is_full)


def _algorithm(name: str, config: QuantizationConfig) -> object:
    """ModelOpt's name for the way in which a tensor is quantized: of its module or the nearest around it.

    All experts of a layer have one, as llama.cpp's converter has it (`_tag_prec_a4`).
    """
    layers = config.values.get("quantized_layers")
    module = _EXPERT.sub(".experts.", name).removesuffix(".weight")
    while module and isinstance(layers, dict):
        if isinstance(layer := layers.get(module), dict):
            return layer.get("quant_algo")
        module = module.rpartition(".")[0]
    return config.values.get("quant_algo")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """The parts of a tensor: codes, scales of groups, of the tensor, of columns and of activations."""

    codes: StoredTensor
    scales: StoredTensor
    whole: StoredTensor
    columns: StoredTensor | None
    activations: StoredTensor | None
    shape: tuple[int, ...]
    is_divisor: bool

    @property
    def n_rows(self) -> int:
        return rows_in(self.shape)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of weights."""
        import numpy as np

        per_row = self.shape[-1] // _GROUP
        values = values_of(read_raw(self.codes, start, stop, self.n_rows))
        values = values.reshape(stop - start, per_row, _GROUP)
        scales = self.scales.read_floats(start * per_row, stop * per_row).reshape(stop - start, per_row)
        whole = self.whole.read_floats(0, self.whole.n_weights)
        if whole.size > 1:  # one for each expert
            whole = whole[np.arange(start, stop) // (self.n_rows // whole.size), None]
        with np.errstate(all="ignore"):
            scales = scales / whole if self.is_divisor else scales * whole
            values *= scales[:, :, None]
            rows = values.reshape(stop - start, self.shape[-1])
            if self.columns is not None:
                rows *= self.columns.read_floats(0, self.shape[-1])
        return rows

    def read_codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The same rows as blocks of nvfp4."""
        import numpy as np

        codes = regrouped(read_raw(self.codes, start, stop, self.n_rows), _GROUP)
        scales = read_raw(self.scales, start, stop, self.n_rows) & 0x7F
        n_blocks = self.shape[-1] // _SUPERBLOCK
        scales = scales.reshape(stop - start, n_blocks, _SUPERBLOCK // _GROUP)
        codes = codes.reshape(stop - start, n_blocks, _SUPERBLOCK // 2)
        row_bytes = _NVFP4.row_bytes(self.shape[-1])
        return np.concatenate((scales, codes), axis=2).reshape(stop - start, row_bytes)

    def fault(self) -> str:
        """Scales that are not numbers."""
        import numpy as np

        whole = self.whole.read_floats(0, self.whole.n_weights)
        for i in np.flatnonzero(~(np.isfinite(whole) & (whole > 0))).tolist():
            if whole[i] != 0 or self.is_divisor or not self._is_empty(i, whole.size):
                return f"its scale '{shown(self.whole.name)}' ({shown(self.whole.file)}) is not positive"
        own = self.activations
        if own is not None and (own.read_floats(0, own.n_weights) < 0).any():
            return f"its scale of activations '{shown(own.name)}' ({shown(own.file)}) is negative"
        for scales in self._all_scales():
            if (scales & 0x7F == 0x7F).any():
                return f"its scales '{shown(self.scales.name)}' ({shown(self.scales.file)}) hold NaN"
        return ""

    def _is_empty(self, i: int, n_slices: int) -> bool:
        """Whether the weights under a scale of the tensor are 0 whatever it is: quantizers give them 0."""
        per_slice = self.n_rows // n_slices
        step = max(1, _RUN // max(1, self.shape[-1]))
        for start in range(i * per_slice, (i + 1) * per_slice, step):
            stop = min(start + step, (i + 1) * per_slice)
            codes = read_raw(self.codes, start, stop, self.n_rows) & 0x77
            scales = read_raw(self.scales, start, stop, self.n_rows) & 0x7F
            groups = codes.reshape(-1, _GROUP // 2).any(axis=1)
            if (groups & (scales.reshape(-1) != 0)).any():
                return False
        return True

    def codes_fault(self) -> str:
        """Scales that nvfp4, which stores no sign of them, does not hold."""
        is_negative = any((scales > 0x80).any() for scales in self._all_scales())
        return "nvfp4 has no negative scales" if is_negative else ""

    def _all_scales(self) -> Iterator[NDArray[np.uint8]]:
        step = max(1, _RUN // max(1, self.shape[-1] // _GROUP))
        for start in range(0, self.n_rows, step):
            yield read_raw(self.scales, start, min(start + step, self.n_rows), self.n_rows)


def _tensor(group: Group) -> _Tensor:
    """The parts, their types and shapes checked."""
    codes, scales, whole = (group.parts[name] for name in ("codes", "scales", "whole"))
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    require_shape(scales, (*shape[:-1], shape[-1] // _GROUP), shape)
    slices = math.prod(shape[:-2])
    if whole.n_weights not in (1, slices):
        require_shape(whole, (), shape)
    columns = group.parts.get("columns")
    if columns is not None:
        require_shape(columns, shape[-1:], shape)
    for part in ("whole", "columns", "input"):
        if part in group.parts:
            require_floats(group.parts[part])
    is_divisor = whole.name.endswith("_global_scale")
    return _Tensor(codes, scales, whole, columns, group.parts.get("input"), shape, is_divisor)


def _numbers(tensor: StoredTensor, is_divisor: bool) -> RowSource:
    """The numbers of a small tensor as one row; of divisors, their reciprocals."""

    def read(start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        require_rows(start, stop, 1)
        values = tensor.read_floats(0, tensor.n_weights).reshape(1, -1)
        with np.errstate(divide="ignore"):
            return (np.float32(1) / values if is_divisor else values)[: stop - start]

    return RowSource(F32, (tensor.n_weights,), read)


def _groups(tensors: Mapping[str, StoredTensor]) -> Iterator[Group]:
    for name, codes in tensors.items():
        _refuse_fused(name, codes, tensors)
        plain = name.removesuffix("_packed")
        scales = tensors.get(plain + "_scale")
        is_here = codes.dtype == "U8" and len(codes.shape) >= 2 and plain.endswith(".weight")
        if not is_here or scales is None or scales.dtype != "F8_E4M3":
            continue
        module = plain.removesuffix(".weight")
        if f"{module}.svdquant_lora_a" in tensors or f"{module}.weight_scale.nvfp4_csf_fixed" in tensors:
            raise CheckpointError(
                f"{shown(codes.file)}: the tensor '{shown(name)}' is NVFP4 with further parts (SVDQuant or "
                "CSF), which ggplan does not read",
                hint="use the original checkpoint in bf16 or fp8",
            )
        endings = ("_global_scale", ".input_global_scale") if name != plain else ("_scale_2", ".input_scale")
        whole = tensors.get(plain + endings[0])
        if whole is None:
            raise CheckpointError(
                f"{shown(codes.file)}: the tensor '{shown(name)}' has no scale "
                f"'{shown(plain + endings[0])}' of the whole tensor"
            )
        parts = {"codes": codes, "scales": scales, "whole": whole}
        for key, other in (("input", module + endings[1]), ("columns", f"{module}.pre_quant_scale")):
            if other in tensors:
                parts[key] = tensors[other]
        yield Group(plain, NAME, parts)


def _refuse_fused(name: str, codes: StoredTensor, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse experts that are one tensor, `experts.gate_up_proj`, whose columns have no settled order."""
    scales = (tensors.get(name.removesuffix("_packed") + ending) for ending in ("_weight_scale", "_scale"))
    is_fused = (
        codes.dtype == "U8" and len(codes.shape) == 3 and not name.endswith((".weight", ".weight_packed"))
    )
    if is_fused and any(scale is not None and scale.dtype == "F8_E4M3" for scale in scales):
        raise CheckpointError(
            f"{shown(codes.file)}: '{shown(name)}' is NVFP4 of all experts in one tensor, which ggplan does "
            "not read; it reads one module for each expert",
            hint="use the original checkpoint in bf16 or fp8",
        )
