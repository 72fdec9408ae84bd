"""The levels of the types whose levels are not evenly spaced, and the scales that are looked up."""

from __future__ import annotations

from typing import Final

import numpy as np

# Of iq4_nl and iq4_xs, denser near zero: about as likely as each other for weights of a bell-shaped density.
IQ4_LEVELS: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)

# Twice the numbers of the four-bit float E2M1; the scales of mxfp4 and nvfp4 are halved in return.
FP4_LEVELS: Final = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _ue4m3(byte: int) -> float:
    """The number of a UE4M3 byte, whose highest bit means nothing; ggml has 0 for the nan 0x7F."""
    exponent, fraction = byte >> 3 & 15, byte & 7
    if byte == 0x7F:
        return 0
    return (8 + fraction) * 2.0 ** (exponent - 10) if exponent else fraction * 2.0**-9


# Half the number that each byte is as a scale, of mxfp4 (255 is no nan in ggml) and of nvfp4.
E8M0_HALVES: Final = (2.0 ** (np.arange(256) - 128)).astype(np.float32)
UE4M3_HALVES: Final = np.array([_ue4m3(byte) / 2 for byte in range(256)], np.float32)
