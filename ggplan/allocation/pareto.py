"""The curve of the best files of all sizes, as the numbers predict them, and the stock mixes beside it.

Each point is solved for its own size by the multiplier and exchanges, which is within some thousandths of the
bound for all but small models; where it is not, by branch and bound. What is left is each point's gap.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ggplan.allocation.budget import Row, size_row
from ggplan.allocation.forecast import Forecast, forecast_of
from ggplan.allocation.on_machine import header_of_plan, placed, solved_on_machine
from ggplan.allocation.options import OptimizeOptions
from ggplan.allocation.problem import Problem, prepare, rows_of, solved
from ggplan.allocation.scales import Scales
from ggplan.allocation.type_errors import Errors
from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType
from ggplan.model import Model
from ggplan.offload.tensor_costs import with_types
from ggplan.planning import kept_types, lay_out, mix_types
from ggplan.planning.fitting import fit
from ggplan.planning.layout import padded
from ggplan.stock import MIXES
from ggplan.text import format_bytes

N_POINTS = 20
"""The points of a curve, unless told otherwise."""
_ROOM = 8192  # for a recipe's text in the file
_NEAR = 0.002
_LEEWAY = 32  # bytes, so that the smallest size is met whatever rounding does
_OLD = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q1_0", "Q2_0")


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A file of the curve, or a stock mix.

    Attributes
    ----------
    name
        A mix's; "" of a point of the curve.
    file_bytes
        Of the file, with room for a recipe's text in its header.
    bits_per_weight
        Of all tensors.
    damage
        In nats, before what many errors do together.
    gap
        How far the damage is above the least possible of this size at most, as a part of it; None of a mix.
    forecast
        The KL divergence to expect.
    tps
        The likely tokens per second on the machine, the context being empty; None without one, or of a mix
        that does not fit it.
    """

    name: str
    file_bytes: int
    bits_per_weight: float
    damage: float
    gap: float | None
    forecast: Forecast
    tps: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """The best files of all sizes, by size, and stock mixes.

    Attributes
    ----------
    model
        The model's name.
    n_weights
        Of the model, which turns bits per weight into bytes.
    points, mixes
        By size.
    source, credit
        Where the sensitivities are from, and who measured.
    caveats
        What must be known to compare the points with others.
    notes
        What else the user should know.
    """

    model: str
    n_weights: int
    points: tuple[CurvePoint, ...]
    mixes: tuple[CurvePoint, ...]
    source: str
    credit: tuple[str, ...]
    caveats: tuple[str, ...]
    notes: tuple[str, ...]

    def kld_at(self, file_bytes: int) -> float | None:
        """The curve's KL divergence at a size, between its points by logarithms; None beside its ends."""
        sizes = [p.file_bytes for p in self.points]
        at = bisect_left(sizes, file_bytes)
        if at == len(sizes) or (at == 0 and sizes[0] != file_bytes):
            return None
        b = self.points[at]
        a = self.points[max(at - 1, 0)]
        if a.file_bytes == b.file_bytes or not (a.forecast.kld > 0 and b.forecast.kld > 0):
            return b.forecast.kld
        part = (file_bytes - a.file_bytes) / (b.file_bytes - a.file_bytes)
        return math.exp((1 - part) * math.log(a.forecast.kld) + part * math.log(b.forecast.kld))


def pareto(
    model: Model,
    options: OptimizeOptions | None = None,
    *,
    n_points: int = N_POINTS,
    scales: Scales | None = None,
    errors: Errors | None = None,
) -> Curve:
    """The curve of the best files from the smallest to the largest that options allow.

    Parameters
    ----------
    options
        As of `optimize`; no budget need be given. `size` is the largest of the curve. On a machine every file
        of the curve fits it and is as fast as asked, and the largest is the best for it.
    n_points
        How many sizes, 2 or more, evenly from the smallest file to the largest.
    scales, errors
        As of `optimize`.

    Raises
    ------
    PlanError
        As of `optimize`; and with `max_kld`, for that is one file.
    """
    problem = prepare(model, options or OptimizeOptions(), scales=scales, errors=errors)
    return curve_of(problem, n_points)


def curve_of(problem: Problem, n_points: int = N_POINTS) -> Curve:
    """The curve of a problem.

    Raises
    ------
    PlanError
        As `pareto` does.
    """
    options = problem.options
    if options.max_kld is not None:
        raise PlanError("--max-kld asks for one file, not for a curve", hint="leave out one of the two")
    if n_points < 2:
        raise PlanError(f"{n_points} points are no curve", hint="2 or more")
    header = problem.header
    least, most = (header + _ROOM + n for n in _ends(problem))
    if options.target is not None:
        largest = _point(problem, [row for row in rows_of(problem, _ROOM) if row.name != "size"])
        if largest is None:
            raise _why_none(problem)
        most = min(most, largest.file_bytes)
    if options.size is not None:
        if options.size < least:
            raise _why_none(problem)
        most = min(most, options.size)
    others = [row for row in rows_of(problem, _ROOM) if row.name != "size"]
    points: list[CurvePoint] = []
    for number in range(n_points):
        # At the largest size all types are as large as they may be, whatever they cost.
        size = least + (most - least) * number // (n_points - 1)
        found = _point(problem, [size_row(max(size, least) + _LEEWAY, header + _ROOM), *others])
        if found is not None and (not points or found.file_bytes > points[-1].file_bytes):
            points.append(found)
    if not points:
        raise _why_none(problem)
    mixes, notes = _mixes(problem)
    n_weights = sum(t.n_weights for t in problem.model.tensors)
    notes = (*problem.scales.notes, *problem.notes, *notes)
    scales = problem.scales
    return Curve(
        problem.model.path.name,
        n_weights,
        tuple(points),
        mixes,
        scales.source,
        scales.credit,
        _caveats(problem),
        notes,
    )


def _caveats(problem: Problem) -> tuple[str, ...]:
    """That blocks which draft tokens have more bits than in the mixes, where there are some."""
    drafting = [c for c in problem.choices if c.fixed == "drafting" and c.candidates[0].type.is_quantized]
    if not drafting:
        return ()
    n_bytes = sum(c.candidates[0].n_bytes for c in drafting)
    return (
        f"{format_bytes(n_bytes)} of every file of the curve are blocks that draft tokens at"
        f" {drafting[0].candidates[0].type}; the mixes give these fewer bits, which no KL divergence shows.",
    )


def _ends(problem: Problem) -> tuple[int, int]:
    """The bytes of all tensors, as small and as large as is of any use."""
    least = most = 0
    for choice in problem.choices:
        sizes = [padded(c.n_bytes) for c in choice.candidates]
        damage = min(c.damage for c in choice.candidates)
        least += min(sizes)
        most += min(size for size, c in zip(sizes, choice.candidates, strict=True) if c.damage == damage)
    return least, most


def _point(problem: Problem, rows: Sequence[Row]) -> CurvePoint | None:
    """The best file within the rows; None where there is none."""
    target = problem.options.target
    try:
        if target is not None:
            answer = solved_on_machine(problem, target, rows)
            point = _file(problem, "", problem.types_of(answer.found), answer.gap.least)
            return replace(point, tps=answer.placement.generation.likely)
        found = solved(problem, rows, nodes=0)
        if found.gap > _NEAR:
            found = solved(problem, rows)
    except PlanError:
        return None
    return _file(problem, "", problem.types_of(found), found.gap)


def _why_none(problem: Problem) -> PlanError:
    """The error of limits that no file is within."""
    rows, target = rows_of(problem, _ROOM), problem.options.target
    try:
        if target is not None:
            solved_on_machine(problem, target, rows)
        else:
            solved(problem, rows, nodes=0)
    except PlanError as error:
        return error
    return PlanError("no file of the allowed types is within the budget", hint="give a larger one")


def _file(problem: Problem, name: str, types: Mapping[str, GgmlType], gap: float | None) -> CurvePoint:
    """A file of these types, by tensor."""
    tensors = problem.model.tensors
    n_bytes = [types[t.name].tensor_bytes(t.shape) for t in tensors]
    damage = sum(problem.damage(t, types[t.name]) for t in tensors)
    n_weights = max(sum(t.n_weights for t in tensors), 1)
    room = 0 if name else _ROOM
    return CurvePoint(
        name, problem.header + room + sum(map(padded, n_bytes)), 8 * sum(n_bytes) / n_weights, damage, gap,
        forecast_of(damage, problem.scales.level),
    )  # fmt: skip


def _mixes(problem: Problem) -> tuple[tuple[CurvePoint, ...], tuple[str, ...]]:
    """The stock mixes of this model, by size, and what is to be said of those left out."""
    found: list[CurvePoint] = []
    left_out: list[str] = []
    header = None
    if problem.options.target is not None:
        header = header_of_plan(lay_out(problem.model, kept_types(problem.model)))
    for mix in MIXES:
        if not mix.type.is_quantized or mix.name in _OLD:
            continue
        try:
            fitted = fit(problem.model, mix_types(problem.model, mix, has_imatrix=True), "llama.cpp")
            if any(f.fault is not None for f in fitted):
                raise PlanError("it has no type for a tensor")
            types = {f.tensor.name: f.type for f in fitted}
            found.append(_file(problem, mix.name, types, None))
            if header is not None:
                placement = placed(with_types(header, types), problem)
                tps = placement.generation.likely if placement.fits else None
                found[-1] = replace(found[-1], tps=tps)
        except PlanError:
            left_out.append(mix.name)
    notes = (f"not predicted, as a type's error is not known or a shape forbids it: {', '.join(left_out)}",)
    return tuple(sorted(found, key=lambda p: (p.file_bytes, p.name))), notes if left_out else ()
