"""iq1_s and iq1_m give ggml's bytes, whatever the weights, the importance and the shape.

The ggml at hand (`libggml-python`, 0.20) finds iq1_m's splits with other roundings than later ones, so that
bytes differ wherever splits are about equally good. Exact bytes of iq1_m are judged by what ggml 0.26 wrote
(`tests/data/iq1_m.npz`, from `tools/make_iq1_m_goldens.py`), and by llama.cpp as built for the oracle tests
(`tests/oracle/test_iq1_m.py`).
"""

from __future__ import annotations

from pathlib import Path

import ggml_reference
import numpy as np
import pytest
from distributions import DISTRIBUTIONS, importances
from numpy.typing import NDArray

from ggplan.ggml_types import parse_type
from ggplan.quants import dequantize, encode_into, quantize
from ggplan.quants.searches import iq1

GOLDENS = Path(__file__).parent.parent / "data" / "iq1_m.npz"

# Nine superblocks a row: tiles of sixteen begin and end anywhere in a row.
COLUMNS = 9 * 256

# Where products of such weights overflow, ggml reads beyond its arrays, or aborts.
OVERFLOWING = {
    "1e18",
    "1e25",
    "1e37",
    "largest",
    "wide magnitude by sub-block",
    "wide magnitude by weight",
    "random bits",
    "random bits by run",
}

Rows = NDArray[np.float32]


def encode(rows: Rows, name: str, importance: Rows | None) -> NDArray[np.uint8]:
    ggml_type = parse_type(name)
    out = np.full((len(rows), ggml_type.row_bytes(rows.shape[1])), 0xA5, np.uint8)
    encode_into(rows, ggml_type, importance, out)
    return out


def differing(rows: Rows, name: str, importance: Rows | None) -> NDArray[np.bool_]:
    """Which blocks are not those of the ggml at hand."""
    block_bytes = parse_type(name).block_bytes
    ours = encode(rows, name, importance).reshape(-1, block_bytes)
    ggmls = ggml_reference.quantize(rows, name, importance, guess=ours).reshape(-1, block_bytes)
    return (ours != ggmls).any(axis=1)


@pytest.mark.parametrize("kind", sorted(DISTRIBUTIONS.keys() - OVERFLOWING))
def test_iq1_s_is_ggmls_on_every_kind_of_weights(kind: str) -> None:
    rng = np.random.default_rng(1)
    rows = DISTRIBUTIONS[kind](rng, 8 * COLUMNS).reshape(8, COLUMNS)
    assert not differing(rows, "iq1_s", importances(rng, COLUMNS)).any()


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "imatrix"])
def test_iq1_m_is_what_ggml_wrote(guided: bool) -> None:
    goldens = np.load(GOLDENS)
    importance = goldens["importance"] if guided else None
    found = encode(goldens["weights"], "iq1_m", importance)
    wrong = (found != goldens["guided" if guided else "plain"]).any(axis=1)
    assert not wrong.any(), f"{wrong.sum()} of {len(wrong)} blocks; {goldens['kinds'][wrong].tolist()}"


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("n_superblocks", [2, 7, 14, 49, 98])
def test_iq1_m_is_the_same_in_long_rows(guided: bool, n_superblocks: int) -> None:
    goldens = np.load(GOLDENS)
    importance = np.tile(goldens["importance"], n_superblocks) if guided else None
    found = encode(goldens["weights"].reshape(-1, n_superblocks * 256), "iq1_m", importance)
    assert guided or (found.reshape(-1, 56) == goldens["plain"]).all()
    assert (found.reshape(-1, 56) == goldens["guided"]).all() or not guided


@pytest.mark.parametrize("n_superblocks", range(1, 18))
def test_any_number_of_superblocks(n_superblocks: int) -> None:
    rng = np.random.default_rng(n_superblocks)
    weights = DISTRIBUTIONS["like a model"](rng, n_superblocks * 256)
    for rows in (weights.reshape(1, -1), weights.reshape(-1, 256)):
        assert not differing(rows, "iq1_s", importances(rng, rows.shape[1])).any()


@pytest.mark.parametrize("name", ["iq1_s", "iq1_m"])
@pytest.mark.parametrize("kind", sorted(OVERFLOWING))
def test_what_overflows_is_encoded_the_same_in_any_company(name: str, kind: str) -> None:
    rng = np.random.default_rng(2)
    rows = DISTRIBUTIONS[kind](rng, 5 * COLUMNS).reshape(5, COLUMNS)
    importance = importances(rng, COLUMNS)
    together = encode(rows, name, importance)
    assert all(
        (encode(row[np.newaxis], name, importance) == blocks).all()
        for row, blocks in zip(rows, together, strict=True)
    )


@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 1e30])
def test_the_same_importance_everywhere(value: float) -> None:
    rows = DISTRIBUTIONS["magnitude by sub-block"](np.random.default_rng(3), 20 * 768).reshape(20, 768)
    assert not differing(rows, "iq1_s", np.full(768, value, np.float32)).any()


@pytest.mark.parametrize("name", ["iq1_s", "iq1_m"])
def test_zeros_and_what_has_no_importance_become_zeros(name: str) -> None:
    for weights, importance in ((np.zeros(256), np.ones(256)), (np.ones(256), np.zeros(256))):
        blocks = quantize(weights, name, imatrix=importance)
        assert not blocks.any()
        assert not dequantize(blocks, name).any()


def test_equal_weights_keep_their_order() -> None:
    """One group's weights are equal; any other order than theirs rounds the running sums otherwise."""
    rng = np.random.default_rng(4)
    rows = rng.choice(np.float32([-0.3, -0.1, 0, 0.1, 0.3]), (64, 256))
    importance = np.exp(3 * rng.standard_normal(256)).astype(np.float32)
    assert not differing(rows, "iq1_s", importance).any()
    backwards = encode(rows[:, ::-1].copy(), "iq1_s", importance[::-1].copy())
    weights = dequantize(backwards, "iq1_s")[:, ::-1]
    assert (weights != dequantize(encode(rows, "iq1_s", importance), "iq1_s")).any()


def test_no_rows() -> None:
    assert encode(np.empty((0, 256), np.float32), "iq1_m", None).size == 0


def test_one_kernel_serves_all_callers() -> None:
    rng = np.random.default_rng(5)
    importance = importances(rng, 512)
    before = [kernel.variants for kernel in (iq1.iq1_s, iq1.iq1_m)]
    for n_rows in (1, 20):
        rows = rng.standard_normal((n_rows, 512), np.float32)
        for writable in (True, False):
            rows.flags.writeable = importance.flags.writeable = writable
            encode(rows, "iq1_s", importance)
            encode(rows, "iq1_m", importance)
            encode(rows, "iq1_m", None)
    for kernel, variants in zip((iq1.iq1_s, iq1.iq1_m), before, strict=True):
        assert set(kernel.variants) == {*variants, np.dtype(np.float32)}
