"""The values an imatrix holds for one weight, and for a model.

The imatrix of a large model has a gigabyte, but only one weight's entry is used at a time. So an entry is
read from the file when it is looked up, and is not kept in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ggplan.errors import ImatrixError
from ggplan.sources.files import read_array, shown


@dataclass(frozen=True, slots=True)
class ImatrixEntry:
    """The importance of one weight's columns.

    Attributes
    ----------
    name
        The weight's GGUF name.
    values
        (n_matrices, n_columns) float32, the mean square of each column's input as llama-quantize computes
        it; all ones for a matrix that saw no token. Some files do not separate the matrices of a stacked
        weight: their values then are one long row, which `for_tensor` cuts.
    counts
        (n_matrices,) int64: the tokens each matrix saw; of a legacy file, one number of batches for all.
    """

    name: str
    values: NDArray[np.float32]
    counts: NDArray[np.int64]

    @property
    def matrices_without_data(self) -> tuple[int, ...]:
        """The matrices (experts) that saw no token, by number."""
        return tuple(int(number) for number in np.flatnonzero(self.counts <= 0))

    def for_tensor(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The values for a tensor of `shape`, rows first: one row of columns for each of its slices.

        Returns
        -------
        (n_slices, n_columns) float32

        Raises
        ------
        ImatrixError
            If the entry does not hold exactly one value for each column of each slice (ggml's
            ne0 * ne2, llama.cpp b11434 `src/llama-quant.cpp`).
        """
        n_slices, n_columns = math.prod(shape[:-2]), shape[-1]
        if self.values.size != n_slices * n_columns:
            raise ImatrixError(
                f"the imatrix has {self.values.size:,} values for '{shown(self.name)}', "
                f"which needs {n_slices} x {n_columns:,}",
                hint="use an imatrix made from this very model",
            )
        return self.values.reshape(n_slices, n_columns)


@dataclass(frozen=True, slots=True)
class Imatrix:
    """An importance matrix file.

    Attributes
    ----------
    path
        The file.
    datasets
        The texts it was measured on, as the file names them.
    chunk_count
        How many chunks of text were run; 0 if the file does not say.
    entries
        By the weight's name. A look-up reads the file: look up once for each tensor.
    n_measured
        How many entries the file has, where `entries` are those of a reshaped model; else 0.
    """

    path: Path
    datasets: tuple[str, ...]
    chunk_count: int
    entries: Mapping[str, ImatrixEntry]
    n_measured: int = 0


_Value = TypeVar("_Value")


class ReadOnDemand(Mapping[str, _Value]):
    """The entries of a file: names in memory, values read at each look-up."""

    def __init__(self, readers: Mapping[str, Callable[[], _Value]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> _Value:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, name: object) -> bool:
        return name in self._readers


def read_floats(path: Path, offset: int, count: int) -> NDArray[np.float32]:
    """`count` float32 values of a file, from byte `offset` on."""
    return read_array(path, offset, 4 * count).view("<f4")


def checked_entry(
    path: Path, name: str, values: NDArray[np.float32], counts: NDArray[np.int64]
) -> ImatrixEntry:
    """An entry, once all its values are finite and none is negative, which no mean of squares can be."""
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= 0) & (values < np.inf))
    if wrong.any():
        first = int(wrong.argmax())
        raise ImatrixError(
            f"{shown(path)}: {np.count_nonzero(wrong):,} of {values.size:,} values of '{shown(name)}' are "
            f"negative or not finite, the first {values.flat[first]} at index {first:,}",
            hint="make the imatrix again, with a model that does not overflow (bf16 instead of f16)",
        )
    return ImatrixEntry(name, values, counts)
