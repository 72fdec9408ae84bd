"""A hash of rows of weights that costs a fifteenth of what encoding them to q4_K does.

SHA-256 takes two nanoseconds a weight, a third of what the encoders take. So the rows are first made 128
times smaller by the universal hash NH of UMAC (Black, Halevi, Krawczyk, Krovetz and Rogaway, CRYPTO 1999;
RFC 4418), and SHA-256 sees what is left. A strip of up to 1024 weights, taken as pairs of the 32-bit words
(u, v) that they are, becomes four words of 64 bits, p = 0 to 3:

    h[p] = sum over i of ((u[i] + a[i + p]) mod 2^32) * ((v[i] + b[i + p]) mod 2^32)   mod 2^64

A row of odd length ends in a zero. a and b are 512 + 3 random words each. Two strips that differ have the
same four sums for one in 2^128 of all keys. The key is not secret, so this tells weights apart that differ
by chance, by training or by damage; it is no signature, and who wants two tensors with the same hash can
make them.

A row's hash depends on that row alone; so rows can be hashed in any portions.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import kernel

_STRIP, _PASSES = 1024, 4
_KEY_WORDS = _STRIP // 2 + _PASSES - 1


def row_hash_bytes(n_columns: int) -> int:
    """Bytes of the hash of a row."""
    return -(-n_columns // _STRIP) * _PASSES * 8


def hash_rows(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The hash of each row, NaNs by their bits: (n, n_columns) float32 to (n, row_hash_bytes) uint8."""
    n_rows, n_columns = rows.shape
    sums = np.empty((n_rows, row_hash_bytes(n_columns) // 8), np.uint64)
    if sums.size:
        even = rows if n_columns % 2 == 0 else np.pad(rows, ((0, 0), (0, 1)))
        _nh(np.ascontiguousarray(even, "<f4").view("<u8"), *_key(), sums)
    return sums.view(np.uint8)


@functools.cache
def _key() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The two halves of the key: arbitrary words of 32 bits that never change."""
    stream = hashlib.shake_256(b"ggplan: the key of hash_rows").digest(2 * _KEY_WORDS * 4)
    words = np.frombuffer(stream, "<u4").astype(np.uint64)
    return words[:_KEY_WORDS].copy(), words[_KEY_WORDS:].copy()


@kernel
def _nh(
    pairs: NDArray[np.uint64], a: NDArray[np.uint64], b: NDArray[np.uint64], sums: NDArray[np.uint64]
) -> None:
    """Fill `sums`, (n, 4 * strips), with the hashes of rows of pairs, u in the lower half of each."""
    # The masks cost nothing: the processor multiplies the lower halves of its lanes.
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    n_rows, n_pairs = pairs.shape
    for row in range(n_rows):
        for strip in range((n_pairs + 511) // 512):
            part = pairs[row, strip * 512 : min(strip * 512 + 512, n_pairs)]
            h0 = h1 = h2 = h3 = np.uint64(0)
            for i in range(part.size):
                u = part[i]
                v = u >> shift
                h0 += ((u + a[i]) & low) * ((v + b[i]) & low)
                h1 += ((u + a[i + 1]) & low) * ((v + b[i + 1]) & low)
                h2 += ((u + a[i + 2]) & low) * ((v + b[i + 2]) & low)
                h3 += ((u + a[i + 3]) & low) * ((v + b[i + 3]) & low)
            sums[row, 4 * strip] = h0
            sums[row, 4 * strip + 1] = h1
            sums[row, 4 * strip + 2] = h2
            sums[row, 4 * strip + 3] = h3
