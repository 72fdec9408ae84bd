"""Schemes: bits, group size and symmetry, as tools for vLLM and torch state them, beside ggml's types.

A scheme and a type agree where blocks and grid agree: groups of 32 with one scale are q8_0, q4_0, q5_0; with
a smallest weight too they are q4_K and q5_K, whose scales are themselves quantized by superblocks. A scheme
without such a type (groups of 128, one scale a row, floats of 8 bits) becomes the nearest type, with a note.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ggplan.ggml_types import GgmlType, parse_type


@dataclass(frozen=True, slots=True)
class Scheme:
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


SCHEMES = {
    "q8_0": Scheme(8, 32),
    "q6_K": Scheme(6, 16),
    "q5_K": Scheme(5, 32, symmetric=False),
    "q5_0": Scheme(5, 32),
    "q4_K": Scheme(4, 32, symmetric=False),
    "q4_0": Scheme(4, 32),
    "q3_K": Scheme(3, 16),
    "q2_K": Scheme(2, 16, symmetric=False),
    "mxfp4": Scheme(4, 32, is_float=True),
    "nvfp4": Scheme(4, 16, is_float=True),
}
"""The types that tools without superblocks can name, each with its scheme."""

DOUBLE = {
    "q8_0": Scheme(8, 32),
    "q5_1": Scheme(5, 32, symmetric=False),
    "q5_0": Scheme(5, 32),
    "q4_1": Scheme(4, 32, symmetric=False),
    "q4_0": Scheme(4, 32),
    "q6_K": Scheme(6, 16, double=True),
    "q5_K": Scheme(5, 32, symmetric=False, double=True),
    "q4_K": Scheme(4, 32, symmetric=False, double=True),
    "q3_K": Scheme(3, 16, double=True),
    "q2_K": Scheme(2, 16, symmetric=False, double=True),
}
"""The same for tools that know of superblocks (AutoRound: `int_asym_dq`)."""

_BY_BITS = {8: "q8_0", 7: "q8_0", 6: "q6_K", 3: "q3_K", 2: "q2_K"}
_PRESET = re.compile(r"W(\d{1,2})A(?:\d{1,2}|FP8|F8)(_ASYM)?", re.I)


def nearest(scheme: Scheme, table: dict[str, Scheme] = SCHEMES) -> tuple[GgmlType | None, bool]:
    """The nearest type, None for weights that stay floats, and whether the type agrees with the scheme.

    Raises
    ------
    ValueError
        If no type has so few bits.
    """
    if scheme.bits > 8:
        return None, True
    for name, like in table.items():
        if like == scheme:
            return parse_type(name), True
    if scheme.is_float:
        return parse_type("q8_0" if scheme.bits > 4 else "mxfp4"), False
    if scheme.bits in (4, 5):
        return parse_type(f"q{scheme.bits}_{'0' if scheme.symmetric and not scheme.double else 'K'}"), False
    if scheme.bits not in _BY_BITS:
        raise ValueError(f"no type of ggml has weights of {scheme.bits} bits in such a scheme")
    return parse_type(_BY_BITS[scheme.bits]), False


def preset(name: str) -> Scheme | None:
    """A scheme by its name in compressed-tensors or AutoRound: `W4A16`, `FP8_DYNAMIC`; None if unknown."""
    upper = name.upper().replace("-", "_")
    if upper in ("UNQUANTIZED", "BF16", "FP16"):
        return Scheme(16, is_float=True)
    if upper.startswith("NVFP4"):
        return SCHEMES["nvfp4"]
    if upper.startswith("MXFP"):
        return SCHEMES["mxfp4"] if upper.startswith("MXFP4") else Scheme(8, 32, is_float=True)
    if upper.startswith("FP8"):
        return Scheme(8, is_float=True)
    if upper == "INT8":
        return Scheme(8)
    found = _PRESET.fullmatch(upper)
    if found is None:
        return None
    bits = int(found[1])
    return Scheme(bits, 128 if bits < 8 else 0, symmetric=not found[2])
