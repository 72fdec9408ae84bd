"""explain: why a tensor gets its type, from the first rule that matches to the bytes it takes."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType
from ggplan.linting.case import make_case
from ggplan.model import Model, TensorInfo
from ggplan.planning.devices import Device, devices_in
from ggplan.planning.fallback import FallbackTable, remainder
from ggplan.rules import Choice, Recipe, Rule
from ggplan.text import printable


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that matches the tensor, and what became of it.

    Attributes
    ----------
    rule
        The rule; None for `@default`.
    outcome
        `decides`, `passed over` (the tensor is protected), or `would match` (a rule above has decided).
    """

    rule: Rule | None
    choice: Choice
    outcome: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A type of the deciding chain, or the fallback, and the arithmetic that lets it in or keeps it out."""

    type: GgmlType
    fits: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole story of one tensor."""

    tensor: TensorInfo
    roles: tuple[str, ...]
    devices: tuple[Device, ...]
    protected: str | None
    steps: tuple[Step, ...]
    trials: tuple[Trial, ...]
    type: GgmlType
    chosen_by: str
    fault: str

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor in its type."""
        return self.type.tensor_bytes(self.tensor.shape)

    @property
    def bits_per_weight(self) -> float:
        """Its bits per weight, row heads included."""
        return 8 * self.n_bytes / self.tensor.n_weights if self.tensor.n_weights else 0.0


def explain(model: Model, recipe: Recipe, name: str, fallback: FallbackTable | None = None) -> Explanation:
    """Explain the type of one tensor.

    Raises
    ------
    PlanError
        If the model has no tensor of this name.
    """
    case = make_case(model, recipe, fallback)
    index = next((i for i, t in enumerate(model.tensors) if t.name == name), None)
    if index is None:
        near = difflib.get_close_matches(name[:100], [t.name for t in model.tensors], n=1)
        hint = f"the nearest is {printable(near[0])}" if near else "`ggplan inspect` lists the tensors"
        raise PlanError(f"the model has no tensor {printable(name[:100])}", hint=hint)
    fitted, tensor = case.fitted[index], model.tensors[index]
    decision = fitted.decision
    steps = [
        Step(
            recipe.rules[i],
            recipe.rules[i].choice,
            "decides"
            if i == decision.rule
            else "passed over"
            if i in decision.passed_over or (decision.rule is None and decision.protected is not None)
            else "would match",
        )
        for i in decision.matching
    ]
    if recipe.default is not None:
        outcome = "decides" if decision.reason == "default" else "would match"
        if decision.reason == "kept":
            outcome = "passed over"
        steps.append(Step(None, recipe.default, outcome))
    deciding = next((step.choice for step in steps if step.outcome == "decides"), None)
    chosen_by = "kept"
    if decision.rule is not None:
        chosen_by = recipe.rules[decision.rule].where
    elif decision.reason == "default":
        chosen_by = "@default"
    return Explanation(
        tensor=tensor,
        roles=case.roles(index),
        devices=devices_in(model)[tensor.name],
        protected=decision.protected,
        steps=tuple(steps),
        trials=_trials(tensor, deciding, fitted.type, fitted.asked),
        type=fitted.type,
        chosen_by=chosen_by,
        fault="" if fitted.fault is None else fitted.error().message,
    )


def _trials(
    tensor: TensorInfo, choice: Choice | None, chosen: GgmlType, asked: GgmlType | None
) -> tuple[Trial, ...]:
    """The types of the chain up to the one that fits, and the fallback's."""
    found = []
    for type_ in choice.types if choice else ():
        fits = type_.fits(tensor.n_columns) and tensor.n_rows % type_.row_group == 0
        reason = f"{remainder(type_, tensor.n_columns)}, " + (
            "whole blocks" if type_.fits(tensor.n_columns) else "no whole blocks"
        )
        if type_.fits(tensor.n_columns) and not fits:
            reason = f"{tensor.n_rows} rows are no groups of {type_.row_group}"
        elif type_.block_size == 1:
            reason = "any row"
        found.append(Trial(type_, fits, reason))
        if fits:
            break
    if asked is not None:
        found.append(Trial(chosen, True, f"the fallback for {asked}: {remainder(chosen, tensor.n_columns)}"))
    return tuple(found)
