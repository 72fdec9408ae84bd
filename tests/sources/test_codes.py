"""Integer codes in a wider type of ggml's: the same weights; q4_1 within its rounding."""

from __future__ import annotations

import numpy as np
import pytest

from ggplan.errors import CheckpointError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import RowSource
from ggplan.quants import dequantize
from ggplan.sources.codes import WIDER, nearly_q4_1, widened

Q4_0, Q5_0 = parse_type("q4_0"), parse_type("q5_0")


def codes(type_: GgmlType, n_rows: int = 7, n_columns: int = 96) -> RowSource:
    """Rows of blocks with random codes and scales of both signs."""
    rng = np.random.default_rng(n_rows)
    blocks = rng.integers(0, 256, (n_rows, n_columns // 32, type_.block_bytes), np.uint8)
    scales = rng.normal(0, 0.01, (n_rows, n_columns // 32)).astype("<f2")
    blocks[:, :, :2] = scales.view(np.uint8).reshape(n_rows, -1, 2)
    rows = blocks.reshape(n_rows, -1)
    return RowSource(type_, (n_rows, n_columns), lambda start, stop: rows[start:stop].copy(), lambda: "bad")


@pytest.mark.parametrize(("narrow", "wide"), [(n, w) for n, wide in WIDER.items() for w in wide])
def test_a_wider_type_holds_the_same_weights(narrow: GgmlType, wide: GgmlType) -> None:
    source = codes(narrow)
    made = widened(source, wide)
    assert (made.dtype, made.shape, made.fault()) == (wide, source.shape, "bad")
    expected = dequantize(source.read(0, 7), narrow)
    np.testing.assert_array_equal(dequantize(made.read(0, 7), wide), expected)
    np.testing.assert_array_equal(dequantize(made.read(2, 5), wide), expected[2:5])
    assert widened(source, narrow) is source


def with_zero_points(
    n_rows: int = 7, n_columns: int = 96, scale: float = 0.01
) -> tuple[RowSource, np.ndarray]:
    """4-bit codes less their zero points in q5_0, and the scales of the blocks."""
    rng = np.random.default_rng(5)
    blocks = (n_rows, n_columns // 32)
    integers = rng.integers(0, 16, (*blocks, 32)) - rng.integers(0, 16, (*blocks, 1)) + 16
    scales = rng.normal(0, scale, blocks).astype("<f2")
    raw = np.empty((*blocks, 22), np.uint8)
    raw[:, :, :2] = scales.view(np.uint8).reshape(*blocks, 2)
    raw[:, :, 2:6] = np.packbits(integers >> 4, axis=2, bitorder="little")
    raw[:, :, 6:] = integers[:, :, :16] & 15 | (integers[:, :, 16:] & 15) << 4
    rows = raw.reshape(n_rows, -1)
    return RowSource(Q5_0, (n_rows, n_columns), lambda start, stop: rows[start:stop].copy()), scales


def test_q4_1_differs_by_the_rounding_of_the_minimum_alone() -> None:
    source, scales = with_zero_points()
    made = nearly_q4_1(source)
    assert made.dtype.name == "q4_1"
    exact = dequantize(source.read(0, 7), Q5_0)
    found = dequantize(made.read(0, 7), made.dtype)
    error = (found - exact).reshape(7, 3, 32)
    # One minimum for a block, at most 15 scales: half a unit in the last place of a float16.
    assert np.ptp(error, axis=2).max() <= 1e-6 * np.abs(exact).max()
    assert (np.abs(error).max(axis=2) <= 16 * np.abs(scales.astype("f4")) * 2.0**-11).all()
    assert 0 < np.sqrt((error**2).mean() / (exact**2).mean()) < 5e-4


def test_symmetric_codes_are_exact_in_q4_1() -> None:
    source = codes(Q4_0)
    made = nearly_q4_1(source)
    np.testing.assert_array_equal(
        dequantize(made.read(0, 7), made.dtype), dequantize(source.read(0, 7), Q4_0)
    )


def test_codes_of_more_than_4_bits_are_refused() -> None:
    with pytest.raises(CheckpointError, match="span more than 4 bits"):
        nearly_q4_1(codes(Q5_0)).read(0, 7)


def test_a_minimum_that_float16_does_not_hold_is_refused() -> None:
    with pytest.raises(CheckpointError, match="minimum of a block is too large"):
        nearly_q4_1(with_zero_points(scale=30_000)[0]).read(0, 7)
