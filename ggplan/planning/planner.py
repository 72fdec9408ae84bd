r"""make_plan: every tensor meets the rules, then its own shape.

For each tensor the rules are tried from the top; the first that matches decides. Three things can come
between a rule and a tensor, and each is told to the user:

- The tensor is *protected* (see `ggplan.planning.protection`): a quantized type passes it over, and so
  does a float type from a rule that also matches other tensors (`.* = bf16` is not meant for norms). A
  rule that matches protected tensors only (`_norm\.weight = f16`), or that is forced (`q8_0!`), is meant.
- The tensor's rows do not hold whole blocks of the type: the next type of the rule's chain is taken, and
  after the last one the engine's fallback table decides.
- No rule matches: `@default` decides; without one the tensor keeps its own type. Norms and vectors that
  no rule claims are written as f32, which every llama.cpp graph expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ggplan.errors import PlanError
from ggplan.ggml_types import F32, GgmlType
from ggplan.model import Model, TensorInfo
from ggplan.planning import findings
from ggplan.planning.fallback import FallbackTable, fallback_type
from ggplan.planning.importance import importance_of
from ggplan.planning.layout import file_order, place
from ggplan.planning.plan import Plan, PlannedTensor
from ggplan.planning.protection import is_vector_or_norm, protected_reason
from ggplan.planning.provenance import output_metadata
from ggplan.planning.roles import role_of
from ggplan.rules import Choice, Diagnostic, Recipe, match
from ggplan.text import printable

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix


@dataclass(slots=True)
class Decision:
    """What was decided for one tensor, and what was passed over on the way there."""

    tensor: TensorInfo
    type: GgmlType
    protected: str | None
    rule: int | None = None
    by_default: bool = False
    asked: GgmlType | None = None
    forced: bool = False
    matching: tuple[int, ...] = ()
    passed_over: list[int] = field(default_factory=list)


def make_plan(
    model: Model,
    recipe: Recipe | None = None,
    *,
    imatrix: Imatrix | None = None,
    fallback: FallbackTable = "llama.cpp",
    strict: bool = False,
) -> Plan:
    """Apply a recipe to a model.

    Parameters
    ----------
    recipe
        Without one every tensor keeps its type: the plan of a plain conversion.
    imatrix
        Importance of each column, for the encoders that use it.
    fallback
        Whose table replaces a type that a shape forbids: llama.cpp's or ik_llama.cpp's.
    strict
        Refuse any fallback that the recipe does not write itself as a chain.

    Raises
    ------
    PlanError
        If a shape forbids a type and no fallback exists, or `strict` forbids the fallback.
    ImatrixError
        If an entry of the imatrix does not have its tensor's size.
    """
    tensors = sorted(model.tensors, key=lambda t: file_order(t.name))
    decisions = _decide(tensors, recipe, fallback)
    if strict:
        _refuse_fallbacks(decisions, recipe)
    for decision in decisions:
        importance_of(decision.tensor, decision.type, imatrix)  # sizes are checked before work starts
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
    diagnostics: tuple[Diagnostic, ...] = findings.about_imatrix(decisions, imatrix)
    if recipe is not None:
        diagnostics = findings.about_rules(model, recipe, decisions) + diagnostics
    weights_by_type = ((d.type, d.tensor.n_weights) for d in decisions)
    return Plan(
        model=model,
        recipe=recipe,
        tensors=planned,
        metadata=output_metadata(model.metadata, recipe, imatrix, weights_by_type),
        diagnostics=diagnostics + findings.about_types(decisions),
        imatrix=imatrix,
        fallback=fallback,
        data_bytes=data_bytes,
    )


def n_dimensions(shape: tuple[int, ...]) -> int:
    """Dimensions as ggml counts them: leading ones (rows first) do not count."""
    for i, size in enumerate(shape):
        if size > 1:
            return len(shape) - i
    return 1


def _decide(tensors: Sequence[TensorInfo], recipe: Recipe | None, table: FallbackTable) -> list[Decision]:
    protected = [protected_reason(t.name, n_dimensions(t.shape)) for t in tensors]
    kept = [_own_type(t) for t in tensors]
    decisions = [Decision(t, k, p) for t, k, p in zip(tensors, kept, protected, strict=True)]
    if recipe is None:
        return decisions
    matches = match(recipe, [t.name for t in tensors])
    broad = {i for hits, reason in zip(matches, protected, strict=True) if reason is None for i in hits}
    for decision, hits in zip(decisions, matches, strict=True):
        decision.matching = hits
        if decision.tensor.type.kind == "integer":
            continue
        for i in hits:
            choice = recipe.rules[i].choice
            meant = choice.types[0].is_float and i not in broad
            if decision.protected is None or choice.forced or meant:
                decision.rule = i
                _choose(decision, choice, table)
                break
            decision.passed_over.append(i)
        else:
            default = recipe.default
            if default is not None and (decision.protected is None or default.forced):
                decision.by_default = True
                _choose(decision, default, table)
    return decisions


def _own_type(tensor: TensorInfo) -> GgmlType:
    if (
        tensor.type.decodable
        and tensor.type.is_float
        and is_vector_or_norm(tensor.name, n_dimensions(tensor.shape))
    ):
        return F32
    return tensor.type


def _choose(decision: Decision, choice: Choice, table: FallbackTable) -> None:
    tensor = decision.tensor
    decision.forced = choice.forced
    for type_ in choice.types:
        if type_.fits(tensor.n_columns) and tensor.n_rows % type_.row_group == 0:
            decision.type = type_
            return
    asked = choice.types[-1]
    if asked.fits(tensor.n_columns):
        raise PlanError(
            f"{printable(tensor.name)}: {asked.name} interleaves {asked.row_group} rows "
            f"and {tensor.n_rows} rows do not divide"
        )
    decision.asked = asked
    try:
        decision.type = fallback_type(asked, tensor.n_columns, table)
    except PlanError as error:
        raise PlanError(f"{printable(tensor.name)}: {error.message}", hint=error.hint) from None


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
