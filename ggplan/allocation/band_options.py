"""The options of a chain, a type for each of its layers in so many bands: as arrays, and those worth a look.

See `banding` for what they are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ggplan.allocation.grouping import Chain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]
    Option = tuple[int, ...]

_ITERATIONS = 60
_MET = 2e-5  # how near the linear program and the bound must come
_AMPLE = 8  # times as many options are looked at as are listed
_SHORT = 1e3  # the price of being above a limit by as much as itself, in all that can be lost
_SCALE = 1e4  # of damages, so that the linear program's tolerance, 1e-7, is small against them


@dataclass(frozen=True, slots=True)
class Table:
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


def table_of(
    chains: Sequence[Chain], costs: Sequence[Sequence[Sequence[Sequence[float]]]], limits: Sequence[float]
) -> Table:
    """The chains as arrays; costs and limits as of `banding.solve_bands`."""
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
    return Table(
        damages / scale, all_costs / units[:, None, None, None], np.array(limits, float) / units,
        n_layers, scale, units,
    )  # fmt: skip


def first_options(table: Table, bands: int, inherited: Sequence[Iterable[Option]]) -> list[set[Option]]:
    """One type for all layers, the least that each row can be used, and what is known from before."""
    n_types = table.damages.shape[2]
    options = []
    for i, (n_layers, own) in enumerate(zip(table.n_layers, inherited, strict=True)):
        options.append(allowed(table, i, {*own, *((type_,) * n_layers for type_ in range(n_types))}))
    _add(options, table, best_bands(prices_of_rows(table), bands)[1])
    return options


def allowed(table: Table, chain: int, options: Iterable[Option]) -> set[Option]:
    """Those of the options whose types are all allowed."""
    import numpy as np

    listed = list(options)
    if not listed:
        return set()
    allowed = np.isfinite(sums_of(table, chain, listed)[0])
    return {option for option, is_allowed in zip(listed, allowed.tolist(), strict=True) if is_allowed}


def prices_of_rows(table: Table) -> Floats:
    """The costs of each row as prices; those of types that are not there are infinite."""
    import numpy as np

    prices: Floats = np.where(np.isfinite(table.damages), table.costs, np.inf)
    return prices


def _add(options: list[set[Option]], table: Table, found: Floats) -> None:
    """Add what `best_bands` found, (prices, chains, layers)."""
    for i, (own, n_layers) in enumerate(zip(options, table.n_layers, strict=True)):
        own |= set(map(tuple, found[:, i, :n_layers].tolist()))


def generated(
    table: Table, options: list[set[Option]], bands: int
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
        values, found = best_bands(priced, bands)
        bounds = values.sum(1) - tried @ table.limits
        if bounds.max() > bound:
            bound, prices = float(bounds.max()), tried[int(bounds.argmax())]
        n_known = sum(map(len, options))
        _add(options, table, found)
        if value - bound <= _MET * abs(bound) or sum(map(len, options)) == n_known:
            break
    return max(bound, 0.0) * table.scale, prices, divided


def _relaxed(table: Table, known: Sequence[Sequence[Option]]) -> tuple[float, Floats, list[list[Option]]]:
    """The linear program: its value, the prices of its rows, and the options that it takes.

    To be above a limit has a price, so that there is a solution.
    """
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    sums = [sums_of(table, i, listed) for i, listed in enumerate(known)]
    counts = [len(listed) for listed in known]
    n_options, n_rows = sum(counts), len(table.limits)
    each = csr_array(
        (np.ones(n_options), (np.repeat(np.arange(len(known)), counts), np.arange(n_options))),
        shape=(len(known), n_options + n_rows),
    )
    rows = np.concatenate([*(costs for _, costs in sums), -np.eye(n_rows)], 1)
    solve: Any = linprog  # whose own types, where they are installed, refuse sparse equalities
    found = solve(
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


def sums_of(table: Table, chain: int, options: Sequence[Option]) -> tuple[Floats, Floats]:
    """Damages (options,) and costs (rows, options) of options of a chain."""
    import numpy as np

    types = np.array(options)
    layers = np.arange(types.shape[1])
    damages = table.damages[chain, layers, types].sum(1)
    costs = table.costs[:, chain, layers, types].sum(2)
    return damages, costs


def within(
    table: Table, chain: int, prices: Floats, slack: float, bands: int, most: int
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
    best = float(best_bands(priced[None, None], bands)[0][0, 0])
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


def best_bands(prices: Floats, bands: int) -> tuple[Floats, Floats]:
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


def with_ends_moved(types: Option) -> set[Option]:
    """The types of the layers with one end of a band at another layer, as far as its neighbours go."""
    found: set[Option] = set()
    for at in [i for i, (a, b) in enumerate(pairwise(types), 1) if a != b]:
        start, stop = _band_around(types, at - 1)[0], _band_around(types, at)[1]
        for end in range(start, stop + 1):
            middle = (types[at - 1],) * (end - start) + (types[at],) * (stop - end)
            found.add((*types[:start], *middle, *types[stop:]))
    return found


def in_part(types: Option, others: Option, bands: int) -> set[Option]:
    """One up to some layer and the other from there, either way, in so many bands."""
    cuts = range(1, len(types))
    mixed = {a[:cut] + b[cut:] for a, b in ((types, others), (others, types)) for cut in cuts}
    return {one for one in mixed if len(runs_of(one)) <= bands}


def _band_around(types: Sequence[int], layer: int) -> tuple[int, int]:
    return next((start, stop) for start, stop, _ in runs_of(types) if start <= layer < stop)


def runs_of(types: Sequence[int]) -> list[tuple[int, int, int]]:
    """Start, stop and type of each run."""
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(types), 1) if a != b), len(types)]
    return [(start, stop, types[start]) for start, stop in pairwise(cuts)]
