"""fp8 weights and their scales: the float32 that llama.cpp's converter computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from handmade_safetensors import bf16, fp8, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.errors import CheckpointError
from ggplan.model import RowSource
from ggplan.sources.safetensors import read_tensors
from ggplan.sources.schemes import QuantizationConfig, join_tensors

CODES = np.array([code for code in range(256) if code & 127 != 127], np.uint8)


def opened(path: Path, block: tuple[int, int] | None, **tensors: object) -> dict[str, RowSource]:
    """The rows of each tensor, with the block that a config would state."""
    write_safetensors(path, tensors)
    config = {"quant_method": "fp8", "weight_block_size": None if block is None else list(block)}
    joined = join_tensors(read_tensors(path), QuantizationConfig(Path("folder"), config))
    return {name: tensor.rows for name, tensor in joined.items()}


def plain(path: Path, codes: np.ndarray) -> np.ndarray:
    """The weights without scales."""
    write_safetensors(path, {"w": fp8(codes)})
    tensor = read_tensors(path)["w"]
    return tensor.read_floats(0, tensor.n_weights).reshape(codes.shape)


def repeated(scales: np.ndarray, block: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """The scales as a matrix like the weights, blocks cut where the weights end."""
    wide = scales.repeat(block[0], axis=-2).repeat(block[1], axis=-1)
    return wide[..., : shape[-2], : shape[-1]]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    stacked=st.booleans(),
    block=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_blocks(
    shape: tuple[int, ...],
    stacked: bool,
    block: tuple[int, int],
    seed: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shape = shape if stacked else shape[1:]
    rng = np.random.default_rng(seed)
    codes = rng.choice(CODES, shape)
    scales = rng.standard_normal(
        (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1])), np.float32
    )
    path = tmp_path_factory.getbasetemp() / "blocks.safetensors"
    expected = (plain(path, codes) * repeated(scales, block, shape)).reshape(-1, shape[-1])
    tensor = opened(path, block, w=fp8(codes), w_scale_inv=scales)["w"]
    start = data.draw(st.integers(0, tensor.n_rows))
    stop = data.draw(st.integers(start, tensor.n_rows))
    assert np.array_equal(tensor.read(start, stop).view(np.uint32), expected[start:stop].view(np.uint32))


@pytest.mark.parametrize(
    ("weights", "scales"),
    [
        ((6, 4), ()),
        ((6, 4), (1,)),
        ((6, 4), (1, 1)),
        ((6, 4), (6,)),
        ((6, 4), (6, 1)),
        ((2, 3, 4), ()),
        ((2, 3, 4), (2,)),
        ((2, 3, 4), (2, 1, 1)),
        ((2, 3, 4), (2, 3)),
        ((2, 3, 4), (2, 3, 1)),
        ((1, 4), (1,)),
        ((4,), ()),
        ((4,), (1,)),
    ],
)
@pytest.mark.parametrize("block", [None, (128, 128)])
@pytest.mark.parametrize("suffix", ["_scale", "_scale_inv"])
def test_other_scales(
    weights: tuple[int, ...],
    scales: tuple[int, ...],
    block: tuple[int, int] | None,
    suffix: str,
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(1)
    codes = rng.choice(CODES, weights)
    factors = rng.standard_normal(scales).astype(np.float32)
    path = tmp_path / "t.safetensors"
    aligned = factors.reshape(factors.shape + (1,) * (len(weights) - factors.ndim))
    expected = (plain(path, codes) * aligned).reshape(-1, weights[-1])
    tensor = opened(path, block, **{"w": fp8(codes), "w" + suffix: factors})["w"]
    assert np.array_equal(tensor.read(0, tensor.n_rows), expected)
    assert np.array_equal(tensor.read(tensor.n_rows - 1, tensor.n_rows), expected[-1:])


@pytest.mark.oracle
def test_the_product_is_torchs(tmp_path: Path) -> None:
    import torch

    rng = np.random.default_rng(2)
    codes = rng.choice(CODES, (300, 400))
    scales = rng.standard_normal((3, 4)).astype(np.float32) * np.float32(1e-3)
    wide = torch.from_numpy(scales).repeat_interleave(128, 0).repeat_interleave(128, 1)[:300, :400]
    theirs = (torch.from_numpy(codes).view(torch.float8_e4m3fn).float() * wide).numpy()
    tensor = opened(tmp_path / "t.safetensors", (128, 128), w=fp8(codes), w_scale_inv=scales)["w"]
    rows = np.concatenate([tensor.read(start, min(start + 77, 300)) for start in range(0, 300, 77)])
    assert np.array_equal(rows.view(np.uint32), theirs.view(np.uint32))


def test_scales_of_bf16(tmp_path: Path) -> None:
    ones = np.full((2, 4), 0x38)
    tensor = opened(tmp_path / "t.safetensors", None, w=fp8(ones), w_scale=bf16(np.array([0.5, 3])))["w"]
    assert tensor.read(0, 2).tolist() == [[0.5] * 4, [3] * 4]


ONES = np.full((4, 4), 0x38)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"w": fp8(ONES)}, "the F8_E4M3 tensor 'w' has no scales"),
        (
            {"w": fp8(ONES), "w_scale": np.ones(4, "f4"), "w_scale_inv": np.ones(4, "f4")},
            "two sets of scales",
        ),
        (
            {"w": fp8(ONES), "w_scale_inv": np.ones((3, 2), "f4")},
            r"shape \[3, 2\] do not fit weights of shape \[4, 4\]",
        ),
        ({"w": fp8(ONES), "w_scale_inv": np.ones((2, 2, 1), "f4")}, "do not fit"),
        ({"w": fp8(ONES), "w_scale_inv": np.ones(0, "f4")}, "do not fit"),
        ({"w": fp8(ONES), "w_scale_inv": np.ones((2, 2), "i8")}, "the scales 'w_scale_inv' are I64"),
        ({"w": bf16(ONES), "w_scale_inv": np.ones((2, 2), "f4")}, "'w_scale_inv' have no F8_E4M3 tensor"),
        ({"v_scale_inv": np.ones((2, 2), "f4")}, "'v_scale_inv' have no F8_E4M3 tensor"),
    ],
)
def test_scales_that_do_not_fit(tmp_path: Path, tensors: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path / "t.safetensors", (2, 2), **tensors)


@pytest.mark.parametrize(("bad", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (0, "0.0"), (-2, "-2.0")])
def test_a_scale_that_is_none(tmp_path: Path, bad: float, shown: str) -> None:
    scales = np.array([[1, 1], [1, bad]], np.float32)
    tensor = opened(tmp_path / "t.safetensors", (2, 2), w=fp8(ONES), w_scale_inv=scales)["w"]
    said = f"'w_scale_inv' has 1 scale that is not finite and positive, the first {shown} at index 3"
    assert said in tensor.fault()
    assert np.array_equal(tensor.read(2, 3)[0], np.array([1, 1, bad, bad], "f4"), equal_nan=True)
    sound = opened(tmp_path / "s.safetensors", (2, 2), w=fp8(ONES), w_scale_inv=np.ones((2, 2), "f4"))["w"]
    assert sound.fault() == ""


def test_a_product_beyond_float32_is_infinite(tmp_path: Path) -> None:
    tensor = opened(
        tmp_path / "t.safetensors", None, w=fp8(np.full((1, 2), 0x7E)), w_scale=np.full(1, 1e38, "f4")
    )["w"]
    assert np.isinf(tensor.read(0, 1)).all()


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 5), (3, 2)])
def test_rows_that_are_not_there(tmp_path: Path, start: int, stop: int) -> None:
    tensor = opened(tmp_path / "t.safetensors", (2, 2), w=fp8(ONES), w_scale_inv=np.ones((2, 2), "f4"))["w"]
    with pytest.raises(ValueError, match="of 4"):
        tensor.read(start, stop)


def test_a_layer_scale_is_no_fp8_scale(tmp_path: Path) -> None:
    tensors = opened(tmp_path / "t.safetensors", None, w=np.ones(4, "f4"), w_scale=np.ones(4, "f4"))
    assert list(tensors) == ["w", "w_scale"]
