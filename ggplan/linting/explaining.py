"""explain: why a tensor gets its type, from the first rule that matches to the bytes it takes.

explain_pattern and explain_line: what the rules of a recipe do with the tensors of a pattern, or of one of
the rules: which decide, and which lose to which.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import PurePath

from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType
from ggplan.linting.case import Case, make_case
from ggplan.model import Model, TensorInfo
from ggplan.planning.devices import Device, devices_in
from ggplan.planning.fallback import FallbackTable, remainder
from ggplan.rules import Choice, InvalidRecipeError, Keep, Recipe, Rule, match, parse_recipe
from ggplan.rules.diagnostics import invalid_recipe
from ggplan.text import printable


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that matches the tensor, and what became of it.

    Attributes
    ----------
    rule
        The rule; None for `@default`.
    outcome
        `decides`, `passed over` (the tensor is protected), `would match` (a rule above has decided), or `asks
        for fewer bits` (of a part of a fused tensor).
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
    fused: tuple[tuple[str, GgmlType], ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor in its type."""
        return self.type.tensor_bytes(self.tensor.shape)

    @property
    def bits_per_weight(self) -> float:
        """Its bits per weight, row heads included."""
        return 8 * self.n_bytes / self.tensor.n_weights if self.tensor.n_weights else 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """What a rule does with some tensors, given by name.

    Attributes
    ----------
    rule
        The rule; None for `@default`.
    decides
        Those it decides, with the types they get.
    loses
        Those that other rules take, by the rule that takes them.
    passed_over
        Those that are protected, and that it passes over.
    """

    rule: Rule | None
    choice: Choice
    decides: tuple[tuple[str, GgmlType], ...]
    loses: tuple[tuple[Rule, tuple[str, ...]], ...]
    passed_over: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a recipe does with the tensors of a pattern or a rule.

    Attributes
    ----------
    subject
        The pattern, or the rule as it stands.
    tensors
        All names it matches.
    shares
        Each rule that matches one of them, in the order in which they decide.
    kept
        Those that nothing decides, with the types they keep.
    n_bytes
        What they weigh together.
    """

    subject: str
    tensors: tuple[str, ...]
    shares: tuple[Share, ...]
    kept: tuple[tuple[str, GgmlType], ...]
    n_bytes: int


def explain_pattern(
    model: Model, recipe: Recipe, pattern: str, fallback: FallbackTable | None = None
) -> Survey:
    """What a recipe does with the tensors that a pattern, or `@role ROLE`, matches.

    Raises
    ------
    RecipeError
        If it is no pattern.
    PlanError
        If the model has no such tensor.
    """
    try:
        asked = parse_recipe(f"{pattern} = f32", "the pattern")
    except InvalidRecipeError as error:  # shown with the pattern alone, as it was given
        raise invalid_recipe(error.diagnostics, [pattern]) from None
    if not asked.rules:
        raise PlanError(f"{printable(pattern[:100])} is neither a tensor nor a pattern")
    names = [t.name for t in model.tensors]
    members = [i for i, hits in enumerate(match(asked, names)) if hits]
    if not members:
        raise _no_tensor(model, pattern)
    return _survey(make_case(model, recipe, fallback), printable(pattern), members)


def explain_line(
    model: Model, recipe: Recipe, line: int, file: str = "", fallback: FallbackTable | None = None
) -> Survey:
    """What a recipe does with the tensors that the rule on one of its lines matches.

    Parameters
    ----------
    file
        The included or inherited file that the line is of, with or without folders; "" for the recipe's own.

    Raises
    ------
    PlanError
        If there is no rule on the line.
    """
    wanted = file or recipe.file
    of_file = [i for i, r in enumerate(recipe.rules) if wanted in (r.file, PurePath(r.file).name)]
    found = [i for i in of_file if recipe.rules[i].line == line]
    if not found:
        lines = sorted(recipe.rules[i].line for i in of_file)
        hint = f"its rules stand on lines {lines[0]} to {lines[-1]}" if lines else ""
        raise PlanError(f"{printable(wanted)} has no rule on line {line}", hint=hint)
    case = make_case(model, recipe, fallback)
    rule = recipe.rules[found[0]]
    subject = f"{rule.where}: {'@role ' * bool(rule.roles)}{rule.pattern}"
    return _survey(case, printable(subject), sorted(case.members[found[0]]))


def _survey(case: Case, subject: str, members: list[int]) -> Survey:
    names = [t.name for t in case.tensors]
    decisions = {t: case.fitted[t].decision for t in members}
    matching = sorted({i for decision in decisions.values() for i in decision.matching})
    shares = [_share(case, i, [t for t in members if i in decisions[t].matching]) for i in matching]
    by_default = [t for t in members if decisions[t].reason == "default"]
    if by_default and case.recipe.default is not None:
        told = tuple((names[t], case.fitted[t].type) for t in by_default)
        shares.append(Share(None, case.recipe.default, told, (), ()))
    kept = tuple((names[t], case.fitted[t].type) for t in members if decisions[t].reason == "kept")
    n_bytes = sum(case.fitted[t].type.tensor_bytes(case.tensors[t].shape) for t in members)
    return Survey(subject, tuple(names[t] for t in members), tuple(shares), kept, n_bytes)


def _share(case: Case, index: int, members: list[int]) -> Share:
    """What a rule does with those of the tensors that it matches."""
    decides: list[tuple[str, GgmlType]] = []
    passed_over: list[str] = []
    loses: dict[int, list[str]] = {}
    for t in members:
        name, decision = case.tensors[t].name, case.fitted[t].decision
        if decision.rule == index:
            decides.append((name, case.fitted[t].type))
        elif index in decision.passed_over or decision.rule is None:
            passed_over.append(name)
        else:
            loses.setdefault(decision.rule, []).append(name)
    rules = case.recipe.rules
    lost = tuple((rules[i], tuple(names)) for i, names in sorted(loses.items()))
    return Share(rules[index], rules[index].choice, tuple(decides), lost, tuple(passed_over))


def _no_tensor(model: Model, name: str) -> PlanError:
    near = difflib.get_close_matches(name[:100], [t.name for t in model.tensors], n=1)
    hint = f"the nearest is {printable(near[0])}" if near else "`ggplan inspect` lists the tensors"
    return PlanError(f"the model has no tensor {printable(name[:100])}", hint=hint)


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
        raise _no_tensor(model, name)
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
            else "asks for fewer bits"
            if decision.fused and i < (len(recipe.rules) if decision.rule is None else decision.rule)
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
        trials=_trials(tensor, deciding, fitted.type, fitted.asked, decision.keep),
        type=fitted.type,
        chosen_by=chosen_by,
        fault="" if fitted.fault is None else fitted.error().message,
        fused=decision.fused,
    )


def _trials(
    tensor: TensorInfo, choice: Choice | None, chosen: GgmlType, asked: GgmlType | None, keep: Keep | None
) -> tuple[Trial, ...]:
    """The types of the chain up to the one that fits, and the fallback's."""
    found = []
    for type_ in choice.types if choice else ():
        if isinstance(type_, Keep):
            is_taken = type_ == keep
            told = "" if tensor.codes is None else f", {tensor.codes.outcome}"
            reason = f"`{type_}`{told}" if is_taken else f"`{type_}` is for quantized sources{told}"
            found.append(Trial(chosen if is_taken else tensor.type, is_taken, reason))
            if is_taken:
                break
            continue
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
