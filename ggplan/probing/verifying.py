"""verify_allocation: the file of a recipe measured beside a stock mix and a uniform type of its size.

All are converted from the same weights with the same imatrix and run on the same tokens, so what differs is
which tensor got which type. Each file's figure stands beside what the same sensitivities predict of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.allocation.candidates import ENGINE_TYPES
from ggplan.allocation.forecast import Forecast, forecast_of
from ggplan.allocation.prior import REFERENCE_ERROR
from ggplan.allocation.problem import Problem
from ggplan.conversion import ConvertOptions, convert
from ggplan.errors import PlanError
from ggplan.measure import (
    Engine,
    MeasureOptions,
    MeasureResult,
    Metric,
    Record,
    TextFile,
    measure,
    open_subjects,
)
from ggplan.measure.measuring import Keep, Watcher
from ggplan.planning import Plan, make_plan
from ggplan.planning.importance import importance_refusal
from ggplan.planning.roles import Role, roles_in
from ggplan.rules import Recipe, parse_recipe
from ggplan.stock import MIXES

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

Written = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Contender:
    """A file to be measured: its name, its plan, and the KL divergence that is predicted of it."""

    name: str
    plan: Plan
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class Verified:
    """A contender that was measured.

    Attributes
    ----------
    kld
        By text, in the order that they were given: the mean KL divergence and its standard error, or None
        where the engine gave no number.
    """

    contender: Contender
    kld: tuple[Metric | None, ...]


def contenders(problem: Problem, recipe: Recipe, imatrix: Imatrix | None) -> tuple[Contender, ...]:
    """The recipe's file, the stock mix and the uniform type that are nearest to it in size.

    Mixes and types that need an imatrix are left out where there is none.
    """
    own = make_plan(problem.model, recipe, imatrix=imatrix, fallback=problem.options.fallback)
    found = [Contender("optimized", own, forecast_of_plan(problem, own))]
    for others in (_mixes(problem, imatrix), _uniform(problem, imatrix)):
        near = min(others, key=lambda o: abs(o[1].tensor_bytes - own.tensor_bytes), default=None)
        if near is not None:
            found.append(Contender(*near, forecast_of_plan(problem, near[1])))
    return tuple(found)


def forecast_of_plan(problem: Problem, plan: Plan) -> Forecast:
    """The KL divergence that the problem's sensitivities predict of any plan of its model."""
    roles = roles_in(problem.model)
    damage = 0.0
    for t in plan.tensors:
        sensitivity = problem.scales.values.get(t.name, 0.0)
        if t.type != t.tensor.type and t.type.kind != "integer" and roles[t.name] is not Role.NEXTN:
            damage += sensitivity * problem.errors.of(t.tensor, t.type) / REFERENCE_ERROR
    return forecast_of(damage, problem.scales.level)


def _mixes(problem: Problem, imatrix: Imatrix | None) -> Iterator[tuple[str, Plan]]:
    for mix in MIXES:
        if mix.type.is_quantized and mix.type.encodable:
            try:
                plan = make_plan(problem.model, mix, imatrix=imatrix)
            except PlanError:  # a shape for which llama-quantize has no fallback
                continue
            if importance_refusal(plan) is None and _is_written(plan):
                yield mix.name, plan


def _uniform(problem: Problem, imatrix: Imatrix | None) -> Iterator[tuple[str, Plan]]:
    for name in ENGINE_TYPES[problem.options.engine]:
        recipe = parse_recipe(f"@default {name}\n", name)
        try:
            plan = make_plan(problem.model, recipe, imatrix=imatrix, fallback=problem.options.fallback)
        except PlanError:
            continue
        if importance_refusal(plan) is None and _is_written(plan):
            yield f"all {name}", plan


def _is_written(plan: Plan) -> bool:
    return all(t.type.encodable or t.is_copied for t in plan.tensors)


def _base_to_write(found: Sequence[Contender]) -> Plan | None:
    """The plan of the base; None where the model's own files are it."""
    model = found[0].plan.model
    plan = make_plan(model)
    return None if model.kind == "gguf" and all(t.is_copied for t in plan.tensors) else plan


def bytes_to_write(found: Sequence[Contender]) -> int:
    """What `verify_allocation` writes."""
    base = _base_to_write(found)
    return sum(c.plan.file_bytes for c in found) + (0 if base is None else base.file_bytes)


def verify_allocation(
    found: Sequence[Contender],
    texts: Sequence[Path],
    engine: Engine,
    folder: Path,
    options: MeasureOptions,
    *,
    into: Record | None = None,
    written: Written | None = None,
    watcher: Watcher | None = None,
    keep: Keep | None = None,
) -> tuple[tuple[Verified, ...], MeasureResult]:
    """Convert contenders and measure them against their model.

    Parameters
    ----------
    folder
        For the files, in which nothing else may be; they stay.
    keep
        As for `ggplan.measure.measure`, for each figure when it is there; its note says what was predicted.

    Raises
    ------
    PlanError, ConversionError, MeasureError, CheckpointError, ImatrixError
        As `ggplan.convert` and `ggplan.measure.measure`.
    """
    base_plan = _base_to_write(found)
    base = found[0].plan.model.files[0] if base_plan is None else folder / "base.gguf"
    paths = [folder / f"{c.name.replace(' ', '_')}.gguf" for c in found]
    work = [(c.plan, path) for c, path in zip(found, paths, strict=True)]
    for plan, path in work if base_plan is None else [(base_plan, base), *work]:
        if not path.exists():
            convert(plan, path, ConvertOptions(allow_requantize=True), progress=written, resumed=written)
    subjects = open_subjects([base, *paths])
    notes = {s.sha256: _note(c) for s, c in zip(subjects[1:], found, strict=True)}

    def noted(record: Record) -> Record:
        own = tuple(replace(q, note=notes.get(q.file.sha256, q.note)) for q in record.quantizations)
        return replace(record, quantizations=own)

    result = measure(
        subjects[1:], [TextFile(path) for path in texts], subjects[0], engine, options,
        into=into, watcher=watcher,
        keep=None if keep is None else lambda record, scores: keep(noted(record), scores),
    )  # fmt: skip
    result = replace(result, record=noted(result.record))
    by_digest = {q.file.sha256: q for q in result.record.quantizations}
    verified = [
        Verified(c, tuple(m.metrics.get("kld") for m in by_digest[s.sha256].measurements))
        for s, c in zip(subjects[1:], found, strict=True)
    ]
    return tuple(verified), result


def _note(contender: Contender) -> str:
    f = contender.forecast
    return f"KL divergence predicted by ggplan optimize: {f.kld:.3g} ({f.low:.3g} to {f.high:.3g})"
