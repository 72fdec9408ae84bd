"""Transforms: any range of rows equals that range of the whole tensor reshaped, and little else is read."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan import parse_type, quantize
from ggplan.arch.transforms import (
    constant,
    decay,
    every,
    halves_first,
    permuted,
    plain,
    rearranged,
    rearranged_columns,
    reshaped,
    shifted,
    sliced,
    stacked,
    tiled,
    transposed_slices,
)
from ggplan.ggml_types import BF16, F16, F32
from ggplan.model import RowSource

ARRAYS = {F32: np.float32, F16: np.float16, BF16: np.uint16}


@dataclass
class Stored:
    """A tensor in memory that notes how many rows are asked for."""

    values: np.ndarray
    rows_read: int = 0
    trouble: str = ""

    @property
    def source(self) -> RowSource:
        dtype = next(type_ for type_, array in ARRAYS.items() if array == self.values.dtype)
        return RowSource(dtype, self.values.shape, self.read, lambda: self.trouble)

    def read(self, start: int, stop: int) -> np.ndarray:
        rows = self.values.reshape(-1, self.values.shape[-1])
        assert 0 <= start <= stop <= len(rows)
        self.rows_read += stop - start
        return rows[start:stop]


def new_numbered(*shape: int, dtype: type = np.float32) -> Stored:
    return Stored(np.arange(np.prod(shape), dtype=dtype).reshape(shape))


def permuted_whole(values: np.ndarray, n_heads: int) -> np.ndarray:
    """Llama's permutation as llama.cpp's converter states it, on the whole tensor."""
    halves = values.reshape(n_heads, 2, values.shape[0] // n_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def halves_first_whole(values: np.ndarray, group: int, length: int) -> np.ndarray:
    """Rows of each group as llama.cpp's converter orders them for M-RoPE, on the whole tensor."""
    heads = values.reshape(-1, group, *values.shape[1:])
    order = [*range(0, length, 2), *range(1, length, 2), *range(length, group)]
    return heads[:, order].reshape(values.shape)


def tiled_whole(values: np.ndarray, first: int, n_groups: int, n_each: int) -> np.ndarray:
    """Heads in groups as llama.cpp's converter orders them for linear attention, after the `first` rows."""
    heads = values[first:].reshape(n_groups, n_each, -1, *values.shape[1:])
    return np.concatenate([values[:first], heads.swapaxes(0, 1).reshape(-1, *values.shape[1:])])


@st.composite
def readers(draw: st.DrawFn):
    """Rows, the whole tensor, what they are read from, and how many rows more than asked for may be read."""
    kind = draw(
        st.sampled_from(
            ["plain", "stacked", "permuted", "halves_first", "every", "sliced", "k_b", "tiled", "reshaped"]
        )
    )
    heads, half, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    numbered = partial(new_numbered, dtype=draw(st.sampled_from(list(ARRAYS.values()))))
    if kind == "plain":
        tensor = numbered(heads, half, columns)
        return plain(tensor.source), tensor.values, [tensor], 0
    if kind == "stacked":
        tensors = [numbered(half, columns) for _ in range(heads)]
        for k, tensor in enumerate(tensors):
            tensor.values += 1000 * k
        return stacked([t.source for t in tensors]), np.stack([t.values for t in tensors]), tensors, 0
    if kind == "permuted":
        tensor = numbered(2 * heads * half, columns)
        return permuted(tensor.source, heads), permuted_whole(tensor.values, heads), [tensor], 0
    if kind == "halves_first":
        rest = draw(st.integers(0, 3))
        tensor = numbered(heads * (2 * half + rest), columns)
        whole = halves_first_whole(tensor.values, 2 * half + rest, 2 * half)
        return halves_first(tensor.source, 2 * half + rest, 2 * half), whole, [tensor], 2 * heads * (half + 1)
    if kind == "every":
        step = draw(st.integers(1, 3))
        offset = draw(st.integers(0, step - 1))
        tensor = numbered(heads, step * half, columns)
        return every(tensor.source, step, offset), tensor.values[:, offset::step], [tensor], 3 * heads * half
    if kind == "tiled":
        first, length = draw(st.integers(0, 3)), draw(st.integers(1, 3))
        tensor = numbered(first + heads * half * length, columns)
        runs = [(0, first), *tiled(first, heads, half, length)]
        return rearranged(tensor.source, runs), tiled_whole(tensor.values, first, heads, half), [tensor], 0
    if kind == "reshaped":
        tensor = numbered(heads, 1, half * columns)
        shape = draw(
            st.sampled_from([(heads, half * columns), (heads * half, columns), (1, heads, half, columns)])
        )
        return reshaped(tensor.source, shape), tensor.values.reshape(shape), [tensor], 1
    n_k, n_v = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    tensor = numbered(heads * (n_k + n_v), columns)
    groups = tensor.values.reshape(heads, n_k + n_v, columns)
    if kind == "sliced":
        return sliced(tensor.source, n_k + n_v, n_k, n_v), groups[:, n_k:], [tensor], 0
    transposed = groups[:, :n_k].swapaxes(1, 2)
    return transposed_slices(tensor.source, n_k + n_v, n_k), transposed, [tensor], heads * n_k


@given(readers(), st.data())
def test_any_range_of_rows_is_that_range_of_the_whole(reader, data: st.DataObject) -> None:
    source, whole, tensors, surplus = reader
    assert source.shape == whole.shape
    assert ARRAYS[source.dtype] == whole.dtype
    matrix = whole.reshape(-1, whole.shape[-1])
    start = data.draw(st.integers(0, len(matrix)))
    stop = data.draw(st.integers(start, len(matrix)))
    rows = source.read(start, stop)
    assert rows.dtype == whole.dtype
    np.testing.assert_array_equal(rows, matrix[start:stop])
    assert sum(tensor.rows_read for tensor in tensors) <= stop - start + surplus


@given(readers())
def test_a_fault_of_any_part_is_a_fault_of_the_whole(reader) -> None:
    source, _, tensors, _ = reader
    assert source.fault() == ""
    tensors[-1].trouble = "a scale is wrong"
    assert source.fault() == "a scale is wrong"


@pytest.mark.parametrize(("n_heads", "half"), [(1, 1), (3, 4), (8, 2)])
def test_a_bias_is_permuted_by_columns(n_heads: int, half: int) -> None:
    bias = new_numbered(2 * n_heads * half)
    source = permuted(bias.source, n_heads)
    assert source.shape == bias.values.shape
    np.testing.assert_array_equal(source.read(0, 1), permuted_whole(bias.values, n_heads)[None])
    assert source.read(1, 1).shape == (0, source.n_columns)


@pytest.mark.parametrize(("group", "length"), [(2, 2), (7, 4), (16, 8)])
def test_a_bias_has_its_halves_first_by_columns(group: int, length: int) -> None:
    bias = new_numbered(3 * group)
    source = halves_first(bias.source, group, length)
    assert source.shape == bias.values.shape
    np.testing.assert_array_equal(source.read(0, 1), halves_first_whole(bias.values, group, length)[None])
    assert source.read(1, 1).shape == (0, source.n_columns)


def test_heads_of_a_vector_and_of_columns_are_tiled_too() -> None:
    vector = new_numbered(6)
    source = rearranged(vector.source, tiled(0, 3, 2, 1))
    assert source.shape == (6,)
    np.testing.assert_array_equal(source.read(0, 1), np.float32([[0, 2, 4, 1, 3, 5]]))
    matrix = new_numbered(3, 13, dtype=np.uint16)
    source = rearranged_columns(matrix.source, [(0, 1), *tiled(1, 3, 2, 2)])
    assert (source.dtype, source.shape) == (BF16, (3, 13))
    np.testing.assert_array_equal(source.read(1, 3), tiled_whole(matrix.values.T, 1, 3, 2).T[1:])


def test_some_rows_may_be_left_out() -> None:
    matrix = new_numbered(8, 2)
    source = rearranged(matrix.source, [(6, 2), (1, 3)])
    np.testing.assert_array_equal(source.read(0, 5), matrix.values[[6, 7, 1, 2, 3]])
    np.testing.assert_array_equal(source.read(1, 3), matrix.values[[7, 1]])
    assert matrix.rows_read == 7


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_decay_is_minus_the_exponential_rounded_once(dtype: type) -> None:
    values = np.linspace(-9, 9, 61).reshape(1, 61).astype(dtype)
    source = decay(Stored(values).source)
    assert (source.dtype, source.shape) == (F32, (1, 61))
    wanted = (-np.exp(values.astype(np.float64))).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(source.read(0, 1), wanted)


def test_a_decay_beyond_float32_is_infinite_without_a_warning() -> None:
    source = decay(Stored(np.float32([[100.0, -200.0]])).source)
    np.testing.assert_array_equal(source.read(0, 1), np.float32([[-np.inf, -0.0]]))


def test_what_is_added_to_weights_in_f16_is_added_in_f16() -> None:
    source = shifted(Stored(np.float16([[0.1, 2000.5]])).source, 1.0)
    np.testing.assert_array_equal(source.read(0, 1), np.float32(np.float16([[0.1, 2000.5]]) + np.float16(1)))


def test_experts_of_several_types_are_stacked_as_float32() -> None:
    tensors = [new_numbered(2, 3, dtype=np.float16), new_numbered(2, 3)]
    source = stacked([tensor.source for tensor in tensors])
    assert (source.dtype, source.shape) == (F32, (2, 2, 3))
    np.testing.assert_array_equal(source.read(1, 4), np.float32([[3, 4, 5], [0, 1, 2], [3, 4, 5]]))


def test_blocks_are_moved_by_rows_and_decoded_where_rows_are_taken_apart() -> None:
    values = np.random.default_rng(0).standard_normal((8, 64), np.float32)
    blocks = quantize(values, "q8_0")
    source = RowSource(parse_type("q8_0"), (8, 64), lambda start, stop: blocks[start:stop])
    order = permuted_whole(np.arange(8), 2)
    for moved, wanted in (
        (permuted(source, 2), blocks[order]),
        (sliced(source, 4, 1, 2), blocks[[1, 2, 5, 6]]),
        (halves_first(source, 4, 4), blocks[[0, 2, 1, 3, 4, 6, 5, 7]]),
        (every(source, 2, 1), blocks[1::2]),
        (rearranged(source, tiled(2, 3, 2, 1)), blocks[[2, 4, 6, 3, 5, 7]]),
        (reshaped(source, (2, 4, 64)), blocks),
        (stacked([source, source]), np.concatenate([blocks, blocks])),
    ):
        assert moved.dtype == source.dtype
        np.testing.assert_array_equal(moved.read(0, moved.n_rows), wanted)
    weights = source.read_float32(0, 8)
    transposed = transposed_slices(source, 4, 2)
    assert transposed.dtype == F32
    wanted = np.concatenate([weights[:2].T, weights[4:6].T])
    np.testing.assert_array_equal(transposed.read(0, transposed.n_rows), wanted)


def test_computed_values_are_one_row() -> None:
    np.testing.assert_array_equal(constant([1.0, 0.1]).read(0, 1), np.float32([[1.0, 0.1]]))
