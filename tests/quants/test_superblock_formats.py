"""Fields of k-quants and iq4_xs: packed and unpacked again they are the same; weights follow from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from distributions import DISTRIBUTIONS, importances
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.ggml_types import parse_type
from ggplan.quants import EFFORTS, dequantize, quantize
from ggplan.quants.formats import iq4_xs, q2_k, q3_k, q6_k, q45_k
from ggplan.quants.formats.fields import Affine, Symmetric
from ggplan.quants.formats.levels import IQ4_LEVELS

PACKERS: dict[str, tuple[Callable, Callable]] = {
    "q2_K": (q2_k.unpack, q2_k.pack),
    "q3_K": (q3_k.unpack, q3_k.pack),
    "q4_K": (q45_k.unpack_q4_k, q45_k.pack),
    "q5_K": (q45_k.unpack_q5_k, q45_k.pack),
    "q6_K": (q6_k.unpack, q6_k.pack),
    "iq4_xs": (iq4_xs.unpack, iq4_xs.pack),
}
# Sub-blocks, the range of a scale, the highest min, the number of codes.
LEGAL = {
    "q2_K": (16, (0, 15), 15, 4),
    "q3_K": (16, (-32, 31), None, 8),
    "q4_K": (8, (0, 63), 63, 16),
    "q5_K": (8, (0, 63), 63, 32),
    "q6_K": (16, (-128, 127), None, 64),
    "iq4_xs": (8, (-32, 31), None, 16),
}
ZERO = {"q3_K": 4, "q6_K": 32}


def any_fields(name: str, count: int, rng: np.random.Generator) -> Affine | Symmetric:
    """Superblocks with any halves for scales, nans too, any sub-blocks' scales and any codes."""
    n, (lowest, highest), highest_min, n_codes = LEGAL[name]
    d, dmin = rng.integers(0, 1 << 16, (2, count)).astype(np.uint16).view(np.float16)
    scales = rng.integers(lowest, highest + 1, (count, n))
    codes = rng.integers(0, n_codes, (count, 256)).astype(np.uint8)
    if highest_min is None:
        return Symmetric(d, scales.astype(np.int8), codes)
    mins = rng.integers(0, highest_min + 1, (count, n)).astype(np.uint8)
    return Affine(d, dmin, scales.astype(np.uint8), mins, codes)


def packed(name: str, fields: Affine | Symmetric) -> np.ndarray:
    blocks = np.full((len(fields.d), parse_type(name).block_bytes), 0xA5, np.uint8)
    PACKERS[name][1](fields, blocks)
    return blocks


@settings(deadline=None)  # the first of each type compiles
@given(name=st.sampled_from(list(PACKERS)), count=st.integers(1, 40), seed=st.integers(0, 1000))
def test_fields_survive_packing(name: str, count: int, seed: int) -> None:
    fields = any_fields(name, count, np.random.default_rng(seed))
    found = PACKERS[name][0](packed(name, fields))
    assert type(found) is type(fields)
    for ours, given_ in zip(found, fields, strict=True):
        assert ours.dtype == given_.dtype
        assert ours.tobytes() == given_.tobytes()


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("effort", EFFORTS)
def test_blocks_of_encoders_survive_unpacking(name: str, effort: str) -> None:
    for number, make in enumerate(DISTRIBUTIONS.values()):
        rng = np.random.default_rng([1, number])
        rows = make(rng, 5 * 1024).reshape(5, 1024)
        with np.errstate(all="ignore"):
            blocks = quantize(rows, name, importances(rng, 1024), effort=effort)
        blocks = blocks.reshape(-1, parse_type(name).block_bytes)
        assert (packed(name, PACKERS[name][0](blocks)) == blocks).all()


@pytest.mark.parametrize("name", PACKERS)
def test_weights_follow_from_fields(name: str) -> None:
    """In ggml's order of arithmetic, each step rounded to float32."""
    fields = any_fields(name, 30, np.random.default_rng(2))
    fields = fields._replace(d=np.linspace(-3, 3, 30).astype(np.float16))
    size = 256 // fields.scales.shape[1]
    if name == "iq4_xs":
        levels = IQ4_LEVELS[fields.codes]
    else:
        levels = fields.codes.astype(np.float32) - np.float32(ZERO.get(name, 0))
    scale = fields.d.astype(np.float32)[:, None] * fields.scales.astype(np.float32)
    expected = scale.repeat(size, axis=1) * levels
    if isinstance(fields, Affine):
        fields = fields._replace(dmin=np.linspace(0, 2, 30).astype(np.float16))
        minimum = fields.dmin.astype(np.float32)[:, None] * fields.mins.astype(np.float32)
        expected = expected - minimum.repeat(size, axis=1)
    found = dequantize(packed(name, fields), name)
    assert (found.view(np.uint32) == expected.view(np.uint32)).all()
