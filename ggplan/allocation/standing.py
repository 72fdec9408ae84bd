"""What stands before anything is chosen: pins, and the rules of a base recipe.

Both are rules that decide tensors whatever that costs. A pin goes before the base recipe, and an earlier pin
before a later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ggplan.allocation.candidates import DRAFTS
from ggplan.errors import PlanError, RecipeError
from ggplan.ggml_types import GgmlType
from ggplan.model import Model
from ggplan.planning import Decision, Role, decide
from ggplan.planning.roles import roles_in
from ggplan.rules import Recipe, match, parse_recipe
from ggplan.text import printable


@dataclass(frozen=True, slots=True)
class Stands:
    """What was decided for a tensor, and by which rule, for people: `--pin output = q8_0`."""

    decision: Decision
    by: str


def standing(
    model: Model, pins: Sequence[str], base: Recipe | None, engine: str
) -> tuple[dict[str, Stands], tuple[str, ...]]:
    """What stands, by tensor, and what is to be said of it.

    Raises
    ------
    PlanError
        If a pin matches no tensor, or a type is another engine's.
    RecipeError
        If a pin is no rule.
    """
    by_pins, notes = _pinned(model, pins)
    by_base: dict[str, Stands] = {}
    if base is not None:
        by_base, more = _based(model, base, by_pins)
        notes += more
    found = {**by_base, **by_pins}
    roles = roles_in(model)
    low = [
        name
        for name, stands in found.items()
        if roles[name] is Role.NEXTN
        and stands.decision.type.bits_per_weight < DRAFTS.bits_per_weight
        and stands.decision.type.kind != "integer"
        and stands.decision.keep is None
    ]
    if low:
        many = "1 tensor" if len(low) == 1 else f"{len(low):,} tensors"
        first = found[low[0]]
        notes.append(
            f"{many} of blocks that draft tokens would stand below {DRAFTS}, where hardly a draft is"
            f" accepted, and get {DRAFTS} ({printable(low[0])}; {printable(first.by)})"
        )
    found = {name: stands for name, stands in found.items() if name not in low}
    for name, stands in found.items():
        _check_engine(name, stands, engine)
    return found, tuple(notes)


def _pinned(model: Model, pins: Sequence[str]) -> tuple[dict[str, Stands], list[str]]:
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
    found = _decided(model, recipe, "--pin")
    used = {stands.decision.rule for stands in found.values()}
    notes = [
        f"the pin {printable(rule.pattern)} decides nothing: earlier pins do, or its tensors are protected"
        for number, rule in enumerate(recipe.rules)
        if number not in used
    ]
    return found, notes


def _based(model: Model, base: Recipe, pinned: Mapping[str, Stands]) -> tuple[dict[str, Stands], list[str]]:
    """What the rules of a base recipe decide, and what of the recipe is not used."""
    found = _decided(model, base, printable(base.name))
    notes = []
    if not found:
        notes.append(f"no rule of {printable(base.name)} decides a tensor of this model")
    differ = [n for n, s in found.items() if n in pinned and pinned[n].decision.type != s.decision.type]
    if differ:
        many = "1 tensor" if len(differ) == 1 else f"{len(differ):,} tensors"
        first = differ[0]
        notes.append(
            f"{many} that {printable(base.name)} names are pinned to other types ({printable(first)}:"
            f" {pinned[first].decision.type}, not {found[first].decision.type})"
        )
    if base.default is not None:
        notes.append(f"the @default of {printable(base.name)} is not used: what no rule names is optimised")
    if promises := len(base.assertions) + len(base.tests):
        lines = "line" if promises == 1 else "lines"
        notes.append(
            f"{promises} @assert and @test {lines} of {printable(base.name)} are about the whole recipe, and"
            " not taken over"
        )
    return found, notes


def _decided(model: Model, recipe: Recipe, whose: str) -> dict[str, Stands]:
    found = {}
    for name, decision in decide(model, recipe).decisions.items():
        if decision.reason == "rule" and decision.rule is not None:
            rule = recipe.rules[decision.rule]
            words = f"@role {rule.pattern}" if rule.roles else rule.pattern
            found[name] = Stands(decision, f"{whose}: {words} = {rule.choice.text}")
    return found


def _check_engine(name: str, stands: Stands, engine: str) -> None:
    type_: GgmlType = stands.decision.type
    if type_.engine == "ik_llama.cpp" and engine != type_.engine:
        raise PlanError(
            f"{printable(name)} stands as {type_} ({printable(stands.by)}), a type of ik_llama.cpp, which"
            " llama.cpp does not read",
            hint="name the engine with `--engine ik_llama.cpp`",
        )
