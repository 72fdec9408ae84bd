"""Why a tensor has its type, and what each other allowed type would cost or save.

Tensors that get one type together (a band of layers of a kind) change together: what is told is of all of
them. In an optimum, what a step up saves is at most, and what a step down costs at least, about the same for
each byte everywhere: the price of a byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ggplan.allocation.candidates import TensorChoices
from ggplan.allocation.forecast import forecast_of
from ggplan.allocation.grouping import Group
from ggplan.allocation.on_machine import placed
from ggplan.allocation.optimizing import Optimized
from ggplan.allocation.patterns import exact_patterns
from ggplan.allocation.problem import Problem
from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType
from ggplan.offload.placement import Shortage
from ggplan.offload.tensor_costs import with_types
from ggplan.planning import Role
from ggplan.planning.protection import protection_of
from ggplan.rules import match, parse_recipe
from ggplan.text import nearest, printable

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Step:
    """Another type for some tensors, and what it changes.

    Attributes
    ----------
    type
        The type; of one step the type that they have.
    n_bytes
        More bytes of the file, negative for fewer.
    damage, kld
        More damage and more predicted KL divergence, in nats; negative for less.
    tps
        More tokens per second on the machine, negative for fewer, where `ggplan.place` puts the changed file;
        None without a machine, or if the file does not fit it.
    shortages
        The devices that are too small for the changed file.
    """

    type: GgmlType
    n_bytes: int
    damage: float
    kld: float
    tps: float | None = None
    shortages: tuple[Shortage, ...] = ()


@dataclass(frozen=True, slots=True)
class Explained:
    """Tensors that have one type together.

    Attributes
    ----------
    names
        Of all of them, in the order of the model; those that were asked for come with the rest of their band.
    patterns
        Patterns for exactly these.
    role
        What they are for.
    type
        What they have.
    n_bytes, damage
        Of all of them; damage in nats.
    share
        The damage as a part of the file's.
    why
        Why they have the type, in words.
    steps
        Their allowed types by size, the own among them; one where nothing was to be chosen.
    """

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    role: Role
    type: GgmlType
    n_bytes: int
    damage: float
    share: float
    why: str
    steps: tuple[Step, ...]


def explain(answer: Optimized, wanted: str) -> tuple[Explained, ...]:
    """Why tensors have their types.

    Parameters
    ----------
    wanted
        A tensor's name, or a pattern as in a recipe.

    Raises
    ------
    PlanError
        If it is in no tensor's name.
    RecipeError
        If it is no pattern.
    """
    problem = answer.problem
    names = _named(problem, wanted)
    found: list[Explained] = []
    price = _price(answer)
    for group, option in zip(answer.groups, answer.chosen, strict=True):
        if any(m.tensor.name in names for m in group.members):
            found.append(_of_group(answer, group, option, price))
    fixed: dict[tuple[str, GgmlType], list[TensorChoices]] = {}
    for choice in problem.choices:
        if choice.fixed and choice.tensor.name in names:
            fixed.setdefault((_why_fixed(problem, choice), choice.candidates[0].type), []).append(choice)
    found += [_fixed(answer, why, choices) for (why, _), choices in fixed.items()]
    return tuple(found)


def _named(problem: Problem, wanted: str) -> frozenset[str]:
    names = [c.tensor.name for c in problem.choices]
    if wanted in names:
        return frozenset([wanted])
    recipe = parse_recipe(f"{wanted} = q8_0\n", "--explain")
    found = [name for name, hits in zip(names, match(recipe, names), strict=True) if hits]
    if not found:
        near = nearest(wanted, names)
        raise PlanError(
            f"{printable(wanted)} is in no tensor's name",
            hint=f"the nearest is {printable(near)}" if near else "`ggplan inspect` lists the tensors",
        )
    return frozenset(found)


def _of_group(answer: Optimized, group: Group, option: int, price: float) -> Explained:
    total = answer.damage
    level = answer.scales.level
    kld = forecast_of(total, level).kld
    steps = []
    for type_, n_bytes, damage in zip(group.types, group.n_bytes, group.damages, strict=True):
        more = damage - group.damages[option]
        changed = forecast_of(max(total + more, 0.0), level).kld
        tps, short = _on_machine(answer, group, type_)
        steps.append(Step(type_, n_bytes - group.n_bytes[option], more, changed - kld, tps, short))
    return Explained(
        tuple(m.tensor.name for m in group.members),
        _patterns(answer, group.members),
        group.members[0].role,
        group.types[option],
        group.n_bytes[option],
        group.damages[option],
        group.damages[option] / total if total else 0.0,
        _why_chosen(group, option, price),
        tuple(sorted(steps, key=lambda s: s.n_bytes)),
    )


def _on_machine(
    answer: Optimized, group: Group, type_: GgmlType
) -> tuple[float | None, tuple[Shortage, ...]]:
    """More tokens per second with another type for a group, and what is short then."""
    if answer.placement is None:
        return None, ()
    changed = with_types(answer.placement.header, {m.tensor.name: type_ for m in group.members})
    found = placed(changed, answer.problem)
    if not found.fits:
        return None, found.shortages
    return found.generation.likely - answer.placement.generation.likely, ()


def _patterns(answer: Optimized, members: Iterable[TensorChoices]) -> tuple[str, ...]:
    all_names = [c.tensor.name for c in answer.problem.choices]
    return tuple(exact_patterns([m.tensor.name for m in members], all_names))


def _price(answer: Optimized) -> float:
    """What a byte is worth in this file, in nats: between the best step up and the cheapest step down."""
    groups = list(zip(answer.groups, answer.chosen, strict=True))
    ups = [worth for group, option in groups if (worth := _up(group, option)[1]) > 0]
    downs = [worth for group, option in groups if 0 < (worth := _down(group, option)[1]) < math.inf]
    if not ups or not downs:
        return max(ups, default=min(downs, default=0.0))
    return math.sqrt(max(ups) * min(downs))


def _up(group: Group, option: int) -> tuple[GgmlType | None, float]:
    """The larger type that saves most nats for its bytes, and how many for a byte; None and 0 without one."""
    found: tuple[GgmlType | None, float] = (None, 0.0)
    for i, type_ in enumerate(group.types):
        more, saved = group.n_bytes[i] - group.n_bytes[option], group.damages[option] - group.damages[i]
        if more > 0 and saved / more > found[1]:
            found = (type_, saved / more)
    return found


def _down(group: Group, option: int) -> tuple[GgmlType | None, float]:
    """The smaller type that costs fewest nats for a byte, and how many; None and infinity without one."""
    found: tuple[GgmlType | None, float] = (None, math.inf)
    for i, type_ in enumerate(group.types):
        less, lost = group.n_bytes[option] - group.n_bytes[i], group.damages[i] - group.damages[option]
        if less > 0 and lost / less < found[1]:
            found = (type_, max(lost / less, 0.0))
    return found


def _why_chosen(group: Group, option: int, price: float) -> str:
    if len(group.types) == 1:
        return "no other allowed type fits its rows"
    (larger, saved), (smaller, lost) = _up(group, option), _down(group, option)
    said = []
    if larger is not None:
        said.append(f"{larger} would save {saved * _GIB:.2g} nats for each GiB more")
    if smaller is not None:
        said.append(f"{smaller} would cost {lost * _GIB:.2g} for each GiB less")
    if larger is None:
        said.append("no larger type loses less")
    if smaller is None:
        said.append("none is smaller")
    worth = f"; in this file a GiB is worth {price * _GIB:.2g} nats" if price else ""
    return f"{', '.join(said)}{worth}"


def _why_fixed(problem: Problem, choice: TensorChoices) -> str:
    name = choice.tensor.name
    if choice.fixed == "pinned":
        return f"it stands, by {problem.standing[name].by}"
    if choice.fixed == "protected":
        return f"it is never quantized: {protection_of(choice.tensor)}"
    if choice.fixed == "drafting":
        return "its block only drafts tokens, of which hardly any is accepted below q8_0"
    return "it holds integers"


def _fixed(answer: Optimized, why: str, choices: list[TensorChoices]) -> Explained:
    damage = sum(c.candidates[0].damage for c in choices)
    type_ = choices[0].candidates[0].type
    return Explained(
        tuple(c.tensor.name for c in choices),
        _patterns(answer, choices),
        choices[0].role,
        type_,
        sum(c.candidates[0].n_bytes for c in choices),
        damage,
        damage / answer.damage if answer.damage else 0.0,
        why,
        (Step(type_, 0, 0.0, 0.0),),
    )


def explained_json(found: Explained) -> dict[str, object]:
    """An explanation as an object of plain JSON types."""
    return {
        "tensors": list(found.names),
        "patterns": list(found.patterns),
        "class": found.role.value,
        "type": found.type.name,
        "bytes": found.n_bytes,
        "damage": found.damage,
        "share": found.share,
        "why": found.why,
        "steps": [
            {"type": s.type.name, "bytes": s.n_bytes, "damage": s.damage, "kld": s.kld, **_machine_json(s)}
            for s in found.steps
        ],
    }


def _machine_json(step: Step) -> dict[str, object]:
    """What a machine says of a step; nothing without one."""
    if step.shortages:
        return {"short": {s.device: s.short for s in step.shortages}}
    return {} if step.tps is None else {"tokens_per_second": step.tps}
