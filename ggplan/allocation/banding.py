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
3. If that is not near the bound, all bands of up to three are options whose price is above the best of their
   chain's by no more than solution and bound are apart: no others can be in a better solution. Where these
   are too many, the dearest are left out, and the bound is what a solution with one of them would have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ggplan.allocation.grouping import Chain, Group, joined
from ggplan.allocation.solving import MOST_NODES, ROUNDING, Item, Shortfall, Solution, solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]
    Option = tuple[int, ...]

_ITERATIONS = 60
_MET = 2e-5  # how near the linear program and the bound must come
_FAR = 2e-3  # from the bound: then all options that may be better are listed
_BRANCHINGS = 100
_MOST_BANDS = 3
_AMPLE = 8  # times as many options are looked at as are listed
# How many options are listed, in turn, and the gap with which one goes on: mostly few are enough.
_LISTS = ((500, 2e-3), (2_000, 4e-3))
_ENOUGH = 4e-3
_SHORT = 1e3  # the price of being above a limit by as much as itself, in all that can be lost
_SCALE = 1e4  # of damages, so that the linear program's tolerance, 1e-7, is small against them


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


@dataclass(frozen=True, slots=True)
class _Table:
    """All chains as arrays: damages (chains, layers, types) and costs (rows, chains, layers, types).

    A type that a chain lacks has infinite damage; layers that it lacks cost nothing, whatever the type.
    Damages are in units of `scale`, costs and limits in those of the limit, in `units`.
    """

    damages: Floats
    costs: Floats
    limits: Floats
    n_layers: tuple[int, ...]
    scale: float
    units: Floats


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
        out too.
    """
    if all(len(chain.layers) <= bands for chain in chains):  # then each layer may be a band
        return solve_freely(chains, costs, limits, nodes=nodes)
    if not limits:  # then one that nothing uses
        zeros = [[[[0.0] * len(group.types) for group in chain.layers]] for chain in chains]
        return solve_bands(chains, zeros, [1.0], bands, nodes=nodes)
    table = _table(chains, costs, limits)
    short = _short_alone(table, bands, limits)
    if short is not None:
        return short
    answer = _Node(table, bands, tuple(limits), nodes, (frozenset(),) * len(chains)).answer()
    if isinstance(answer, Shortfall):
        return answer
    groups: list[Group] = []
    chosen: list[int] = []
    for chain, option in zip(chains, answer.options, strict=True):
        for start, stop, type_ in _bands(option):
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


def _table(
    chains: Sequence[Chain], costs: Sequence[Sequence[Sequence[Sequence[float]]]], limits: Sequence[float]
) -> _Table:
    import numpy as np

    n_layers = tuple(len(chain.layers) for chain in chains)
    n_types = tuple(len(chain.layers[0].types) for chain in chains)
    shape = len(chains), max(n_layers), max(n_types)
    damages, all_costs = np.full(shape, np.inf), np.zeros((len(limits), *shape))
    for i, (chain, cost) in enumerate(zip(chains, costs, strict=True)):
        damages[i, :, : n_types[i]] = 0.0
        damages[i, : n_layers[i], : n_types[i]] = [group.damages for group in chain.layers]
        all_costs[:, i, : n_layers[i], : n_types[i]] = cost
    lost = np.where(np.isfinite(damages), damages, 0.0).max(2).sum()
    scale = float(lost) / _SCALE or 1.0
    units = np.array([abs(limit) or 1.0 for limit in limits])
    return _Table(
        damages / scale, all_costs / units[:, None, None, None], np.array(limits, float) / units,
        n_layers, scale, units,
    )  # fmt: skip


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

    table: _Table
    bands: int
    limits: tuple[float, ...]
    nodes: int
    inherited: tuple[frozenset[Option], ...]

    @cached_property
    def relaxed(self) -> tuple[float, Floats, list[list[Option]], list[set[Option]]]:
        """The bound, its prices, the options that the linear program takes, and all that it knows."""
        options = _first_options(self.table, self.bands, self.inherited)
        bound, prices, divided = _generated(self.table, options, self.bands)
        for i, (own, shared) in enumerate(zip(options, divided, strict=True)):
            more = {moved for option in shared for moved in _with_ends_moved(option)}
            for one, other in pairwise(shared):
                more |= _in_part(one, other, self.bands)
            own |= _allowed(self.table, i, more)
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
        if isinstance(found, Shortfall):
            return found
        # Of one band there are no other options.
        best = _found(found, known, max(bound, found.bound) if self.bands == 1 else bound)
        if not self.nodes:
            return best
        for most, far in _LISTS if 1 < self.bands <= _MOST_BANDS else ():
            if best.is_near(far):
                return best
            best = self._listed(best, prices, (best.damage - bound) / self.table.scale * (1 + 1e-9), most)
        is_enough = best.is_near(_ENOUGH) or self.nodes < MOST_NODES
        return best if is_enough else self._branched(best)

    def _listed(self, best: _Found, prices: Floats, slack: float, most: int) -> _Found:
        """The solution among about `most` options: of each chain as many, those of the least prices."""
        table, known, left_out = self.table, [], slack
        for i, before in enumerate(best.options):
            own, covered = _within(table, i, prices, slack, self.bands, most // len(best.options))
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
            if best.is_near(_ENOUGH) or not open_nodes:
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


def _first_options(table: _Table, bands: int, inherited: Sequence[Iterable[Option]]) -> list[set[Option]]:
    """One type for all layers, the least that each row can be used, and what is known from before."""
    n_types = table.damages.shape[2]
    options = []
    for i, (n_layers, own) in enumerate(zip(table.n_layers, inherited, strict=True)):
        options.append(_allowed(table, i, {*own, *((type_,) * n_layers for type_ in range(n_types))}))
    _add(options, table, _best(_of_rows(table), bands)[1])
    return options


def _allowed(table: _Table, chain: int, options: Iterable[Option]) -> set[Option]:
    """Those of the options whose types are all allowed."""
    import numpy as np

    listed = list(options)
    if not listed:
        return set()
    allowed = np.isfinite(_sums(table, chain, listed)[0])
    return {option for option, is_allowed in zip(listed, allowed.tolist(), strict=True) if is_allowed}


def _of_rows(table: _Table) -> Floats:
    """The costs of each row as prices; those of types that are not there are infinite."""
    import numpy as np

    prices: Floats = np.where(np.isfinite(table.damages), table.costs, np.inf)
    return prices


def _add(options: list[set[Option]], table: _Table, found: Floats) -> None:
    """Add what `_best` found, (prices, chains, layers)."""
    for i, (own, n_layers) in enumerate(zip(options, table.n_layers, strict=True)):
        own |= set(map(tuple, found[:, i, :n_layers].tolist()))


def _short_alone(table: _Table, bands: int, limits: Sequence[float]) -> Shortfall | None:
    """A row that is above its limit however little is used of it; of several the one furthest off."""
    if not limits:
        return None
    least = _best(_of_rows(table), bands)[0].sum(1)
    over = least - table.limits
    row = int(over.argmax())
    return Shortfall(row, float(least[row] * table.units[row])) if over[row] > ROUNDING else None


def _generated(
    table: _Table, options: list[set[Option]], bands: int
) -> tuple[float, Floats, list[list[Option]]]:
    """Add the options that the linear program of all options would use.

    Returns
    -------
    The bound, its prices, and of each chain the options that the linear program divides it between.
    """
    import numpy as np

    bound, prices = -np.inf, np.zeros(len(table.limits))
    divided: list[list[Option]] = [[] for _ in options]
    known: list[list[Option]] = [[] for _ in options]
    for _ in range(_ITERATIONS):
        for own, listed in zip(options, known, strict=True):
            listed += sorted(own.difference(listed))
        value, multipliers, divided = _relaxed(table, known)
        tried = np.array([multipliers, (multipliers + prices) / 2, (multipliers + 3 * prices) / 4])
        with np.errstate(invalid="ignore"):
            priced = table.damages + np.tensordot(tried, table.costs, 1)
        values, found = _best(priced, bands)
        bounds = values.sum(1) - tried @ table.limits
        if bounds.max() > bound:
            bound, prices = float(bounds.max()), tried[int(bounds.argmax())]
        n_known = sum(map(len, options))
        _add(options, table, found)
        if value - bound <= _MET * abs(bound) or sum(map(len, options)) == n_known:
            break
    return max(bound, 0.0) * table.scale, prices, divided


def _relaxed(table: _Table, known: Sequence[Sequence[Option]]) -> tuple[float, Floats, list[list[Option]]]:
    """The linear program: its value, the prices of its rows, and the options that it takes.

    To be above a limit has a price, so that there is a solution.
    """
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    sums = [_sums(table, i, listed) for i, listed in enumerate(known)]
    counts = [len(listed) for listed in known]
    n_options, n_rows = sum(counts), len(table.limits)
    each = csr_array(
        (np.ones(n_options), (np.repeat(np.arange(len(known)), counts), np.arange(n_options))),
        shape=(len(known), n_options + n_rows),
    )
    rows = np.concatenate([*(costs for _, costs in sums), -np.eye(n_rows)], 1)
    found = linprog(
        np.concatenate([*(damages for damages, _ in sums), np.full(n_rows, _SHORT * _SCALE)]),
        A_ub=rows, b_ub=table.limits, A_eq=each, b_eq=np.ones(len(known)), method="highs",
    )  # fmt: skip
    if found.status != 0:  # of a program that has a solution: the tolerances were too fine
        return np.inf, np.zeros(n_rows), [[] for _ in known]
    starts = np.concatenate([[0], np.cumsum(counts)])
    taken = [
        [listed[j] for j in np.nonzero(found.x[start : start + len(listed)] > 1e-7)[0].tolist()]
        for listed, start in zip(known, starts, strict=False)
    ]
    return float(found.fun), np.maximum(0.0, -np.asarray(found.ineqlin.marginals)), taken


def _sums(table: _Table, chain: int, options: Sequence[Option]) -> tuple[Floats, Floats]:
    """Damages (options,) and costs (rows, options) of options of a chain."""
    import numpy as np

    types = np.array(options)
    layers = np.arange(types.shape[1])
    damages = table.damages[chain, layers, types].sum(1)
    costs = table.costs[:, chain, layers, types].sum(2)
    return damages, costs


def _worth_it(table: _Table, options: Sequence[set[Option]], prices: Floats) -> list[list[Option]]:
    """The options in order, without those that are far too dear at these prices."""
    import numpy as np

    kept = []
    for i, own in enumerate(options):
        listed = sorted(own)
        damages, costs = _sums(table, i, listed)
        priced = damages + prices @ costs
        least_used = set(costs.argmin(1).tolist())
        near = set(np.argsort(priced, kind="stable")[:_NEAR].tolist())
        kept.append([listed[j] for j in sorted(near | least_used)])
    return kept


_NEAR = 400


def _chosen(
    table: _Table, known: list[list[Option]], limits: Sequence[float], nodes: int
) -> tuple[Solution | Shortfall, list[list[Option]]]:
    """The solution among the options of the chains, and these in the order of its indices."""
    items = []
    for i, listed in enumerate(known):
        damages, costs = _sums(table, i, listed)
        rows = costs * table.units[:, None]
        items.append(Item(tuple((damages * table.scale).tolist()), tuple(map(tuple, rows.tolist()))))
    return solve(items, limits, _FAR * 0.9, nodes=nodes), known


def _within(
    table: _Table, chain: int, prices: Floats, slack: float, bands: int, most: int
) -> tuple[list[Option], float]:
    """The options of a chain whose price is above the least by less than `slack`, at most so many.

    With C[t, l] the price of the layers before l as type t, three bands that end at l and m cost
    (C[t, l] - C[u, l]) + (C[u, m] - C[v, m]) + C[v, end]: a sum of two parts, whose least values say which
    types t, u and v need to be looked at.

    Returns
    -------
    The options, and the slack within which they are all: less than was asked for where there are more.
    """
    import numpy as np

    n_layers = table.n_layers[chain]
    priced = table.damages[chain] + np.tensordot(prices, table.costs[:, chain], 1)
    best = float(_best(priced[None, None], bands)[0][0, 0])
    types = np.nonzero(np.isfinite(table.damages[chain, 0]))[0].tolist()
    n_types = len(types)
    sums = np.concatenate([np.zeros((n_types, 1)), priced[:n_layers, types].T.cumsum(1)], 1)
    first = sums[:, None, 1:] - sums[None, :, 1:]  # (t, u, end of the first)
    second = first + sums[:, -1][:, None]  # (u, v, end of the second)
    if bands < 3:
        second = np.where(np.eye(n_types, dtype=bool)[:, :, None], second, np.inf)
    least = first.min(2)[:, :, None] + second.min(2) - best
    ordered = np.arange(n_layers)[:, None] <= np.arange(n_layers)
    found: dict[Option, float] = {}
    for at in np.argsort(least, axis=None, kind="stable").tolist():
        if least.flat[at] >= slack:
            break
        if len(found) > _AMPLE * most:
            slack = max(float(least.flat[at]), 0.0)
            break
        t, u, v = np.unravel_index(at, least.shape)
        above = np.where(ordered, first[t, u][:, None] + second[u, v] - best, np.inf)
        for i, j in zip(*(ends.tolist() for ends in np.nonzero(above < slack)), strict=True):
            lengths = (i + 1, j - i, n_layers - 1 - j)
            option = (types[t],) * lengths[0] + (types[u],) * lengths[1] + (types[v],) * lengths[2]
            found[option] = min(found.get(option, np.inf), float(above[i, j]))
    ordered_options = sorted(found, key=lambda option: (found[option], option))
    if len(ordered_options) > most:
        slack = min(slack, found[ordered_options[most]])
    return ordered_options[:most], slack


def _best(prices: Floats, bands: int) -> tuple[Floats, Floats]:
    """At each price (prices, chains, layers, types) the least sum, and the type of each layer."""
    import numpy as np

    n_prices, n_chains, n_layers, n_types = prices.shape
    best = np.full((bands, n_prices, n_chains, n_types), np.inf)
    best[0] = prices[:, :, 0]
    came = np.zeros((n_layers, *best.shape), np.int16)  # the type of the layer before
    begins = np.zeros(came.shape, bool)
    own = np.broadcast_to(np.arange(n_types, dtype=np.int16), best.shape)
    nothing = np.full((1, n_prices, n_chains), np.inf)
    first = np.zeros(nothing.shape, int)
    for layer in range(1, n_layers):
        other = np.concatenate([nothing, best[:-1].min(3)])[..., None]
        which = np.concatenate([first, best[:-1].argmin(3)])[..., None]
        changes = begins[layer] = other < best
        came[layer] = np.where(changes, which, own)
        best = np.where(changes, other, best) + prices[:, :, layer]
    flat = np.moveaxis(best, 0, 2).reshape(n_prices, n_chains, -1)
    at = flat.argmin(2)
    band, type_ = at // n_types, at % n_types
    sequences = np.zeros((n_prices, n_chains, n_layers), int)
    price, chain = np.indices(at.shape)
    for layer in range(n_layers - 1, -1, -1):
        sequences[:, :, layer] = type_
        if layer:
            before = came[layer, band, price, chain, type_].astype(int)
            band = band - begins[layer, band, price, chain, type_]
            type_ = before
    return flat.min(2), sequences


def _with_ends_moved(types: Option) -> set[Option]:
    """The types of the layers with one end of a band at another layer, as far as its neighbours go."""
    found: set[Option] = set()
    for at in [i for i, (a, b) in enumerate(pairwise(types), 1) if a != b]:
        start, stop = _band_around(types, at - 1)[0], _band_around(types, at)[1]
        for end in range(start, stop + 1):
            middle = (types[at - 1],) * (end - start) + (types[at],) * (stop - end)
            found.add((*types[:start], *middle, *types[stop:]))
    return found


def _in_part(types: Option, others: Option, bands: int) -> set[Option]:
    """One up to some layer and the other from there, either way, in so many bands."""
    cuts = range(1, len(types))
    mixed = {a[:cut] + b[cut:] for a, b in ((types, others), (others, types)) for cut in cuts}
    return {one for one in mixed if len(_bands(one)) <= bands}


def _band_around(types: Sequence[int], layer: int) -> tuple[int, int]:
    return next((start, stop) for start, stop, _ in _bands(types) if start <= layer < stop)


def _bands(types: Sequence[int]) -> list[tuple[int, int, int]]:
    """Start, stop and type of each run."""
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(types), 1) if a != b), len(types)]
    return [(start, stop, types[start]) for start, stop in pairwise(cuts)]
