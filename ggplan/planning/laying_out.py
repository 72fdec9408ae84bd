"""lay_out: the plan of an assignment, with every byte's place; make_plan: an assignment and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from ggplan.errors import PlanError
from ggplan.model import Model, require_model
from ggplan.planning.assignment import Assignment
from ggplan.planning.embedding import readers_of_embedding
from ggplan.planning.fallback import FallbackTable, table_of
from ggplan.planning.fitting import Fitted, fit, replaced, with_companions
from ggplan.planning.guidance import Feedback, require_fitting
from ggplan.planning.importance import coverage_of
from ggplan.planning.layout import file_order, place
from ggplan.planning.makers import Chosen, assign
from ggplan.planning.outcomes import outcomes
from ggplan.planning.plan import Effort, Nonfinite, Plan, PlannedTensor
from ggplan.planning.provenance import output_metadata
from ggplan.planning.roles import roles_in
from ggplan.planning.settling import settle, settle_assignment
from ggplan.planning.written import recipe_of
from ggplan.text import names_in_words, nearest, printable

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

_SHOWN = 3  # names of tensors in a message


def make_plan(
    model: Model,
    recipe: Chosen = None,
    *,
    imatrix: Imatrix | None = None,
    fallback: FallbackTable | None = None,
    strict: bool = False,
    nonfinite: Nonfinite = "refuse",
    effort: Effort | None = None,
    feedback: Feedback | None = None,
) -> Plan:
    """Apply a recipe to a model: `lay_out` of what `assign` gives to the model once it is settled.

    Parameters
    ----------
    recipe
        A recipe, a stock mix, an assignment, the file of a recipe, or any name that `-r` takes: a file, a
        shipped recipe (`glm4moe/hq4_k`), a mix (`Q4_K_M`). Without one every tensor keeps its type: the plan
        of a plain conversion.
    imatrix, fallback, strict, nonfinite, effort, feedback
        As for `lay_out`.

    Raises
    ------
    RecipeError
        If there is no recipe or mix of the name, or the recipe has errors.
    PlanError, ImatrixError
        As `lay_out`.
    """
    require_model(model)
    settled = settle(model)
    has_imatrix = imatrix is not None or feedback is not None
    assignment = assign(settled, recipe, has_imatrix=has_imatrix)
    if settled is not model and isinstance(recipe, Assignment):
        assignment = settle_assignment(recipe, model, settled)
    return lay_out(
        settled,
        assignment,
        imatrix=imatrix,
        fallback=fallback,
        strict=strict,
        nonfinite=nonfinite,
        effort=effort,
        feedback=feedback,
    )


def lay_out(
    model: Model,
    assignment: Assignment,
    *,
    imatrix: Imatrix | None = None,
    fallback: FallbackTable | None = None,
    strict: bool = False,
    nonfinite: Nonfinite = "refuse",
    effort: Effort | None = None,
    feedback: Feedback | None = None,
) -> Plan:
    """The plan of an assignment: types that fit, bytes, places, metadata. No weight is read.

    Codes of a quantized checkpoint are taken as the model has them; `make_plan` settles it first.

    Parameters
    ----------
    imatrix
        Importance of each column, for the encoders that use it.
    fallback
        Whose table replaces a type that a shape forbids: llama.cpp's or ik_llama.cpp's; None for that of
        the engine the recipe's `@target` names, llama.cpp's where it names none.
    strict
        Refuse any fallback that the recipe does not write itself as a chain.
    nonfinite
        What becomes of weights that are NaN or infinite: an error, zeros, or themselves where the type can
        hold them (f32, f16, bf16).
    effort
        "best" encodes with less error than llama.cpp, in as many bytes and more time, where ggplan knows how.
        "feedback" encodes with the least error of the products with the inputs of a calibration. By default
        "feedback" where there is a calibration, else "default".
    feedback
        The calibration, and how it is used. Its imatrix is the plan's. It may be of the model before it was
        reshaped, or after.

    Raises
    ------
    PlanError
        If the assignment is not of the model's tensors, a shape forbids a type and no fallback exists,
        `strict` forbids the fallback, or an option has no such value.
    ImatrixError
        If an entry of the imatrix does not have its tensor's size.
    """
    require_model(model)
    if not isinstance(assignment, Assignment):
        raise TypeError(
            f"{printable(repr(assignment))[:80]} is not an assignment;"
            " ggplan.make_plan takes recipes and their names"
        )
    effort = effort or ("default" if feedback is None else "feedback")
    table = fallback or table_of(assignment.recipe)
    for option, value, values in (
        ("fallback", table, get_args(FallbackTable)),
        ("nonfinite", nonfinite, get_args(Nonfinite)),
        ("effort", effort, get_args(Effort)),
    ):
        if value not in values:
            near = nearest(str(value), values)
            hint = f"the nearest is {near}" if near else f"choose from {', '.join(values)}"
            raise PlanError(f"{option} cannot be {printable(str(value))}", hint=hint)
    if (effort == "feedback") != (feedback is not None):
        _refuse_effort(effort)
    if feedback is not None:
        _refuse_other_imatrix(feedback, imatrix)
        calibration = feedback.calibration.for_model(model)
        embedding = readers_of_embedding(model, calibration.input_of, zeroes=nonfinite == "zero")
        feedback = replace(feedback, calibration=calibration, embedding=embedding)
        imatrix = calibration.imatrix
    fitted = fit(model, assignment, table)
    for found in sorted(fitted, key=_order):
        if found.fault is not None:
            raise found.error()
    fitted = tuple(sorted(with_companions(fitted), key=_order))
    if feedback is not None and imatrix is not None:
        require_fitting(feedback, [f.tensor for f in fitted if f.type.is_quantized], imatrix)
    if strict:
        _refuse_fallbacks(fitted)
    sizes = [f.type.tensor_bytes(f.tensor.shape) for f in fitted]
    offsets, data_bytes = place(sizes)
    roles = roles_in(model)
    rules = assignment.recipe.rules if assignment.recipe is not None else ()
    planned = tuple(
        PlannedTensor(
            tensor=f.tensor,
            type=f.type,
            decision=f.decision,
            role=roles[f.tensor.name],
            rule=None if f.decision.rule is None else rules[f.decision.rule],
            chosen_by="kept" if f.owner else assignment.chosen_by(f.tensor.name),
            coverage=coverage_of(f.tensor, f.type, imatrix),
            n_bytes=size,
            offset=offset,
        )
        for f, size, offset in zip(fitted, sizes, offsets, strict=True)
    )
    recipe = None if assignment.keeps_types else recipe_of(model, assignment, table)
    weights_by_type = ((f.type, f.tensor.n_weights) for f in fitted)
    return Plan(
        model=model,
        assignment=assignment,
        recipe=recipe,
        tensors=planned,
        metadata=output_metadata(
            model,
            recipe,
            imatrix,
            weights_by_type,
            nonfinite,
            table,
            effort,
            [outcome.line for outcome in outcomes(planned)],
            feedback,
        ),
        imatrix=imatrix,
        fallback=table,
        data_bytes=data_bytes,
        nonfinite=nonfinite,
        effort=effort,
        feedback=feedback,
    )


def _refuse_effort(effort: str) -> None:
    if effort == "feedback":
        raise PlanError(
            "effort feedback needs a calibration",
            hint="give its folder with --calibration; `ggplan calibrate MODEL --text FILE -o DIR` makes one",
        )
    raise PlanError(
        f"a calibration is for effort feedback, and effort {effort} was asked for",
        hint=f"leave out --effort, or give the calibration's imatrix.gguf with --imatrix for effort {effort}",
    )


def _refuse_other_imatrix(feedback: Feedback, imatrix: Imatrix | None) -> None:
    if imatrix is not None and imatrix.path != feedback.calibration.imatrix.path:
        raise PlanError(
            "a calibration has an imatrix of its own, and another is given",
            hint="leave out --imatrix, or leave out --calibration",
        )


def _order(fitted: Fitted) -> tuple[int, bytes]:
    return file_order(fitted.tensor.name)


def _refuse_fallbacks(fitted: Sequence[Fitted]) -> None:
    groups: dict[str, list[str]] = {}
    for f in fitted:
        if f.asked is not None:
            groups.setdefault(replaced(f.asked, f.type, f.tensor.n_columns), []).append(f.tensor.name)
    if groups:
        n_tensors = sum(map(len, groups.values()))
        lines = "".join(f"\n  {names_in_words(names)}: {what}" for what, names in groups.items())
        raise PlanError(
            f"{n_tensors} tensors need a fallback, which --strict forbids:{lines}",
            hint="write the second choice into the rule as a chain: `q6_K | q8_0`",
        )
