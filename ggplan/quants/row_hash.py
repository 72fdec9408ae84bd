"""A hash of rows of weights that costs a fortieth of what encoding them to q4_K does.

SHA-256 takes two nanoseconds a weight, a third of what the encoders take. So the rows are first made 256
times smaller by the universal hash NH of UMAC (Black, Halevi, Krawczyk, Krovetz and Rogaway, CRYPTO 1999;
RFC 4418), and SHA-256 sees what is left. A strip of up to 1024 weights, taken as pairs of the 32-bit words
(u, v) that they are, becomes two words of 64 bits, p = 0 and 1:

    h[p] = sum over i of ((u[i] + a[i + 8 p]) mod 2^32) * ((v[i] + b[i + 8 p]) mod 2^32)   mod 2^64

The last strip of a row ends in zeros up to a multiple of 16 weights. a and b are 512 + 8 random words each,
one after the other. Two strips that differ have the same two sums for one in 2^64 of all keys. The key is not
secret, so this tells weights apart that differ by chance, by training or by damage; it is not a signature:
two tensors with the same hash can be made on purpose.

A row's hash depends on that row alone; so rows can be hashed in any portions.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.codecs import Rows
from ggplan.quants.kernels import I64, F32s, I32s, U64s, Weights, kernel
from ggplan.quants.memory import load, load_weights
from ggplan.quants.vector import (
    bits_of,
    float_of_bits,
    lane_sum,
    largest_lane,
    maximum,
    minimum,
    pair_products,
    splat,
)

_STRIP, _PASSES = 1024, 2
_LANES = 16
_KEY_WORDS = _STRIP + (_PASSES - 1) * _LANES
_INFINITY = 0x7F800000


def row_hash_bytes(n_columns: int) -> int:
    """Bytes of the hash of a row."""
    return -(-n_columns // _STRIP) * _PASSES * 8


def hash_rows(rows: Rows) -> tuple[NDArray[np.uint8], float]:
    """The hash of each row, and the largest magnitude of a weight.

    Parameters
    ----------
    rows
        (n, n_columns); hashed as the bits of float32, of a NaN too.

    Returns
    -------
    The hashes (n, row_hash_bytes) uint8, and the magnitude; infinity where a weight is NaN or infinite.
    """
    n_rows, n_columns = rows.shape
    sums = np.empty((n_rows, row_hash_bytes(n_columns) // 8), np.uint64)
    largest = np.zeros(1, np.float32)
    if sums.size:
        whole = rows if n_columns % _LANES == 0 else np.pad(rows, ((0, 0), (0, -n_columns % _LANES)))
        words = np.ascontiguousarray(whole)
        _nh(words, *words.shape, _key(), sums, largest)
    return sums.view(np.uint8), float(largest[0])


@functools.cache
def _key() -> NDArray[np.int32]:
    """The key, a and b by turns: arbitrary words that never change."""
    return np.frombuffer(hashlib.shake_256(b"ggplan: the key of hash_rows").digest(_KEY_WORDS * 4), "<i4")


@kernel
def _nh(words: Weights, n_rows: I64, n_columns: I64, key: I32s, sums: U64s, magnitude: F32s) -> None:
    """Fill `sums`, two for each strip, and write down the largest magnitude."""
    largest = splat(0, _LANES)
    at = 0
    for row in range(n_rows):
        start = row * n_columns
        for strip in range(start, start + n_columns, _STRIP):
            stop = min(strip + _STRIP, start + n_columns)
            word = bits_of(load_weights(words, strip, _LANES))
            largest = maximum(largest, word & 0x7FFFFFFF)
            first = pair_products(word + load(key, 0, _LANES))
            second = pair_products(word + load(key, _LANES, _LANES))
            for i in range(strip + _LANES, stop, _LANES):
                word = bits_of(load_weights(words, i, _LANES))
                largest = maximum(largest, word & 0x7FFFFFFF)
                first = first + pair_products(word + load(key, i - strip, _LANES))
                second = second + pair_products(word + load(key, i - strip + _LANES, _LANES))
            sums[at] = lane_sum(first)
            sums[at + 1] = lane_sum(second)
            at += _PASSES
    # The bits of a NaN are a number above infinity's.
    magnitude[0] = largest_lane(float_of_bits(minimum(largest, _INFINITY)))
