"""make_plan: a model under a recipe, every byte in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggplan.errors import PlanError
from ggplan.model import Model
from ggplan.planning import findings
from ggplan.planning.decisions import Decision, decide, n_dimensions
from ggplan.planning.derived import recipe_of_mix
from ggplan.planning.fallback import FallbackTable, table_of
from ggplan.planning.inputs import with_provenance
from ggplan.planning.layout import file_order, place
from ggplan.planning.plan import Effort, Nonfinite, Plan, PlannedTensor
from ggplan.planning.provenance import output_metadata
from ggplan.planning.roles import role_of
from ggplan.rules import Diagnostic, Recipe
from ggplan.stock import Mix

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix


def make_plan(
    model: Model,
    recipe: Recipe | Mix | None = None,
    *,
    imatrix: Imatrix | None = None,
    fallback: FallbackTable | None = None,
    strict: bool = False,
    nonfinite: Nonfinite = "refuse",
    effort: Effort = "default",
) -> Plan:
    """Apply a recipe to a model.

    Parameters
    ----------
    recipe
        Without one every tensor keeps its type: the plan of a plain conversion. A stock mix (see
        `ggplan.stock`) becomes the recipe that gives this model the mix's types.
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

    Raises
    ------
    PlanError
        If a shape forbids a type and no fallback exists, or `strict` forbids the fallback.
    ImatrixError
        If an entry of the imatrix does not have its tensor's size.
    CheckpointError
        If an input cannot be read any more.
    """
    mix = recipe if isinstance(recipe, Mix) else None
    if isinstance(recipe, Mix):
        recipe = recipe_of_mix(recipe, model, has_imatrix=imatrix is not None)
    fallback = fallback or table_of(recipe)
    tensors = sorted(model.tensors, key=lambda t: file_order(t.name))
    decisions = decide(tensors, recipe, fallback)
    if strict:
        _refuse_fallbacks(decisions, recipe)
    sizes = [d.type.tensor_bytes(d.tensor.shape) for d in decisions]
    offsets, data_bytes = place(sizes)
    nextn = _nextn_layers(model)
    planned = tuple(
        PlannedTensor(
            tensor=d.tensor,
            type=d.type,
            role=role_of(d.tensor.name, n_dimensions(d.tensor.shape), nextn),
            rule=None if recipe is None or d.rule is None else recipe.rules[d.rule],
            asked=d.asked,
            chosen_by_default=d.by_default,
            n_bytes=size,
            offset=offset,
        )
        for d, size, offset in zip(decisions, sizes, offsets, strict=True)
    )
    diagnostics: tuple[Diagnostic, ...] = findings.about_imatrix(decisions, imatrix, mix)
    if recipe is not None:
        diagnostics = findings.about_rules(model, recipe, decisions) + diagnostics
    weights_by_type = ((d.type, d.tensor.n_weights) for d in decisions)
    metadata = output_metadata(model.metadata, recipe, imatrix, weights_by_type, nonfinite, fallback, effort)
    records = [(t.name, t.tensor.shape, t.type.id, t.offset) for t in planned]
    return Plan(
        model=model,
        recipe=recipe,
        tensors=planned,
        metadata=with_provenance(metadata, model, imatrix, records),
        diagnostics=diagnostics + findings.about_types(decisions),
        imatrix=imatrix,
        fallback=fallback,
        data_bytes=data_bytes,
        nonfinite=nonfinite,
        effort=effort,
    )


def _refuse_fallbacks(decisions: Sequence[Decision], recipe: Recipe | None) -> None:
    found = [d for d in decisions if d.asked is not None]
    if not found or recipe is None:
        return
    lines = [d.message for d in findings.about_fallbacks(recipe, found)]
    raise PlanError(
        f"{len(found)} tensors need a fallback, which --strict forbids:\n  " + "\n  ".join(lines),
        hint="write the second choice into the rule as a chain: `q6_K | q8_0`",
    )


def _nextn_layers(model: Model) -> range:
    """The blocks that only predict further tokens: the last `nextn_predict_layers` of the model."""
    keys = [f"{model.architecture}.{name}" for name in ("block_count", "nextn_predict_layers")]
    values = [model.metadata[key].decode() if key in model.metadata else None for key in keys]
    count, nextn = (value if isinstance(value, int) else 0 for value in values)
    if not nextn:
        # An inventory has no metadata; the tensors of such a block give it away.
        layers = {
            t.name.split(".")[1] for t in model.tensors if ".nextn." in t.name and t.name.startswith("blk.")
        }
        numbers = [int(layer) for layer in layers if layer.isdecimal() and len(layer) < 9]
        return range(min(numbers), max(numbers) + 1) if numbers else range(0)
    return range(max(0, count - nextn), count)
