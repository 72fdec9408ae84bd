"""iq4_xs gives ggml's bytes, whatever the weights, the importance and the shape."""

from __future__ import annotations

import ggml_reference
import numpy as np
import pytest
from distributions import DISTRIBUTIONS, importances
from numpy.typing import NDArray

from ggplan.ggml_types import parse_type
from ggplan.quants import dequantize, encode_into
from ggplan.quants.searches import iq4_xs

IQ4_XS = parse_type("iq4_xs")

# Nine superblocks a row: tiles of sixteen begin and end anywhere in a row.
COLUMNS = 9 * 256

with_and_without_importance = pytest.mark.parametrize("guided", [False, True], ids=["plain", "imatrix"])


def encode(rows: NDArray[np.float32], importance: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    out = np.full((len(rows), IQ4_XS.row_bytes(rows.shape[1])), 0xA5, np.uint8)
    encode_into(rows, IQ4_XS, importance, out)
    return out


def assert_ggmls_bytes(rows: NDArray[np.float32], importance: NDArray[np.float32] | None) -> None:
    ours = encode(rows, importance).reshape(-1, IQ4_XS.block_bytes)
    ggmls = ggml_reference.quantize(rows, "iq4_xs", importance).reshape(-1, IQ4_XS.block_bytes)
    wrong = np.flatnonzero((ours != ggmls).any(axis=1))
    assert not wrong.size, (
        f"{wrong.size} of {len(ours)} blocks differ, the first is block {wrong[0]}:"
        f"\n  ours   {ours[wrong[0]].tobytes().hex()}\n  ggml's {ggmls[wrong[0]].tobytes().hex()}"
        f"\n  weights {rows.reshape(-1, 256)[wrong[0]].tolist()}"
    )


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@with_and_without_importance
def test_bytes_are_ggmls_on_every_kind_of_weights(kind: str, guided: bool) -> None:
    rng = np.random.default_rng(1)
    rows = DISTRIBUTIONS[kind](rng, 8 * COLUMNS).reshape(8, COLUMNS)
    assert_ggmls_bytes(rows, importances(rng, COLUMNS) if guided else None)


@with_and_without_importance
@pytest.mark.parametrize("n_superblocks", range(1, 18))
def test_any_number_of_superblocks(guided: bool, n_superblocks: int) -> None:
    rng = np.random.default_rng(n_superblocks)
    weights = DISTRIBUTIONS["like a model"](rng, n_superblocks * 256)
    for rows in (weights.reshape(1, -1), weights.reshape(-1, 256)):
        assert_ggmls_bytes(rows, importances(rng, rows.shape[1]) if guided else None)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_the_same_importance_everywhere(value: float) -> None:
    rows = DISTRIBUTIONS["magnitude by sub-block"](np.random.default_rng(3), 20 * 768).reshape(20, 768)
    assert_ggmls_bytes(rows, np.full(768, value, np.float32))


def test_zeros_have_ggmls_negative_scale_and_decode_to_zeros() -> None:
    blocks = encode(np.zeros((1, 256), np.float32), None)
    assert blocks[0, :2].tobytes() == b"\x00\x80"
    assert (dequantize(blocks, IQ4_XS) == 0).all()


def test_no_rows() -> None:
    assert encode(np.empty((0, 256), np.float32), None).size == 0


def test_one_kernel_serves_all_callers() -> None:
    used = set(iq4_xs._search.variants)  # by other tests, with bfloat16
    rng = np.random.default_rng(5)
    importance = importances(rng, 512)
    for n_rows in (1, 20):
        rows = rng.standard_normal((n_rows, 512), np.float32)
        for writable in (True, False):
            rows.flags.writeable = importance.flags.writeable = writable
            encode(rows, None)
            encode(rows, importance)
    assert set(iq4_xs._search.variants) == used | {np.dtype(np.float32)}
