"""Weight formats: bits, group size and symmetry, as tools for vLLM and torch state them, beside ggml's types.

The tools call this a scheme. A format and a type agree if blocks and levels agree: groups of 32 with one
scale are q8_0, q4_0, q5_0; with a smallest weight too they are q4_K and q5_K, whose scales are themselves
quantized by superblocks. A format without such a type (groups of 128, one scale a row, floats of 8 bits)
becomes the nearest type, with a note.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ggplan.ggml_types import GgmlType, parse_type


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How weights are stored; `group` is 0 for one scale a row or tensor, `double` for quantized scales."""

    bits: int
    group: int = 0
    symmetric: bool = True
    is_float: bool = False
    double: bool = False

    @property
    def described(self) -> str:
        """In words, for notes."""
        what = f"{self.bits} bits as floats" if self.is_float else f"{self.bits} bits"
        kind = "" if self.is_float else ", symmetric" if self.symmetric else ", asymmetric"
        return f"{what}{f', groups of {self.group}' if self.group else ', one scale a row'}{kind}"


WEIGHT_FORMATS = {
    "q8_0": WeightFormat(8, 32),
    "q6_K": WeightFormat(6, 16),
    "q5_K": WeightFormat(5, 32, symmetric=False),
    "q5_0": WeightFormat(5, 32),
    "q4_K": WeightFormat(4, 32, symmetric=False),
    "q4_0": WeightFormat(4, 32),
    "q3_K": WeightFormat(3, 16),
    "q2_K": WeightFormat(2, 16, symmetric=False),
    "mxfp4": WeightFormat(4, 32, is_float=True),
    "nvfp4": WeightFormat(4, 16, is_float=True),
}
"""The types that tools without superblocks can name, each with its format."""

DOUBLY_QUANTIZED = {
    "q8_0": WeightFormat(8, 32),
    "q5_1": WeightFormat(5, 32, symmetric=False),
    "q5_0": WeightFormat(5, 32),
    "q4_1": WeightFormat(4, 32, symmetric=False),
    "q4_0": WeightFormat(4, 32),
    "q6_K": WeightFormat(6, 16, double=True),
    "q5_K": WeightFormat(5, 32, symmetric=False, double=True),
    "q4_K": WeightFormat(4, 32, symmetric=False, double=True),
    "q3_K": WeightFormat(3, 16, double=True),
    "q2_K": WeightFormat(2, 16, symmetric=False, double=True),
}
"""The same for tools that know of superblocks (AutoRound: `int_asym_dq`)."""

_BY_BITS = {8: "q8_0", 7: "q8_0", 6: "q6_K", 3: "q3_K", 2: "q2_K"}
_PRESET = re.compile(r"W(\d{1,2})A(?:\d{1,2}|FP8|F8)(_ASYM)?", re.I)


_HOW = r"(_?A\d{1,2}|_?(DYNAMIC|STATIC|BLOCK|RCEIL|MOE|KV|PC|PT|(W8)?A8)){0,3}"
"""How activations or scales are made, which no weight depends on."""
_NAMED = tuple(
    (re.compile(known), format_)
    for known, format_ in (
        ("UNQUANTIZED|BF16|FP16", WeightFormat(16, is_float=True)),
        (f"NVFP4{_HOW}", WEIGHT_FORMATS["nvfp4"]),
        (f"MXFP4{_HOW}", WEIGHT_FORMATS["mxfp4"]),
        (f"MXFP8{_HOW}", WeightFormat(8, 32, is_float=True)),
        (f"FP8{_HOW}|FPW8A16", WeightFormat(8, is_float=True)),
        (f"INT8{_HOW}", WeightFormat(8)),
    )
)


def nearest_type(
    format_: WeightFormat, table: dict[str, WeightFormat] = WEIGHT_FORMATS
) -> tuple[GgmlType | None, bool]:
    """The nearest type, None for weights that stay floats, and whether the type agrees with the format.

    Raises
    ------
    ValueError
        If no type has so few bits.
    """
    if format_.bits > 8:
        return None, True
    for name, like in table.items():
        if like == format_:
            return parse_type(name), True
    if format_.is_float:
        return parse_type("q8_0" if format_.bits > 4 else "mxfp4"), False
    if format_.bits in (4, 5):
        return parse_type(
            f"q{format_.bits}_{'0' if format_.symmetric and not format_.double else 'K'}"
        ), False
    if format_.bits not in _BY_BITS:
        raise ValueError(f"no type of ggml has weights of {format_.bits} bits in such a scheme")
    return parse_type(_BY_BITS[format_.bits]), False


def named_format(name: str) -> WeightFormat | None:
    """A format by its name in compressed-tensors or AutoRound: `W4A16`, `FP8_DYNAMIC`; None if unknown."""
    upper = name.upper().replace("-", "_")
    for known, format_ in _NAMED:
        if known.fullmatch(upper):
            return format_
    found = _PRESET.fullmatch(upper)
    if found is None:
        return None
    bits = int(found[1])
    return WeightFormat(bits, 128 if bits < 8 else 0, symmetric=not found[2])
