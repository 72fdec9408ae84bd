"""Which revision of the best-effort search wrote a block.

The default encoders write llama.cpp's bytes in every version of ggplan. What best effort writes is what its
search finds, and a better search finds other blocks. An earlier output may be reused, and stopped work
resumed, only where the search is still the same. This number says so; a digest of the code would change with
every comment.
"""

from __future__ import annotations

BEST_REVISION = 2
"""Raised by one with every change of a single bit that `effort="best"` writes, of any type.

`tests/quants/test_best_revision.py` fails where that was forgotten.
"""

FEEDBACK_REVISION = 6
"""The same for `effort="feedback"`, which has blocks of best effort too: raised whenever that is raised."""
