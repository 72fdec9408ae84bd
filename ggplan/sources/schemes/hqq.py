"""HQQ: integer codes with real-valued zero points, and groups along or across the rows.

    X.W_q      U8 or I32, the packed codes        X.shape      I64 [2], rows and columns of the weights
    X.scale    a factor for each group            X.nbits, X.axis, X.group_size, X.packing, ...
    X.zero     a zero point for each group        numbers, and texts as bytes

The weights, one row after another, are taken as another matrix: with axis 1 it has a group in each row,
[n / group_size, group_size]; with axis 0, HQQ's default, a group in each column,
[group_size, n / group_size]. That matrix is packed by cutting it across into parts of equally many rows,
which lie one over another in the bits of a word, the first in the highest:

    8bit_u8   1 part     of 8 bits in a byte      2bit_u8   4 parts of 2 bits in a byte
    4bit_u8   2 parts    of 4 bits in a byte      1bit_u8   8 parts of 1 bit in a byte
    3bit_32   10 parts   of 3 bits in 30 bits of an int32; rows are added until 10 divides their number

So the codes of a run of weights are runs of words, however long the groups are. A weight is
`round(round(code - zero) * scale)`, both rounded to the type HQQ computes in (`compute_dtype`, mostly
float16): the float32 here is a value of that type, and no ggml type with blocks has it.

Source: hqq 0.2.8, `core/quantize.py` (`Quantizer.dequantize`, `HQQLinear.state_dict`), `core/bitpack.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.ggml_types import F32
from ggplan.model import RowSource, require_rows
from ggplan.sources.files import listed, read_array, read_at, shown
from ggplan.sources.schemes.scheme import Group, QuantizationConfig, Recognised, Weights
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "HQQ of 8, 4, 3, 2 and 1 bits"
_CODES = ".W_q"
_NEEDED = ("scale", "zero", "shape", "nbits", "axis", "packing")
# Facts that change the weights, and facts about how they were found or where they are kept.
_USED = (*_NEEDED, "group_size", "compute_dtype", "channel_wise", "quant_scale", "quant_zero")
_UNUSED = (
    "view_as_float", "unpack_view_dtype", "encoded_state_dict", "stores_quant_config", "offload_meta",
    "optimize", "round_zero",
)  # fmt: skip
_PLAIN = ("bias", "weight")
_INTEGERS = {"I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
# Bits of a code, the type of a word, and the parts that lie over one another in it.
_PACKINGS = {
    "8bit_u8": (8, "u1", 1),
    "4bit_u8": (4, "u1", 2),
    "3bit_32": (3, "<u4", 10),
    "2bit_u8": (2, "u1", 4),
    "1bit_u8": (1, "u1", 8),
}
_COMPUTED_IN = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32"}
_TEXT_LIMIT = 64
_RUN = 1 << 18
_KEYS = frozenset({"quant_method", "quant_config", "skip_modules"})


def recognise(tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> Recognised | None:
    """Every tensor `X.W_q` with the facts beside it; see `Scheme`."""
    modules = [name.removesuffix(_CODES) for name in tensors if name.endswith(_CODES)]
    if not modules:
        return None
    facts: dict[str, dict[str, StoredTensor]] = {module: {} for module in modules}
    for name, tensor in tensors.items():
        module, _, key = name.rpartition(".")
        if module in facts and key not in _PLAIN:
            facts[module][key] = tensor
    groups, unused = [], []
    for module, found in facts.items():
        codes = found.pop("W_q")
        if unknown := [key for key in found if key not in (*_USED, *_UNUSED)]:
            raise CheckpointError(
                f"{shown(codes.file)}: '{shown(codes.name)}' has the facts {listed(unknown)} beside it, "
                f"which "
                "ggplan does not know"
            )
        if missing := [key for key in _NEEDED if key not in found]:
            raise CheckpointError(
                f"{shown(codes.file)}: '{shown(codes.name)}' lacks its {listed(missing)}",
                hint="it may be packed for a kernel, or have scales that are quantized too, which ggplan "
                "does "
                "not read",
            )
        unused += [found[key].name for key in _UNUSED if key in found]
        used = {key: tensor for key, tensor in found.items() if key in _USED}
        groups.append(Group(module + ".weight", "HQQ", {"W_q": codes, **used}))
    return Recognised(groups, unused, _KEYS)


def join(group: Group, config: QuantizationConfig) -> Weights:
    """The products, rounded as HQQ rounds them; see `Scheme`."""
    layout = _layout(group)
    rows = RowSource(F32, layout.shape, layout.read, layout.fault)
    return Weights(rows, why_decoded="zero points that are no integers have no place in ggml's types")


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the weights of a module are stored.

    `width` is the row of the matrix that is packed, `part` the words of a part.
    """

    shape: tuple[int, int]
    codes: StoredTensor
    scale: StoredTensor
    zero: StoredTensor
    axis: int
    packing: str
    width: int
    part: int
    computed_in: str

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` up to `stop` of the weights."""
        import numpy as np

        n_rows, n_columns = self.shape
        require_rows(start, stop, n_rows)
        first, last = start * n_columns, stop * n_columns
        values = self._codes(first, last)
        if values.size:
            for operation, tensor in ((np.subtract, self.zero), (np.multiply, self.scale)):
                with np.errstate(over="ignore", invalid="ignore"):
                    operation(values, self._of_groups(tensor, first, last), out=values)
                    values = _rounded(values, self.computed_in)
        return values.reshape(stop - start, n_columns)

    def fault(self) -> str:
        """What is wrong with the scales and zero points: any that is not finite."""
        import numpy as np

        for tensor in (self.scale, self.zero):
            for start in range(0, tensor.n_weights, _RUN):
                values = tensor.read_floats(start, min(start + _RUN, tensor.n_weights))
                wrong = ~np.isfinite(values)
                if wrong.any():
                    at = int(wrong.argmax())
                    return (
                        f"'{shown(tensor.name)}' has the value {values[at]} at index {start + at:,}, which "
                        f"is "
                        f"not finite ({shown(tensor.file.name)})"
                    )
        return ""

    def _codes(self, first: int, last: int) -> NDArray[np.float32]:
        """Weights `first` up to `last` of all, as codes."""
        import numpy as np

        bits, word, parts = _PACKINGS[self.packing]
        size = np.dtype(word).itemsize
        values = np.empty(last - first, np.float32)
        at = first
        while at < last:
            part, within = divmod(at, self.part)
            count = min(self.part - within, last - at)
            raw = read_array(self.codes.file, self.codes.offset + within * size, count * size).view(word)
            shift = bits * (parts - 1 - part)
            values[at - first : at - first + count] = (raw >> shift) & ((1 << bits) - 1)
            at += count
        return values

    def _of_groups(self, tensor: StoredTensor, first: int, last: int) -> NDArray[np.float32]:
        """The scale or zero point of each of these weights."""
        import numpy as np

        if self.axis == 1:
            start = first // self.width
            each = np.repeat(tensor.read_floats(start, -(-last // self.width)), self.width)
            return np.asarray(each[first - start * self.width :][: last - first])
        start, count = first % self.width, last - first
        if start + count <= self.width:
            return tensor.read_floats(start, start + count)
        return np.asarray(np.take(tensor.read_floats(0, self.width), np.arange(first, last), mode="wrap"))


def _layout(group: Group) -> _Layout:
    parts = group.parts
    codes, scale, zero = parts["W_q"], parts["scale"], parts["zero"]
    where = f"{shown(codes.file)}: '{shown(codes.name)}'"
    for key in ("quant_scale", "quant_zero"):
        if key in parts and _integers(parts[key], 1) != [0]:
            raise CheckpointError(f"{where} has scales or zero points that are quantized too ({key})")
    shape = _integers(parts["shape"], 2)
    (axis,) = _integers(parts["axis"], 1)
    # HQQ says 1.58 bits of three values in 2.
    bits = _integers(parts["nbits"], 1)[0] if parts["nbits"].dtype in _INTEGERS else 2
    packing = _text(parts["packing"])
    if not all(1 <= extent < 1 << 40 for extent in shape) or axis not in (0, 1):
        raise CheckpointError(f"{where} has the impossible shape {shown(shape)} or axis {axis}")
    if packing not in _PACKINGS or _PACKINGS[packing][0] < bits or bits < 1:
        raise CheckpointError(
            f"{where} is packed as {shown(packing)} of {bits} bits, which ggplan does not read"
        )
    _, word, n_parts = _PACKINGS[packing]
    size = 4 if word == "<u4" else 1
    n_weights = math.prod(shape)
    for tensor in (scale, zero):
        if tensor.dtype not in _COMPUTED_IN.values():
            raise CheckpointError(f"{shown(tensor.file)}: '{shown(tensor.name)}' is {tensor.dtype}, no float")
    n_groups = scale.n_weights
    if zero.n_weights != n_groups:
        raise CheckpointError(
            f"{shown(zero.file)}: '{shown(zero.name)}' has {zero.n_weights:,} zero points for {n_groups:,} "
            f"scales"
        )
    if not n_groups or n_weights % n_groups:
        raise CheckpointError(
            f"{where} has {n_weights:,} weights, which {n_groups:,} groups (shown in {shown(scale.name)}) do "
            "not divide"
        )
    group_size = n_weights // n_groups
    _require_group_size(parts, group_size, where)
    width = group_size if axis == 1 else n_groups
    height = n_weights // width
    part = -(-height // n_parts) * width
    if packing != "3bit_32" and height % n_parts:
        raise CheckpointError(
            f"{where} is packed as {packing}, but {height:,} rows (weights of shape {shown(shape)} in groups "
            f"of {group_size:,}) are no multiple of {n_parts}"
        )
    if codes.n_bytes != part * size:
        raise CheckpointError(
            f"{where} has {codes.n_bytes:,} bytes, but {packing} of weights of shape {shown(shape)} in "
            f"groups of "
            f"{group_size:,} takes {part * size:,}"
        )
    return _Layout(
        (shape[0], shape[1]), codes, scale, zero, axis, packing, width, part, _computed_in(parts, where)
    )


def _require_group_size(parts: Mapping[str, StoredTensor], group_size: int, where: str) -> None:
    stated = parts.get("group_size")
    if stated is not None and stated.dtype in _INTEGERS and stated.n_weights == 1:
        (size,) = _integers(stated, 1)
        if size != group_size:
            raise CheckpointError(f"{where} has groups of {group_size:,}, but its group_size is {size:,}")
    whole = parts.get("channel_wise")
    if whole is not None and _integers(whole, 1) == [0]:
        raise CheckpointError(
            f"{where} has one scale for all weights (channel_wise), which ggplan does not read"
        )


def _computed_in(parts: Mapping[str, StoredTensor], where: str) -> str:
    """The type that each step is rounded to: as PyTorch does, float32 where the types are several."""
    types = {parts["scale"].dtype, parts["zero"].dtype}
    if (stated := parts.get("compute_dtype")) is not None:
        text = _text(stated)
        if text not in _COMPUTED_IN:
            raise CheckpointError(f"{where} is computed in {shown(text)}, which ggplan does not know")
        types.add(_COMPUTED_IN[text])
    return types.pop() if len(types) == 1 else "F32"


def _integers(tensor: StoredTensor, count: int) -> list[int]:
    size = _INTEGERS.get(tensor.dtype, 0)
    if not size or tensor.n_weights != count:
        raise CheckpointError(
            f"{shown(tensor.file)}: '{shown(tensor.name)}' should be {count} integer{'s' * (count > 1)}, "
            f"but is "
            f"{tensor.dtype} of shape {shown(list(tensor.shape))}"
        )
    raw = read_at(tensor.file, tensor.offset, tensor.n_bytes)
    return [int.from_bytes(raw[at : at + size], "little", signed=size > 1) for at in range(0, len(raw), size)]


def _text(tensor: StoredTensor) -> str:
    if tensor.dtype != "U8" or tensor.n_bytes > _TEXT_LIMIT:
        raise CheckpointError(
            f"{shown(tensor.file)}: '{shown(tensor.name)}' is no short text in bytes, but {tensor.dtype} of "
            f"shape "
            f"{shown(list(tensor.shape))}"
        )
    return read_at(tensor.file, tensor.offset, tensor.n_bytes).decode("latin-1")


def _rounded(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """float32 rounded to the nearest value of a type, ties to even, as float32 again."""
    import numpy as np

    if dtype == "F16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "BF16":
        bits = values.view(np.uint32)
        upper = (bits + (0x7FFF + (bits >> 16 & 1))) & 0xFFFF0000
        return np.where(np.isnan(values), values, upper.view(np.float32))
    return values
