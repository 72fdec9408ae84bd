"""optimize: the types that lose least within a budget, as a plan and a readable recipe.

    model ─► problem: scales, errors ─► candidates ─► chains ─► solve ─► recipe ─► plan, which must be
                      prior    table    per tensor    by kind   HiGHS             what was solved
                      table    measured               and band
                      probes

The plan is made of the recipe's text, so what is promised of bytes is true of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ggplan.allocation.forecast import Forecast, forecast_of
from ggplan.allocation.grouping import Group
from ggplan.allocation.on_machine import header_of_plan, is_met, placed, solved_on_machine
from ggplan.allocation.options import OptimizeOptions, is_limited
from ggplan.allocation.problem import Problem, prepare, rows_of, solved
from ggplan.allocation.promises import Promises, heading_of, promises_of, start_of
from ggplan.allocation.recipe_text import Answer, Gap, recipe_text
from ggplan.allocation.scales import Scales
from ggplan.allocation.type_errors import Errors
from ggplan.errors import PlanError
from ggplan.model import Model
from ggplan.offload.placement import Placement
from ggplan.planning import Plan, decide, lay_out
from ggplan.rules import Recipe, parse_recipe
from ggplan.text import format_bytes, printable

_TEXT_ROOM = 4096  # bytes for the recipe's text in the file's header, at first
_TRIES = 6


@dataclass(frozen=True, slots=True)
class Optimized:
    """An allocation.

    Attributes
    ----------
    recipe
        Its rules; `recipe.text` is what to write.
    plan
        What the recipe gives the model.
    groups, chosen
        What was chosen among, and the index of the type that each group got.
    damages
        By tensor, in nats, those with one candidate included; their sum is what was minimised.
    gaps
        How far above the least possible damage of these groups it is at most; with `max_kld` how much larger
        it is than the smallest.
    forecast
        The KL divergence to expect.
    scales
        The sensitivities that it rests on.
    notes
        What the user should know.
    problem
        What was solved.
    placement
        Where the file lies on the machine that was asked for, and how fast it is there; None without one.
    """

    recipe: Recipe
    plan: Plan
    groups: tuple[Group, ...]
    chosen: tuple[int, ...]
    damages: Mapping[str, float]
    gaps: Gap
    forecast: Forecast
    scales: Scales
    notes: tuple[str, ...]
    problem: Problem
    placement: Placement | None = None

    @property
    def gap(self) -> float:
        """The lesser of the gaps that are known."""
        return self.gaps.least

    @property
    def damage(self) -> float:
        """The sum of all tensors' damages, in nats."""
        return sum(self.damages.values())


def optimize(
    model: Model,
    options: OptimizeOptions | None = None,
    *,
    scales: Scales | None = None,
    errors: Errors | None = None,
) -> Optimized:
    """The types that lose least within a budget; no weight is read.

    Parameters
    ----------
    scales
        The sensitivities of the tensors; by default those of the options' table, or the prior's.
    errors
        The errors of the types; by default the table's, by type alone.

    Raises
    ------
    PlanError
        If nothing limits the file, no file of these types is within the budget (with how much the smallest is
        above it), a pin matches nothing, or a table is of another model.
    RecipeError
        If a pin is no rule.
    MeasureError
        If the table cannot be read.
    TypeNameError
        If a type is none.
    """
    return answer_of(prepare(model, options or OptimizeOptions(), scales=scales, errors=errors))


def answer_of(problem: Problem, *, heading: Sequence[str] = ()) -> Optimized:
    """The answer to a problem.

    Parameters
    ----------
    heading
        Lines for the recipe's heading.

    Raises
    ------
    PlanError
        If the budget cannot be met.
    """
    options = problem.options
    if not is_limited(options):
        raise PlanError("nothing limits the file", hint="give --size, --bpw, --max-kld or --vram and --ram")
    room = _TEXT_ROOM
    for _ in range(_TRIES):
        rows, lines, promises = rows_of(problem, room), [*heading], Promises((), ())
        if options.target is None:
            found = solved(problem, rows)
            gap = Gap(found.gap, found.gap)
        else:
            on_machine = solved_on_machine(problem, options.target, rows)
            found, gap = on_machine.found, on_machine.gap
            rows = (*rows, *on_machine.rows)
            lines += heading_of(on_machine.placement)
            first, *others = start_of(on_machine.placement, options.name)
            lines += [f"Start           {first}", *others]
            promises = promises_of(on_machine.placement, options.target)
        answer = Answer(problem, found.groups, found.chosen)
        forecast = forecast_of(answer.damage, problem.scales.level)
        text = recipe_text(answer, rows, gap, forecast, lines, promises.lines)
        recipe = parse_recipe(text, f"{options.name}.recipe")
        plan = lay_out(problem.model, decide(problem.model, recipe), fallback=options.fallback)
        _prove(plan, answer)
        placement = None if options.target is None else _proven(plan, problem)
        n_bytes = plan.file_bytes + problem.recorded
        if options.size is None or n_bytes <= options.size:
            notes = (*problem.scales.notes, *problem.notes, *promises.notes, *_encoded_again(plan))
            return Optimized(
                recipe, plan, found.groups, found.chosen, answer.damages, gap, forecast, problem.scales,
                notes, problem, placement,
            )  # fmt: skip
        room += n_bytes - options.size
    raise PlanError(
        f"no recipe was found whose file, with its text in it, is within {format_bytes(options.size or 0)}",
        hint="give a larger --size",
    )


def _proven(plan: Plan, problem: Problem) -> Placement:
    """Where the file of a plan lies, which must fit."""
    target = problem.options.target
    placement = placed(header_of_plan(plan), problem)
    if target is None or not is_met(placement, target):
        raise PlanError("the file of the recipe does not fit as it was solved for", hint="report this")
    return placement


def _encoded_again(plan: Plan) -> list[str]:
    """What is to be said of tensors that are quantized in the source."""
    again = [t for t in plan.tensors if t.tensor.type.is_quantized and t.type != t.tensor.type]
    if not again:
        return []
    many = "1 tensor is" if len(again) == 1 else f"{len(again):,} tensors are"
    return [f"{many} quantized in the source and encoded again, on top of what that has lost"]


def _prove(plan: Plan, answer: Answer) -> None:
    """The recipe must give the types that were solved for."""
    wanted = answer.types
    for tensor in plan.tensors:
        due = wanted.get(tensor.name)
        if due is not None and tensor.type != due:
            raise PlanError(
                f"{printable(tensor.name)}: no pattern tells this name from others, so it cannot get {due}"
            )
