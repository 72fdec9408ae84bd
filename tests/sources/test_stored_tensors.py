"""Reading rows of safetensors files: every float type, exactly, for any range of rows, in its own type."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ggplan.errors import CheckpointError
from ggplan.ggml_types import BF16, F16
from ggplan.sources.safetensors import StoredTensor, read_tensors


def stored(tmp_path: Path, dtype: str, codes: np.ndarray, shape: tuple[int, ...]) -> StoredTensor:
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"head" + codes.tobytes())
    return StoredTensor("t", dtype, shape, path, 4, codes.nbytes)


def test_every_bf16_is_widened_exactly(tmp_path: Path) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    source = stored(tmp_path, "BF16", codes, (256, 256)).rows()
    assert source.dtype == BF16
    assert np.array_equal(source.read(0, 256).ravel(), codes)
    rows = source.read_float32(0, 256)
    assert rows.dtype == np.float32
    assert np.array_equal(rows.ravel().view(np.uint32), codes.astype(np.uint32) * 65536)


def test_every_f16_is_widened_exactly(tmp_path: Path) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    source = stored(tmp_path, "F16", codes, (256, 256)).rows()
    assert source.dtype == F16
    assert np.array_equal(source.read(0, 256).ravel().view(np.uint16), codes)
    rows = source.read_float32(0, 256).ravel()
    fields = [(code >> 15, code >> 10 & 31, code & 1023) for code in range(1 << 16)]
    for value, (sign, exponent, mantissa) in zip(rows.tolist(), fields, strict=True):
        if exponent == 31:
            assert math.isnan(value) if mantissa else value == (-math.inf if sign else math.inf)
        else:
            size = math.ldexp(1024 + mantissa, exponent - 25) if exponent else math.ldexp(mantissa, -24)
            assert value == (-size if sign else size)


def test_every_e4m3_is_widened_exactly(tmp_path: Path) -> None:
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8)
    rows = stored(tmp_path, "F8_E4M3", codes, (254,)).read_floats(0, 254)
    for value, code in zip(rows.tolist(), codes.tolist(), strict=True):
        exponent, mantissa = code >> 3 & 15, code & 7
        size = math.ldexp(8 + mantissa, exponent - 10) if exponent else math.ldexp(mantissa, -9)
        assert value == (-size if code >> 7 else size)
        assert math.copysign(1, value) == (-1 if code >> 7 else 1)
    assert rows.max() == 448


@pytest.mark.oracle
def test_fp8_is_torchs(tmp_path: Path) -> None:
    import torch

    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8)
    theirs = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    rows = stored(tmp_path, "F8_E4M3", codes, (254,)).read_floats(0, 254)
    assert np.array_equal(rows.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_an_fp8_nan_is_nan(tmp_path: Path, code: int) -> None:
    codes = np.zeros((8, 16), np.uint8)
    codes[5, 3] = code
    rows = stored(tmp_path, "F8_E4M3", codes, (8, 16)).read_floats(0, 128).reshape(8, 16)
    assert np.argwhere(np.isnan(rows)).tolist() == [[5, 3]]


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), max_size=4).map(tuple),
    dtype=st.sampled_from([np.float32, np.float16]),
    data=st.data(),
)
def test_any_range_of_rows(
    shape, dtype, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights = np.arange(math.prod(shape), dtype=dtype).reshape(shape)
    path = tmp_path_factory.getbasetemp() / "rows.safetensors"
    save_file({"other": np.zeros(3, np.float16), "t": weights}, path)
    tensor = read_tensors(path)["t"].rows()
    matrix = weights.reshape(-1, shape[-1] if shape else 1)
    assert (tensor.n_rows, tensor.n_columns) == matrix.shape
    start = data.draw(st.integers(0, tensor.n_rows))
    stop = data.draw(st.integers(start, tensor.n_rows))
    rows = tensor.read(start, stop)
    assert rows.dtype == dtype
    assert rows.flags.c_contiguous
    assert np.array_equal(rows, matrix[start:stop])
    assert tensor.read_bytes(start, stop) == matrix[start:stop].tobytes()
    widened = tensor.read_float32(start, stop)
    assert widened.dtype == np.float32
    assert np.array_equal(widened, matrix[start:stop].astype(np.float32))


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 9), (3, 2)])
def test_rows_that_are_not_there(tmp_path: Path, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="of 8"):
        stored(tmp_path, "F32", np.zeros((8, 2), np.float32), (8, 2)).rows().read(start, stop)


@pytest.mark.parametrize("dtype", ["U8", "I64", "BOOL", "F6_E2M3", "F4"])
def test_other_types_are_listed_but_not_read(tmp_path: Path, dtype: str) -> None:
    tensor = stored(tmp_path, dtype, np.zeros(8, np.uint8), (1,))
    with pytest.raises(CheckpointError, match=f"tensor 't' is {dtype}; ggplan reads BF16, F16, F32, F8_E4M3"):
        tensor.read_floats(0, 1)
    assert tensor.rows() is None


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    tensor = stored(tmp_path, "F32", np.zeros((8, 2), np.float32), (8, 2))
    rows = tensor.rows()
    rows.read(6, 8)
    with tensor.file.open("r+b") as file:
        file.truncate(60)
    rows.read(0, 6)
    with pytest.raises(CheckpointError, match=r"t\.safetensors shrank or is truncated"):
        rows.read(6, 8)


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    weights = np.random.default_rng(0).standard_normal((512, 64), np.float32)
    tensor = stored(tmp_path, "F32", weights, weights.shape).rows()
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: tensor.read(start, start + 8), range(0, 512, 8)))
    assert np.array_equal(np.concatenate(parts), weights)
