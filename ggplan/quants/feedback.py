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
gptq:act-order
            the same in the order of importance, with scales that are known before (`act_order`)
descent     descent alone, from best's blocks

Rows are independent: a row's bytes do not depend on the rows beside it. Sums have one order, so they do not
depend on the machine or the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggplan.errors import QuantizationError
from ggplan.ggml_types import GgmlType
from ggplan.quants.act_order import encode_in_order
from ggplan.quants.codecs import encoder
from ggplan.quants.comparing import at_most, beats_best
from ggplan.quants.formats.grid_descent import GRID_TYPES, descend
from ggplan.quants.formats.ladders import LADDERS, Ladder, Numbers
from ggplan.quants.kernels import scratch
from ggplan.quants.linear_algebra import Moments
from ggplan.quants.prepared import LAMBDA, Prepared, prepare
from ggplan.quants.searches import feedback as searches
from ggplan.quants.searches.row_tiles import (
    NARROW,
    PANEL,
    TILE,
    add_products,
    first_quarter,
    new_tiles,
    panels,
    rows_of,
    tiles_of,
)

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

ACT_ORDER = "gptq:act-order"
METHODS = ("feedback", "gptq", ACT_ORDER, "descent")

_ROW_SWEEPS = 4
"""How often descent alone goes over whole rows."""
_PANEL_SWEEPS, _LAST_SWEEPS = 3, 2
"""How often feedback descends in a panel before it goes on to the next, and over whole rows in the end.

Where such rows have scales of sub-blocks, they are then rounded once more with the scales they have got,
and descend again; each keeps the better of both. Error on inputs of a text that was not used, in parts of
best's: q2_K 0.525 to 0.512, q3_K 0.458 to 0.447, q4_K 0.511 to 0.501, iq4_xs 0.476 to 0.467. Without
sub-blocks it is a hundredth less (q4_0: 0.613 to 0.609), which is not worth twice the time."""
_WIDE_PANEL_SWEEPS, _WIDE_LAST_SWEEPS = 2, 1
"""The same for rows that are not narrow, and the last one only over the first quarter of the columns.

A panel relies on what the columns after it can make good, which they do in levels only; the first panels
rely most. Error on other inputs, in parts of best's, q4_K at 2048 columns: 0.430 without the last sweep,
0.410 with it, 0.401 over half the columns and 0.395 over all, which take a tenth and a third longer."""
_ENOUGH = 64
"""Tokens for each column where a Hessian does not say of how many it is: ten times as many change nothing."""
_ASYMMETRY = np.float32(1e-3)
"""How far a Hessian's halves may differ, in parts of its largest number, as those of bfloat16 sums do."""
_BATCH = 1 << 20  # weights that are worked on at a time


def takes_moments(type: GgmlType) -> bool:
    """Whether there is a search that uses moments for a type."""
    return type.name in LADDERS or type.name in GRID_TYPES


def goes_by_importance(type: GgmlType, method: str) -> bool:
    """Whether moments are to be prepared in the order of importance.

    Types with points of a grid take eight neighbouring weights at once, so they go in the order of columns.
    """
    return method == ACT_ORDER and type.name in LADDERS


def encode_checked(
    rows: F32Array,
    type: GgmlType,
    hessian: ArrayLike,
    out: Bytes,
    tokens: int | None,
    lam: float,
    method: str,
) -> None:
    """As `encode_with_moments`, for moments that come from outside; no tokens means enough of them.

    Raises
    ------
    QuantizationError
        If the Hessian is no matrix of second moments of as many columns as the rows have, or of no tokens.
    """
    n = rows.shape[1]
    if not takes_moments(type):
        raise QuantizationError(
            f"no search for {type} uses a Hessian",
            hint="leave out hessian=, and pass its diagonal as imatrix=",
        )
    if tokens is not None and tokens < 1:
        raise QuantizationError(f"a Hessian of {tokens} tokens says nothing", hint="leave out hessian=")
    matrix = np.asarray(hessian)
    if matrix.shape != (n, n):
        raise QuantizationError(
            f"the Hessian has shape {matrix.shape}, but rows of {n} weights need {(n, n)}",
            hint="pass the mean of x x^T over tokens, (n, n)",
        )
    if not np.can_cast(matrix.dtype, np.float32, "same_kind"):
        raise QuantizationError(f"the Hessian is of type {matrix.dtype}, which float32 cannot take")
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = matrix.astype(np.float32)
    if not np.isfinite(matrix).all():
        raise QuantizationError("the Hessian has numbers that are NaN, infinite or beyond float32")
    diagonal = matrix.diagonal()
    if (diagonal < 0).any():
        at = int((diagonal < 0).argmax())
        raise QuantizationError(f"the second moment of column {at} is negative ({diagonal[at]})")
    with np.errstate(over="ignore"):
        difference = np.abs(matrix - matrix.T)
    if (
        difference > _ASYMMETRY * max(float(diagonal.max(initial=0)), float(np.finfo(np.float32).tiny))
    ).any():
        i, j = (int(k) for k in np.unravel_index(int(difference.argmax()), difference.shape))
        raise QuantizationError(
            f"the Hessian is not symmetric: {matrix[i, j]} at {[i, j]}, {matrix[j, i]} at {[j, i]}"
        )
    moments = Moments((matrix + matrix.T) * np.float32(0.5), _ENOUGH * n if tokens is None else int(tokens))
    if rows.size:
        encode_with_moments(rows, type, moments, out, method=method, lam=float(lam))


def warm_up_feedback(type: GgmlType) -> None:
    """Compile what encodes to a type, or load it from disk."""
    n = max(type.block_size, PANEL)
    out = np.empty((1, type.row_bytes(n)), np.uint8)
    encode_with_moments(np.ones((1, n), np.float32), type, Moments(np.eye(n, dtype=np.float32), n), out)


def encode_with_moments(
    rows: F32Array,
    type: GgmlType,
    moments: Moments | Prepared,
    out: Bytes,
    *,
    method: str = "feedback",
    lam: float = LAMBDA,
    importance: F32Array | None = None,
) -> None:
    """Encode contiguous finite `rows` (m, n) into contiguous `out` (m, row bytes).

    Parameters
    ----------
    moments
        Of n columns; `lam` is not used where they are prepared, which must be as `goes_by_importance` says.
    method
        One of `METHODS`.
    importance
        float32 (n,): that of best effort, than whose blocks no row may be worse; the mean squares of the
        moments, unless given. Where these have none, best effort goes without.

    Raises
    ------
    QuantizationError
        If the type has no such search, or the moments are not positive.
    """
    if not takes_moments(type):
        raise QuantizationError(f"no search for {type} uses second moments")
    prepared = moments
    if isinstance(prepared, Moments):
        prepared = prepare(prepared, lam, by_importance=goes_by_importance(type, method))
    if (prepared.order is not None) != goes_by_importance(type, method):
        raise ValueError(f"the moments are not prepared for {method} of {type}")
    if importance is None:
        importance = prepared.mean_squares
    step = max(TILE, _BATCH // rows.shape[1] // TILE * TILE)
    for start in range(0, len(rows), step):
        some, blocks = rows[start : start + step], out[start : start + step]
        encoder(type, "best")(some, importance, blocks)
        with np.errstate(all="ignore"):  # errors of huge weights may be beyond float32: best's blocks stay
            if type.name in GRID_TYPES:
                descend(type.name, some, blocks, prepared, method)
            else:
                _improve(some, type, LADDERS[type.name], prepared, blocks, method)


class _Sweeps(NamedTuple):
    """How often feedback descends: in each panel, and in the end over the first columns."""

    in_panels: int
    last: int
    columns: int


def _sweeps(n: int, method: str) -> _Sweeps:
    if method != "feedback":
        return _Sweeps(0, 0, 0)
    if n <= NARROW:
        return _Sweeps(_PANEL_SWEEPS, _LAST_SWEEPS, n)
    return _Sweeps(_WIDE_PANEL_SWEEPS, _WIDE_LAST_SWEEPS, first_quarter(n))


class _State(NamedTuple):
    """Rows as they are searched, all float32, in tiles.

    Attributes
    ----------
    d, dmin
        (tiles, superblocks, 16).
    scales, mins
        (tiles, sub-blocks, 16).
    levels
        (tiles, columns, 16).
    slopes
        (tiles, columns, 16): g = (w - y) H.
    errors
        (tiles, 16): (w - y) H (w - y)^T.
    """

    d: F32Array
    dmin: F32Array
    scales: F32Array
    mins: F32Array
    levels: F32Array
    slopes: F32Array
    errors: F32Array

    @property
    def numbers(self) -> tuple[F32Array, F32Array, F32Array, F32Array]:
        """What a kernel takes after levels and slopes."""
        return self.d, self.dmin, self.scales, self.mins


def _improve(
    rows: F32Array, type: GgmlType, ladder: Ladder, prepared: Prepared, best: Bytes, method: str
) -> None:
    """Replace best effort's blocks of the rows that get less error."""
    m, n = rows.shape
    weights = tiles_of(rows)
    if prepared.order is not None:
        found = best.copy()
        errors = encode_in_order(rows, type, ladder, prepared, found)
    else:
        if method == "descent":
            state = _state_of(ladder, best.reshape(-1, type.block_bytes), m, weights, prepared)
            _descend(state, ladder, prepared, _ROW_SWEEPS, n)
        else:
            state = _with_feedbacks(weights, type, ladder, prepared, best, method)
        found = np.empty((len(weights) * TILE, best.shape[1]), np.uint8)
        ladder.write(_numbers_of(state, ladder), found.reshape(-1, type.block_bytes))
        errors = state.errors
    better = beats_best(rows, type, prepared, best, at_most(weights, prepared, errors))
    np.copyto(best, found[:m], where=better.reshape(-1)[:m, np.newaxis])


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
    room = [new_tiles(count * TILE, n) for _ in range(2)]
    d, dmin = units
    scales, mins = integers
    levels, slopes = room
    return _State(d, dmin, scales, mins, levels, slopes, np.zeros((count, TILE), np.float32))


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


def _state_of(ladder: Ladder, blocks: Bytes, m: int, weights: F32Array, prepared: Prepared) -> _State:
    """The state of the blocks of m rows."""
    count, n, _ = weights.shape
    missing = (count * TILE - m) * (len(blocks) // m)
    blocks = np.concatenate((blocks, np.zeros((missing, blocks.shape[1]), np.uint8)))
    numbers = ladder.numbers(blocks)
    state = _empty_state(ladder, weights.shape)
    _put_units(state, numbers, ladder, 0)
    state.levels[:] = tiles_of(numbers.levels.reshape(-1, n))
    residues = weights - _values(state, ladder)
    state.slopes[:] = 0
    for first, end in panels(n):
        left = np.ascontiguousarray(residues[:, first:end])
        add_products(state.slopes, left, prepared.hessian[n * first :], end - first, (0, n))
    searches.add_products_of(residues, state.slopes, count, n, state.errors)
    return state


def _numbers_of(state: _State, ladder: Ladder) -> Numbers:
    rules = ladder.rules
    parts = rules.size // rules.sub
    d, dmin = (a.swapaxes(1, 2).reshape(-1) for a in (state.d, state.dmin))
    scales, mins = (a.swapaxes(1, 2).reshape(-1, parts) for a in (state.scales, state.mins))
    return Numbers(d, dmin, scales, mins, rows_of(state.levels).reshape(-1, rules.size))


def _with_feedbacks(
    weights: F32Array, type: GgmlType, ladder: Ladder, prepared: Prepared, best: Bytes, method: str
) -> _State:
    """Once, and where that pays once more with the scales that were found.

    The scales of narrow rows are the default encoder's for what is asked of a superblock, those of others
    best effort's. On inputs of other texts best effort's leave 1 to 2 % less error of a trained model's rows
    of 256 to 512 columns too, but its KL divergence in q2_K rose by 7 %; at 2048 columns they leave 3 to 9 %
    less, and 8 to 18 % less where columns are of uneven size.
    """
    count, n, _ = weights.shape
    sweeps = _sweeps(n, method)
    near = None
    if n > NARROW:
        near = np.zeros((count * TILE, best.shape[1]), np.uint8)
        near[: len(best)] = best
    state = _with_feedback(weights, type, ladder, prepared, sweeps, near)
    if sweeps.in_panels and n <= NARROW and ladder.rules.sub < ladder.rules.size:
        other = _with_feedback(weights, type, ladder, prepared, sweeps, held=state)
        better = other.errors < state.errors
        for taken, given in zip(state, other, strict=True):
            np.copyto(taken, given, where=better[:, np.newaxis] if taken.ndim == 3 else better)
    return state


def _with_feedback(
    weights: F32Array,
    type: GgmlType,
    ladder: Ladder,
    prepared: Prepared,
    sweeps: _Sweeps,
    near: Bytes | None = None,
    held: _State | None = None,
) -> _State:
    """Round by error feedback, with scales that are searched for what is to be rounded (`_search_scales`).

    Each panel is then improved by descent on what the columns after it cannot make good, and the first panels
    or all of them in the end. `near` has best effort's blocks of wide rows; `held` scales to round with
    instead.
    """
    rules = ladder.rules
    count, n, _ = weights.shape
    state = _empty_state(ladder, weights.shape)
    state.slopes[:] = 0
    if held is not None:
        for to, given in zip(state.numbers, held.numbers, strict=True):
            to[:] = given
    targets = weights.copy()
    residues = new_tiles(count * TILE, PANEL)
    blocks = np.empty((count * TILE, type.block_bytes), np.uint8)
    room = scratch(searches.ROOM)
    for first, end in panels(n):
        k = end - first
        square = prepared.squares[PANEL * first :]
        remainder = prepared.remainders[PANEL * first :]
        asked = targets[:, first:end] - weights[:, first:end]
        for start in range(first, end, rules.size):
            if held is None:
                at = start // rules.size * type.block_bytes
                _search_scales(
                    rows_of(targets, start, start + rules.size), type, ladder,
                    prepared.importance[start : start + rules.size],
                    None if near is None else near[:, at : at + type.block_bytes], blocks,
                )  # fmt: skip
                _put_units(state, ladder.numbers(blocks, with_levels=False), ladder, start // rules.size)
            searches.round_superblock(
                *rules, count, n, start, first, k, square, weights, targets, state.levels, residues,
                *state.numbers,
            )  # fmt: skip
        pivots = prepared.pivots[first:end]
        factor = prepared.factor[n * first :]
        if sweeps.in_panels:
            # g of the panel, with all columns after it as they would be best.
            turned = (targets[:, first:end] - weights[:, first:end] + residues[:, :k]) * pivots[:, np.newaxis]
            add_products(state.slopes, turned, factor[first * k :], k, (first, end), first)
            diagonal, sums = _of_square(remainder, k, rules)
            gains = np.zeros((count, TILE), np.float32)
            searches.descend(
                *rules, count, n, first, k, remainder, diagonal, sums, state.levels, state.slopes,
                *state.numbers, residues, gains, sweeps.in_panels, room,
            )  # fmt: skip
        turned = asked
        add_products(turned, residues, square, k, (0, k))
        searches.add_weighted_squares(turned, pivots, count, k, k, state.errors)
        if sweeps.last:
            turned *= pivots[:, np.newaxis]
            add_products(state.slopes, turned, factor, k, (0, min(first, sweeps.columns)))
        add_products(targets, residues, factor, k, (end, n))
    _descend(state, ladder, prepared, sweeps.last, sweeps.columns)
    return state


def _search_scales(
    rows: F32Array, type: GgmlType, ladder: Ladder, importance: F32Array, near: Bytes | None, out: Bytes
) -> None:
    """Blocks (rows, block bytes) with scales for superblocks: the default encoder's, or best effort's.

    `near` has best effort's blocks of the weights that the rows were made of; best effort's search begins
    with them where the type has one that does.
    """
    if near is None:
        encoder(type, "default")(rows, importance, out)
    elif ladder.near is None:
        encoder(type, "best")(rows, importance, out)
    else:
        ladder.near(np.ascontiguousarray(near), rows, importance, out)


def _descend(state: _State, ladder: Ladder, prepared: Prepared, sweeps: int, columns: int) -> None:
    """Descend over the first columns, whole panels, some times; g of no others is brought up to date."""
    rules = ladder.rules
    count, n, _ = state.levels.shape
    changes = new_tiles(count * TILE, PANEL)
    room = scratch(searches.ROOM)
    squares = []
    for first, end in panels(columns):
        square = prepared.hessian[n * first + first * (end - first) :]
        squares.append((square, *_of_square(square, end - first, rules)))
    for sweep in range(sweeps):
        gains = np.zeros((count, TILE), np.float32)
        for (first, end), (square, diagonal, sums) in zip(panels(columns), squares, strict=True):
            changes[:] = 0
            searches.descend(
                *rules, count, n, first, end - first, square, diagonal, sums, state.levels, state.slopes,
                *state.numbers, changes, gains, 1, room,
            )  # fmt: skip
            if sweep < sweeps - 1:
                add_products(state.slopes, changes, prepared.hessian[n * first :], end - first, (0, first))
            add_products(state.slopes, changes, prepared.hessian[n * first :], end - first, (end, columns))
        np.subtract(state.errors, gains, out=state.errors)
        if not gains.any():
            break


def _of_square(square: F32Array, k: int, rules: searches.Rules) -> tuple[F32Array, F32Array]:
    """The diagonal (k,) of a packed square, and the sums of its rows over sub-blocks (`searches.descend`)."""
    parts = rules.size // rules.sub
    matrix = square[: k * k].reshape(k // 4, k, 4).swapaxes(0, 1).reshape(k, k)
    sums = np.zeros((k, parts), np.float32)
    for start in range(0, k, rules.size):
        of_superblock = matrix[start : start + rules.size, start : start + rules.size]
        by_part = of_superblock.reshape(rules.size, parts, rules.sub)
        for i in range(rules.sub):
            sums[start : start + rules.size] += by_part[:, :, i]
    return matrix.diagonal().copy(), sums
