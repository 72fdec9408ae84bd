"""Bands: where along the layers the type of a kind of tensor changes.

A recipe is short if each kind of tensor (`ffn_down_exps`) has few bands of layers, each of one type. Where a
band begins matters. With three bands of equal length, a third of the routed experts is so large a step that
the budget is not used up, which cost up to a third more damage; with ends that are chosen together with the
types, three bands are within a thousandth of a type for each layer (GLM-4.5, 1,761 tensors).

An option of a chain is a type for each of its layers, in so many bands. There are too many to list, so they
are generated (column generation; Dantzig and Wolfe, 1960):

1. At a price for each row, the best bands of a chain are found exactly, from layer to layer:

       best[n, t] = price[layer, t] + min(best[n, t], least of best[n - 1, .])    n changes so far, type t

   The sum over the chains, less the prices times the limits, is a bound that no recipe of so many bands is
   below. The prices come from a linear program over the options that are known, which are now one more for
   each chain; again, until its value and the bound meet.
2. `ggplan.allocation.solving` chooses among these options, among bands with an end moved, and among those
   between two options that the linear program divides a chain between.
3. If that is not near the bound, more options are listed for each chain, by how far their price is above the
   best of their chain's. What is left out is known to be no better than by that much.
4. If that is not near either, the problem is divided: one layer has the smaller types, or the larger ones.
   Each part has a bound of its own; the part of the least bound is divided next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ggplan.allocation.band_options import (
    Table,
    allowed,
    best_bands,
    first_options,
    generated,
    in_part,
    prices_of_rows,
    runs_of,
    sums_of,
    table_of,
    with_ends_moved,
    within,
)
from ggplan.allocation.grouping import Chain, Group, joined
from ggplan.allocation.solving import MOST_NODES, ROUNDING, Item, Shortfall, Solution, solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]
    Option = tuple[int, ...]

_FAR = 2e-3  # from the bound: then more options are listed
_BRANCHINGS = 100  # of the problem, at most
_MOST_BANDS = 3
_NEAR = 400  # options of a chain that are chosen among at first
_FITTING = 2_000  # options at each price, where none that were generated fit
# How many options are listed, in turn, and the gap with which one goes on: mostly few are enough, and where
# they are not, branching is quicker than longer lists.
_LISTS = ((500, 2e-3), (2_000, 4e-3))
_ENOUGH = 4e-3  # a gap above it is worth branching


@dataclass(frozen=True, slots=True)
class Banded:
    """The groups that were chosen, the index of the type of each, and how good that is."""

    groups: tuple[Group, ...]
    chosen: tuple[int, ...]
    damage: float
    bound: float

    @property
    def gap(self) -> float:
        """As `Solution.gap`: how far above the least possible damage it is at most, as a part of that."""
        return Solution((), self.damage, self.bound).gap


def solve_bands(
    chains: Sequence[Chain],
    costs: Sequence[Sequence[Sequence[Sequence[float]]]],
    limits: Sequence[float],
    bands: int,
    *,
    nodes: int = MOST_NODES,
) -> Banded | Shortfall:
    """The bands and types of least damage, or what cannot be met.

    Parameters
    ----------
    costs
        Of each chain, for each row, of each layer, of each type.
    limits
        Of each row.
    bands
        The most bands of a chain.
    nodes
        As of `solve`; with fewer than by default nothing is branched here, with 0 the third step is left
        out too. With twice as many the bound is to be twice as near.
    """
    if all(len(chain.layers) <= bands for chain in chains):  # then each layer may be a band
        return solve_freely(chains, costs, limits, nodes=nodes)
    if not limits:  # then one that nothing uses
        zeros = [[[[0.0] * len(group.types) for group in chain.layers]] for chain in chains]
        return solve_bands(chains, zeros, [1.0], bands, nodes=nodes)
    table = table_of(chains, costs, limits)
    short = _short_alone(table, bands, limits)
    if short is not None:
        return short
    answer = _Node(table, bands, tuple(limits), nodes, (frozenset(),) * len(chains)).answer()
    if isinstance(answer, Shortfall):
        return answer
    groups: list[Group] = []
    chosen: list[int] = []
    for chain, option in zip(chains, answer.options, strict=True):
        for start, stop, type_ in runs_of(option):
            groups.append(joined(chain.layers[start:stop]))
            chosen.append(type_)
    return Banded(tuple(groups), tuple(chosen), answer.damage, min(answer.bound, answer.damage))


def solve_freely(
    chains: Sequence[Chain],
    costs: Sequence[Sequence[Sequence[Sequence[float]]]],
    limits: Sequence[float],
    *,
    nodes: int = MOST_NODES,
) -> Banded | Shortfall:
    """The same with each layer for itself."""
    groups = tuple(group for chain in chains for group in chain.layers)
    items = [
        Item(group.damages, tuple(tuple(row[layer]) for row in cost))
        for chain, cost in zip(chains, costs, strict=True)
        for layer, group in enumerate(chain.layers)
    ]
    found: Solution | Shortfall = solve(items, limits, nodes=nodes)
    return found if isinstance(found, Shortfall) else Banded(groups, found.chosen, found.damage, found.bound)


@dataclass(frozen=True, slots=True)
class _Found:
    """An option for each chain, their damage, and a bound."""

    options: tuple[Option, ...]
    damage: float
    bound: float

    def is_near(self, far: float) -> bool:
        """Whether the damage is above the bound by no more than a part of it."""
        return self.damage - self.bound <= far * self.bound


@dataclass(frozen=True)
class _Node:
    """The problem, or the part of it in which some layers have some types only.

    Attributes
    ----------
    inherited
        Options that are known already, some of which may have types that are not allowed here.
    """

    table: Table
    bands: int
    limits: tuple[float, ...]
    nodes: int
    inherited: tuple[frozenset[Option], ...]

    @cached_property
    def relaxed(self) -> tuple[float, Floats, list[list[Option]], list[set[Option]]]:
        """The bound, its prices, the options that the linear program takes, and all that it knows."""
        options = first_options(self.table, self.bands, self.inherited)
        bound, prices, divided = generated(self.table, options, self.bands)
        for i, (own, shared) in enumerate(zip(options, divided, strict=True)):
            more = {moved for option in shared for moved in with_ends_moved(option)}
            for one, other in pairwise(shared):
                more |= in_part(one, other, self.bands)
            own |= allowed(self.table, i, more)
        return bound, prices, divided, options

    @property
    def bound(self) -> float:
        """A damage that no solution of the node is below."""
        return self.relaxed[0]

    def solved(self, nodes: int) -> tuple[Solution | Shortfall, list[list[Option]]]:
        """The solution among the options of the linear program and those beside them."""
        _, prices, _, options = self.relaxed
        return _chosen(self.table, _worth_it(self.table, options, prices), self.limits, nodes)

    def answer(self) -> _Found | Shortfall:
        """The solution."""
        bound, prices, _, _ = self.relaxed
        found, known = self.solved(self.nodes)
        if isinstance(found, Shortfall):  # of these options; others may fit all rows together
            short = found
            found, known = self._fitting()
            if isinstance(found, Shortfall):
                return short
        # Of one band there are no other options.
        best = _found(found, known, max(bound, found.bound) if self.bands == 1 else bound)
        if not self.nodes:
            return best
        for most, far in _LISTS if 1 < self.bands <= _MOST_BANDS else ():
            if best.is_near(far):
                return best
            best = self._listed(best, prices, (best.damage - bound) / self.table.scale * (1 + 1e-9), most)
        is_enough = best.is_near(self._enough) or self.nodes < MOST_NODES
        return best if is_enough else self._branched(best)

    @property
    def _enough(self) -> float:
        return _ENOUGH * MOST_NODES / max(self.nodes, MOST_NODES)

    def _fitting(self) -> tuple[Solution | Shortfall, list[list[Option]]]:
        """The solution among more options: of the least prices, and those that use least of each row."""
        import numpy as np

        table, prices = self.table, self.relaxed[1]
        options = [set(own) for own in self.relaxed[3]]
        if self.bands > 1:
            free = replace(table, damages=np.where(np.isfinite(table.damages), 0.0, np.inf))
            even = np.ones(len(self.limits))
            ways = [(table, prices), (free, even), *((free, even + 9 * row) for row in np.diag(even))]
            most = _FITTING // len(options)
            for at, tried in ways:
                for i, own in enumerate(options):
                    own.update(within(at, i, tried, np.inf, min(self.bands, _MOST_BANDS), most)[0])
        return _chosen(table, list(map(sorted, options)), self.limits, self.nodes)

    def _listed(self, best: _Found, prices: Floats, slack: float, most: int) -> _Found:
        """The solution among about `most` options: of each chain as many, those of the least prices."""
        table, known, left_out = self.table, [], slack
        for i, before in enumerate(best.options):
            own, covered = within(table, i, prices, slack, self.bands, most // len(best.options))
            known.append(sorted({*own, before}))
            left_out = min(left_out, covered)
        found, _ = _chosen(table, known, self.limits, self.nodes)
        if isinstance(found, Shortfall):
            return best
        # A solution with an option that was left out is above the bound by as much as that option's price.
        least = min(found.bound, best.damage, self.bound + left_out * table.scale)
        better = _found(found, known, max(best.bound, least))
        return better if found.damage <= best.damage else replace(best, bound=better.bound)

    def _branched(self, best: _Found) -> _Found:
        """The solution by branch and bound: the part of the least bound is divided, again and again."""
        open_nodes: list[tuple[float, int, _Node]] = [(self.bound, 0, self)]
        least = best.bound
        for number in range(_BRANCHINGS):
            _, _, node = heappop(open_nodes)
            for child_number, child in enumerate(node.children()):
                if child.bound >= best.damage:
                    continue
                found, known = child.solved(0)
                if isinstance(found, Solution) and found.damage < best.damage:
                    best = _found(found, known, least)
                heappush(open_nodes, (child.bound, 2 * number + child_number + 1, child))
            least = max(least, min(open_nodes[0][0], best.damage) if open_nodes else best.damage)
            best = replace(best, bound=least)
            if best.is_near(self._enough) or not open_nodes:
                break
        return best

    def children(self) -> list[_Node]:
        """The node in two: the layer that the linear program divides most between types has the smaller ones
        or the larger ones.
        """
        import numpy as np

        _, _, divided, options = self.relaxed
        widest, where = 0.0, None
        for i, shared in enumerate(divided):
            types = np.array(shared)
            for layer in range(types.shape[1] if len(shared) > 1 else 0):
                costs = self.table.costs[:, i, layer].sum(0)
                of_types = np.unique(costs[types[:, layer]])
                if len(of_types) > 1 and of_types[-1] - of_types[0] > widest:
                    widest = float(of_types[-1] - of_types[0])
                    where = i, layer, costs <= of_types[len(of_types) // 2 - 1]
        if where is None:
            return []
        chain, layer, smaller = where
        inherited = tuple(map(frozenset, options))
        nodes = []
        for forbidden in (~smaller, smaller):
            damages = self.table.damages.copy()
            damages[chain, layer, forbidden] = np.inf
            table = replace(self.table, damages=damages)
            if np.isfinite(damages[chain, layer]).any():
                nodes.append(replace(self, table=table, inherited=inherited))
        return nodes


def _found(found: Solution, known: Sequence[Sequence[Option]], bound: float) -> _Found:
    options = tuple(listed[index] for listed, index in zip(known, found.chosen, strict=True))
    return _Found(options, found.damage, bound)


def _short_alone(table: Table, bands: int, limits: Sequence[float]) -> Shortfall | None:
    """A row that is above its limit however little is used of it; of several the one furthest off."""
    if not limits:
        return None
    least = best_bands(prices_of_rows(table), bands)[0].sum(1)
    over = least - table.limits
    row = int(over.argmax())
    return Shortfall(row, float(least[row] * table.units[row])) if over[row] > ROUNDING else None


def _worth_it(table: Table, options: Sequence[set[Option]], prices: Floats) -> list[list[Option]]:
    """The options in order, without those that are far too dear at these prices."""
    import numpy as np

    kept = []
    for i, own in enumerate(options):
        listed = sorted(own)
        damages, costs = sums_of(table, i, listed)
        priced = damages + prices @ costs
        least_used = set(costs.argmin(1).tolist())
        near = set(np.argsort(priced, kind="stable")[:_NEAR].tolist())
        kept.append([listed[j] for j in sorted(near | least_used)])
    return kept


def _chosen(
    table: Table, known: list[list[Option]], limits: Sequence[float], nodes: int
) -> tuple[Solution | Shortfall, list[list[Option]]]:
    """The solution among the options of the chains, and these in the order of its indices."""
    items = []
    for i, listed in enumerate(known):
        damages, costs = sums_of(table, i, listed)
        rows = costs * table.units[:, None]
        items.append(Item(tuple((damages * table.scale).tolist()), tuple(map(tuple, rows.tolist()))))
    return solve(items, limits, _FAR * 0.9, nodes=nodes), known
