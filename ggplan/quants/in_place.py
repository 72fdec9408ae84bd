"""Large matrices: memory of their own, and moving what is in them without a second matrix.

All are float32 and contiguous.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray

F32Array = NDArray[np.float32]

_ROWS = 256  # that are moved at a time
_PIECE = 1 << 16  # numbers that are
_OWN_PAGES = 1 << 20  # bytes from which a matrix has memory of its own


def new_matrix(m: int, n: int) -> F32Array:
    """Zeros (m, n). Where they are many, the system gets their memory back as soon as nothing refers to it.

    The C library keeps what was freed for later, in each thread apart: with a few matrices of 16 MiB a thread
    that is as much again as is used.
    """
    n_bytes = 4 * m * n
    if n_bytes < _OWN_PAGES:
        return np.zeros((m, n), np.float32)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    try:
        memory = mmap.mmap(-1, n_bytes, **private)
    except OSError as error:
        raise MemoryError(f"no memory for a matrix of {n_bytes:,} bytes") from error
    return np.frombuffer(memory, np.float32).reshape(m, n)


def reversed_copy(h: F32Array) -> F32Array:
    """A copy of a matrix, rows and columns from the last to the first."""
    found = new_matrix(*h.shape)
    found[:] = h[::-1, ::-1]
    return found


def reverse(matrix: F32Array) -> None:
    """Put rows and columns of a contiguous matrix from the last to the first."""
    flat = matrix.reshape(-1)
    size = len(flat)
    for first in range(0, size // 2, _PIECE):
        end = min(first + _PIECE, size // 2)
        kept = flat[first:end].copy()
        flat[first:end] = flat[size - end : size - first][::-1]
        flat[size - end : size - first] = kept[::-1]


def reverse_columns(matrix: F32Array) -> None:
    """Put the columns of a matrix from the last to the first."""
    for first in range(0, len(matrix), _ROWS):
        matrix[first : first + _ROWS] = matrix[first : first + _ROWS, ::-1].copy()


def turn(matrix: F32Array) -> None:
    """Transpose a square matrix in its place."""
    for first in range(0, len(matrix), _ROWS):
        end = first + _ROWS
        square = matrix[first:end, first:end]
        square[:] = square.T.copy()
        above = matrix[first:end, end:].copy()
        matrix[first:end, end:] = matrix[end:, first:end].T
        matrix[end:, first:end] = above.T


def reorder(h: F32Array, order: NDArray[np.int64]) -> None:
    """Put rows and columns of a symmetric matrix (n, n) in another order."""
    for _ in range(2):
        for first in range(0, len(h), _ROWS):
            h[first : first + _ROWS] = h[first : first + _ROWS, order]
        turn(h)


def mirror(matrix: F32Array) -> None:
    """Copy what is below the diagonal to above it."""
    n = len(matrix)
    for first in range(0, n, _ROWS):
        end = min(first + _ROWS, n)
        block = matrix[first:end, first:end]
        block[:] = np.tril(block) + np.tril(block, -1).T
        matrix[first:end, end:] = matrix[end:, first:end].T
