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

# A scale is not finite where these bits of one of its bytes are all ones: which byte, and the bits.
_NOT_FINITE = {"f16": (1, 0x7C), "e8m0": (0, 0xFF), "ue4m3": (0, 0x7F)}
# Far from the largest half, 65504, so that no rounding of sums comes near it.
_MODEST = 16.0


def is_checkable(type: GgmlType) -> bool:
    """Whether the scales or floats of a type can be checked; its row says where they stand."""
    return bool(type.scale_offsets or type.exponent)


def are_sound(type: GgmlType, largest: float) -> bool:
    """Whether the blocks of weights no larger than `largest` are sound for certain, without a look at them.

    A block's only scale is a quotient of weighted sums and at most the largest weight. A scale beside a
    minimum is a slope, and can be far more where the sums cancel.
    """
    return largest <= _MODEST and type.scale_format == "f16" and len(type.scale_offsets) == 1


def unsound_blocks(blocks: Bytes, type: GgmlType) -> Flags:
    """Which blocks hold a scale, or a float, that is not finite.

    Parameters
    ----------
    blocks
        (n, block bytes) uint8; a block of a float type is one weight.
    type
        A type that `is_checkable`.

    Returns
    -------
    (n,) bool.
    """
    if type.exponent:
        floats = np.ascontiguousarray(blocks).view(f"<u{type.block_bytes}").reshape(-1)
        exponent = floats.dtype.type(type.exponent)
        return np.asarray((floats & exponent) == exponent)
    if type.scale_format == "split f16":
        # In the upper bytes of the words: the exponent is the last one's four bits, but for the sign, and
        # the upper two of the one before.
        *_, third, fourth = (blocks[:, at + 1] for at in type.scale_offsets)
        return np.asarray(((fourth & 0x70) == 0x70) & ((third & 0xC0) == 0xC0))
    byte, mask = _NOT_FINITE[type.scale_format]
    found: Flags = np.zeros(len(blocks), np.bool_)
    for at in type.scale_offsets:
        found |= (blocks[:, at + byte] & mask) == mask
    return found
