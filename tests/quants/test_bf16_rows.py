"""Rows as the bits of bfloat16 give the bytes, hashes and answers of the same rows as float32."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.ggml_types import TYPES
from ggplan.quants import efforts_of, encode_into, first_nonfinite
from ggplan.quants.floats import widened
from ggplan.quants.row_hash import hash_rows

BLOCK_TYPES = [type_ for type_ in TYPES if type_.encodable and type_.is_quantized]
# Best efforts read rows in one place for all types of a search (`searches.best.load_and_weigh`): one of each.
ALIKE = ("q2_K", "q5_K", "q3_K", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")
CASES = [(t, "default") for t in BLOCK_TYPES] + [
    (t, "best") for t in BLOCK_TYPES if "best" in efforts_of(t) and t.name not in ALIKE
]
RNG = np.random.default_rng(16)


def some_bits(n_rows: int, n_columns: int) -> np.ndarray:
    """Weights of every magnitude: blocks of ordinary ones, of zeros of both signs, of ties, of subnormals."""
    weights = RNG.standard_normal((n_rows, n_columns), np.float32)
    bits = (weights.view(np.uint32) >> 16).astype(np.uint16)
    kinds = np.repeat(RNG.integers(0, 8, n_rows * n_columns // 32), 32).reshape(n_rows, n_columns)
    bits[kinds == 0] &= 0x8000
    bits[kinds == 1] = bits[kinds == 1] & 0x8000 | 0x3F80
    bits[kinds == 2] &= 0x807F
    return bits


@pytest.mark.parametrize(("type_", "effort"), CASES, ids=str)
def test_bytes_are_the_same(type_, effort: str) -> None:
    n_columns = 2 * type_.block_size
    importances = [np.abs(RNG.standard_normal(n_columns, np.float32)) + np.float32(0.01)]
    importances += [] if type_.requires_imatrix else [None]
    for n_rows in (1, 3, 67):
        bits = some_bits(n_rows, n_columns)
        for importance in importances:
            found, expected = (np.empty((n_rows, type_.row_bytes(n_columns)), np.uint8) for _ in range(2))
            encode_into(bits, type_, importance, found, effort)
            encode_into(widened(bits), type_, importance, expected, effort)
            np.testing.assert_array_equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 70), st.sampled_from([None, 0x7F80, 0xFF80, 0x7FC1]), st.randoms())
def test_hashes_and_answers_are_the_same(n_rows: int, n_columns: int, special: int | None, random) -> None:
    bits = RNG.integers(0, 0x7F80, (n_rows, n_columns)).astype(np.uint16)
    place = -1
    if special is not None:
        place = random.randrange(bits.size)
        bits.reshape(-1)[place] = special
    wide = widened(bits)
    assert wide.dtype == np.float32
    hashes, largest = hash_rows(bits)
    expected, expected_largest = hash_rows(wide)
    np.testing.assert_array_equal(hashes, expected)
    assert largest == expected_largest == (np.abs(wide).max() if special is None else np.inf)
    assert first_nonfinite(bits) == first_nonfinite(wide) == place
