"""Types for a machine: the least loss of a file that fits it and is fast enough there, and where it lies.

What fits depends on where the experts are, and `ggplan.place` puts them according to their sizes. So:

    1  solve with the rows of no placement in particular (`merged_rows`): a bound for all of them
    2  place the file of these types
    3  solve with the rows of that placement, place again, ... until the placement is one for which was solved

Where it does not fit there, the next placement is the one that `place` falls back on (`place_in_rows`): types
that fit so are placed so again.

A file is an answer only if `place` says that it fits and is as fast as asked; the best such file is taken. If
there is none, more memory is left free, and it is begun anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ggplan.allocation.banding import Banded
from ggplan.allocation.budget import Row
from ggplan.allocation.machine_rows import Target, merged_rows, movable, placed_rows
from ggplan.allocation.problem import NO_FILE, Problem, smaller_types, solved
from ggplan.allocation.recipe_text import Gap
from ggplan.allocation.solving import MOST_NODES
from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType
from ggplan.offload.allocation import HOST
from ggplan.offload.completing import completed
from ggplan.offload.header import Header, header_of
from ggplan.offload.placement import Placement, describe_shortage
from ggplan.offload.placing import place, place_in_rows
from ggplan.offload.profiles import PROFILES
from ggplan.offload.tensor_costs import TensorCosts, with_types
from ggplan.offload.ways_out import ways_out
from ggplan.planning import Plan, kept_types, lay_out

_ROUNDS = 6
_CALIBRATIONS = 4
_GAP_ROUNDS = 3
_NODES = 500  # of branch and bound on the way
_ENOUGH = 4e-3  # a gap above it is worth the branching of all nodes
_MOST_GAP = 5e-3  # above it the bound is worth twice the nodes
_NEAR = 2e-3  # from the bound: then no other placement is looked for
_CLOSE = 1.01  # times the speed that is asked for
_TIGHTER = 14
_STEP = 1 / 256  # of all memory: what is left free at first if nothing was found
_MICRO_BATCH = 512  # the smallest that `place` takes by itself: with it more memory is left than with others


@dataclass(frozen=True, slots=True)
class OnMachine:
    """An answer, the rows that it was solved with, where the file lies, and a bound for all placements.

    Attributes
    ----------
    bound
        No file that is within the limits is below it, wherever its tensors are; None where the speed is
        limited, as what it costs to change devices is different for every placement.
    """

    found: Banded
    rows: tuple[Row, ...]
    placement: Placement
    bound: float | None

    @property
    def gap(self) -> Gap:
        """How far above the least possible the damage is at most."""
        here = self.found.gap
        anywhere = None
        if self.bound is not None:
            anywhere = replace(self.found, bound=min(self.bound, self.found.damage)).gap
        return Gap(here if math.isfinite(here) else None, anywhere)


@dataclass(frozen=True, slots=True)
class _Search:
    problem: Problem
    target: Target
    rows: tuple[Row, ...]
    header: Header

    def placed(self, types: Mapping[str, GgmlType], *, small: bool = False) -> Placement:
        return placed(with_types(self.header, types), self.problem, small=small)

    def next_to(self, placement: Placement) -> Placement:
        """Where to solve next after types that are placed so: if they do not fit, with the experts of the
        first blocks in RAM, for types that fit so are placed so, and others would be placed elsewhere again.
        """
        if placement.fits:
            return placement
        wishes, profile = placement.wishes, placement.profile
        return place_in_rows(placement.header, placement.machine, wishes, profile) or placement

    def is_met(self, placement: Placement) -> bool:
        return is_met(placement, self.target)

    def solved(self, rows: Sequence[Row], nodes: int = _NODES) -> tuple[Banded, Placement]:
        found = solved(self.problem, (*self.rows, *rows), nodes=nodes)
        return found, self.placed(self.problem.types_of(found))

    def merged(self, placement: Placement, spare: int = 0, *, speed: bool = False) -> tuple[Row, ...]:
        return merged_rows(placement, self.target, TensorCosts(placement), spare, speed=speed)

    def fastest(self, placement: Placement) -> Placement:
        """Where the file of the fastest types lies."""
        row = self.merged(placement, speed=True)[-1]
        return self.placed({
            c.tensor.name: min(c.candidates, key=lambda one: row.cost(c.tensor, one.type)).type
            for c in self.problem.choices
        })  # fmt: skip

    def is_divided(self, placement: Placement) -> bool:
        """Whether something that could be on a GPU is in RAM."""
        if not self.target.machine.gpus:
            return True
        free = movable(self.header, self.target.wishes)
        return any(placement.devices.get(name) == HOST for name in free)

    def of(self, placement: Placement) -> tuple[Row, ...]:
        return placed_rows(placement, self.target, TensorCosts(placement), {})


def placed(header: Header, problem: Problem, *, small: bool = False) -> Placement:
    """Where `ggplan.place` puts a file on the machine that is the target."""
    target = problem.options.target
    assert target is not None
    wishes = target.wishes
    if small and wishes.micro_batch is None:
        wishes = replace(wishes, micro_batch=_MICRO_BATCH)
    return place(header, target.machine, wishes, PROFILES[problem.options.engine])


def is_met(placement: Placement, target: Target) -> bool:
    """Whether a file fits and is fast enough."""
    if not placement.fits:
        return False
    return target.min_tps is None or placement.generation.likely >= target.min_tps


def header_of_plan(plan: Plan) -> Header:
    """The header as it is placed: what an inventory's metadata lacks is read off its shapes."""
    header = header_of(plan)
    return completed(header) if plan.model.kind == "inventory" else header


def solved_on_machine(problem: Problem, target: Target, rows: Sequence[Row]) -> OnMachine:
    """The types of least damage within the rows, whose file fits the machine.

    Parameters
    ----------
    rows
        The other limits.

    Raises
    ------
    PlanError
        If a limit cannot be met: which one, and by how much.
    """
    header = header_of_plan(lay_out(problem.model, kept_types(problem.model)))
    search = _Search(problem, target, tuple(rows), header)
    smallest = search.placed({c.tensor.name: c.candidates[0].type for c in problem.choices}, small=True)
    if not smallest.fits:
        raise _does_not_fit(smallest, problem)
    merged, first = search.solved(search.merged(smallest))
    if search.is_met(first):
        best = OnMachine(merged, search.of(first), first, merged.bound)
        return best if best.gap.least <= _ENOUGH else _with_all_nodes(search, best, smallest)
    starts: list[Placement] = [first]
    bound: float | None = merged.bound
    if target.min_tps is not None and first.generation.likely < target.min_tps:
        bound = None
        starts = _fast_enough(search, first, smallest, target.min_tps)
    answers = [found for start in starts if (found := _settled(search, start, bound)) is not None]
    if not answers:
        answers = [_tightened(search, starts[0], bound)]
    return min(answers, key=lambda answer: answer.found.damage)


def _fast_enough(search: _Search, first: Placement, smallest: Placement, min_tps: float) -> list[Placement]:
    """Placements of files that are about as fast as asked, to begin with.

    Raises
    ------
    PlanError
        If no file is so fast.
    """
    fastest = max((smallest, search.fastest(first)), key=lambda p: p.generation.likely if p.fits else 0.0)
    likely = fastest.generation.likely
    if likely < min_tps:
        raise PlanError(
            f"{NO_FILE}: {likely:.1f} tokens per second are likely at most, {min_tps - likely:.1f} below the "
            f"{min_tps:g} of --min-tps",
            hint="give a smaller --min-tps, a machine with more VRAM, or allow other types with --types",
        )
    placement, starts = first, [fastest]
    for _ in range(_CALIBRATIONS):
        if not search.is_divided(placement):
            break
        try:
            _, after = search.solved(search.merged(placement, speed=True))
        except PlanError:
            break
        is_same = after.devices == placement.devices
        placement, starts = after, [fastest, after]
        if is_same or min_tps <= after.generation.likely <= _CLOSE * min_tps:
            break
    # The fastest is another beginning only where it alone is all on GPUs, which is faster by itself.
    return starts if search.is_divided(fastest) != search.is_divided(starts[-1]) else starts[-1:]


def _settled(search: _Search, start: Placement, bound: float | None) -> OnMachine | None:
    """The best answer found from a placement on; None if none was."""
    best: OnMachine | None = None
    placement = search.next_to(start)
    for _ in range(_ROUNDS):
        rows = search.of(placement)
        try:
            found, after = search.solved(rows)
        except PlanError:  # what was larger before does not fit where it is now
            break
        is_same = _is_as(after, placement)
        if search.is_met(after):
            if (
                best is None
                or found.damage < best.found.damage
                or (is_same and found.damage == best.found.damage)
            ):
                best = OnMachine(found if is_same else replace(found, bound=0.0), rows, after, bound)
            if is_same or best.gap.least <= _NEAR:
                break
        placement = search.next_to(after)
    if best is None or (best.gap.here is not None and best.gap.least <= _ENOUGH):
        return best
    return _with_gap(search, best)


def _is_as(placement: Placement, other: Placement) -> bool:
    """Whether two placements have the same rows: places, settings, and buffers, which depend on types."""
    buffers = [[d.whole_compute for d in p.reckoning.devices] for p in (placement, other)]
    is_same = placement.devices == other.devices and placement.settings == other.settings
    return is_same and buffers[0] == buffers[1]


def _with_all_nodes(search: _Search, best: OnMachine, smallest: Placement) -> OnMachine:
    """An answer of all placements together, solved for with more nodes."""
    found, after = search.solved(search.merged(smallest), MOST_NODES)
    if found.damage <= best.found.damage and search.is_met(after):
        return OnMachine(found, search.of(after), after, found.bound)
    bound = min(found.bound, best.found.damage)
    return replace(best, found=replace(best.found, bound=bound), bound=bound)


def _with_gap(search: _Search, best: OnMachine) -> OnMachine:
    """An answer that was solved for with other places, with the bound of its own; or what that gives."""
    nodes = MOST_NODES
    for n_left in range(_GAP_ROUNDS, 0, -1):
        rows = search.of(best.placement)
        try:
            found, after = search.solved(rows, nodes)
        except PlanError:
            return best
        own = OnMachine(
            replace(best.found, bound=min(found.bound, best.found.damage)), rows, best.placement, best.bound
        )
        is_better = found.damage < best.found.damage and search.is_met(after)
        if n_left == 1 or (not is_better and own.gap.least <= _MOST_GAP):
            return own
        if (
            not is_better
        ):  # what loses less is placed where it does not fit; the bound may be nearer than this
            if nodes > MOST_NODES:
                return own
            nodes = 2 * MOST_NODES
            continue
        if _is_as(after, best.placement):
            return OnMachine(found, rows, after, best.bound)
        # It is better, and elsewhere: there it has a bound of its own.
        best = OnMachine(replace(found, bound=0.0), search.of(after), after, best.bound)
    return best


def _tightened(search: _Search, start: Placement, bound: float | None) -> OnMachine:
    """An answer with more and more memory left free.

    Raises
    ------
    PlanError
        If there is none.
    """
    machine = search.target.machine
    spare = int((sum(gpu.memory for gpu in machine.gpus) + (machine.ram or 0)) * _STEP)
    for _ in range(_TIGHTER):
        found, after = search.solved(search.merged(start, spare, speed=True))
        if search.is_met(after):
            better = _settled(search, after, bound)
            loose = OnMachine(replace(found, bound=0.0), search.of(after), after, bound)
            return better or _with_gap(search, loose)
        spare *= 2
    raise PlanError(f"{NO_FILE}: none was found that is where it would fit", hint="give a larger budget")


def _does_not_fit(smallest: Placement, problem: Problem) -> PlanError:
    """The error of a machine on which the smallest types do not fit."""
    target = problem.options.target
    shortages = "; ".join(map(describe_shortage, smallest.shortages))
    # Not those that are about another file, which this is the smallest of.
    found = [w for w in ways_out(smallest) if w.placement.header.tensors == smallest.header.tensors]
    ways = [way.options for way in found if way.options.startswith("--")]
    if ways:
        hint = f"it would fit with {' or with '.join(ways)}"
    else:
        hint = "no shorter context (-c) and no --kv-type would be enough: it takes more memory"
        smaller, saved = smaller_types(problem)
        if saved >= sum(s.short for s in smallest.shortages):
            hint += f", or smaller types with --types ({', '.join(smaller)})"
    if target is not None and target.fast_types:
        hint += ", or leave out --fast-types"
    return PlanError(f"{NO_FILE}: of the smallest, {shortages}", hint=hint)
