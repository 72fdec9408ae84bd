"""Scales that are not finite are found where they are, in every type, and nowhere else."""

import numpy as np
import pytest
from distributions import DISTRIBUTIONS

from ggplan.ggml_types import TYPES, parse_type
from ggplan.quants import dequantize, quantize
from ggplan.quants.soundness import are_sound, is_checkable, unsound_blocks

RNG = np.random.default_rng(5)
BLOCK_TYPES = sorted(t.name for t in TYPES if t.decodable and t.is_quantized)


def blocks_of(name: str, data: np.ndarray) -> np.ndarray:
    return data.reshape(-1, parse_type(name).block_bytes)


def test_every_type_that_is_read_or_written_is_checked() -> None:
    for type_ in TYPES:
        assert is_checkable(type_) or not (type_.decodable or type_.encodable), type_
        assert all(0 <= at < type_.block_bytes for at in type_.scale_offsets), type_


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_random_blocks_are_judged_as_their_weights_are(name: str) -> None:
    """Whatever bytes stand in a block, it is sound just if all its weights are finite."""
    type_ = parse_type(name)
    blocks = RNG.integers(0, 256, (4000, type_.block_bytes), np.uint8)
    with np.errstate(all="ignore"):
        finite = np.isfinite(dequantize(blocks, type_)).all(axis=1)
    found = unsound_blocks(blocks, type_)
    if name == "mxfp4":  # ggml computes with 0xFF as 2^127, and refuses it all the same
        assert np.array_equal(found, blocks[:, 0] == 0xFF)
    elif name == "nvfp4":  # ggml takes NaN for 0
        assert np.array_equal(found, ((blocks[:, :4] & 0x7F) == 0x7F).any(axis=1))
    else:
        # A weight of a finite half times small integers cannot overflow.
        assert np.array_equal(found, ~finite)
    assert 0 < found.sum() < len(blocks)


@pytest.mark.parametrize("name", sorted(t.name for t in TYPES if t.encodable))
def test_what_the_encoders_write_is_sound(name: str) -> None:
    rows = RNG.standard_normal((16, 512)).astype(np.float32)
    blocks = quantize(rows, name, imatrix=np.ones(512))
    assert not unsound_blocks(blocks_of(name, blocks), parse_type(name)).any()


@pytest.mark.parametrize("name", sorted(t.name for t in TYPES if t.encodable and are_sound(t, 16.0)))
def test_what_is_called_sound_unseen_is_sound(name: str) -> None:
    """Weights of all kinds, the largest of each superblock 16, with importances that few would give."""
    type_, rng = parse_type(name), np.random.default_rng(16)
    for make in DISTRIBUTIONS.values():
        weights = make(rng, 64 * 256).reshape(-1, 256)
        largest = np.abs(weights).max(axis=1, keepdims=True)
        with np.errstate(all="ignore"):
            rows = np.clip(np.where(largest > 0, weights / largest, 0), -1, 1).astype(
                np.float32
            ) * np.float32(16)
        for importance in (np.ones(256), 10 ** rng.uniform(-30, 10, 256), rng.random(256) < 0.1):
            blocks = quantize(rows, name, imatrix=importance.astype(np.float32))
            assert not unsound_blocks(blocks_of(name, blocks), type_).any()


def test_what_may_overflow_is_never_called_sound_unseen() -> None:
    for name in ("q4_K", "q5_K", "q2_K", "q4_1", "mxfp4", "nvfp4", "iq1_m", "f16", "bf16"):
        assert not are_sound(parse_type(name), 1.0)
    for largest in (16.1, np.inf, np.nan):
        assert not are_sound(parse_type("q8_0"), largest)
    assert are_sound(parse_type("q8_0"), 16.0)


@pytest.mark.parametrize(("name", "dtype"), [("f32", "<f4"), ("f16", "<f2"), ("f64", "<f8")])
def test_floats(name: str, dtype: str) -> None:
    largest = np.finfo(np.dtype(dtype)).max
    values = np.array([0, -0.0, 1, largest, -largest, np.inf, -np.inf, np.nan, -np.nan], dtype)
    blocks = values.view(np.uint8).reshape(len(values), -1)
    assert unsound_blocks(blocks, parse_type(name)).tolist() == [False] * 5 + [True] * 4


def test_bfloat16() -> None:
    bits = np.array([0, 0x3F80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0x7F81], "<u2")
    found = unsound_blocks(bits.view(np.uint8).reshape(-1, 2), parse_type("bf16"))
    assert found.tolist() == [False] * 4 + [True] * 4
