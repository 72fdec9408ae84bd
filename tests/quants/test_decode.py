"""Decoders against ggml's, bit for bit."""

import re

import ggml_reference
import numpy as np
import pytest

from ggplan.ggml_types import TYPES, GgmlType
from ggplan.quants import decode_into, dequantize, quantize

DECODABLE = [t for t in TYPES if t.decodable and t.name != "f32"]  # f32 is a copy

# What ggml's choice of scale makes of normal weights, where it is worse than even steps.
COARSE = {"mxfp4": 0.12, "nvfp4": 0.1, "tq1_0": 0.83, "tq2_0": 0.83, "q2_0": 0.74}


def assert_same_floats(ours: np.ndarray, ggmls: np.ndarray) -> None:
    """Equal bits, but for the sign and payload of a NaN."""
    same = ours.view(np.uint32) == ggmls.view(np.uint32)
    same |= np.isnan(ours) & np.isnan(ggmls)
    assert same.all(), f"{(~same).sum()} of {same.size} weights differ, the first at {same.argmin()}"


@pytest.mark.parametrize("type", DECODABLE, ids=str)
def test_any_bytes_decode_as_in_ggml(type: GgmlType) -> None:
    n_blocks = 131_073 if type.block_size == 1 else 2_051  # several of the decoders' pieces, and a bit
    blocks = np.random.default_rng(7).integers(0, 256, (3, n_blocks * type.block_bytes), np.uint8)
    assert_same_floats(dequantize(blocks, type), ggml_reference.dequantize(blocks, type.name))


@pytest.mark.parametrize("type", [t for t in DECODABLE if t.block_bytes == 2], ids=str)
def test_each_short_float_decodes_as_in_ggml(type: GgmlType) -> None:
    blocks = np.arange(2**16, dtype=np.uint16).view(np.uint8)[np.newaxis]
    assert_same_floats(dequantize(blocks, type), ggml_reference.dequantize(blocks, type.name))


@pytest.mark.parametrize("type", DECODABLE, ids=str)
def test_ggmls_own_blocks_decode_to_about_the_weights(type: GgmlType) -> None:
    weights = np.random.default_rng(1).standard_normal((5, 2048), np.float32)
    # Some types are never written without an imatrix; an even one guides to no weight more than another.
    even = np.ones(2048, np.float32)
    guess = quantize(weights, type, even) if type.encodable else None
    blocks = ggml_reference.quantize(weights, type.name, even, guess=guess)
    decoded = dequantize(blocks, type)
    assert_same_floats(decoded, ggml_reference.dequantize(blocks, type.name))
    # Even steps over the range of 32 normal weights: a root mean square error of about 1.3 x 2^-bits.
    bits = int(re.sub(r"\D", "", type.name)[:1]) if type.is_quantized else 8
    assert np.sqrt(np.mean((decoded - weights) ** 2)) < COARSE.get(type.name, 1.5 * 2**-bits)


def test_f32_is_a_copy() -> None:
    words = np.random.default_rng(2).integers(0, 2**32, (3, 64), np.uint32)
    decoded = dequantize(words.view(np.uint8), "f32")
    assert (decoded.view(np.uint32) == words).all()
    finite = np.nan_to_num(decoded)
    assert (quantize(finite, "f32").view(np.uint32) == finite.view(np.uint32)).all()


@pytest.mark.parametrize("type", DECODABLE, ids=str)
def test_decode_into_fills_what_it_is_given(type: GgmlType) -> None:
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (4, 2 * type.block_bytes), np.uint8)
    out = np.full((6, 2 * type.block_size), 7, np.float32)
    decode_into(blocks, type, out[1:5])
    assert_same_floats(out[1:5], dequantize(blocks, type))
    assert (out[[0, 5]] == 7).all()
