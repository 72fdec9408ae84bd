"""MXFP4: 4-bit floats (see `e2m1`) with a power of two as the scale of 32 weights.

    weight = code * 2^(e - 127)    e: a byte, the format E8M0; 255 is NaN
    (OCP Microscaling Formats 1.0, 5.2 and 5.4.1)

    weights                      scales                         of
    X_blocks U8 [.., C/32, 16]   X_scales U8 [.., C/32]         gpt-oss, its experts stacked
    X.weight_packed U8           X.weight_scale U8              compressed-tensors, Kimi-K3
    X.weight U8                  X.weight_scale U8              ModelOpt, MiMo
    X.weight I8                  X.scale F8_E8M0                DeepSeek-V4

The rows of gpt-oss are those of a linear layer, [outputs, inputs], though `gate_up_proj` of the same model in
bf16 is transposed; so they are given as `gate_up_proj.weight`. Every weight is exact in bf16. ggml's mxfp4
holds the same codes and scales in blocks of 17 bytes, the scale first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.ggml_types import F32, parse_type
from ggplan.model import RowSource
from ggplan.sources.files import shown
from ggplan.sources.schemes.compressed_tensors import require_untransformed
from ggplan.sources.schemes.e2m1 import (
    KEYS,
    read_raw,
    regrouped,
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
from ggplan.sources.tensors import StoredTensor, values_of_codes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "MXFP4"
_BLOCK = 32
_BYTES = ("U8", "I8")  # of two codes each
_SCALES = ("U8", "F8_E8M0")
_NAN = 0xFF
_MXFP4 = parse_type("mxfp4")
_RUN = 1 << 22  # bytes of scales that are looked at together


def recognise(tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> Recognised | None:
    """Every tensor of such codes with its scales; see `Scheme`."""
    groups = list(_groups(tensors))
    if not groups:
        return None
    require_untransformed(config)
    return Recognised(groups, of_activations(tensors), KEYS)


def join(group: Group, config: QuantizationConfig) -> Weights:
    """The weights in f32, and their codes as mxfp4; see `Scheme`."""
    weight, scale = group.parts["weight"], group.parts["scale"]
    if weight.name.endswith("_blocks"):
        shape = (*weight.shape[:-2], weight.shape[-2] * _BLOCK)
    else:
        shape = (*weight.shape[:-1], weight.shape[-1] * 2)
    require_shape(scale, (*shape[:-1], shape[-1] // _BLOCK), shape)
    n_rows, n_columns, n_blocks = rows_in(shape), shape[-1], shape[-1] // _BLOCK

    def read(start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        values = values_of(read_raw(weight, start, stop, n_rows))
        values = values.reshape(stop - start, n_blocks, _BLOCK)
        powers = read_raw(scale, start, stop, n_rows)
        with np.errstate(over="ignore", invalid="ignore"):
            values *= values_of_codes("F8_E8M0")[powers][:, :, None]
        return values.reshape(stop - start, n_columns)

    def read_codes(start: int, stop: int) -> NDArray[np.uint8]:
        import numpy as np

        codes = regrouped(read_raw(weight, start, stop, n_rows), _BLOCK)
        powers = read_raw(scale, start, stop, n_rows)[:, :, None]
        return np.concatenate((powers, codes), axis=2).reshape(stop - start, n_blocks * _MXFP4.block_bytes)

    def fault() -> str:
        step = max(1, _RUN // max(1, n_blocks))
        for start in range(0, n_rows, step):
            if (read_raw(scale, start, min(start + step, n_rows), n_rows) == _NAN).any():
                return f"its scales '{shown(scale.name)}' ({shown(scale.file)}) hold NaN"
        return ""

    return Weights(RowSource(F32, shape, read, fault), RowSource(_MXFP4, shape, read_codes))


def _groups(tensors: Mapping[str, StoredTensor]) -> Iterator[Group]:
    for name, weight in tensors.items():
        if weight.dtype not in _BYTES or len(weight.shape) < 2:
            continue
        if name.endswith("_blocks"):
            module, scales = name.removesuffix("_blocks"), name.removesuffix("_blocks") + "_scales"
            if weight.shape[-1] != _BLOCK // 2 or len(weight.shape) < 3:
                continue
            if scales not in tensors:
                raise _lacks(weight, scales)
            yield Group(f"{module}.weight", NAME, {"weight": weight, "scale": tensors[scales]})
        elif (scale := _scale_of(name, tensors)) is not None:
            plain = name.removesuffix("_packed")
            if weight.shape[-1] * 2 == scale.shape[-1] * _BLOCK:
                yield Group(plain, NAME, {"weight": weight, "scale": scale})
            elif weight.shape[-1] * 4 == scale.shape[-1] * _BLOCK * 3:
                raise CheckpointError(
                    f"{shown(weight.file)}: the tensor '{shown(name)}' is MXFP6, which ggplan does not read",
                    hint="use the original checkpoint in bf16 or fp8",
                )
            elif name != plain:
                shape = (*weight.shape[:-1], weight.shape[-1] * 2)
                require_shape(scale, (*shape[:-1], shape[-1] // _BLOCK), shape)


def _scale_of(name: str, tensors: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """The scales of a tensor by the names of all writers, if they are bytes of E8M0."""
    if name.endswith(".weight_packed"):
        candidates = [name.removesuffix("_packed") + "_scale"]
    elif name.endswith(".weight"):
        candidates = [name + "_scale", name + "_scale_inv", name.removesuffix(".weight") + ".scale"]
    else:
        return None
    for candidate in candidates:
        scale = tensors.get(candidate)
        if scale is not None and scale.dtype in _SCALES and len(scale.shape) >= 2:
            return scale
    return None


def _lacks(weight: StoredTensor, scales: str) -> CheckpointError:
    return CheckpointError(
        f"{shown(weight.file)}: the tensor '{shown(weight.name)}' has no scales '{shown(scales)}'"
    )
