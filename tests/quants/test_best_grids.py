"""Best effort for points of a grid leaves out scales by bounds, and finds what a search of all finds.

The hashes are those of revision 1, whose search tried every scale. To renew them after a wanted change of
what is found:

    GGPLAN_RENEW=1 python -m pytest tests/quants/test_best_grids.py
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from ggplan import dequantize, quantize

KEPT = Path(__file__).parent.parent / "data" / "best_grids.json"
TYPES = ("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq1_s", "iq1_m")
ROWS, COLUMNS = 20, 512


def whole_numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Pseudo-random bytes as numbers around zero, the same with any NumPy."""
    raw = np.frombuffer(hashlib.shake_256(name.encode()).digest(int(np.prod(shape))), np.uint8)
    return raw.reshape(shape).astype(np.float32) - 128


def inputs(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights (ROWS, COLUMNS) and an importance."""
    weights = whole_numbers(kind, (ROWS, COLUMNS))
    importance = (whole_numbers(f"importance of {kind}", (COLUMNS,)) + 129) ** 2
    if kind == "few values":  # many trials are equal
        weights, importance = np.rint(weights / 50), np.ones_like(importance)
    elif kind == "signs":
        weights = np.sign(weights + np.float32(0.5))
    elif kind == "far larger ones":
        weights = weights * 2.0 ** np.rint(whole_numbers("exponents", (ROWS, COLUMNS)) / 16)
    elif kind == "zeros":
        weights[:, 64:160] = 0
        weights[3] = 0
        importance[::3] = 0
    elif kind == "runs":
        weights = weights[:, : COLUMNS // 8].repeat(8, axis=1)
    return weights.astype(np.float32) / 1024, importance


@pytest.mark.parametrize("kind", ["uniform", "few values", "signs", "far larger ones", "zeros", "runs"])
def test_scales_that_are_left_out_would_not_have_been_taken(kind: str) -> None:
    weights, importance = inputs(kind)
    found = {}
    for name in TYPES:
        blocks = quantize(weights, name, importance, effort="best")
        found[name] = hashlib.sha256(blocks.tobytes()).hexdigest()
        default = quantize(weights, name, importance)
        errors = [
            (importance.astype(np.float64) * (weights - dequantize(b, name)) ** 2).sum()
            for b in (blocks, default)
        ]
        assert errors[0] <= errors[1]
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if os.environ.get("GGPLAN_RENEW"):
        KEPT.write_text(json.dumps(kept | {kind: found}, indent=1) + "\n")
        return
    assert found == kept[kind]
