"""iq1_m gives the bytes of llama.cpp's own build, which the ggml of `libggml-python` is too old to judge."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "quants"))

import ggml_reference
from distributions import DISTRIBUTIONS, importances
from test_iq1 import COLUMNS, OVERFLOWING, encode

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("kind", sorted(DISTRIBUTIONS.keys() - OVERFLOWING))
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "imatrix"])
def test_bytes_are_llama_cpps_on_every_kind_of_weights(llama_cpp: Path, kind: str, guided: bool) -> None:
    rng = np.random.default_rng(1)
    rows = DISTRIBUTIONS[kind](rng, 64 * COLUMNS).reshape(64, COLUMNS)
    importance = importances(rng, COLUMNS) if guided else None
    library = llama_cpp / "build" / "bin" / "libggml-base.so"
    theirs = ggml_reference.quantize(rows, "iq1_m", importance, library=library)
    wrong = (encode(rows, "iq1_m", importance) != theirs).reshape(-1, 56).any(axis=1)
    assert not wrong.any(), f"{wrong.sum()} of {len(wrong)} blocks"
