"""Encoders of floats and of blocks of 32 weights against ggml's, byte for byte."""

from collections.abc import Iterator

import ggml_reference
import numpy as np
import pytest
from distributions import DISTRIBUTIONS, importances
from hypothesis import given
from hypothesis import strategies as st

from ggplan.ggml_types import GgmlType, parse_type
from ggplan.quants import quantize

BLOCKS_OF_32 = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"]
GUIDED = ["q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"]

COLUMNS = 13 * 32
ROWS = 37  # 481 blocks: tiles of 16 and 32 begin in the middle of rows, and the last one is short


def differences(
    weights: np.ndarray, importance: np.ndarray | None, type: GgmlType, ours: np.ndarray
) -> np.ndarray:
    """The numbers of the blocks in which `ours` is not what ggml makes of the weights."""
    blocks = ggml_reference.quantize(weights, type.name, importance)
    return np.flatnonzero((ours != blocks).reshape(-1, type.block_bytes).any(axis=1))


def check(weights: np.ndarray, name: str, importance: np.ndarray | None = None, what: str = "") -> None:
    type = parse_type(name)
    different = differences(weights, importance, type, quantize(weights, name, importance))
    if different.size:
        block = weights.reshape(-1, type.block_size)[different[0]]
        pytest.fail(f"{what}: {different.size} blocks differ, the first is {different[0]}: {block}")


def edges(rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """What only blocks of 32 find hard."""
    shape = (ROWS, COLUMNS)
    steps = rng.integers(-16, 16, shape) + 0.5
    powers = 2.0 ** rng.integers(-140, 110, (ROWS, COLUMNS // 32)).repeat(32, axis=1)
    yield "halfway between levels", (steps * powers).astype(np.float32)
    yield "on levels", (rng.integers(-8, 8, shape) * powers).astype(np.float32)
    shift = rng.integers(0, 23, (ROWS, COLUMNS // 32), np.uint32).repeat(32, axis=1)
    bits = rng.integers(0, 2**23, shape, np.uint32) >> shift
    yield "scales too small for 1 / d", bits.view(np.float32)
    yield "the same, of both signs", (bits | rng.integers(0, 2, shape, np.uint32) << 31).view(np.float32)
    below_half = np.nextafter(steps.astype(np.float32), np.float32(0))
    below_half[:, ::32] = 127
    yield "just below halfway, d = 1", below_half
    alone = np.zeros((ROWS * COLUMNS // 32, 32), np.float32)
    np.put_along_axis(
        alone, rng.integers(0, 32, (len(alone), 1)), rng.standard_normal((len(alone), 1)), axis=1
    )
    yield "a single weight that is not zero", alone.reshape(shape)
    yield "blocks of equal weights", rng.standard_normal((ROWS, COLUMNS // 32)).repeat(32, axis=1)
    weights = rng.standard_normal(shape, np.float32).reshape(-1, 32)
    weights[::3] = 0
    yield "blocks of zeros among others", weights.reshape(shape)
    limits = np.array([-3.4028235e38, 3.4028235e38, 1e38, 0], np.float32)
    yield "ranges beyond float32", rng.choice(limits, shape)
    zeros = np.array([0.0, -0.0], np.float32)
    yield "zeros of both signs", rng.choice(zeros, shape)
    yield (
        "nothing but zeros below",
        np.where(rng.random(shape) < 0.1, rng.random(shape), rng.choice(zeros, shape)),
    )
    yield (
        "nothing but zeros above",
        np.where(rng.random(shape) < 0.1, -rng.random(shape), rng.choice(zeros, shape)),
    )
    yield "equal extremes of both signs", rng.choice(np.array([-2.5, 2.5, 1, 0.3], np.float32), shape)
    halves = rng.integers(0, 2**16, shape, np.uint16) & 0xBFFF
    yield "halves", halves.view(np.float16).astype(np.float32)


def kinds_of_weights() -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    for what, make in DISTRIBUTIONS.items():
        count = -(-ROWS * COLUMNS // 256) * 256
        yield what, make(rng, count)[: ROWS * COLUMNS].reshape(ROWS, COLUMNS)
    for what, weights in edges(rng):
        yield what, weights.astype(np.float32)


@pytest.mark.parametrize("name", ["f16", "bf16", *BLOCKS_OF_32])
def test_bytes_are_ggmls(name: str) -> None:
    for what, weights in kinds_of_weights():
        check(weights, name, what=what)


@pytest.mark.parametrize("name", GUIDED)
def test_bytes_are_ggmls_with_an_imatrix(name: str) -> None:
    rng = np.random.default_rng(5)
    for what, weights in kinds_of_weights():
        check(weights, name, importances(rng, COLUMNS), what)


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("importance", [0, 1, 1e-30, 1e30], ids=str)
def test_bytes_are_ggmls_with_columns_that_all_count_the_same(name: str, importance: float) -> None:
    weights = np.random.default_rng(6).standard_normal((3, 320), np.float32)
    check(weights, name, np.full(320, importance, np.float32))


@given(
    name=st.sampled_from(BLOCKS_OF_32),
    rows=st.integers(1, 40),
    blocks_per_row=st.integers(1, 40),
    guided=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_number_of_rows_and_columns(
    name: str, rows: int, blocks_per_row: int, guided: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    columns = 32 * blocks_per_row
    weights = rng.standard_normal((rows, columns), np.float32)
    check(weights, name, importances(rng, columns) if guided else None)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_each_rounding_of_a_short_float_is_ggmls(name: str) -> None:
    """Each of 16 bits of an f32's upper half, with lower halves at and about the ties of f16 and bf16."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    upper = upper[(upper & 0x7F800000) != 0x7F800000]
    lower = np.array(
        [0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32
    )
    check((upper[:, np.newaxis] | lower).view(np.float32), name)
