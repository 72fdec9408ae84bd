"""The allocator: what lives at the same time never overlaps, and the buffer is no smaller than its sum."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.ggml_types import F32
from ggplan.offload.graph.allocate import Room, buffer_sizes
from ggplan.offload.graph.schedule import Rules, schedule
from ggplan.offload.graph.tensors import Graph, Tensor

ALIGNMENT = 128
steps = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 10)), min_size=1, max_size=80)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_no_two_live_ranges_overlap(steps: list[tuple[int, int]]) -> None:
    room = Room(ALIGNMENT)
    live: list[tuple[int, int]] = []
    largest = 0
    for size, which in steps:
        if live and which > 6:
            offset, n = live.pop(which % len(live))
            room.give(offset, n)
            continue
        offset = room.take(size)
        assert offset % ALIGNMENT == 0
        assert all(offset + size <= o or o + n <= offset for o, n in live)
        live.append((offset, size))
        largest = max(largest, sum(-(-n // ALIGNMENT) * ALIGNMENT for _, n in live))
    assert room.size >= largest
    assert room.size >= max(o + n for o, n in live) if live else True
    for offset, n in live:
        room.give(offset, n)
    assert len(room.free) == 1
    assert room.free[0][0] == 0


def test_the_smallest_block_that_holds_it_of_equals_the_last() -> None:
    room = Room(1)
    places = [room.take(n) for n in (10, 1, 20, 1, 10, 1)]
    assert places == [0, 10, 11, 31, 32, 42]
    for at, n in ((0, 10), (11, 20), (32, 10)):
        room.give(at, n)
    assert room.take(10) == 32
    assert room.take(15) == 11
    assert room.take(6) == 0
    assert room.take(100) == 43
    assert room.size == 143


def chain(n: int, op: str) -> tuple[Graph, Tensor]:
    graph = Graph()
    x = graph.input(F32, 64, 8)
    for _ in range(n):
        x = graph.like(op, x)
    x.is_output = True
    graph.expand(x)
    return graph, x


def test_what_may_be_written_over_is() -> None:
    rules = Rules(0, offloads=False, batch=32)
    size = 64 * 8 * 4
    # The first reads an input, which nobody needs any more; so all share its place.
    assert buffer_sizes(schedule(chain(9, "add")[0], rules), 0)[0] == [size]
    # A copy cannot be made in place: two are alive.
    assert buffer_sizes(schedule(chain(9, "cont")[0], rules), 0)[0] == [2 * size]


def test_a_weight_in_ram_is_copied_for_large_batches_and_its_room_used_again() -> None:
    def sizes(rows: int) -> list[int]:
        graph = Graph()
        x = graph.input(F32, 256, rows)
        for _ in range(5):
            weight = graph.given(F32, (256, 256), 1, weight=True, streamed=True)
            x = graph.mul_mat(weight, x)
        x.is_output = True
        graph.expand(x)
        return buffer_sizes(schedule(graph, Rules(1, offloads=True, batch=32)), 1)[0]

    weight, tokens = 256 * 256 * 4, 64 * 256 * 4
    gpu, host = sizes(64)
    assert gpu == weight + 2 * tokens  # one weight at a time, what it reads and what it makes
    assert host == tokens
    assert sizes(31) == [0, 2 * 31 * 256 * 4]


def test_what_another_device_made_is_copied_once() -> None:
    graph = Graph()
    x = graph.input(F32, 128, 4)
    first = graph.mul_mat(graph.given(F32, (128, 128), 0, weight=True), x)
    second = graph.mul_mat(graph.given(F32, (128, 128), 1, weight=True), first)
    third = graph.mul_mat(graph.given(F32, (128, 128), 1, weight=True), first)
    out = graph.like("add", second, third)
    out.is_output = True
    graph.expand(out)
    plan = schedule(graph, Rules(2, offloads=True, batch=32))
    assert plan.n_splits == 2
    size = 128 * 4 * 4
    assert buffer_sizes(plan, 2)[0] == [2 * size, 3 * size, size]
