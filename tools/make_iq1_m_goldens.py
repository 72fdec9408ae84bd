"""Write `tests/data/iq1_m.npz`: blocks of iq1_m as ggml has written them since 0.25.

    python tools/make_iq1_m_goldens.py path/to/libggml-base.so

The library is one of a build of llama.cpp for x86-64 without machine flags (-DGGML_NATIVE=OFF).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "quants")]

import ggml_reference  # noqa: E402
from distributions import DISTRIBUTIONS, importances  # noqa: E402
from test_iq1 import GOLDENS, OVERFLOWING  # noqa: E402


def main() -> None:
    library = Path(sys.argv[1]).resolve()
    rng = np.random.default_rng(0)
    kinds = [kind for kind in DISTRIBUTIONS if kind not in OVERFLOWING]
    weights = np.stack([DISTRIBUTIONS[kind](rng, 512).reshape(2, 256) for kind in kinds]).reshape(-1, 256)
    importance = importances(rng, 256)
    np.savez_compressed(
        GOLDENS,
        kinds=np.repeat(kinds, 2),
        weights=weights,
        importance=importance,
        plain=ggml_reference.quantize(weights, "iq1_m", library=library),
        guided=ggml_reference.quantize(weights, "iq1_m", importance, library=library),
    )


if __name__ == "__main__":
    main()
