"""Half precision in kernels, against NumPy: all halves, and floats of every exponent."""

from __future__ import annotations

import numpy as np

from ggplan.quants.half import float_from_half, floats_of, half_from_float, halves_of
from ggplan.quants.kernels import I64, F32s, I32s, U16s, kernel
from ggplan.quants.memory import load, store


@kernel
def to_halves(count: I64, floats: F32s, scalar: U16s, lanes: I32s) -> None:
    for i in range(count):
        scalar[i] = half_from_float(floats[i])
    for i in range(0, count, 16):
        store(lanes, i, halves_of(load(floats, i, 16)))


@kernel
def to_floats(count: I64, halves: I32s, scalar: F32s, lanes: F32s) -> None:
    for i in range(count):
        scalar[i] = float_from_half(np.uint16(halves[i]))
    for i in range(0, count, 16):
        store(lanes, i, floats_of(load(halves, i, 16)))


def test_float_to_half() -> None:
    # All exponents and signs, each with fractions around every tie and at random.
    signs_and_exponents = np.arange(512, dtype=np.uint32)[:, None] << 23
    ties = np.arange(0, 1 << 23, 1 << 12, dtype=np.uint32)
    noise = np.random.default_rng(0).integers(0, 1 << 23, 2048, dtype=np.uint32)
    fractions = np.concatenate([ties, ties[1:] - 1, [0], ties + 1, noise]).astype(np.uint32)
    floats = (signs_and_exponents | fractions).reshape(-1).view(np.float32)
    scalar = np.empty(floats.size, np.uint16)
    lanes = np.empty(floats.size, np.int32)
    to_halves(floats.size, floats, scalar, lanes)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = floats.astype(np.float16).view(np.uint16)
    nans = np.isnan(floats)
    expected[nans] = 0x7E00 | (expected[nans] & 0x8000)  # ggml keeps no nan's payload
    assert np.array_equal(scalar, expected)
    assert np.array_equal(lanes, expected)


def test_half_to_float() -> None:
    halves = np.arange(1 << 16, dtype=np.int32)
    scalar, lanes = np.empty((2, halves.size), np.float32)
    to_floats(halves.size, halves, scalar, lanes)
    expected = halves.astype(np.uint16).view(np.float16).astype(np.float32)
    for values in (scalar, lanes):
        assert np.array_equal(np.isnan(values), np.isnan(expected))
        numbers = ~np.isnan(expected)
        assert np.array_equal(values[numbers].view(np.int32), expected[numbers].view(np.int32))
