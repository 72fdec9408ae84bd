"""The solver against trying all combinations."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.allocation.solving import GOOD_ENOUGH, Item, Shortfall, Solution, solve

Problem = tuple[list[Item], list[float]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Some items with some options, and one to three rows."""
    n_rows = draw(st.integers(1, 3))
    costs = st.integers(0, 100).map(float)
    damages = st.integers(0, 10_000).map(lambda n: n / 1000) | st.floats(1e-9, 1e-3)
    items = []
    for _ in range(draw(st.integers(1, 5))):
        n_options = draw(st.integers(1, 5))
        options = st.lists(damages, min_size=n_options, max_size=n_options)
        row = st.lists(costs, min_size=n_options, max_size=n_options)
        items.append(Item(tuple(draw(options)), tuple(tuple(draw(row)) for _ in range(n_rows))))
    limits = [float(draw(st.integers(0, 100 * len(items)))) for _ in range(n_rows)]
    return items, limits


def sums(items: list[Item], chosen: tuple[int, ...], row: int) -> float:
    return sum(item.costs[row][option] for item, option in zip(items, chosen, strict=True))


def least(items: list[Item], limits: list[float]) -> float | None:
    """The least damage within the limits; None where nothing is."""
    found = None
    for chosen in itertools.product(*(range(len(item.damages)) for item in items)):
        if all(sums(items, chosen, row) <= limit for row, limit in enumerate(limits)):
            damage = sum(item.damages[option] for item, option in zip(items, chosen, strict=True))
            found = damage if found is None else min(found, damage)
    return found


@settings(max_examples=100)
@given(problems())
def test_it_is_as_good_as_trying_all(problem: Problem) -> None:
    items, limits = problem
    best, found = least(items, limits), solve(items, limits)
    if best is None:
        assert isinstance(found, Shortfall)
        return
    assert isinstance(found, Solution)
    assert all(sums(items, found.chosen, row) <= limit for row, limit in enumerate(limits))
    assert found.damage == pytest.approx(
        sum(item.damages[option] for item, option in zip(items, found.chosen, strict=True))
    )
    assert found.bound <= best * (1 + 1e-6) + 1e-12, "the bound is above a solution"
    assert found.damage <= best * (1 + 2 * GOOD_ENOUGH) + 1e-12


def test_what_cannot_be_met_is_told_with_how_much() -> None:
    items = [Item((1.0, 0.5), ((30.0, 60.0), (5.0, 1.0)))] * 2
    assert solve(items, [50.0, 100.0]) == Shortfall(0, 60.0)
    assert solve(items, [500.0, 1.0]) == Shortfall(1, 2.0)


def test_rows_that_only_together_cannot_be_met() -> None:
    # Alone either row can be met, by the one option or by the other.
    found = solve([Item((1.0, 1.0), ((1.0, 9.0), (9.0, 1.0)))], [5.0, 4.0])
    assert isinstance(found, Shortfall)
    assert found.least > (5.0, 4.0)[found.row]


def test_rows_that_halves_of_options_would_meet() -> None:
    found = solve([Item((1.0, 1.0), ((0.0, 10.0), (10.0, 0.0)))], [5.0, 5.0])
    assert isinstance(found, Shortfall)
    assert found.least == pytest.approx(10.0)


def test_nothing_to_choose() -> None:
    assert solve([], [10.0]) == Solution((), 0.0, 0.0)
    assert solve([], [-1.0]) == Shortfall(0, 0.0)
    assert solve([Item((0.25,), ((10.0,),))], [10.0]) == Solution((0,), 0.25, 0.25)


def test_an_item_as_large_as_the_budget_is_not_lost_to_small_ones() -> None:
    # The multiplier alone gives the small items their upgrades first, and the large one none.
    small = [Item((1.0, 0.9), ((0.0, 1.0),))] * 9
    large = Item((5.0, 0.0), ((0.0, 10.0),))
    found = solve([*small, large], [10.0])
    assert isinstance(found, Solution)
    assert found.damage == pytest.approx(9.0)
