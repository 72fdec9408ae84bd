"""The i-quants that are points of a grid: every point, every sign, and blocks that ggml wrote."""

from __future__ import annotations

from pathlib import Path

import ggml_reference
import numpy as np
import pytest
from distributions import DISTRIBUTIONS, importances
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggplan.ggml_types import parse_type
from ggplan.quants import EFFORTS, dequantize, quantize
from ggplan.quants.formats import iq1, iq2, iq3
from ggplan.quants.formats.fields import Grid
from ggplan.quants.formats.grids import even_signs, grid, signs

TYPES = ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"]
SHAPES = {
    "iq1_s": (2048, 8),
    "iq2_xxs": (256, 8),
    "iq2_xs": (512, 8),
    "iq2_s": (1024, 8),
    "iq3_xxs": (256, 4),
    "iq3_s": (512, 4),
}

FORMATS = {
    "iq3_s": (iq3.unpack_iq3_s, iq3.pack_iq3_s, iq3.weights_of_iq3_s),
    "iq3_xxs": (iq3.unpack_iq3_xxs, iq3.pack_iq3_xxs, iq3.weights_of_iq3_xxs),
    "iq2_s": (iq2.unpack_iq2_s, iq2.pack_iq2_s, iq2.weights_of_iq2_s),
    "iq2_xs": (iq2.unpack_iq2_xs, iq2.pack_iq2_xs, iq2.weights_of_iq2_xs),
    "iq2_xxs": (iq2.unpack_iq2_xxs, iq2.pack_iq2_xxs, iq2.weights_of_iq2_xxs),
    "iq1_m": (iq1.unpack_iq1_m, iq1.pack_iq1_m, iq1.weights_of),
    "iq1_s": (iq1.unpack_iq1_s, iq1.pack_iq1_s, iq1.weights_of),
}

# Legal fields: sub-blocks and their highest scale, groups and points, signs (a byte each, or one bit).
LEGAL = {
    "iq3_s": (8, 15, 64, 512, 32, "any"),
    "iq3_xxs": (8, 15, 64, 256, 32, "even"),
    "iq2_s": (16, 15, 32, 1024, 32, "any"),
    "iq2_xs": (16, 15, 32, 512, 32, "even"),
    "iq2_xxs": (8, 15, 32, 256, 32, "even"),
    "iq1_m": (16, 7, 32, 2048, 32, "shifts"),
    "iq1_s": (8, 7, 32, 2048, 8, "shifts"),
}

each_type = pytest.mark.parametrize("type_name", TYPES)
each_grid = pytest.mark.parametrize("name", SHAPES)


def assert_ggmls_weights(blocks: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]:
    ours = dequantize(blocks, type_name)
    ggmls = ggml_reference.dequantize(blocks, type_name)
    same = ours.view(np.uint32) == ggmls.view(np.uint32)
    assert same.all(), f"{(~same).sum()} of {same.size} weights differ, the first at {same.argmin()}"
    return ours


@each_type
def test_any_indices_signs_and_scales(type_name: str) -> None:
    """Enough random blocks to meet every index, with each finite d there is once."""
    halves = np.arange(2**16, dtype=np.uint16)
    halves = halves[np.isfinite(halves.view(np.float16))]
    blocks = np.random.default_rng(1).integers(
        0, 256, (len(halves), parse_type(type_name).block_bytes), np.uint8
    )
    if type_name == "iq1_m":
        words = blocks[:, 48:56].view(np.uint16)
        words &= 0x0FFF
        words |= halves[:, np.newaxis] >> (4 * np.arange(4, dtype=np.uint16)) << 12
    else:
        blocks[:, :2] = halves.view(np.uint8).reshape(-1, 2)
    assert_ggmls_weights(blocks, type_name)


def test_blocks_of_iq1_m_that_ggml_wrote() -> None:
    """Those of ggml 0.26: the one at hand writes others, by rounding, and reads all alike."""
    goldens = np.load(Path(__file__).parent.parent / "data" / "iq1_m.npz")
    for name in ("plain", "guided"):
        assert_ggmls_weights(goldens[name], "iq1_m")


@pytest.mark.parametrize("type_name", [name for name in TYPES if name != "iq1_m"])
@pytest.mark.parametrize("kind", ["normal", "like a model", "magnitude by sub-block", "zero superblocks"])
def test_blocks_that_ggml_wrote(type_name: str, kind: str) -> None:
    rng = np.random.default_rng(2)
    weights = DISTRIBUTIONS[kind](rng, 4 * 768).reshape(4, 768)
    importance = importances(rng, 768)
    guess = quantize(weights, type_name, importance)
    blocks = ggml_reference.quantize(weights, type_name, importance, guess=guess)
    assert_ggmls_weights(blocks, type_name)


@each_type
def test_one_block_and_none(type_name: str) -> None:
    blocks = np.zeros((1, parse_type(type_name).block_bytes), np.uint8)
    assert (assert_ggmls_weights(blocks, type_name) == 0).all()
    assert dequantize(blocks[:, :0], type_name).shape == (1, 0)


@each_grid
def test_the_points_of_a_grid_are_all_different(name: str) -> None:
    points = grid(name)
    assert points.shape == SHAPES[name]
    assert points.dtype == np.int8
    assert len(np.unique(points, axis=0)) == len(points)
    assert not points.flags.writeable


def test_bit_j_of_a_byte_of_signs_is_that_of_weight_j() -> None:
    assert signs()[0b0000_0101].tolist() == [-1, 1, -1, 1, 1, 1, 1, 1]
    assert len(np.unique(signs(), axis=0)) == 256


def test_the_eighth_sign_follows_from_seven() -> None:
    eight = signs()[even_signs()]
    assert (eight.prod(axis=1) == 1).all()
    assert (eight[:, :7] == signs()[:128, :7]).all()


@each_type
@given(n=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_fields_that_were_packed_are_unpacked(type_name: str, n: int, seed: int) -> None:
    unpack, pack, weights_of = FORMATS[type_name]
    sub_blocks, highest, groups, points, n_signs, kind = LEGAL[type_name]
    rng = np.random.default_rng(seed)
    sign_bytes = {"any": np.arange(256), "even": even_signs(), "shifts": np.arange(2)}[kind]
    fields = Grid(
        rng.integers(0, 2**16, n, np.uint16).view(np.float16),
        rng.integers(0, highest + 1, (n, sub_blocks), np.uint8),
        rng.integers(0, points, (n, groups), np.uint16),
        rng.choice(sign_bytes, (n, n_signs)).astype(np.uint8),
    )
    blocks = np.full((n, parse_type(type_name).block_bytes), 0xA5, np.uint8)
    pack(fields, blocks)
    for name, found, expected in zip(Grid._fields, unpack(blocks), fields, strict=True):
        assert found.dtype == expected.dtype, name
        assert found.tobytes() == expected.tobytes(), name
    weights = np.empty((n, 256), np.float32)
    with np.errstate(all="ignore"):
        weights_of(fields, weights)
    assert weights.tobytes() == dequantize(blocks, type_name).tobytes()


@each_type
@pytest.mark.parametrize("effort", EFFORTS)
def test_blocks_that_were_unpacked_are_packed(type_name: str, effort: str) -> None:
    unpack, pack, _ = FORMATS[type_name]
    for number, make in enumerate(DISTRIBUTIONS.values()):
        rng = np.random.default_rng([3, number])
        rows = make(rng, 2 * 768).reshape(2, 768)
        blocks = quantize(rows, type_name, importances(rng, 768), effort=effort)
        blocks = blocks.reshape(-1, parse_type(type_name).block_bytes)
        again = np.full_like(blocks, 0xA5)
        pack(unpack(blocks), again)
        assert np.array_equal(again, blocks)
