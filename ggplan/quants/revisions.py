"""Which revision of the best-effort search wrote a block.

The default encoders write llama.cpp's bytes in every version of ggplan. What best effort writes is whatever its
search finds, and a better search finds other blocks. An earlier output may be reused, and stopped work gone on
with, only where the search is still the same; that is what this number says, and not a digest of the code,
which every changed comment would alter.
"""

from __future__ import annotations

BEST_REVISION = 1
"""Raised by one with every change of what `effort="best"` writes, of any type, in one bit.

`tests/quants/test_best_revision.py` fails where that was forgotten.
"""
