"""optimize: the types that lose least within a budget, as a plan and a readable recipe.

    model ─► scales ─► candidates ─► groups ─► solve ─► recipe ─► plan, which must be what was solved
             prior     per tensor    by kind   HiGHS
             or table                and band

The plan is made of the recipe's text, so what is promised of bytes is true of the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggplan.allocation.banding import Banded, solve_bands, solve_freely
from ggplan.allocation.candidates import TensorChoices, allowed_types, choices_of
from ggplan.allocation.grouping import Chain, Group, chains_of
from ggplan.allocation.prior import Level
from ggplan.allocation.recipe_text import Answer, Budget, recipe_text
from ggplan.allocation.scales import Scales, scales_by_prior, scales_by_table
from ggplan.allocation.sensitivities import read_sensitivities
from ggplan.allocation.solving import Shortfall
from ggplan.errors import PlanError, RecipeError
from ggplan.model import Model, require_model
from ggplan.planning import Decision, Plan, decide, kept_types, lay_out
from ggplan.planning.fallback import FallbackTable
from ggplan.planning.layout import padded
from ggplan.planning.settling import settle
from ggplan.rules import Recipe, match, parse_recipe
from ggplan.text import format_bytes, printable

_TEXT_ROOM = 4096  # bytes for the recipe's text in the file's header, at first
_TRIES = 6


@dataclass(frozen=True, slots=True)
class OptimizeOptions:
    """What an allocation is to be.

    Attributes
    ----------
    size
        The most bytes that the file may have, its header included; None for no limit.
    bpw
        The most bits per weight of all tensors; None for no limit.
    types
        The names of the types that may be given; () for those of the engine.
    engine
        "llama.cpp" or "ik_llama.cpp": whose types, and whose fallback table.
    pins
        Rules of a recipe, `PATTERN = TYPE`, that stand whatever they cost; the first that matches decides.
    bands
        Bands of layers for each kind of tensor; None for each layer its own.
    harmonised
        Sets of words: kinds of tensors that differ by such a word alone get one type.
    table
        A table of single-tensor measurements of this model; None for the prior alone.
    name
        The recipe's name.
    """

    size: int | None = None
    bpw: float | None = None
    types: tuple[str, ...] = ()
    engine: str = "llama.cpp"
    pins: tuple[str, ...] = ()
    bands: int | None = 3
    harmonised: tuple[tuple[str, ...], ...] = (("gate", "up"),)
    table: str | Path | None = None
    name: str = "optimized"


@dataclass(frozen=True, slots=True)
class Forecast:
    """The mean KL divergence (nats) that a file is predicted to have, and between what it probably is."""

    kld: float
    low: float
    high: float


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
    gap
        How far above the least possible damage of these groups it is at most, as a part of it.
    forecast
        The KL divergence to expect.
    scales
        The sensitivities that it rests on.
    notes
        What the user should know.
    """

    recipe: Recipe
    plan: Plan
    groups: tuple[Group, ...]
    chosen: tuple[int, ...]
    damages: Mapping[str, float]
    gap: float
    forecast: Forecast
    scales: Scales
    notes: tuple[str, ...]

    @property
    def damage(self) -> float:
        """The sum of all tensors' damages, in nats."""
        return sum(self.damages.values())


def optimize(
    model: Model, options: OptimizeOptions | None = None, *, scales: Scales | None = None
) -> Optimized:
    """The types that lose least within a budget; no weight is read.

    Parameters
    ----------
    scales
        The sensitivities of the tensors; by default those of the options' table, or the prior's.

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
    require_model(model)
    options = options or OptimizeOptions()
    _check(options)
    model = settle(model)
    allowed = allowed_types(options.types, options.engine)
    table: FallbackTable = "ik" if options.engine == "ik_llama.cpp" else "llama.cpp"
    scales = scales or _scales(model, options.table)
    pinned, notes = _pinned(model, options.pins)
    choices = choices_of(model, allowed, scales.values, pinned, table, only_allowed=bool(options.types))
    chains = chains_of(choices, harmonised=options.harmonised)
    room = _TEXT_ROOM
    for _ in range(_TRIES):
        budget = _budget(model, options, room)
        found = _solved(budget, choices, chains, options.bands)
        answer = Answer(
            model, options.name, options.engine, options.pins, choices, found.groups, found.chosen
        )
        damages = answer.damages
        forecast = _forecast(sum(damages.values()), scales.level)
        text = recipe_text(
            answer, budget, found.gap, (forecast.kld, forecast.low, forecast.high), scales, table
        )
        recipe = parse_recipe(text, f"{options.name}.recipe")
        plan = lay_out(model, decide(model, recipe), fallback=table)
        _prove(plan, answer)
        if options.size is None or plan.file_bytes <= options.size:
            notes += _encoded_again(plan)
            return Optimized(
                recipe, plan, found.groups, found.chosen, damages, found.gap, forecast, scales,
                (*scales.notes, *notes),
            )  # fmt: skip
        room += plan.file_bytes - options.size
    raise PlanError(
        f"no recipe was found whose file, with its text in it, is within {format_bytes(options.size or 0)}",
        hint="give a larger --size",
    )


def _scales(model: Model, table: str | Path | None) -> Scales:
    if table is None:
        return scales_by_prior(model)
    return scales_by_table(model, read_sensitivities(table), printable(str(table)))


def _check(options: OptimizeOptions) -> None:
    if options.size is None and options.bpw is None:
        raise PlanError("nothing limits the file", hint="give --size or --bpw")
    if options.bpw is not None and not (math.isfinite(options.bpw) and options.bpw > 0):
        raise PlanError(f"{options.bpw} bits per weight cannot be", hint="bits per weight look like 4.5")
    if options.bands is not None and options.bands < 1:
        raise PlanError(f"{options.bands} bands cannot be", hint="1 or more")
    if options.engine not in ("llama.cpp", "ik_llama.cpp"):
        raise PlanError(f"engine cannot be {printable(options.engine)}", hint="llama.cpp or ik_llama.cpp")


def _pinned(model: Model, pins: Sequence[str]) -> tuple[dict[str, Decision], list[str]]:
    """What the pins decide, by tensor, and what is to be said of them."""
    if not pins:
        return {}, []
    for pin in pins:
        is_directive = pin.lstrip().startswith("@") and not pin.lstrip().startswith("@role")
        if is_directive or "\n" in pin or "\r" in pin:
            raise RecipeError(f"the pin {printable(pin)!r} is no rule", hint="write PATTERN=TYPE")
    recipe = parse_recipe("\n".join(pins) + "\n", "--pin")
    hits = match(recipe, [t.name for t in model.tensors])
    matched = {rule for found in hits for rule in found}
    for number, rule in enumerate(recipe.rules):
        if number not in matched:
            raise PlanError(
                f"the pin {printable(rule.pattern)} matches no tensor",
                hint="`ggplan inspect` lists the tensors of a model",
            )
    decided = decide(model, recipe).decisions
    pinned = {name: decision for name, decision in decided.items() if decision.reason == "rule"}
    used = {decision.rule for decision in pinned.values()}
    notes = [
        f"the pin {printable(rule.pattern)} decides nothing: earlier pins do, or its tensors are protected"
        for number, rule in enumerate(recipe.rules)
        if number not in used
    ]
    return pinned, notes


def _budget(model: Model, options: OptimizeOptions, room: int) -> Budget:
    """The rows: their names, limits, and what the file's header takes of them."""
    plain = lay_out(model, kept_types(model))
    header = plain.file_bytes - plain.data_bytes + room
    n_weights = sum(t.n_weights for t in model.tensors)
    rows: list[tuple[str, float, float]] = []
    if options.size is not None:
        rows.append(("size", options.size, header))
    if options.bpw is not None:
        rows.append(("bpw", options.bpw * n_weights / 8, 0))
    return Budget(tuple(rows), n_weights, options.size, options.bpw)


def _solved(
    budget: Budget, choices: Sequence[TensorChoices], chains: Sequence[Chain], bands: int | None
) -> Banded:
    """The solution within the rows, less what the tensors with one candidate take."""
    fixed = [c for c in choices if c.fixed]
    limits = []
    for name, limit, overhead in budget.rows:
        taken = sum(_cost(name, c.candidates[0].n_bytes) for c in fixed)
        limits.append(limit - overhead - taken)
    costs = [
        [[_costs(name, group) for group in chain.layers] for name, _, _ in budget.rows] for chain in chains
    ]
    found = solve_bands(chains, costs, limits, bands) if bands else solve_freely(chains, costs, limits)
    if isinstance(found, Shortfall):
        raise _shortfall(budget, found, limits, drafts=any(c.fixed == "drafting" for c in fixed))
    return found


def _costs(row: str, group: Group) -> list[float]:
    """What each type of a group takes of a row."""
    return [
        float(sum(_cost(row, m.candidates[i].n_bytes) for m in group.members))
        for i in range(len(group.types))
    ]


def _cost(row: str, n_bytes: int) -> int:
    return padded(n_bytes) if row == "size" else n_bytes


def _shortfall(budget: Budget, found: Shortfall, limits: Sequence[float], *, drafts: bool) -> PlanError:
    name, limit, _ = budget.rows[found.row]
    over = max(found.least - limits[found.row], 0)
    if name == "size":
        least, limited = format_bytes(math.ceil(limit + over)), format_bytes(round(limit))
        what = f"the smallest file is {least}, {format_bytes(math.ceil(over))} above the {limited} of --size"
    else:
        least_bpw, by = 8 * (limit + over) / budget.n_weights, 8 * over / budget.n_weights
        what = f"the smallest file has {least_bpw:.3f} bpw, {by:.3f} above the {budget.bpw:g} of --bpw"
    return PlanError(
        f"no file of the allowed types is within the budget: {what}",
        hint="give a larger budget, allow smaller types with --types, or pin fewer tensors"
        + (", or leave the block that drafts tokens out with `--mtp drop`" if drafts else ""),
    )


def _forecast(damage: float, level: Level) -> Forecast:
    """KLD = A + c sqrt(A), and the same of a level one standard deviation off either way."""

    def kld(a: float) -> float:
        return a + level.flips * math.sqrt(a)

    factor = math.exp(max(level.spread, 0.2))
    return Forecast(kld(damage), kld(damage / factor), kld(damage * factor))


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
