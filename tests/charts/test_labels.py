"""Names never lie upon one another, nor upon a marker, nor outside."""

from hypothesis import given
from hypothesis import strategies as st

from ggplan.charts.labels import place_labels

FRAME = (0.0, 0.0, 400.0, 300.0)
spots = st.lists(st.tuples(st.floats(20, 380), st.floats(20, 280)), min_size=1, max_size=30)


def overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@given(spots)
def test_labels_keep_apart(points: list[tuple[float, float]]) -> None:
    sizes = [(50.0, 12.0)] * len(points)
    markers = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    places = place_labels(points, sizes, markers, FRAME)
    boxes = [(p.x, p.y, p.x + 50, p.y + 12) for p in places if p is not None]
    for i, box in enumerate(boxes):
        assert not any(overlap(box, other) for other in boxes[:i])
        assert not any(overlap(box, marker) for marker in markers)
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= 400
        assert box[3] <= 300


def test_a_lonely_point_has_its_name_beside_it() -> None:
    (place,) = place_labels([(200, 150)], [(40, 10)], [(196, 146, 204, 154)], FRAME)
    assert place is not None
    assert not place.leader
    assert abs(place.x - 200) < 20


def test_without_room_there_is_no_name() -> None:
    assert place_labels([(5, 5)], [(500, 10)], [], FRAME) == [None]


def test_the_same_points_give_the_same_places() -> None:
    points = [(100.0 + 7 * i % 90, 80.0 + 11 * i % 70) for i in range(25)]
    sizes = [(45.0, 11.0)] * 25
    assert place_labels(points, sizes, [], FRAME) == place_labels(points, sizes, [], FRAME)
