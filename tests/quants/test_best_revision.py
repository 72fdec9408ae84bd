"""What best effort writes, pinned: it may change, but then its revision must.

An earlier output is reused, and stopped work resumed, if it has the revision `BEST_REVISION`. The hashes
in `tests/data/best_revision.json` are those of the revision that stands beside them. To renew them after a
wanted change: raise `BEST_REVISION` in `ggplan/quants/revisions.py`, then

    GGPLAN_RENEW=1 python -m pytest tests/quants/test_best_revision.py
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from ggplan import parse_type, quantize
from ggplan.ggml_types import TYPES
from ggplan.quants.revisions import BEST_REVISION

KEPT = Path(__file__).parent.parent / "data" / "best_revision.json"
ROWS, COLUMNS = 8, 1024
RENEW = (
    f"raise BEST_REVISION in ggplan/quants/revisions.py, then: GGPLAN_RENEW=1 pytest {Path(__file__).name}"
)


def sample() -> tuple[np.ndarray, np.ndarray]:
    """Weights that bfloat16 holds, near a normal distribution, and an importance of their columns.

    Sums of pseudo-random bytes, so that they are the same with any NumPy.
    """
    raw = np.frombuffer(hashlib.shake_256(b"weights").digest(8 * ROWS * COLUMNS), np.uint8)
    sums = raw.reshape(ROWS, COLUMNS, 8).sum(axis=2, dtype=np.int32) - 1020
    weights = (sums.astype(np.float32) / 8192).view(np.uint32) & 0xFFFF0000
    drawn = np.frombuffer(hashlib.shake_256(b"importance").digest(COLUMNS), np.uint8).astype(np.float32)
    return weights.view(np.float32), (drawn + 1) ** 2


def digests() -> dict[str, dict[str, str]]:
    """The SHA-256 of what each type's search writes of the sample, with and without the importance."""
    weights, importance = sample()
    found: dict[str, dict[str, str]] = {}
    for name in sorted(t.name for t in TYPES if t.best_encoder):
        cases = {"imatrix": importance}
        if not parse_type(name).requires_imatrix:
            cases["plain"] = None
        found[name] = {
            case: hashlib.sha256(quantize(weights, name, values, effort="best").tobytes()).hexdigest()
            for case, values in cases.items()
        }
    return found


def test_best_effort_writes_what_its_revision_says() -> None:
    now = {"revision": BEST_REVISION, "sha256": digests()}
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"revision": 0, "sha256": {}}
    changed = [name for name, found in now["sha256"].items() if kept["sha256"].get(name) != found]
    if os.environ.get("GGPLAN_RENEW") and kept["revision"] < BEST_REVISION:
        KEPT.write_text(json.dumps(now, indent=1) + "\n")
        return
    if changed:
        pytest.fail(f"best effort writes other bytes of {', '.join(changed)}: if that is meant, {RENEW}")
    assert now == kept, f"the revision or the list of types is another: {RENEW}"
