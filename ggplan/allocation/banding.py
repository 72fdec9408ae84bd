"""Bands: where along the layers the type of a kind of tensor changes.

A recipe is short if each kind of tensor (`ffn_down_exps`) has few bands of layers, each of one type. Where a
band begins matters. With three bands of equal length, a third of the routed experts is so large a step that
the budget is not used up, which cost up to a third more damage; with ends that are chosen together with the
types, three bands are within a thousandth of a type for each layer (GLM-4.5, 1,761 tensors).

1. At a price of a byte, the best bands of one kind are found exactly, from layer to layer:

       best[n, t] = price[layer, t] + min(best[n, t], least of best[n - 1, .])    n changes so far, type t

   The sum over the kinds, less the price times the budget, is a bound that no recipe of so many bands is
   below.
2. Bands that are best at some price near the right one are the options of each kind. A little higher price
   may change a kind in all its layers at once, too large a step where it is most of the file; so what is
   between the two, one up to some layer and the other from there, and bands with an end moved, are options
   too. `ggplan.allocation.solving` chooses among them, within all rows.
3. If that is not near the bound, all bands of up to three are options whose price is above the best of their
   kind's by no more than solution and bound are apart: no others can be in a better solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ggplan.allocation.grouping import Chain, Group, joined
from ggplan.allocation.solving import MOST_NODES, Item, Shortfall, Solution, solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]
    Sequences = set[tuple[int, ...]]

_PRICES = 64
_ROUNDS = 4
_NEAR = 12  # of the prices of a round on either side of the right one
_FAR = 2e-3  # from the bound
_MOST_BANDS = 3
_MOST_OPTIONS = 2_000  # of a chain, in the third step
_AT = 3  # of these the ones whose bands are also taken with ends moved and in part


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
class _Costs:
    """A chain as arrays: damages (layers, types) and costs (rows, layers, types)."""

    damages: Floats
    costs: Floats


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
        As of `solve`; with 0 the third step is left out.
    """
    import numpy as np

    if all(len(chain.layers) <= bands for chain in chains):  # then each layer may be a band
        return solve_freely(chains, costs, limits, nodes=nodes)
    tables = [
        _Costs(np.array([group.damages for group in chain.layers]), np.array(cost, float))
        for chain, cost in zip(chains, costs, strict=True)
    ]
    options: list[Sequences] = [set() for _ in chains]
    bound = price = 0.0
    for row in range(len(limits)):
        of_row, price = _near_the_right_price(tables, row, limits[row], bands, options)
        bound = max(bound, of_row)
    found, known = _chosen(tables, options, limits, nodes)
    if isinstance(found, Shortfall):
        return found
    is_far = found.damage - bound > _FAR * bound
    if is_far and nodes and 1 < bands <= _MOST_BANDS and len(limits) == 1:
        slack = (found.damage - bound) * (1 + 1e-9)
        near = [_within(table, price, slack, bands) for table in tables]
        for own, (more, _) in zip(options, near, strict=True):
            own |= more
        again, known_again = _chosen(tables, options, limits, nodes)
        assert isinstance(again, Solution)
        if again.damage <= found.damage:
            found, known = again, known_again
        if all(are_all for _, are_all in near):
            bound = max(bound, min(again.bound, found.damage))
    groups: list[Group] = []
    chosen: list[int] = []
    for chain, sequences, option in zip(chains, known, found.chosen, strict=True):
        for start, stop, type_ in _bands(sequences[option]):
            groups.append(joined(chain.layers[start:stop]))
            chosen.append(type_)
    # Of one band there are no other options.
    bound = max(bound, found.bound) if bands == 1 else bound
    return Banded(tuple(groups), tuple(chosen), found.damage, min(bound, found.damage))


def _chosen(
    tables: Sequence[_Costs], options: Sequence[Sequences], limits: Sequence[float], nodes: int
) -> tuple[Solution | Shortfall, list[list[tuple[int, ...]]]]:
    """The solution among the options of the chains, and these in the order of its indices."""
    known = [sorted(own) for own in options]
    items = [_item(table, own) for table, own in zip(tables, known, strict=True)]
    return solve(items, limits, nodes=nodes), known


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


def _near_the_right_price(
    tables: Sequence[_Costs], row: int, limit: float, bands: int, options: list[Sequences]
) -> tuple[float, float]:
    """Add to the options of each chain the bands at prices about the right one; the bound and its price."""
    import numpy as np

    cost = sum(float(table.costs[row].max(1).sum()) for table in tables) or 1.0
    damage = sum(float(table.damages.max(1).sum()) for table in tables) or 1.0
    low, high = damage / cost * 1e-9, damage / cost * 1e6
    bound = at_price = 0.0
    for number in range(_ROUNDS):
        prices = np.geomspace(low, high, _PRICES)
        if number == 0:
            prices = np.concatenate([[0.0], prices])
        values, sums = np.zeros(len(prices)), np.zeros(len(prices))
        found = []
        for table in tables:
            value, sequences = _best(table, row, prices, bands)
            values += value
            layers = np.arange(sequences.shape[1])
            sums += table.costs[row][layers, sequences].sum(1)
            found.append(sequences)
        bounds = values - prices * limit
        if float(bounds.max()) > bound:
            bound, at_price = float(bounds.max()), float(prices[bounds.argmax()])
        at = int(np.argmax(sums <= limit)) if (sums <= limit).any() else len(prices) - 1
        near = range(max(at - _NEAR, 0), min(at + _NEAR, len(prices))) if number else range(len(prices))
        for table, own, sequences in zip(tables, options, found, strict=True):
            seen = dict.fromkeys(tuple(map(int, sequences[k])) for k in near)
            own |= set(seen)
            close = range(max(at - _AT, 0), min(at + _AT, len(prices))) if number else range(0)
            seen = dict.fromkeys(tuple(map(int, sequences[k])) for k in close)
            for types in seen:
                own |= _with_ends_moved(types)
            for types, others in pairwise(seen):
                own |= _in_part(types, others, bands)
            # One type for all layers is an option too: the smallest, so that a budget that can be met is.
            own |= {(type_,) * len(table.damages) for type_ in range(table.damages.shape[1])}
        if at == 0:
            break
        low, high = max(float(prices[at - 1]), low / 1e6), float(prices[at])
    return bound, at_price


def _within(table: _Costs, price: float, slack: float, bands: int) -> tuple[Sequences, bool]:
    """The bands of a chain whose price is above the least by no more than `slack`, and whether they are all.

    With C[t, l] the price of the layers before l as type t, three bands that end at l and m cost
    (C[t, l] - C[u, l]) + (C[u, m] - C[v, m]) + C[v, end]: a sum of two parts, of which each must be small.
    """
    import numpy as np

    prices = (table.damages + price * table.costs[0]).T
    n_types, n_layers = prices.shape
    sums = np.concatenate([np.zeros((n_types, 1)), prices.cumsum(1)], 1)
    least = float(_best(table, 0, np.array([price]), bands)[0][0]) + slack
    ends = np.arange(1, n_layers + 1)
    ordered = ends[:, None] <= ends
    found: list[tuple[float, tuple[int, ...]]] = []
    for t in range(n_types):
        for u in range(n_types):
            first = sums[t, 1:] - sums[u, 1:]
            for v in range(n_types) if bands > 2 else (u,):
                second = sums[u, 1:] - sums[v, 1:] + sums[v, -1]
                if first.min() + second.min() > least:
                    continue
                total = np.where(ordered, first[:, None] + second, np.inf)
                for i, j in zip(*np.nonzero(total <= least), strict=True):
                    types = (t,) * (i + 1) + (u,) * (j - i) + (v,) * (n_layers - 1 - j)
                    found.append((float(total[i, j]), types))
    best = dict.fromkeys(types for _, types in sorted(found))
    return set(list(best)[:_MOST_OPTIONS]), len(best) <= _MOST_OPTIONS


def _best(table: _Costs, row: int, prices: Floats, bands: int) -> tuple[Floats, Floats]:
    """At each price the least sum, and the type of each layer, (prices, layers)."""
    import numpy as np

    price = table.damages + prices[:, None, None] * table.costs[row]
    n_prices, n_layers, n_types = price.shape
    best = np.full((bands, n_prices, n_types), np.inf)
    best[0] = price[:, 0]
    came = np.zeros((n_layers, bands, n_prices, n_types), np.int16)  # the type of the layer before
    begins = np.zeros(came.shape, bool)
    own = np.broadcast_to(np.arange(n_types, dtype=np.int16), (n_prices, n_types))
    for layer in range(1, n_layers):
        other = np.concatenate([np.full((1, n_prices), np.inf), best[:-1].min(2)])[:, :, None]
        which = np.concatenate([np.zeros((1, n_prices), int), best[:-1].argmin(2)])[:, :, None]
        changes = begins[layer] = other < best
        came[layer] = np.where(changes, which, own)
        best = np.where(changes, other, best) + price[:, layer]
    at = np.arange(n_prices)
    flat = best.transpose(1, 0, 2).reshape(n_prices, -1).argmin(1)
    band, type_ = flat // n_types, flat % n_types
    sequences = np.zeros((n_prices, n_layers), int)
    for layer in range(n_layers - 1, -1, -1):
        sequences[:, layer] = type_
        if layer:
            before = came[layer, band, at, type_].astype(int)
            band = band - begins[layer, band, at, type_]
            type_ = before
    return best.transpose(1, 0, 2).reshape(n_prices, -1).min(1), sequences


def _with_ends_moved(types: tuple[int, ...]) -> Sequences:
    """The types of the layers with one end of a band at another layer, as far as its neighbours go."""
    found: Sequences = set()
    for at in [i for i, (a, b) in enumerate(pairwise(types), 1) if a != b]:
        start, stop = _band_around(types, at - 1)[0], _band_around(types, at)[1]
        for end in range(start, stop + 1):
            middle = (types[at - 1],) * (end - start) + (types[at],) * (stop - end)
            found.add((*types[:start], *middle, *types[stop:]))
    return found


def _in_part(types: tuple[int, ...], others: tuple[int, ...], bands: int) -> Sequences:
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


def _item(table: _Costs, options: Sequence[tuple[int, ...]]) -> Item:
    """The options of a chain for the solver."""
    import numpy as np

    layers, types = np.arange(len(table.damages)), np.array(options)
    damages = table.damages[layers, types].sum(1)
    costs = table.costs[:, layers, types].sum(2)
    return Item(tuple(damages.tolist()), tuple(tuple(row.tolist()) for row in costs))
