"""The i-quants that are points of a grid: every point, every sign, and blocks that ggml wrote."""

from __future__ import annotations

import ggml_reference
import numpy as np
import pytest
from distributions import DISTRIBUTIONS, importances
from numpy.typing import NDArray

from ggplan.ggml_types import parse_type
from ggplan.quants import dequantize
from ggplan.quants.grids import even_signs, grid, signs

TYPES = ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"]
SHAPES = {
    "iq1_s": (2048, 8),
    "iq2_xxs": (256, 8),
    "iq2_xs": (512, 8),
    "iq2_s": (1024, 8),
    "iq3_xxs": (256, 4),
    "iq3_s": (512, 4),
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


@each_type
@pytest.mark.parametrize("kind", ["normal", "like a model", "magnitude by sub-block", "zero superblocks"])
def test_blocks_that_ggml_wrote(type_name: str, kind: str) -> None:
    rng = np.random.default_rng(2)
    weights = DISTRIBUTIONS[kind](rng, 4 * 768).reshape(4, 768)
    blocks = ggml_reference.quantize(weights, type_name, importances(rng, 768))
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


def test_seven_signs_settle_the_eighth() -> None:
    assert (even_signs().prod(axis=1) == 1).all()
    assert (even_signs()[:, :7] == signs()[:128, :7]).all()
