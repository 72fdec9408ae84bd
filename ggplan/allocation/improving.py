"""improve: what a given recipe loses, and the best types at its own bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ggplan.allocation.forecast import Forecast, forecast_of
from ggplan.allocation.grouping import joined_kind
from ggplan.allocation.optimizing import Optimized, answer_of
from ggplan.allocation.options import OptimizeOptions, is_limited
from ggplan.allocation.problem import Problem, prepare
from ggplan.allocation.scales import Scales
from ggplan.allocation.type_errors import Errors
from ggplan.ggml_types import GgmlType
from ggplan.model import Model, require_model
from ggplan.planning import Assignment, Plan, Role, assign, lay_out
from ggplan.planning.layout import padded
from ggplan.planning.protection import protection_of
from ggplan.planning.settling import settle
from ggplan.rules import Recipe
from ggplan.stock import Mix

_TEXT_ROOM = 1 << 14  # bytes that a recipe's text takes in the file, at most


@dataclass(frozen=True, slots=True)
class Rated:
    """What a recipe gives a model, and what is predicted of it."""

    name: str
    plan: Plan
    damages: Mapping[str, float]
    forecast: Forecast

    @property
    def damage(self) -> float:
        """The sum of all tensors' damages, in nats."""
        return sum(self.damages.values())


@dataclass(frozen=True, slots=True)
class KindChange:
    """One kind of tensor before and after.

    Attributes
    ----------
    kind
        `ffn_down_exps.weight`; "" of all tensors of blocks that draft tokens.
    role
        What it is for.
    n_tensors
        How many there are.
    types
        Before and after, how many tensors have each type, the most frequent first.
    n_bytes
        Before and after.
    damages
        Before and after, in nats.
    """

    kind: str
    role: Role
    n_tensors: int
    types: tuple[Mapping[str, int], Mapping[str, int]]
    n_bytes: tuple[int, int]
    damages: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Improved:
    """A recipe and the best types at its bytes.

    Attributes
    ----------
    before
        The recipe.
    answer
        What is best.
    kinds
        The kinds of tensors, those of a role together; what is never quantized is left out.
    """

    before: Rated
    answer: Optimized
    kinds: tuple[KindChange, ...]


def improve(
    model: Model,
    chosen: Recipe | Mix | Assignment | str,
    options: OptimizeOptions | None = None,
    *,
    scales: Scales | None = None,
    errors: Errors | None = None,
) -> Improved:
    """The best types at a recipe's own bytes.

    Parameters
    ----------
    chosen
        What `ggplan.make_plan` takes: a recipe, a stock mix, or the name of one.
    options
        As of `optimize`. Without a budget the file may be as large as the recipe's; without types, those
        that the recipe gives may be given; the engine is that of its types.
    scales, errors
        As of `optimize`.

    Raises
    ------
    RecipeError, PlanError
        As `ggplan.make_plan` and `ggplan.optimize` do.
    """
    completed, given = options_for(model, chosen, options or OptimizeOptions())
    return improved(prepare(model, completed, scales=scales, errors=errors), given)


def improved(problem: Problem, given: Plan) -> Improved:
    """The best types for a problem whose options `options_for` made of a plan.

    Raises
    ------
    PlanError
        As `improve` does.
    """
    problem = _with_room_for_text(problem, given)
    options = problem.options
    name = given.assignment.name or "the recipe"
    before = rated(problem, given, name)
    told = (f"Improves        {name}, of which {before.forecast.kld:.2g} nats are predicted",)
    answer = answer_of(problem, heading=told)
    if answer.damage >= before.damage and options.bands is not None:
        # Whoever wrote it told more layers apart.
        freely = replace(problem, options=replace(options, bands=None))
        answer = min(answer, answer_of(freely, heading=told), key=lambda found: found.damage)
    if answer.damage >= before.damage:
        answer = replace(
            answer, notes=(*answer.notes, f"{name} loses no more than this, as far as these numbers say")
        )
    return Improved(before, answer, _kinds(problem, before, answer))


def _with_room_for_text(problem: Problem, given: Plan) -> Problem:
    """The problem with a size that the smallest file is within: of the smallest of its own types a recipe has
    nothing to give up for the text of another in the file.
    """
    least = problem.header + _TEXT_ROOM
    least += sum(min(padded(c.n_bytes) for c in choice.candidates) for choice in problem.choices)
    if problem.options.size != given.file_bytes or least <= given.file_bytes:
        return problem
    if least - given.file_bytes > _TEXT_ROOM:  # it is not the text that is too much
        return problem
    return replace(problem, options=replace(problem.options, size=least))


def options_for(
    model: Model, chosen: Recipe | Mix | Assignment | str, options: OptimizeOptions
) -> tuple[OptimizeOptions, Plan]:
    """The options with a recipe's bytes and types where they say nothing; and what it gives the model.

    Raises
    ------
    RecipeError, PlanError
        As `ggplan.make_plan` does.
    """
    require_model(model)
    plan = lay_out(settled := settle(model), assign(settled, chosen, has_imatrix=True))
    if not is_limited(options):
        options = replace(options, size=plan.file_bytes)
    given = {
        t.type: None
        for t in plan.tensors
        if t.role is not Role.NEXTN and protection_of(t.tensor) is None and t.type.kind != "integer"
    }
    if not options.types:
        options = replace(options, types=tuple(type_.name for type_ in given))
    if any(type_.engine == "ik_llama.cpp" for type_ in given):
        options = replace(options, engine="ik_llama.cpp")
    return options, plan


def rated(problem: Problem, plan: Plan, name: str) -> Rated:
    """What is predicted of a plan of the problem's model.

    Raises
    ------
    PlanError
        If the error of a type is not known.
    """
    types = {t.name: t.type for t in plan.tensors}
    damages = {t.name: problem.damage(t, types[t.name]) for t in problem.model.tensors if t.name in types}
    return Rated(name, plan, damages, forecast_of(sum(damages.values()), problem.scales.level))


def _kinds(problem: Problem, before: Rated, answer: Optimized) -> tuple[KindChange, ...]:
    was = {t.name: t.type for t in before.plan.tensors}
    now = {t.name: t.type for t in answer.plan.tensors}
    found: dict[tuple[Role, str], list[str]] = {}
    shapes = {t.name: t.shape for t in problem.model.tensors}
    for choice in problem.choices:
        if choice.fixed not in ("protected", "integers"):
            drafts = choice.role is Role.NEXTN
            kind = "" if drafts else joined_kind(choice.tensor.name, problem.options.harmonised)
            found.setdefault((choice.role, kind), []).append(choice.tensor.name)

    def counted(types: Mapping[str, GgmlType], names: list[str]) -> Mapping[str, int]:
        return dict(Counter(types[name].name for name in names).most_common())

    def n_bytes(types: Mapping[str, GgmlType], names: list[str]) -> int:
        return sum(types[name].tensor_bytes(shapes[name]) for name in names)

    order = list(Role)
    return tuple(
        KindChange(
            kind, role, len(names), (counted(was, names), counted(now, names)),
            (n_bytes(was, names), n_bytes(now, names)),
            (sum(before.damages[n] for n in names), sum(answer.damages.get(n, 0.0) for n in names)),
        )
        for (role, kind), names in sorted(found.items(), key=lambda item: order.index(item[0][0]))
    )  # fmt: skip


def improved_json(found: Improved) -> dict[str, object]:
    """What was improved as an object of plain JSON types; the answer itself is not in it."""
    before = found.before
    return {
        "name": before.name,
        "file_bytes": before.plan.file_bytes,
        "bits_per_weight": before.plan.bits_per_weight,
        "damage": before.damage,
        "forecast": {"kld": before.forecast.kld, "low": before.forecast.low, "high": before.forecast.high},
        "kinds": [
            {
                "kind": k.kind,
                "class": k.role.value,
                "tensors": k.n_tensors,
                "types": {"before": dict(k.types[0]), "after": dict(k.types[1])},
                "bytes": {"before": k.n_bytes[0], "after": k.n_bytes[1]},
                "damage": {"before": k.damages[0], "after": k.damages[1]},
            }
            for k in found.kinds
        ],
    }
