"""Row readers: any range of rows equals that range of the whole tensor reshaped, and little else is read."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan.arch.transforms import constant, permuted, plain, sliced, stacked, transposed_slices


@dataclass
class Stored:
    """A tensor in memory that notes which rows are asked for."""

    values: np.ndarray
    rows_read: int = 0
    name: str = "tensor"
    dtype: str = "F32"
    file: Path = field(default_factory=Path)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def n_columns(self) -> int:
        return self.values.shape[-1]

    @property
    def n_rows(self) -> int:
        return self.values.size // self.n_columns

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.n_rows
        self.rows_read += stop - start
        return self.values.reshape(-1, self.n_columns)[start:stop]


def new_numbered(*shape: int, dtype: type = np.float32) -> Stored:
    return Stored(np.arange(np.prod(shape), dtype=dtype).reshape(shape))


def permuted_whole(values: np.ndarray, n_heads: int) -> np.ndarray:
    """Llama's permutation as llama.cpp's converter states it, on the whole tensor."""
    halves = values.reshape(n_heads, 2, values.shape[0] // n_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


@st.composite
def readers(draw: st.DrawFn):
    """A reader, all its rows, the tensors it reads, and how many rows it may read beyond those asked for."""
    kind = draw(st.sampled_from(["plain", "stacked", "permuted", "sliced", "k_b"]))
    heads, half, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    numbered = partial(new_numbered, dtype=draw(st.sampled_from([np.float32, np.uint16])))
    if kind == "plain":
        tensor = numbered(heads, half, columns)
        return plain(tensor), tensor.values.reshape(-1, columns), [tensor], 0
    if kind == "stacked":
        tensors = [numbered(half, columns) for _ in range(heads)]
        for k, tensor in enumerate(tensors):
            tensor.values += 1000 * k
        return stacked(tensors), np.concatenate([t.values for t in tensors]), tensors, 0
    if kind == "permuted":
        tensor = numbered(2 * heads * half, columns)
        return permuted(tensor, heads), permuted_whole(tensor.values, heads), [tensor], 0
    n_k, n_v = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    tensor = numbered(heads * (n_k + n_v), columns)
    groups = tensor.values.reshape(heads, n_k + n_v, columns)
    if kind == "sliced":
        return sliced(tensor, n_k + n_v, n_k, n_v), groups[:, n_k:].reshape(-1, columns), [tensor], 0
    transposed = groups[:, :n_k].swapaxes(1, 2).reshape(-1, n_k)
    return transposed_slices(tensor, n_k + n_v, n_k), transposed, [tensor], heads * n_k


@given(readers(), st.data())
def test_any_range_of_rows_is_that_range_of_the_whole(reader, data: st.DataObject) -> None:
    read, whole, tensors, surplus = reader
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    rows = read(start, stop)
    assert rows.dtype == whole.dtype
    np.testing.assert_array_equal(rows, whole[start:stop])
    assert sum(tensor.rows_read for tensor in tensors) <= stop - start + surplus


@pytest.mark.parametrize(("n_heads", "half"), [(1, 1), (3, 4), (8, 2)])
def test_a_bias_is_permuted_by_columns(n_heads: int, half: int) -> None:
    bias = new_numbered(2 * n_heads * half)
    read = permuted(bias, n_heads)
    np.testing.assert_array_equal(read(0, 1), permuted_whole(bias.values, n_heads)[None])
    assert read(1, 1).shape == (0, bias.n_columns)


def test_computed_values_are_one_row() -> None:
    np.testing.assert_array_equal(constant([1.0, 0.1])(0, 1), np.float32([[1.0, 0.1]]))
