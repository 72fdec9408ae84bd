"""Encode with the second moments of what a matrix is multiplied with: the same blocks, far less error.

An imatrix tells how much each column's errors count. The second moments tell also how columns go together:
an error in one can be made good in others. What is made small is, for each row w of a matrix,

    (w - y) H (w - y)^T        y what a reader will find, H the regularized moments

the squared error of the product with the inputs. Blocks keep their layout; no row has more error than
`effort="best"` leaves on H, for where a search ends with more, best's blocks are kept.

Methods
-------
feedback    error feedback, its scales searched superblock by superblock on what the errors before ask for;
            then descent on codes, scales, mins, d and dmin
gptq        error feedback alone
descent     descent alone, from best's blocks

Rows are independent: a row's bytes do not depend on the rows beside it. Sums have one order, so they do not
depend on the machine or the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.errors import QuantizationError
from ggplan.ggml_types import GgmlType
from ggplan.quants.codecs import decoder, encoder
from ggplan.quants.formats.ladders import LADDERS, Ladder, Numbers
from ggplan.quants.kernels import scratch
from ggplan.quants.linear_algebra import Moments, regularized, unit_upper
from ggplan.quants.searches import feedback as searches
from ggplan.quants.searches.row_tiles import (
    PANEL,
    TILE,
    add_products,
    new_tiles,
    packed,
    panels,
    rows_of,
    tiles_of,
)

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

METHODS = ("feedback", "gptq", "descent")
LAMBDA = 0.1
BROAD_LAMBDA = 0.3

_SWEEPS = 4
_BATCH = 1 << 20  # weights that are worked on at a time
_LESS = np.float32(1 - 2.0**-10)
"""A row's error must be below this part of best's to count as less: sums of float32 are wrong by less."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The moments of an input in the form that searches take, for any number of rows.

    Attributes
    ----------
    importance
        float32 (n,): the diagonal of the regularized H.
    hessian
        H, packed (`searches.row_tiles`).
    factor, pivots
        U of H = U D U^T, packed, and D, float32 (n,).
    """

    importance: F32Array
    hessian: F32Array
    factor: F32Array
    pivots: F32Array

    @property
    def n_bytes(self) -> int:
        """The memory it takes."""
        return sum(a.nbytes for a in (self.importance, self.hessian, self.factor, self.pivots))


def prepare(moments: Moments, lam: float = LAMBDA, threads: int = 1) -> Prepared:
    """Regularize moments, and factor them.

    Raises
    ------
    QuantizationError
        If they are no second moments: the matrix is not positive.
    """
    matrix = regularized(moments, lam)
    upper = unit_upper(matrix, threads)
    pivots = _pivots(matrix, upper)
    return Prepared(matrix.diagonal().copy(), packed(matrix), packed(upper), pivots)


def _pivots(matrix: F32Array, upper: F32Array) -> F32Array:
    n = len(matrix)
    pivots = matrix.diagonal().astype(np.float64)
    for j in range(n - 2, -1, -1):
        pivots[j] -= (upper[j, j + 1 :].astype(np.float64) ** 2 * pivots[j + 1 :]).sum()
    return pivots.astype(np.float32)


def takes_moments(type: GgmlType) -> bool:
    """Whether there is a search that uses moments for a type."""
    return type.name in LADDERS


def encode_with_moments(
    rows: F32Array,
    type: GgmlType,
    moments: Moments | Prepared,
    out: Bytes,
    *,
    method: str = "feedback",
    lam: float = LAMBDA,
) -> None:
    """Encode contiguous finite `rows` (m, n) into contiguous `out` (m, row bytes).

    Parameters
    ----------
    moments
        Of n columns; `lam` is not used where they are prepared.
    method
        One of `METHODS`.

    Raises
    ------
    QuantizationError
        If the type has no such search, or the moments are not positive.
    """
    ladder = LADDERS.get(type.name)
    if ladder is None:
        raise QuantizationError(f"no search for {type} uses second moments")
    prepared = moments if isinstance(moments, Prepared) else prepare(moments, lam)
    step = max(TILE, _BATCH // rows.shape[1] // TILE * TILE)
    for start in range(0, len(rows), step):
        _encode(rows[start : start + step], type, ladder, prepared, out[start : start + step], method)


class _State(NamedTuple):
    """Numbers of rows as they are searched: tiles (t, columns, superblocks or sub-blocks, 16)."""

    d: F32Array
    dmin: F32Array
    scales: F32Array
    mins: F32Array
    levels: F32Array


def _encode(
    rows: F32Array, type: GgmlType, ladder: Ladder, prepared: Prepared, out: Bytes, method: str
) -> None:
    m = len(rows)
    encoder(type, "best")(rows, prepared.importance, out)
    found = out.reshape(-1, type.block_bytes)
    decoded = np.empty_like(rows)
    decoder(type)(found, decoded.reshape(-1, type.block_size))
    weights = tiles_of(rows)
    least = _errors(weights - tiles_of(decoded), prepared)
    if method == "descent":
        state = _state_of(ladder, found, m, weights.shape)
    else:
        state = _with_feedback(rows, weights, type, ladder, prepared)
    if method != "gptq":
        _descend(weights, state, ladder, prepared)
    better = _errors(weights - _values(state, ladder), prepared) < least * _LESS
    new = np.empty((len(weights) * TILE, out.shape[1]), np.uint8)
    ladder.write(_numbers_of(state, ladder), new.reshape(-1, type.block_bytes))
    chosen = better.reshape(-1)[:m]
    out[chosen] = new[:m][chosen]


def _errors(residues: F32Array, prepared: Prepared) -> F32Array:
    """The error of each row of tiles, (tiles, 16)."""
    count, n, _ = residues.shape
    turned = new_tiles(count * TILE, n)
    turned[:] = 0
    for first, end in panels(n):
        left = np.ascontiguousarray(residues[:, first:end])
        add_products(turned, left, prepared.factor, first, (first, n))
    out = np.empty((count, TILE), np.float32)
    searches.weighted_squares(turned, prepared.pivots, count, n, out)
    return out


def _values(state: _State, ladder: Ladder) -> F32Array:
    """What a reader finds, (tiles, n, 16)."""
    rules = ladder.rules
    count, n, _ = state.levels.shape
    shape = (count, n // rules.size, rules.size // rules.sub, rules.sub, TILE)
    d = state.d[:, :, np.newaxis]
    dmin = state.dmin[:, :, np.newaxis]
    scale = d * state.scales.reshape(*shape[:3], TILE)
    low = dmin * state.mins.reshape(*shape[:3], TILE)
    values = scale[:, :, :, np.newaxis] * state.levels.reshape(shape)
    values -= low[:, :, :, np.newaxis]
    return values.reshape(count, n, TILE)


def _empty_state(ladder: Ladder, shape: Sequence[int]) -> _State:
    rules = ladder.rules
    count, n, _ = shape
    units = [np.empty((count, n // rules.size, TILE), np.float32) for _ in range(2)]
    integers = [np.empty((count, n // rules.sub, TILE), np.float32) for _ in range(2)]
    return _State(*units, *integers, new_tiles(count * TILE, n))


def _put_units(state: _State, numbers: Numbers, ladder: Ladder, first: int) -> None:
    """Put the d, dmin, scales and mins of rows into a state, from superblock `first` of each on."""
    rules = ladder.rules
    count = len(state.d)
    parts = rules.size // rules.sub
    n = len(numbers.d) // (count * TILE)
    for to, given in ((state.d, numbers.d), (state.dmin, numbers.dmin)):
        to[:, first : first + n] = given.reshape(count, TILE, n).swapaxes(1, 2)
    for to, given in ((state.scales, numbers.scales), (state.mins, numbers.mins)):
        to[:, first * parts : (first + n) * parts] = given.reshape(count, TILE, n * parts).swapaxes(1, 2)


def _state_of(ladder: Ladder, blocks: Bytes, m: int, shape: Sequence[int]) -> _State:
    """The state of blocks of m rows."""
    count, n, _ = shape
    missing = (count * TILE - m) * (len(blocks) // m)
    blocks = np.concatenate((blocks, np.zeros((missing, blocks.shape[1]), np.uint8)))
    numbers = ladder.numbers(blocks)
    state = _empty_state(ladder, shape)
    _put_units(state, numbers, ladder, 0)
    state.levels[:] = tiles_of(numbers.levels.reshape(-1, n))
    return state


def _numbers_of(state: _State, ladder: Ladder) -> Numbers:
    rules = ladder.rules
    parts = rules.size // rules.sub
    units = [a.swapaxes(1, 2).reshape(-1) for a in state[:2]]
    integers = [a.swapaxes(1, 2).reshape(-1, parts) for a in state[2:4]]
    return Numbers(*units, *integers, rows_of(state.levels).reshape(-1, rules.size))


def _with_feedback(
    rows: F32Array, weights: F32Array, type: GgmlType, ladder: Ladder, prepared: Prepared
) -> _State:
    """Round by error feedback, with the scales that the default encoder finds for what is to be rounded."""
    rules = ladder.rules
    count, n, _ = weights.shape
    state = _empty_state(ladder, weights.shape)
    targets = weights.copy()
    residues = new_tiles(count * TILE, PANEL)
    blocks = np.empty((count * TILE, type.block_bytes), np.uint8)
    encode = encoder(type, "default")
    for first, end in panels(n):
        k = end - first
        factor = prepared.factor[n * first :]
        for start in range(first, end, rules.size):
            columns = slice(start, start + rules.size)
            encode(rows_of(targets, columns.start, columns.stop), prepared.importance[columns], blocks)
            _put_units(state, ladder.numbers(blocks, with_levels=False), ladder, start // rules.size)
            searches.round_superblock(
                *rules, count, n, start, first, k, factor, weights, targets, state.levels, residues,
                state.d, state.dmin, state.scales, state.mins,
            )  # fmt: skip
        add_products(targets, residues, prepared.factor, first, (end, n))
    return state


def _descend(weights: F32Array, state: _State, ladder: Ladder, prepared: Prepared) -> None:
    rules = ladder.rules
    count, n, _ = weights.shape
    residues = weights - _values(state, ladder)
    slopes = new_tiles(count * TILE, n)
    slopes[:] = 0
    for first, end in panels(n):
        left = np.ascontiguousarray(residues[:, first:end])
        add_products(slopes, left, prepared.hessian, first, (0, n))
    changes = new_tiles(count * TILE, PANEL)
    room = scratch(searches.ROOM)
    sums = _sub_sums(prepared.hessian, n, rules)
    for _ in range(_SWEEPS):
        moved = np.zeros((count, TILE), np.float32)
        for first, end in panels(n):
            searches.descend(
                *rules, count, n, first, end - first,
                prepared.hessian[n * first :], prepared.importance, sums, state.levels, slopes,
                state.d, state.dmin, state.scales, state.mins, changes, moved, room,
            )  # fmt: skip
            add_products(slopes, changes, prepared.hessian, first, (0, first))
            add_products(slopes, changes, prepared.hessian, first, (end, n))
        if not moved.any():
            break


def _sub_sums(hessian: F32Array, n: int, rules: searches.Rules) -> F32Array:
    """The sums of H's rows over each sub-block of their superblock, (n, sub-blocks of a superblock)."""
    parts = rules.size // rules.sub
    out = np.zeros((n, parts), np.float32)
    for first, end in panels(n):
        k = end - first
        rows = hessian[n * first : n * end].reshape(n // 4, k, 4).swapaxes(0, 1).reshape(k, n)
        for start in range(first, end, rules.size):
            square = rows[start - first : start - first + rules.size, start : start + rules.size]
            by_part = square.reshape(rules.size, parts, rules.sub)
            for i in range(rules.sub):
                out[start : start + rules.size] += by_part[:, :, i]
    return out
