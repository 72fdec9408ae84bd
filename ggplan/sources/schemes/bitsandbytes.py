"""bitsandbytes: 4-bit codes into a table (nf4, fp4), and LLM.int8().

4 bits (`X.weight` is bytes, mostly of shape [n / 2, 1]; the tensor's own shape is in the state):

    X.weight                                  two codes a byte, the first in the high half; other types of
                                              the file (`bnb_4bit_quant_storage`) are these bytes too
    X.weight.absmax                           F32, a factor for each block of 64 weights
    X.weight.quant_map                        F32 [16], the table
    X.weight.quant_state.bitsandbytes__nf4    UTF-8 JSON: quant_type, blocksize, dtype, shape

The weights are one row after another, and blocks run through the ends of rows. A weight is
`table[code] * absmax`, in float32; bitsandbytes rounds it to the state's dtype. Factors may be quantized too
(`bnb_4bit_use_double_quant`): absmax is U8, and a factor is
`nested_quant_map[code] * nested_absmax[i / 256] + nested_offset`, two roundings to float32.

8 bits: `X.weight` I8 and `X.SCB` F32, the largest magnitude of each row. A weight is
`(float32(code) * SCB) * float32(1 / 127)`, two roundings.

Source: bitsandbytes 0.50.2, `functional.py` (`QuantState`, `dequantize_4bit`, `int8_vectorwise_dequant`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.ggml_types import F32
from ggplan.model import RowSource, require_rows
from ggplan.sources.files import listed, read_array, read_at, shown
from ggplan.sources.json_files import parse_object
from ggplan.sources.schemes.scheme import Group, QuantizationConfig, Recognised, Weights
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "bitsandbytes nf4, fp4 and int8"
_STATE = ".quant_state.bitsandbytes__"
_TABLES = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ),
    "fp4": (
        0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204,
        0.25, -0.0, -0.0052083334885537624, -0.6666666865348816, -1.0, -0.3333333432674408, -0.5,
        -0.1666666716337204, -0.25,
    ),
}  # fmt: skip
_STATE_KEYS = ("quant_type", "blocksize", "dtype", "shape")
_NESTED_KEYS = ("nested_blocksize", "nested_dtype", "nested_offset")
_STATE_LIMIT = 1 << 16
_MAX_DIMENSIONS = 8
_ROW_MAJOR = 0  # the layout of int8 weights that is stored: others are of kernels
_HUNDRED_AND_27TH = 7.874015718698502e-3
_RUN = 1 << 18
_KEYS = frozenset({
    "quant_method", "load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit",
    "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
    "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight", "llm_int8_skip_modules",
    "llm_int8_threshold", "modules_to_not_convert",
})  # fmt: skip


def recognise(tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> Recognised | None:
    """Every tensor with a state or row maxima of bitsandbytes; see `Scheme`."""
    groups, unused = [], []
    for name in tensors:
        if _STATE in name:
            groups.append(_four_bits(name, tensors))
        elif name.endswith(".SCB"):
            groups.append(_eight_bits(name, tensors))
            layout = name.removesuffix("SCB") + "weight_format"
            unused += [layout] if layout in tensors else []
    return Recognised(groups, unused, _KEYS) if groups else None


def join(group: Group, config: QuantizationConfig) -> Weights:
    """The products, in float32; see `Scheme`."""
    if "SCB" in group.parts:
        return _join_eight_bits(group)
    return _join_four_bits(group)


def _part(tensors: Mapping[str, StoredTensor], name: str, of: StoredTensor) -> StoredTensor:
    if name not in tensors:
        raise CheckpointError(
            f"{shown(of.file)}: '{shown(of.name)}' needs the tensor '{shown(name)}' beside it"
        )
    return tensors[name]


def _four_bits(name: str, tensors: Mapping[str, StoredTensor]) -> Group:
    state = tensors[name]
    weight_name, _, kind = name.partition(_STATE)
    if kind not in _TABLES:
        raise CheckpointError(
            f"{shown(state.file)}: '{shown(weight_name)}' is in the form {shown(kind)} of bitsandbytes; "
            f"ggplan reads {', '.join(_TABLES)}"
        )
    parts = {
        "weight": _part(tensors, weight_name, state),
        "absmax": _part(tensors, weight_name + ".absmax", state),
        "state": state,
    }
    if parts["absmax"].dtype == "U8":
        for key in ("nested_absmax", "nested_quant_map"):
            parts[key] = _part(tensors, f"{weight_name}.{key}", state)
    if weight_name + ".quant_map" in tensors:
        parts["quant_map"] = tensors[weight_name + ".quant_map"]
    return Group(weight_name, f"bitsandbytes {kind}", parts, kind)


def _eight_bits(name: str, tensors: Mapping[str, StoredTensor]) -> Group:
    maxima = tensors[name]
    module = name.removesuffix("SCB")
    weight = _part(tensors, module + "weight", maxima)
    parts = {"weight": weight, "SCB": maxima}
    if (layout := tensors.get(module + "weight_format")) is not None and layout.n_bytes:
        stored = int(read_array(layout.file, layout.offset, 1)[0])
        if stored != _ROW_MAJOR:
            raise CheckpointError(
                f"{shown(layout.file)}: '{shown(weight.name)}' is stored in the layout of a kernel "
                f"({shown(layout.name)} is {stored}); ggplan reads {_ROW_MAJOR}, row by row"
            )
    return Group(weight.name, "bitsandbytes int8", parts)


def _join_eight_bits(group: Group) -> Weights:
    weight, maxima = group.parts["weight"], group.parts["SCB"]
    if weight.dtype != "I8" or len(weight.shape) != 2:
        raise CheckpointError(
            f"{shown(weight.file)}: '{shown(weight.name)}' has row maxima ({shown(maxima.name)}) and should "
            f"be an I8 matrix, but is {weight.dtype} of shape {shown(list(weight.shape))}"
        )
    n_rows, n_columns = weight.shape
    if maxima.dtype != "F32" or maxima.n_weights != n_rows:
        raise CheckpointError(
            f"{shown(maxima.file)}: '{shown(maxima.name)}' is {maxima.dtype} of shape "
            f"{shown(list(maxima.shape))}, but '{shown(weight.name)}' has {n_rows:,} rows"
        )

    def read(start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        require_rows(start, stop, n_rows)
        raw = read_array(weight.file, weight.offset + start * n_columns, (stop - start) * n_columns)
        rows = raw.view(np.int8).astype(np.float32).reshape(stop - start, n_columns)
        with np.errstate(over="ignore", invalid="ignore"):
            rows *= maxima.read_floats(start, stop)[:, None]
            rows *= np.float32(_HUNDRED_AND_27TH)
        return rows

    rows = RowSource(F32, weight.shape, read, lambda: _factor_fault(maxima, maxima.read_floats))
    return Weights(rows, why_decoded="q8_0's scale is float16, which does not hold a row's maximum / 127")


@dataclass(frozen=True, slots=True)
class _State:
    """The facts of a `quant_state`; `nested_block` is 0 where the factors are not quantized."""

    shape: tuple[int, ...]
    block: int
    nested_block: int = 0
    nested_offset: float = 0.0


def _state(tensor: StoredTensor, kind: str, *, nested: bool) -> _State:
    where = f"{shown(tensor.file)}: '{shown(tensor.name)}'"
    if tensor.dtype != "U8" or tensor.n_bytes > _STATE_LIMIT:
        raise CheckpointError(f"{where} is no JSON text in bytes: {tensor.dtype}, {tensor.n_bytes:,} bytes")
    values = parse_object(read_at(tensor.file, tensor.offset, tensor.n_bytes), where)
    known = _STATE_KEYS + (_NESTED_KEYS if nested else ())
    if unknown := [key for key in values if key not in known]:
        raise CheckpointError(f"{where} says {listed(unknown)}, which ggplan does not know")
    if missing := [key for key in known if key not in values and key != "nested_dtype"]:
        raise CheckpointError(f"{where} does not say {listed(missing)}")
    shape, block = values["shape"], values["blocksize"]
    if values["quant_type"] != kind:
        raise CheckpointError(f"{where} says quant_type {shown(values['quant_type'])}, its name says {kind}")
    sizes: list[int] = shape if isinstance(shape, list) else [0]
    if not 1 <= len(sizes) <= _MAX_DIMENSIONS or not all(_is_size(n) for n in sizes):
        raise CheckpointError(f"{where} gives the impossible shape {shown(shape)}")
    if not _is_size(block):
        raise CheckpointError(f"{where} gives the impossible blocksize {shown(block)}")
    assert isinstance(block, int)
    if not nested:
        return _State(tuple(sizes), block)
    nested_block, offset = values["nested_blocksize"], values["nested_offset"]
    if not _is_size(nested_block) or type(offset) not in (int, float):
        raise CheckpointError(
            f"{where} gives the impossible nested_blocksize {shown(nested_block)} or nested_offset "
            f"{shown(offset)}"
        )
    if values.get("nested_dtype", "float32") != "float32":
        raise CheckpointError(
            f"{where} has nested_dtype {shown(values['nested_dtype'])}; ggplan reads float32"
        )
    assert isinstance(nested_block, int)
    assert isinstance(offset, (int, float))
    return _State(tuple(sizes), block, nested_block, float(offset))


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value < 1 << 40


def _join_four_bits(group: Group) -> Weights:
    weight, absmax = group.parts["weight"], group.parts["absmax"]
    kind = str(group.form)
    nested = "nested_absmax" in group.parts
    state = _state(group.parts["state"], kind, nested=nested)
    n_weights = math.prod(state.shape)
    _require_count(weight, weight.n_bytes, -(-n_weights // 2), "bytes", state.shape)
    _require_count(absmax, absmax.n_weights, -(-n_weights // state.block), "factors", state.shape)
    if nested:
        factors = _nested_factors(group, state)
    else:
        if absmax.dtype != "F32":
            raise CheckpointError(
                f"{shown(absmax.file)}: '{shown(absmax.name)}' is {absmax.dtype}; ggplan reads F32, and U8 "
                "with nested factors"
            )
        factors = absmax.read_floats
    if (table := group.parts.get("quant_map")) is not None and (
        table.dtype != "F32" or table.n_weights != len(_TABLES[kind])
    ):
        raise CheckpointError(
            f"{shown(table.file)}: '{shown(table.name)}' is {table.dtype} of shape "
            f"{shown(list(table.shape))}, not {len(_TABLES[kind])} numbers of F32"
        )
    read = _four_bit_reader(weight, state, kind, factors)

    def fault() -> str:
        return _table_fault(table, kind) or _factor_fault(absmax, factors, positive=not nested)

    return Weights(
        RowSource(F32, state.shape, read, fault), why_decoded=f"no ggml type has the 16 values of {kind}"
    )


def _require_count(tensor: StoredTensor, count: int, wanted: int, what: str, shape: tuple[int, ...]) -> None:
    # A type of the storage that is wider than a byte may have some bytes more at the end.
    spare = 7 if what == "bytes" else 0
    if not wanted <= count <= wanted + spare:
        raise CheckpointError(
            f"{shown(tensor.file)}: '{shown(tensor.name)}' has {count:,} {what}, but weights of shape "
            f"{shown(list(shape))} have {wanted:,}"
        )


def _four_bit_reader(
    weight: StoredTensor, state: _State, kind: str, factors: Callable[[int, int], NDArray[np.float32]]
) -> Callable[[int, int], NDArray[np.float32]]:
    n_columns, n_rows = state.shape[-1], math.prod(state.shape[:-1])

    def read(start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        require_rows(start, stop, n_rows)
        first, last = start * n_columns, stop * n_columns
        if first == last:
            return np.empty((0, n_columns), np.float32)
        raw = read_array(weight.file, weight.offset + first // 2, -(-last // 2) - first // 2)
        codes = np.empty((raw.size, 2), np.uint8)
        codes[:, 0], codes[:, 1] = raw >> 4, raw & 15
        at = first % 2
        values = np.array(_TABLES[kind], np.float32)[codes.reshape(-1)[at : at + last - first]]
        block = first // state.block
        scales = np.repeat(factors(block, -(-last // state.block)), state.block)
        at = first - block * state.block
        with np.errstate(over="ignore", invalid="ignore"):
            values *= scales[at : at + values.size]
        return values.reshape(stop - start, n_columns)

    return read


def _nested_factors(group: Group, state: _State) -> Callable[[int, int], NDArray[np.float32]]:
    absmax, nested, table = (group.parts[key] for key in ("absmax", "nested_absmax", "nested_quant_map"))
    if nested.dtype != "F32" or table.dtype != "F32" or table.n_weights != 256:
        raise CheckpointError(
            f"{shown(nested.file)}: '{shown(nested.name)}' and '{shown(table.name)}' should be F32, the "
            f"second of 256 numbers; they are {nested.dtype}, and {table.dtype} of {table.n_weights:,}"
        )
    _require_count(
        nested, nested.n_weights, -(-absmax.n_weights // state.nested_block), "nested factors", state.shape
    )

    def read(start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        codes = read_array(absmax.file, absmax.offset + start, stop - start)
        block = start // state.nested_block
        outer = np.repeat(nested.read_floats(block, -(-stop // state.nested_block)), state.nested_block)
        at = start - block * state.nested_block
        with np.errstate(over="ignore", invalid="ignore"):
            factors = table.read_floats(0, 256)[codes] * outer[at : at + codes.size]
            return np.asarray(factors + np.float32(state.nested_offset))

    return read


def _table_fault(table: StoredTensor | None, kind: str) -> str:
    """What is wrong with a table of values; bitsandbytes' kernels have the table in them."""
    import numpy as np

    if table is None:
        return ""
    differs = np.flatnonzero(table.read_floats(0, table.n_weights) != np.array(_TABLES[kind], np.float32))
    return (
        f"'{shown(table.name)}' is not the table of {kind}: number {differs[0]} differs"
        if differs.size
        else ""
    )


def _factor_fault(
    tensor: StoredTensor, read: Callable[[int, int], NDArray[np.float32]], *, positive: bool = True
) -> str:
    """The first factor that is not finite, or below 0 (a block of zeros has 0); "" if all are sound."""
    import numpy as np

    for start in range(0, tensor.n_weights, _RUN):
        values = read(start, min(start + _RUN, tensor.n_weights))
        with np.errstate(invalid="ignore"):
            wrong = ~np.isfinite(values) | (values < 0 if positive else False)
        if wrong.any():
            at = int(wrong.argmax())
            return (
                f"'{shown(tensor.name)}' gives the factor {values[at]} at index {start + at:,} "
                f"({shown(tensor.file.name)})"
            )
    return ""
