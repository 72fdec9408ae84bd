"""Find blocks whose scales are not finite, and floats that are not, in encoded rows.

One NaN in a scale spoils every weight of its block, and with it every token of the model; published files
have had thousands of such blocks. The scales are a few bytes of each block, at fixed places, so they are
checked without decoding:

    half precision   an exponent of all ones (0x7C00) is an infinity or a NaN
    E8M0 (mxfp4)     0xFF is NaN by the format; ggml computes with it, and refuses it when it checks a file
    UE4M3 (nvfp4)    0x7F is NaN by the format; ggml takes it for 0
    iq1_m            its half is spread over the upper four bits of four words

The sub-blocks' scales are small integers and always finite. What llama.cpp's `ggml_validate_row_data` finds
is found here (b11434, `ggml/src/ggml-quants.c`), and 0x7F in nvfp4 besides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggplan.ggml_types import GgmlType

Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]

# Where the half-precision scales stand in a block.
_HALVES = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "iq4_nl": (0,), "iq4_xs": (0,),
    "q2_K": (80, 82), "q3_K": (108,), "q4_K": (0, 2), "q5_K": (0, 2), "q6_K": (208,),
    "iq1_s": (0,), "iq2_xxs": (0,), "iq2_xs": (0,), "iq2_s": (0,), "iq3_xxs": (0,), "iq3_s": (0,),
    "tq1_0": (52,), "tq2_0": (64,), "q1_0": (0,), "q2_0": (0,),
}  # fmt: skip
# The bits of a float's exponent, and the bytes of a float.
_EXPONENTS: dict[str, tuple[np.dtype[np.unsignedinteger], int]] = {
    "f64": (np.dtype("<u8"), 0x7FF0000000000000),
    "f32": (np.dtype("<u4"), 0x7F800000),
    "bf16": (np.dtype("<u2"), 0x7F80),
    "f16": (np.dtype("<u2"), 0x7C00),
}
# Far from the largest half, 65504, so that no rounding of sums comes near it.
_MODEST = 16.0
CHECKED = frozenset({*_HALVES, *_EXPONENTS, "mxfp4", "nvfp4", "iq1_m"})


def are_sound(type: GgmlType, largest: float) -> bool:
    """Whether the blocks of weights no larger than `largest` are sound for certain, without a look at them.

    A block's only scale is a quotient of weighted sums and at most the largest weight. A scale beside a
    minimum is a slope, and can be far more where the sums cancel.
    """
    return largest <= _MODEST and len(_HALVES.get(type.name, ())) == 1


def unsound_blocks(blocks: Bytes, type: GgmlType) -> Flags:
    """Which blocks hold a scale, or a float, that is not finite.

    Parameters
    ----------
    blocks
        (n, block bytes) uint8; a block of a float type is one weight.
    type
        One of `CHECKED`.

    Returns
    -------
    (n,) bool.
    """
    found: Flags = np.zeros(len(blocks), np.bool_)
    if type.name in _EXPONENTS:
        dtype, exponent = _EXPONENTS[type.name]
        bits = np.ascontiguousarray(blocks).view(dtype).reshape(-1)
        found |= (bits & bits.dtype.type(exponent)) == exponent
        return found
    if type.name == "mxfp4":
        np.equal(blocks[:, 0], 0xFF, out=found)
    elif type.name == "nvfp4":
        np.any((blocks[:, :4] & 0x7F) == 0x7F, axis=1, out=found)
    elif type.name == "iq1_m":
        words = np.ascontiguousarray(blocks[:, 48:56]).view("<u2") >> 12
        # The exponent lies in the fourth word's four bits, but for the sign, and the third's upper two.
        np.logical_and((words[:, 3] & 7) == 7, words[:, 2] >> 2 == 3, out=found)
    else:
        for at in _HALVES[type.name]:
            # The upper byte holds the sign and the whole exponent.
            found |= (blocks[:, at + 1] & 0x7C) == 0x7C
    return found
