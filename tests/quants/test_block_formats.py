"""Fields of the types without sub-blocks: packed and unpacked again they are the same."""

from __future__ import annotations

import numpy as np
import pytest
from distributions import DISTRIBUTIONS, importances
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.ggml_types import parse_type
from ggplan.quants import dequantize, quantize
from ggplan.quants.formats import bits, blocks32, fp4, iq4, ternary
from ggplan.quants.formats.fields import Blocks
from ggplan.quants.searches.blocks import Format, empty_blocks, pack

FORMATS = {
    "q8_0": blocks32.Q8_0,
    "q4_0": blocks32.Q4_0,
    "q4_1": blocks32.Q4_1,
    "q5_0": blocks32.Q5_0,
    "q5_1": blocks32.Q5_1,
    "iq4_nl": iq4.IQ4_NL,
    "mxfp4": fp4.MXFP4,
    "nvfp4": fp4.NVFP4,
    "tq1_0": ternary.TQ1_0,
    "tq2_0": ternary.TQ2_0,
    "q1_0": bits.Q1_0,
    "q2_0": bits.Q2_0,
}


def any_fields(format: Format, count: int, rng: np.random.Generator) -> Blocks:
    """Fields of blocks with any scales, nans too, and any codes."""
    fields = empty_blocks(count, format)
    fields.scales.view(np.uint8)[:] = rng.integers(0, 256, fields.scales.view(np.uint8).shape)
    fields.codes[:] = rng.integers(0, format.highest + 1, fields.codes.shape)
    return fields


def packed(format: Format, fields: Blocks) -> np.ndarray:
    blocks = np.full((len(fields.codes), format.n_bytes), 0xA5, np.uint8)
    pack(format, fields, blocks)
    return blocks


@settings(deadline=None)  # the first of each type compiles
@given(name=st.sampled_from(list(FORMATS)), count=st.integers(1, 40), seed=st.integers(0, 1000))
def test_fields_survive_packing(name: str, count: int, seed: int) -> None:
    format = FORMATS[name]
    fields = any_fields(format, count, np.random.default_rng(seed))
    found = format.unpack(packed(format, fields))
    assert (found.codes == fields.codes).all()
    assert found.scales.dtype == fields.scales.dtype
    assert found.scales.tobytes() == fields.scales.tobytes()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("effort", ["default", "best"])
def test_blocks_of_encoders_survive_unpacking(name: str, effort: str) -> None:
    format = FORMATS[name]
    for number, make in enumerate(DISTRIBUTIONS.values()):
        rng = np.random.default_rng([1, number])
        rows = make(rng, 5 * 1024).reshape(5, 1024)
        with np.errstate(all="ignore"):
            blocks = quantize(rows, name, importances(rng, 1024), effort=effort).reshape(-1, format.n_bytes)
        assert (packed(format, format.unpack(blocks)) == blocks).all()


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_has_the_sizes_of_its_type(name: str) -> None:
    type = parse_type(name)
    assert (FORMATS[name].size, FORMATS[name].n_bytes) == (type.block_size, type.block_bytes)


@pytest.mark.parametrize("name", FORMATS)
def test_a_scale_scales(name: str) -> None:
    """Twice the scale is twice the weight, and what a reader finds follows from the fields alone."""
    format = FORMATS[name]
    fields = any_fields(format, 50, np.random.default_rng(2))
    if fields.scales.dtype == np.float16:
        fields.scales[:] = np.random.default_rng(3).integers(1, 100, fields.scales.shape)
        doubled = fields._replace(scales=fields.scales * np.float16(2))
    else:
        one_power = 1 if name == "mxfp4" else 8
        fields.scales[:] = np.random.default_rng(3).integers(16, 100, fields.scales.shape)
        doubled = fields._replace(scales=fields.scales + np.uint8(one_power))
    weights = dequantize(packed(format, fields), name)
    assert (dequantize(packed(format, doubled), name) == 2 * weights).all()
    assert weights.any()
