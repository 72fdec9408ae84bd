"""The solver: one option for each item, the least damage, and no row above its limit.

    minimise    sum over items of damage[item, option]
    so that     sum over items of cost[row, item, option] <= limit[row]     for each row

A multiple-choice knapsack. A row is anything that adds up over items: bytes of the file, of a memory, seconds
per token. In three steps, each of which may be the last:

1. A multiplier for each row: an option's price is its damage plus the multipliers times its costs, and each
   item takes the cheapest. That gives a bound, `sum of cheapest prices - multipliers * limits`, below which
   no solution is. What room is left is filled by the best upgrades that fit, and by exchanges: one item
   gives room to another. With hundreds of items the solution is within a ten-thousandth of the bound, and
   done.
2. Options whose price is above the item's cheapest by more than solution and bound are apart cannot be in a
   better solution, and are left out: most are.
3. HiGHS (`scipy.optimize.milp`) solves the rest by branch and bound. It stops at a number of nodes, not of
   seconds, so that the answer is the same on every machine; the bound says how good it is.

Damages and costs are scaled to what the solver's tolerances, 1e-6, are small against, and forbidden options
are left out instead of made dear: a damage of 1e9 would ruin the scale.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

GOOD_ENOUGH = 1e-4
"""The gap at which solving ends."""
MOST_NODES = 1_000
"""Of branch and bound, unless told otherwise."""
_EXCHANGES = 1_000
_FEW = 40  # exchanges of several rows
_MOST_PAIRS = 1_000_000
_LIMIT = 1_000.0  # what limits are scaled to, so that the tolerance is a thousandth of a millionth of them
_HALVINGS = 200
_TOLERANCE = 1e-9
ROUNDING = 1e-11
"""What sums may be above a limit, as a part of it: less than a byte of a hundred gigabytes."""


@dataclass(frozen=True, slots=True)
class Item:
    """What gets one option.

    Attributes
    ----------
    damages
        Of each option.
    costs
        For each row, those of each option.
    """

    damages: tuple[float, ...]
    costs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Solution:
    """Options for all items.

    Attributes
    ----------
    chosen
        The index of each item's option.
    damage
        The sum.
    bound
        A damage that no solution is below.
    """

    chosen: tuple[int, ...]
    damage: float
    bound: float

    @property
    def gap(self) -> float:
        """How far above the best possible the damage is at most, as a part of the best possible."""
        if self.damage <= self.bound or self.damage == 0:
            return 0.0
        return (self.damage - self.bound) / self.bound if self.bound > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A row that no choice of options meets: which one, and what the sum is at least."""

    row: int
    least: float


@dataclass(frozen=True, slots=True)
class _Problem:
    """Items by options, (items, options); options that an item lacks have infinite damage and no costs.

    Damages are in units of `scale`, costs, (rows, items, options), and limits in those of the row in `units`.
    """

    damages: Floats
    costs: Floats
    limits: Floats
    scale: float
    units: Floats


def solve(
    items: Sequence[Item], limits: Sequence[float], gap: float = GOOD_ENOUGH, *, nodes: int = MOST_NODES
) -> Solution | Shortfall:
    """The options of least damage, or what cannot be met.

    Parameters
    ----------
    items
        Each with at least one option, and costs for each row.
    limits
        Of each row.
    gap
        How far above the bound, as a part of it, is good enough.
    nodes
        Of branch and bound, at most; with 0 the first step is the last wherever it has a solution.
    """
    if not items:
        short = next((row for row, limit in enumerate(limits) if limit < 0), None)
        return Solution((), 0.0, 0.0) if short is None else Shortfall(short, 0.0)
    problem = _problem(items, limits)
    for row, limit in enumerate(limits):
        least = sum(min(item.costs[row]) for item in items)
        if least > limit + ROUNDING * abs(limit):
            return Shortfall(row, least)
    multipliers, feasible = _multipliers(problem)
    bound = _bound(problem, multipliers)
    best = None if feasible is None else _improved(problem, feasible)
    if best is None or (nodes and not _is_close(problem, best, bound, gap)):
        left = _worth_it(problem, multipliers, bound, best)
        found, their_bound = _branch_and_bound(problem, left, best, gap, nodes or MOST_NODES)
        if found is not None and (best is None or _damage(problem, found) < _damage(problem, best)):
            best = _improved(problem, found)
        if best is None:
            return _shortfall(problem)
        bound = max(bound, min(their_bound, _damage(problem, best)))
    chosen = tuple(int(option) for option in best)
    damage = sum(item.damages[option] for item, option in zip(items, chosen, strict=True))
    return Solution(chosen, damage, min(bound * problem.scale, damage))


def _problem(items: Sequence[Item], limits: Sequence[float]) -> _Problem:
    import numpy as np

    widest = max(len(item.damages) for item in items)
    damages = np.full((len(items), widest), np.inf)
    costs = np.zeros((len(limits), len(items), widest))
    for i, item in enumerate(items):
        damages[i, : len(item.damages)] = item.damages
        for row in range(len(limits)):
            costs[row, i, : len(item.damages)] = item.costs[row]
    finite = damages[np.isfinite(damages)]
    scale = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    bare = np.array(limits, float)
    bare += ROUNDING * np.abs(bare)
    units = np.array([(abs(limit) or 1.0) / _LIMIT for limit in limits])
    return _Problem(damages / scale, costs / units[:, None, None], bare / units, scale, units)


def _prices(problem: _Problem, multipliers: Floats) -> Floats:
    import numpy as np

    prices: Floats = problem.damages + np.tensordot(multipliers, problem.costs, 1)
    return prices


def _bound(problem: _Problem, multipliers: Floats) -> float:
    return float(_prices(problem, multipliers).min(1).sum() - multipliers @ problem.limits)


def _multipliers(problem: _Problem) -> tuple[Floats, Floats | None]:
    """The multipliers of the best bound, nearly, and the options that they choose where these fit."""
    import numpy as np

    none = np.zeros(len(problem.limits))
    free = _cheapest(problem, none)
    if _fits(problem, free):
        return none, free
    if len(problem.limits) == 1:
        return _along(problem, np.ones(1))
    # The prices of the linear program give the bound; dearer in proportion, or alike, they give what fits.
    relaxed = _relaxed(problem)
    known = [found for way in (relaxed, relaxed + relaxed.max() / 10 + 1e-12, np.ones_like(relaxed))
             if (found := _along(problem, way)[1]) is not None]  # fmt: skip
    return relaxed, min(known, key=lambda found: _damage(problem, found), default=None)


def _along(problem: _Problem, way: Floats) -> tuple[Floats, Floats | None]:
    """The least multiple of some multipliers whose options fit, nearly, and these; None if none do."""
    high = 1.0
    while not _fits(problem, _cheapest(problem, high * way)) and high < 1e30:
        high *= 4.0
    feasible = _cheapest(problem, high * way)
    if not _fits(problem, feasible):
        return high * way, None
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        found = _cheapest(problem, middle * way)
        if _fits(problem, found):
            high, feasible = middle, found
        else:
            low = middle
    return high * way, feasible


def _relaxed(problem: _Problem) -> Floats:
    """The multipliers of several rows: the prices of the linear program without whole numbers."""
    import numpy as np
    from scipy.optimize import linprog

    at = np.isfinite(problem.damages)
    matrices = _matrices(problem, at)
    found = linprog(
        problem.damages[at], A_ub=matrices[1], b_ub=problem.limits, A_eq=matrices[0],
        b_eq=np.ones(len(problem.damages)), bounds=(0, 1), method="highs",
    )  # fmt: skip
    if found.ineqlin is None or getattr(found.ineqlin, "marginals", None) is None or found.status != 0:
        return np.zeros(len(problem.limits))
    prices: Floats = np.maximum(0.0, -np.asarray(found.ineqlin.marginals))
    return prices


def _cheapest(problem: _Problem, multipliers: Floats) -> Floats:
    """Each item's option of least price; of several the one that costs least."""
    import numpy as np

    prices = _prices(problem, multipliers)
    least = prices.min(1, keepdims=True)
    ties = prices <= least + 1e-15 * np.abs(least)
    chosen: Floats = np.where(ties, problem.costs.sum(0), np.inf).argmin(1)
    return chosen


def _sums(problem: _Problem, chosen: Floats) -> Floats:
    import numpy as np

    sums: Floats = problem.costs[:, np.arange(len(chosen)), chosen].sum(1)
    return sums


def _damage(problem: _Problem, chosen: Floats) -> float:
    import numpy as np

    return float(problem.damages[np.arange(len(chosen)), chosen].sum())


def _fits(problem: _Problem, chosen: Floats) -> bool:
    return bool((_sums(problem, chosen) <= problem.limits).all())


def _is_close(problem: _Problem, chosen: Floats, bound: float, gap: float) -> bool:
    damage = _damage(problem, chosen)
    return damage - bound <= gap * max(bound, 0.0) or damage == 0


def _improved(problem: _Problem, chosen: Floats) -> Floats:
    """The options with room filled and exchanges made, until neither helps."""
    chosen = _filled(problem, chosen)
    exchange, most = (_exchanged, _EXCHANGES) if len(problem.limits) == 1 else (_exchanged_in_rows, _FEW)
    for _ in range(most):
        exchanged = exchange(problem, chosen)
        if exchanged is None:
            break
        chosen = _filled(problem, exchanged)
    return chosen


def _exchanged(problem: _Problem, chosen: Floats) -> Floats | None:
    """The options after the exchange of two items' that takes most damage off; None where none does.

    Of one row. For each upgrade the cheapest of the changes that leave room enough is found in the changes'
    order by cost.
    """
    import numpy as np

    items = np.arange(len(chosen))
    costs = problem.costs[0]
    more = (costs - costs[items, chosen][:, None]).ravel()
    worse = (problem.damages - problem.damages[items, chosen][:, None]).ravel()
    room = float(problem.limits[0] - costs[items, chosen].sum())
    order = np.argsort(more, kind="stable")
    order = order[np.isfinite(worse[order])]
    least = np.minimum.accumulate(worse[order])
    first = np.concatenate([[0], np.nonzero(np.diff(least) < 0)[0] + 1])
    at_least = first[np.searchsorted(first, np.arange(len(order)), side="right") - 1]
    better = np.nonzero((worse < 0) & (more > room))[0]
    place = np.searchsorted(more[order], room - more[better], side="right") - 1
    better, place = better[place >= 0], place[place >= 0]
    if not len(better):
        return None
    partner = order[at_least[place]]
    n_options = problem.damages.shape[1]
    total = np.where(better // n_options == partner // n_options, 0.0, worse[better] + worse[partner])
    best = int(total.argmin())
    if total[best] >= -1e-15:
        return None
    chosen = chosen.copy()
    for change in (better[best], partner[best]):
        chosen[change // n_options] = change % n_options
    return chosen


def _exchanged_in_rows(problem: _Problem, chosen: Floats) -> Floats | None:
    """The same of several rows, by all pairs of changes; None too where these are too many."""
    import numpy as np

    items = np.arange(len(chosen))
    more = problem.costs - problem.costs[:, items, chosen][:, :, None]
    worse = problem.damages - problem.damages[items, chosen][:, None]
    room = problem.limits - _sums(problem, chosen)
    of_item, option = np.nonzero(np.isfinite(worse))
    more, worse = more[:, of_item, option], worse[of_item, option]
    better = np.nonzero((worse < 0) & ~(more <= room[:, None]).all(0))[0]
    if not len(better) or len(better) * len(worse) > _MOST_PAIRS:
        return None
    total = worse[better][:, None] + worse
    fits = of_item[better][:, None] != of_item
    for row, left in zip(more, room, strict=True):
        fits &= row[better][:, None] + row <= left
    total = np.where(fits, total, 0.0)
    at = int(total.argmin())
    if total.flat[at] >= -1e-15:
        return None
    chosen = chosen.copy()
    for change in (better[at // len(worse)], at % len(worse)):
        chosen[of_item[change]] = option[change]
    return chosen


def _filled(problem: _Problem, chosen: Floats) -> Floats:
    """The options with the room that is left used: the most damage off for the room, again and again."""
    import numpy as np

    chosen = chosen.copy()
    items = np.arange(len(chosen))
    room = problem.limits - _sums(problem, chosen)
    while True:
        saved = problem.damages[items, chosen][:, None] - problem.damages
        more = problem.costs - problem.costs[:, items, chosen][:, :, None]
        allowed = (saved > 0) & (more <= room[:, None, None]).all(0)
        if not allowed.any():
            return chosen
        needed = np.maximum(more, 0.0).sum(0)
        worth = np.where(allowed, saved / np.maximum(needed, 1e-15), -1.0)
        item, option = np.unravel_index(int(worth.argmax()), worth.shape)
        room = room - more[:, item, option]
        chosen[item] = option


def _worth_it(problem: _Problem, multipliers: Floats, bound: float, best: Floats | None) -> Floats:
    """Which options, (items, options), a better solution than the best known may have."""
    import numpy as np

    possible: Floats = np.isfinite(problem.damages)
    if best is not None:
        prices = _prices(problem, multipliers)
        slack = _damage(problem, best) - bound
        possible &= prices - prices.min(1, keepdims=True) <= slack + _TOLERANCE
        possible[np.arange(len(best)), best] = True
    return possible


def _branch_and_bound(
    problem: _Problem, possible: Floats, best: Floats | None, gap: float, nodes: int
) -> tuple[Floats | None, float]:
    """The options that HiGHS finds, or None, and its bound. `best` are the best options known."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    each, rows = _matrices(problem, possible)
    unit = (_damage(problem, best) if best is not None else 1.0) / 100 or 1.0
    with _nothing_printed():
        found = milp(
            problem.damages[possible] / unit,
            integrality=np.ones(int(possible.sum()), int),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(each, 1, 1), LinearConstraint(rows, -np.inf, problem.limits)],
            options={"mip_rel_gap": gap / 2, "node_limit": nodes, "presolve": False},
        )
    bound = getattr(found, "mip_dual_bound", None)
    bound = -np.inf if bound is None else float(bound) * unit
    if found.x is None:
        return None, bound
    item_of, option_of = np.nonzero(possible)
    chosen = np.zeros(len(problem.damages), int)
    taken = found.x > 0.5
    chosen[item_of[taken]] = option_of[taken]
    # The solver's tolerance may let a row be above its limit by a millionth.
    fits = np.bincount(item_of[taken], minlength=len(chosen)).tolist() == [1] * len(chosen)
    if not fits or not _fits(problem, chosen):
        return None, bound
    return chosen, bound


@contextlib.contextmanager
def _nothing_printed() -> Iterator[None]:
    """Keep HiGHS from writing on standard output.

    Whatever it is told, it prints a line when a solution of the presolved problem is a tolerance off in the
    original one (`transformNewIntegerFeasibleSolution`, HiGHS 1.8 to 1.12), in the midst of a recipe or JSON.
    """
    import ctypes

    try:
        library = ctypes.CDLL(None)
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, TypeError, ValueError):  # no C library by that name, or no standard output
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        library.fflush(None)
        os.dup2(sink, 1)
        yield
    finally:
        library.fflush(None)  # C has a buffer of its own, which would be written later
        os.dup2(kept, 1)
        os.close(kept)
        os.close(sink)


def _matrices(problem: _Problem, possible: Floats) -> tuple[Any, Any]:
    """The matrices of "each item has one option", and of the rows."""
    import numpy as np
    from scipy.sparse import csr_array

    item_of = np.nonzero(possible)[0]
    n_options = len(item_of)
    each = csr_array(
        (np.ones(n_options), (item_of, np.arange(n_options))), shape=(len(problem.damages), n_options)
    )
    return each, problem.costs[:, possible]


def _shortfall(problem: _Problem) -> Shortfall:
    """Of rows that can be met alone but not together: the one furthest off where all are neared."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, eye_array, hstack

    each, rows = _matrices(problem, np.isfinite(problem.damages))
    n_items, n_options = each.shape
    n_rows = len(problem.limits)
    # Each row may be above its limit, at a price of 1 for each unit.
    with _nothing_printed():
        found = milp(
            np.concatenate([np.zeros(n_options), np.ones(n_rows)]),
            integrality=np.concatenate([np.ones(n_options, int), np.zeros(n_rows, int)]),
            bounds=Bounds(0, np.concatenate([np.ones(n_options), np.full(n_rows, np.inf)])),
            constraints=[
                LinearConstraint(hstack([each, csr_array((n_items, n_rows))]), 1, 1),
                LinearConstraint(hstack([csr_array(rows), -eye_array(n_rows)]), -np.inf, problem.limits),
            ],
            options={"mip_rel_gap": 0.01, "node_limit": MOST_NODES, "presolve": False},
        )
    over = found.x[n_options:] if found.x is not None else np.zeros(n_rows)
    row = int(over.argmax())
    return Shortfall(row, float((problem.limits[row] + over[row]) * problem.units[row]))
