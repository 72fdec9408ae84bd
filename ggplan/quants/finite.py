"""Find NaN and infinity at the speed of memory.

No block format can hold them: one such weight would spoil its whole block, or with a block scale of NaN
the whole model. The check reads each weight once, just before the encoder does, so it also brings the rows
into the cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.codecs import Rows

_PIECE = 64 * 1024
_EXPONENT = np.uint16(0x7F80)  # of bfloat16


def first_nonfinite(rows: Rows) -> int:
    """The flat index of the first NaN or infinity in contiguous `rows`, or -1."""
    flat = rows.reshape(-1)
    scratch = np.empty(min(_PIECE, flat.size), np.bool_)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        finite = scratch[: piece.size]
        if piece.dtype == np.uint16:
            np.not_equal(piece.view(np.uint16) & _EXPONENT, _EXPONENT, out=finite)
        else:
            np.isfinite(piece, out=finite)
        if not finite.all():
            return start + int(finite.argmin())
    return -1


def count_nonfinite(rows: NDArray[np.float32]) -> int:
    """How many of `rows` are NaN or infinite."""
    return rows.size - int(np.count_nonzero(np.isfinite(rows)))
