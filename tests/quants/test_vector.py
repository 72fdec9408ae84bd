"""Lanes behave as C's scalars do, signs of zero and nans included."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest

from ggplan.quants import machine_code
from ggplan.quants.kernels import F32s, I32s, U8s, Weights, kernel
from ggplan.quants.memory import (
    load,
    prefetch,
    store,
    store_bytes,
    transpose,
    transpose_bytes,
    transpose_eight,
)
from ggplan.quants.vector import (
    absolute,
    all_lanes,
    any_lane,
    bits_of,
    extremes_of_blocks,
    float_of,
    float_of_bits,
    fused,
    integer_of,
    lane,
    largest_magnitude,
    largest_magnitude_of_blocks,
    maximum,
    minimum,
    repeat,
    rounded,
    select,
    splat,
    square_root,
)

PROCESSORS_THAT_ROUND = (
    {"x86-64": False, "nehalem": True, "haswell": True}
    if platform.machine().lower() in ("x86_64", "amd64")
    else {"generic": True}
)
TINY = np.float32(1e-45)
SPECIAL = np.array(
    [0.0, -0.0, 1, -1, 1.5, -2.5, np.inf, -np.inf, np.nan, TINY, -TINY, 3e38, 1e-38, 7, 8388607.5, 0.1],
    np.float32,
)


@kernel
def arithmetic(a: F32s, b: F32s, out: F32s) -> None:
    x = load(a, 0, 16)
    y = load(b, 0, 16)
    three = np.float32(3)
    store(out, 0, x + y)
    store(out, 16, x - y)
    store(out, 32, x * y)
    store(out, 48, x / y)
    store(out, 64, minimum(x, y))
    store(out, 80, maximum(x, y))
    store(out, 96, -x)
    store(out, 112, absolute(x))
    store(out, 128, square_root(absolute(x)))
    store(out, 144, three / x)
    store(out, 160, select(x < y, x, three))
    store(out, 176, select(x != y, x, three))
    store(out, 192, select((x >= y) | (x == y), x, y))
    store(out, 208, select((x <= y) & ~(x > three), x, y))
    store(out, 224, float_of_bits(bits_of(x) & 0x7FFFFFFF))
    store(out, 240, x * y + x)  # not fused


def test_floats_are_cs() -> None:
    rng = np.random.default_rng(0)
    three = np.float32(3)
    for shift in range(16):
        x = rng.permutation(SPECIAL)
        y = np.roll(SPECIAL, shift)
        out = np.empty((16, 16), np.float32)
        arithmetic(x, y, out.reshape(-1))
        with np.errstate(all="ignore"):
            expected = [
                x + y,
                x - y,
                x * y,
                x / y,
                np.where(x < y, x, y),
                np.where(x > y, x, y),
                -x,
                abs(x),
                np.sqrt(abs(x)),
                three / x,
                np.where(x < y, x, three),
                np.where(x != y, x, three),
                np.where(x >= y, x, y),
                np.where((x <= y) & ~(x > three), x, y),
                abs(x),
                x * y + x,
            ]
        for ours, theirs in zip(out, expected, strict=True):
            same = (ours.view(np.int32) == theirs.view(np.int32)) | (np.isnan(ours) & np.isnan(theirs))
            assert same.all()


@kernel
def integers(a: I32s, floats: F32s, out: I32s, as_bytes: U8s, answers: I32s) -> None:
    x = load(a, 0, 16)
    store(out, 0, (x << 3) | 5)
    store(out, 16, (x >> 2) ^ ~x)
    store(out, 32, minimum(maximum(x, -7), 100) * 3 - x)
    store(out, 48, integer_of(load(floats, 0, 16)) + integer_of(float_of(x & 0xFFFF)))
    store(out, 64, load(as_bytes, 0, 16))
    store(as_bytes, 16, x)
    doubled = repeat(x, 32)
    store(out, 80, doubled)
    answers[0] = any_lane(x == 4)
    answers[1] = all_lanes(x == 4)
    answers[2] = all_lanes(splat(4, 16) == 4)
    answers[3] = lane(x, 3)


def test_integers_are_cs() -> None:
    x = np.random.default_rng(1).integers(-(2**31), 2**31, 16).astype(np.int32)
    x[5] = 4
    floats = np.arange(-8, 8, dtype=np.float32) * 1.7
    out = np.empty((7, 16), np.int32)
    as_bytes = np.arange(200, 232).astype(np.uint8)
    answers = np.empty(4, np.int32)
    integers(x, floats, out.reshape(-1), as_bytes, answers)
    assert answers.tolist() == [True, False, True, x[3]]
    with np.errstate(over="ignore"):
        expected = [
            (x << 3) | 5,
            (x >> 2) ^ ~x,
            x.clip(-7, 100) * 3 - x,
            np.trunc(floats).astype(np.int32) + (x & 0xFFFF),
            np.arange(200, 216),
            x,
            x,
        ]
    assert np.array_equal(out, expected)
    assert np.array_equal(as_bytes[16:], (x & 255).astype(np.uint8))


@kernel
def turn_integers(source: I32s, target: I32s, as_bytes: U8s, of_eight: U8s) -> None:
    transpose(source, 1, 40, target, 2, 20)
    transpose(source, 1, 40, as_bytes, 2, 20)
    transpose_eight(source, 1, 40, of_eight, 2, 20)


@kernel
def turn_floats(source: F32s, target: F32s) -> None:
    transpose(source, 1, 40, target, 2, 20)


def test_transpose() -> None:
    source = np.arange(640, dtype=np.int32)
    expected = source.reshape(16, 40)[:, 1:17].T
    size = 2 + 16 * 20
    target, as_bytes, of_eight = np.zeros(size, np.int32), np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    turn_integers(source, target, as_bytes, of_eight)
    of_floats = np.zeros(size, np.float32)
    turn_floats(source.astype(np.float32), of_floats)
    for found in (target, of_floats, as_bytes):
        assert np.array_equal(found[2:].reshape(16, 20)[:, :16], expected.astype(found.dtype))
    found = of_eight[2:].reshape(16, 20)
    assert np.array_equal(found[:, :8], expected[:, :8].astype(np.uint8))
    assert not found[:, 8:].any()


@kernel
def turn_bytes(source: I32s, target: U8s) -> None:
    prefetch(source, 0, 16)
    prefetch(source, 1 << 40, 64)  # which is not there
    transpose_bytes(source, 1, 20, target, 3, 70)


def test_transpose_of_bytes() -> None:
    rng = np.random.default_rng(7)
    source = rng.integers(-(2**31), 2**31, 1 + 64 * 20, np.int64).astype(np.int32)
    target = np.zeros(3 + 16 * 70, np.uint8)
    turn_bytes(source, target)
    expected = np.zeros_like(target)
    expected[3:].reshape(16, 70)[:, :64] = (source[1:].reshape(64, 20)[:, :16].T & 255).astype(np.uint8)
    assert (target == expected).all()


@kernel
def to_whole(values: F32s, out: F32s) -> None:
    store(out, 0, rounded(load(values, 0, 16)))


def test_rounding_is_to_even() -> None:
    values = np.array([0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, 0.50000006, -3.2, 1e-40], np.float32)
    values = np.concatenate([values, [2097152.5, 2097151.5, -4194303.5, 4194303.2, -7.5]]).astype(np.float32)
    out = np.empty(16, np.float32)
    to_whole(values, out)
    assert (out == np.rint(values)).all()


@kernel
def multiply_and_add(values: F32s, out: F32s) -> None:
    total = load(values, 32, 16)
    store(out, 0, fused(load(values, 0, 16), load(values, 16, 16), total))
    store(out, 16, fused(load(values, 0, 16), values[16], total))


def test_fused_rounds_once() -> None:
    rng = np.random.default_rng(7)
    near_one = (1 + rng.integers(0, 1 << 12, (2, 16)) / 4096).astype(np.float32)
    values = np.concatenate([*near_one, -(near_one[0] * near_one[1])]).astype(np.float32)
    values[32:40] += rng.standard_normal(8).astype(np.float32) * np.float32(1e-4)
    out = np.empty(32, np.float32)
    multiply_and_add(values, out)
    factor, other, total = values.astype(np.float64).reshape(3, 16)  # 48 bits hold each product
    assert (out[:16] == (factor * other + total).astype(np.float32)).all()
    assert (out[16:] == (factor * other[0] + total).astype(np.float32)).all()
    assert out[8:16].any()  # what a product loses when it is rounded by itself


@pytest.mark.parametrize(("processor", "one_step"), PROCESSORS_THAT_ROUND.items())
def test_processors_that_round(processor: str, one_step: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "target", lambda: (processor, ""))
    assert machine_code.has_rounding.__wrapped__() == one_step


@kernel
def fold_blocks(weights: Weights, out: F32s) -> None:
    store(out, 0, extremes_of_blocks(weights, 3))
    store(out, 32, largest_magnitude_of_blocks(weights, 3))
    for k in range(16):
        out[48 + k] = largest_magnitude(weights, 3 + 32 * k, 32)
    out[64] = largest_magnitude(weights, 3, 512)


def floats(weights: Any) -> Any:
    """Weights, or the bits of bfloat16, as float32."""
    return weights if weights.dtype == np.float32 else (weights.astype(np.uint32) << 16).view(np.float32)


def test_extremes_of_blocks() -> None:
    """Wherever in its block the extreme is, in float32 and in the bits of bfloat16."""
    rng = np.random.default_rng(2)
    for place in range(32):
        weights = rng.standard_normal(3 + 16 * 32, np.float32)
        blocks = weights[3:].reshape(16, 32)
        blocks[::2, place] = 9 + np.arange(8)
        blocks[1::2, place] = -9 - np.arange(8)
        bits = (weights.view(np.uint32) >> 16).astype(np.uint16)
        for given in (weights, bits):
            blocks = floats(given)[3:].reshape(16, 32)
            out = np.empty(65, np.float32)
            fold_blocks(given, out)
            magnitudes = abs(blocks).max(axis=1)
            expected = [blocks.min(axis=1), blocks.max(axis=1), magnitudes, magnitudes, [magnitudes.max()]]
            assert np.array_equal(out, np.concatenate(expected))


@kernel
def write_bytes(numbers: I32s, out: U8s) -> None:
    store_bytes(out, 1, numbers[0], 2)
    store_bytes(out, 4, numbers[1], 4)
    store_bytes(out, 9, np.uint16(numbers[2]), 2)


def test_bytes_of_integers() -> None:
    out = np.full(12, 255, np.uint8)
    write_bytes(np.array([0x12345678, -2, 0x1234], np.int32), out)
    assert out.tobytes().hex() == "ff7856fffeffffffff3412ff"
