"""Encoders of the four-bit floats, the ternary types and q1_0 and q2_0 against ggml's, byte for byte."""

from collections.abc import Iterator

import ggml_reference
import numpy as np
import pytest
from distributions import DISTRIBUTIONS
from hypothesis import given
from hypothesis import strategies as st

from ggplan.ggml_types import parse_type
from ggplan.quants import dequantize, quantize

SMALL_TYPES = ["mxfp4", "nvfp4", "tq1_0", "tq2_0", "q1_0", "q2_0"]

COLUMNS = 3 * 256
ROWS = 23  # 138 blocks of 128: the last tile of 16 is short

LARGEST = np.finfo(np.float32).max


def check(weights: np.ndarray, name: str, what: str = "") -> None:
    type = parse_type(name)
    ours = quantize(weights, name)
    ggmls = ggml_reference.quantize(weights, name)
    different = np.flatnonzero((ours != ggmls).reshape(-1, type.block_bytes).any(axis=1))
    if different.size:
        block = weights.reshape(-1, type.block_size)[different[0]]
        pytest.fail(f"{what}: {different.size} blocks differ, the first is {different[0]}: {block}")


def edges(rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """What only these types find hard."""
    shape = (ROWS, COLUMNS)
    for lowest, highest in ((-149, 128), (-20, 20)):
        powers = 2.0 ** rng.integers(lowest, highest, (ROWS, COLUMNS // 16)).repeat(16, axis=1)
        yield "on and halfway between levels", rng.integers(-8, 9, shape) / 8 * powers
        about = (rng.integers(-8, 9, shape) / 8 * powers).astype(np.float32)
        yield "next to those", np.nextafter(about, np.float32(0))
        yield "about six powers of two", rng.choice([-6, -4.5, 5, 0.7, 0], shape) * powers
    halves = rng.choice(np.array([-1, -0.5, -0.49999997, -0.0, 0, 0.49999997, 0.5, 1], np.float32), shape)
    yield "halves of the largest", halves
    yield "halves of many largest", halves * rng.standard_normal((ROWS, 1))
    yield "the largest float", rng.choice(np.array([-1, -0.8, 0.5, 0.1, 1], np.float32), shape) * LARGEST
    yield "zeros of both signs", rng.choice(np.array([0.0, -0.0], np.float32), shape)
    shift = rng.integers(0, 23, (ROWS, COLUMNS // 16), np.uint32).repeat(16, axis=1)
    bits = rng.integers(0, 2**23, shape, np.uint32) >> shift
    yield "scales too small for 1 / d", (bits | rng.integers(0, 2, shape, np.uint32) << 31).view(np.float32)
    yield "beyond the largest scale", rng.standard_normal(shape) * 10.0 ** rng.uniform(2, 12, (ROWS, 1))


@pytest.mark.parametrize("name", SMALL_TYPES)
def test_bytes_are_ggmls(name: str) -> None:
    rng = np.random.default_rng(11)
    for what, make in DISTRIBUTIONS.items():
        check(make(rng, ROWS * COLUMNS).reshape(ROWS, COLUMNS), name, what)
    for what, weights in edges(rng):
        check(weights.clip(-LARGEST, LARGEST).astype(np.float32), name, what)


@given(
    name=st.sampled_from(SMALL_TYPES),
    rows=st.integers(1, 40),
    blocks_per_row=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
def test_any_number_of_rows_and_columns(name: str, rows: int, blocks_per_row: int, seed: int) -> None:
    columns = parse_type(name).block_size * blocks_per_row
    check(np.random.default_rng(seed).standard_normal((rows, columns), np.float32), name)


@pytest.mark.parametrize("name", SMALL_TYPES)
def test_an_imatrix_changes_nothing(name: str) -> None:
    rng = np.random.default_rng(12)
    weights = rng.standard_normal((3, 512), np.float32)
    assert (quantize(weights, name, rng.random(512, np.float32)) == quantize(weights, name)).all()


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_each_scale_is_ggmls(name: str) -> None:
    """Blocks whose largest weight is about a power of two, or about where a scale of nvfp4 changes."""
    powers = np.arange(0x100, dtype=np.uint32) << 23
    near_powers = (powers[:, np.newaxis] + np.arange(-200, 200, dtype=np.int64)).clip(0, 0x7F7FFFFF)
    denormal_powers = (1 << np.arange(23))[:, np.newaxis] + np.arange(-30, 30)
    bits = np.concatenate((near_powers.reshape(-1), denormal_powers.clip(0, None).reshape(-1)))
    sixths = np.arange(0x3A000000, 0x44000000, 1 << 19)  # 2^-11 to 512, in halves of a scale's last place
    near_sixths = (sixths[:, np.newaxis] + np.arange(-3, 4)).astype(np.uint32).view(np.float32) * np.float32(
        6
    )
    largest = np.concatenate((bits.astype(np.uint32).view(np.float32), near_sixths.reshape(-1)))
    smaller = np.linspace(-1, 0.99, 64, dtype=np.float32)
    weights = largest[:, np.newaxis] * smaller
    weights[:, ::16] = largest[:, np.newaxis]
    check(weights, name)


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0", "q2_0"])
def test_ternary_weights_come_back_as_they_were(name: str) -> None:
    rng = np.random.default_rng(13)
    weights = rng.integers(-1, 2, (9, 1024)) * (rng.integers(1, 100, (9, 1)) / 64)
    weights[:, ::64] = weights.max(axis=1, keepdims=True)  # each block has a scale to find
    exact = weights.astype(np.float32)
    assert (dequantize(quantize(exact, name), name) == exact).all()


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_four_bit_floats_come_back_as_they_were(name: str) -> None:
    rng = np.random.default_rng(14)
    levels = np.array([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    weights = rng.choice(levels, (9, 1024))
    weights[:, ::16] = 6
    exact = weights * np.float32(2) ** rng.integers(-6, 8, (9, 1)).astype(np.float32)
    assert (dequantize(quantize(exact, name), name) == exact).all()
