"""What a text added up for a weight: sums of squares and counts, the raw form of an imatrix entry.

Sums can be added over texts and files, means cannot. An entry (`ImatrixEntry`) is the quotient of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEFAULT_CHUNK = 512
"""Tokens of a chunk where a file does not say: llama-imatrix's own context."""


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of one weight.

    Attributes
    ----------
    squares
        (n_matrices, n_columns) float32 or float64: for each column, the sum of the squares of its inputs. A
        stacked weight that is not used as experts has all its matrices in one row.
    counts
        (n_matrices,) int64: the tokens that were added up.
    """

    squares: NDArray[np.floating]
    counts: NDArray[np.int64]

    def means(self) -> NDArray[np.float32]:
        """The mean squares as llama-quantize computes them; ones for a matrix that saw no token.

        One float32 division by the count as float32 (llama.cpp b11434, `tools/quantize/quantize.cpp`).
        """
        values = self.squares.astype(np.float32)
        measured = self.counts > 0
        with np.errstate(invalid="ignore"):
            values[measured] /= self.counts[measured].astype(np.float32)[:, None]
        values[~measured] = 1
        return values


@dataclass(frozen=True, slots=True)
class ImatrixSums:
    """The sums of all weights of a model, as an imatrix file keeps them.

    Attributes
    ----------
    datasets
        The texts, by the names that the file has.
    chunk_size
        Tokens of a chunk.
    entries
        By the weight's name. A look-up may read a file.
    unseen
        The policy for experts without data, if one was applied, and for each weight that has such experts
        `NAME: 3, 17`, by their numbers (see `ggplan.imatrix.merging`). Each counts as one token.
    left_out
        What the file holds besides, which is not taken over: statistics for display.
    """

    datasets: tuple[str, ...]
    chunk_size: int
    entries: Mapping[str, Sums]
    unseen: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The weights' names in the order of a file, which is that of their bytes."""
        return sorted(self.entries, key=lambda name: name.encode("utf-8", "surrogatepass"))

    @property
    def chunk_count(self) -> int:
        """Chunks that were run, as llama-imatrix finds it: by the matrix that saw most tokens."""
        most = max((int(self.entries[name].counts.max(initial=0)) for name in self.entries), default=0)
        return most // self.chunk_size
