"""Who is beaten, who is not, and who is a tie."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ggplan.charts.frontier import Leads, Standing, staircase, standings
from ggplan.measure import Lead

FRONTIER, TIE, DOMINATED = Standing.FRONTIER, Standing.TIE, Standing.DOMINATED


def unknown(i: int, j: int) -> None:
    return None


def within(ys: list[float], error: float) -> Leads:
    return lambda i, j: Lead("kld", ys[i] - ys[j], error, "independent")


def test_smaller_and_better_wins() -> None:
    assert standings([1, 2, 3], [9, 5, 6], unknown) == [FRONTIER, FRONTIER, DOMINATED]


def test_a_lead_within_the_error_is_a_tie() -> None:
    assert standings([1, 2], [5.0, 5.1], within([5.0, 5.1], 0.14)) == [FRONTIER, TIE]
    assert standings([1, 2], [5.0, 5.3], within([5.0, 5.3], 0.14)) == [FRONTIER, DOMINATED]


def test_a_divergence_decides_whatever_is_drawn() -> None:
    drawn = [5.0, 5.1]
    assert standings([1, 2], drawn, within([0.3, 0.1], 0.01)) == [FRONTIER, TIE]
    assert standings([1, 2], drawn, within([0.1, 0.3], 0.01)) == [FRONTIER, DOMINATED]


def test_an_error_that_measures_the_text_makes_no_tie() -> None:
    def leads(i: int, j: int) -> Lead:
        return Lead("ppl", (i - j) * 0.1, 3.0, "unpaired")

    assert standings([1, 2], [5.0, 5.1], leads) == [FRONTIER, DOMINATED]


def test_faster_is_to_the_right() -> None:
    assert standings([10, 20], [5, 5], unknown, more_is_better=True) == [DOMINATED, FRONTIER]
    assert staircase([10, 20], [4, 5], [FRONTIER, FRONTIER], more_is_better=True) == [
        (20, 5),
        (10, 5),
        (10, 4),
    ]


def test_of_two_equals_one_is_on_the_frontier() -> None:
    assert standings([1, 1], [5, 5], unknown) == [FRONTIER, TIE]


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(points)
def test_no_point_lies_below_the_staircase(points: list[tuple[int, int]]) -> None:
    xs, ys = zip(*points, strict=True)
    found = standings(xs, ys, unknown)
    assert FRONTIER in found
    corners = staircase(xs, ys, found)
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        assert x1 >= x0
        assert y1 <= y0
    for x, y in points:
        reached = [cy for cx, cy in corners if cx <= x]
        assert reached
        assert y >= min(reached)
