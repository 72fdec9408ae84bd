r"""How a tensor gets its type: the rules in order, then the tensor's own shape.

The rules are tried from the top; the first that matches decides. Three things can come between a rule and a
tensor, and each is told to the user (see `ggplan.planning.findings`):

- The tensor is *protected* (see `ggplan.planning.protection`): a quantized type passes it over, and so
  does a 16-bit float from a rule that also matches other tensors (`.* = bf16` is not meant for norms). A
  rule that matches protected tensors only (`_norm\.weight = f16`), gives f32, or is forced (`q8_0!`), is.
- The tensor's rows do not hold whole blocks of the type: the next type of the rule's chain is taken, and
  after the last one the engine's fallback table decides.
- No rule matches: `@default` decides; without one the tensor keeps its own type. Norms and vectors that
  no rule claims are written as f32, which every llama.cpp graph expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggplan.errors import PlanError
from ggplan.ggml_types import F32, GgmlType
from ggplan.model import TensorInfo
from ggplan.planning.fallback import FallbackTable, fallback_type
from ggplan.planning.protection import is_vector_or_norm, protected_reason
from ggplan.rules import Choice, Recipe, match
from ggplan.text import printable


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
    fault: str = ""  # why no type can be had, where that is not an error (see `decide`)
    hint: str = ""
    passed_over: tuple[int, ...] = ()


def decide(
    tensors: Sequence[TensorInfo], recipe: Recipe | None, table: FallbackTable, *, tolerant: bool = False
) -> list[Decision]:
    """Decide the type of each tensor, in the order given.

    Parameters
    ----------
    tolerant
        Note in `Decision.fault` what would be an error, and let the tensor keep its type.

    Raises
    ------
    PlanError
        If a shape forbids a type and the table has nothing to put in its place.
    """
    protected = [protected_reason(t.name, n_dimensions(t.shape)) for t in tensors]
    kept = [_own_type(t) for t in tensors]
    decisions = [Decision(t, k, p) for t, k, p in zip(tensors, kept, protected, strict=True)]
    if recipe is None:
        return decisions
    matches = match(recipe, [t.name for t in tensors])
    open_hits = {hits for hits, reason in zip(matches, protected, strict=True) if reason is None}
    broad = {i for hits in open_hits for i in hits}
    takes = [_takes_protected(rule.choice, i in broad) for i, rule in enumerate(recipe.rules)]
    first_taking: dict[tuple[int, ...], int] = {}  # for protected tensors: how many rules pass them over
    for decision, hits in zip(decisions, matches, strict=True):
        decision.matching = hits
        if decision.tensor.type.kind == "integer":
            continue
        skipped = 0
        if decision.protected is not None:
            if hits not in first_taking:
                first_taking[hits] = next((n for n, i in enumerate(hits) if takes[i]), len(hits))
            skipped = first_taking[hits]
            decision.passed_over = hits[:skipped]
        if skipped < len(hits):
            decision.rule = hits[skipped]
            _settle(decision, recipe.rules[decision.rule].choice, table, tolerant)
        elif (default := recipe.default) is not None and (decision.protected is None or default.forced):
            decision.by_default = True
            _settle(decision, default, table, tolerant)
    return decisions


def _takes_protected(choice: Choice, is_broad: bool) -> bool:
    """Whether a rule is meant for protected tensors too; `is_broad` if it matches others as well."""
    first = choice.types[0]
    return choice.forced or first == F32 or (first.is_float and not is_broad)


def _own_type(tensor: TensorInfo) -> GgmlType:
    if (
        tensor.type.decodable
        and tensor.type.is_float
        and is_vector_or_norm(tensor.name, n_dimensions(tensor.shape))
    ):
        return F32
    return tensor.type


def _settle(decision: Decision, choice: Choice, table: FallbackTable, tolerant: bool) -> None:
    try:
        _choose(decision, choice, table)
    except PlanError as error:
        if not tolerant:
            raise
        decision.asked, decision.fault, decision.hint = None, error.message, error.hint


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


def n_dimensions(shape: tuple[int, ...]) -> int:
    """Dimensions as ggml counts them: leading ones (rows first) do not count."""
    for i, size in enumerate(shape):
        if size > 1:
            return len(shape) - i
    return 1
