"""ModelOpt's W4A16_AWQ: 4-bit integers, two rows in a byte.

    X.weight            U8 [rows / 2, columns]: byte (r, c) is row 2r in its low half and row 2r + 1 in its
                        high half, two's complement, -8 to 7
    X.weight_scale      float [rows, columns / group]
    X.pre_quant_scale   float [columns], of some modules: a factor of the layer's input

A layer multiplies its input by `pre_quant_scale` before the product, so the weight of a column has it as a
factor: `(code * scale) * pre_quant_scale`, two roundings to float32. ModelOpt folds it into the norm before
a layer where there is one; for the others (`o_proj`, `down_proj`) it is in the file.

Source: nvidia-modelopt 0.47.0, `torch/export/quant_utils.py` (`pack_int4_in_uint8`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.ggml_types import F32
from ggplan.model import RowSource
from ggplan.sources.files import read_array, shown
from ggplan.sources.schemes.integer_parts import scale_fault
from ggplan.sources.schemes.integer_weights import weights_of
from ggplan.sources.schemes.integers import Form, IntegerMatrix
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

NAME = "W4A16_AWQ of ModelOpt"
_WEIGHT = ".weight"
_SCALES = ("F32", "BF16", "F16")
_BITS = 4
_KEYS = frozenset({
    "quant_method", "quant_algo", "kv_cache_quant_algo", "kv_cache_scheme", "group_size", "has_zero_point",
    "pre_quant_scale", "quantized_layers", "exclude_modules", "ignore", "config_groups", "producer",
    "version",
})  # fmt: skip


def recognise(tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> Recognised | None:
    """Every matrix of bytes with half the rows of its scales; see `Scheme`."""
    groups = []
    for name, weight in tensors.items():
        scale = tensors.get(name + "_scale") if name.endswith(_WEIGHT) and weight.dtype == "U8" else None
        if scale is None or scale.dtype not in _SCALES or scale.n_weights == 1:
            continue
        parts = {"weight": weight, "scale": scale}
        if (factor := tensors.get(name.removesuffix(_WEIGHT) + ".pre_quant_scale")) is not None:
            parts["pre_quant_scale"] = factor
        if (second := tensors.get(name + "_scale_2")) is not None:
            raise CheckpointError(
                f"{shown(second.file)}: '{shown(second.name)}' is a second scale of 4-bit integers "
                "(W4A8_AWQ), which ggplan does not read",
                hint="use the original checkpoint in bf16 or fp8",
            )
        groups.append(Group(name, "int4 (W4A16_AWQ)", parts))
    if not groups:
        return None
    if config.values.get("has_zero_point"):
        raise CheckpointError(
            f"{config.where}: its 4-bit integers have zero points, which ggplan does not read"
        )
    return Recognised(groups, of_activations(tensors), _KEYS)


def join(group: Group, config: QuantizationConfig) -> Weights:
    """The products in float32, and q4_0 where no factor is in the way; see `Scheme`."""
    weight, scale = group.parts["weight"], group.parts["scale"]
    matrix = _matrix(weight, scale)
    held = weights_of(
        (matrix.n_rows, matrix.n_columns), lambda _: matrix, Form(_BITS, True, matrix.group),
        fault=lambda: scale_fault(scale), scale=scale, zero=None, name=group.name,
    )  # fmt: skip
    factor = group.parts.get("pre_quant_scale")
    return held if factor is None else _with_factor(held, factor)


def _with_factor(held: Weights, factor: StoredTensor) -> Weights:
    n_columns, plain = held.rows.n_columns, held.rows
    if factor.n_weights != n_columns or factor.dtype not in _SCALES:
        raise CheckpointError(
            f"{shown(factor.file)}: '{shown(factor.name)}' is {factor.dtype} of shape "
            f"{shown(list(factor.shape))}, its weights have {n_columns:,} columns"
        )

    def read(start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        rows = plain.read(start, stop)
        with np.errstate(over="ignore", invalid="ignore"):
            rows *= factor.read_floats(0, n_columns)
        return rows

    rows = RowSource(F32, plain.shape, read, lambda: plain.fault() or scale_fault(factor))
    why = f"a factor for each column ('{shown(factor.name)}') takes the weights off the integers' steps"
    return replace(held, rows=rows, codes=None, why_decoded=why, integers=None)


def _matrix(weight: StoredTensor, scale: StoredTensor) -> IntegerMatrix:
    n_groups = scale.shape[-1] if len(scale.shape) == 2 else 0
    if len(weight.shape) != 2 or not n_groups or scale.shape[0] != 2 * weight.shape[0]:
        raise CheckpointError(
            f"{shown(scale.file)}: '{shown(scale.name)}' of shape {shown(list(scale.shape))} should have "
            f"two rows for each of '{shown(weight.name)}' of shape {shown(list(weight.shape))}"
        )
    n_columns = weight.shape[1]
    if n_columns % n_groups:
        raise CheckpointError(
            f"{shown(scale.file)}: '{shown(scale.name)}' has {n_groups:,} scales for a row of {n_columns:,} "
            "weights, which are no groups of one size"
        )

    def codes(start: int, stop: int) -> NDArray[np.int16]:
        import numpy as np

        first, last = start // 2, -(-stop // 2)
        raw = read_array(weight.file, weight.offset + first * n_columns, (last - first) * n_columns)
        raw = raw.reshape(last - first, n_columns)
        both = np.empty((last - first, 2, n_columns), np.int16)
        both[:, 0], both[:, 1] = raw & 15 ^ 8, raw >> 4 ^ 8  # two's complement as 0 to 15 about 8
        at = start - 2 * first
        return both.reshape(-1, n_columns)[at : at + stop - start]

    def scales(start: int, stop: int) -> NDArray[np.float32]:
        return scale.read_floats(start * n_groups, stop * n_groups).reshape(stop - start, n_groups)

    return IntegerMatrix(scale.shape[0], n_columns, n_groups, codes, 8, scales, n_columns // n_groups)
