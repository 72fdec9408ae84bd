"""The recipe that gives the types of an assignment: few readable rules, found from the types.

A file records the recipe it was made by, so that it can be made again. If the types come from something else
(a stock mix, another file's types, a table), `ggplan.recovering` writes a recipe for them. It is checked
before it is used: parsed and applied, it must give exactly these types.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from ggplan.errors import PlanError
from ggplan.ggml_types import BF16, F16, F32, GgmlType
from ggplan.model import Model, TensorInfo
from ggplan.planning.assignment import Assignment
from ggplan.planning.decisions import decide
from ggplan.planning.fallback import FallbackTable
from ggplan.planning.fitting import Fitted, fit
from ggplan.planning.makers import stored_types
from ggplan.planning.protection import is_vector_or_norm, n_dimensions
from ggplan.rules import Recipe, parse_recipe
from ggplan.text import printable

if TYPE_CHECKING:
    from ggplan.recovering import Wanted

_LAYER = re.compile(r"\bblk\.\d+\.", re.ASCII)


def recipe_of(model: Model, assignment: Assignment, fallback: FallbackTable | None = None) -> Recipe:
    """The recipe that gives the model the types of the assignment.

    It is the recipe that decided, or else the shortest found. The latter has no rule for a tensor whose type
    is the same in every file: integers, and norms and vectors in f32.

    Parameters
    ----------
    fallback
        Whose table replaces types that a shape forbids, as for `fit`.

    Raises
    ------
    PlanError
        If no rule can name a tensor of the model, or a tensor can have no type.
    """
    if assignment.recipe is not None:
        return assignment.recipe
    from ggplan.recovering import Wanted, cover, write_recipe

    fitted = {f.tensor.name: f for f in fit(model, assignment, fallback)}
    for found in fitted.values():
        if found.fault is not None:
            raise found.error()
    named = _named([fitted[name] for name in assignment.decisions])
    wanted = [
        Wanted(
            f.tensor.name,
            f.type,
            f.tensor.n_columns,
            f.decision.protected is not None,
            f.type.tensor_bytes(f.tensor.shape),
        )
        for f in named
    ]
    name = assignment.name or model.path.name.removesuffix(model.path.suffix)
    text = write_recipe(
        cover(wanted, default=_default(wanted, assignment)),
        name=name,
        architecture=model.architecture,
        heading=(assignment.description,),
    )
    recipe = parse_recipe(text, f"{name}.recipe")
    _prove(recipe, model, fitted, {f.tensor.name for f in named})
    return recipe


def recipe_from_types(model: Model, name: str = "") -> Recipe:
    """The shortest recipe found that gives a model with these tensors the types they have here.

    Every tensor is covered except those whose type cannot be chosen: integers, and norms and vectors in f32.

    Raises
    ------
    PlanError
        If no rule can name a tensor of the model.
    """
    return recipe_of(model, stored_types(model, name))


def _named(fitted: list[Fitted]) -> list[Fitted]:
    """The tensors that the rules must name: all whose type may differ in another source.

    A forced rule for a protected tensor must not reach the same tensor of another layer, so where one is
    named, all of its kind are.
    """
    forced = {_kind(f) for f in fitted if f.decision.protected is not None and _needs_a_rule(f)}
    return [f for f in fitted if _needs_a_rule(f) or (_kind(f) in forced and f.tensor.type.kind != "integer")]


def _needs_a_rule(fitted: Fitted) -> bool:
    tensor, decision = fitted.tensor, fitted.decision
    if tensor.type.kind == "integer" or (decision.reason == "kept" and decision.protected is not None):
        return False
    return fitted.type != F32 or not is_vector_or_norm(tensor.name, n_dimensions(tensor.shape))


def _kind(fitted: Fitted) -> str:
    """The tensor's name without the number of its layer."""
    return _LAYER.sub("blk.", fitted.tensor.name)


def _default(wanted: list[Wanted], assignment: Assignment) -> GgmlType | None:
    """A mix's own type, unless few tensors get it; None leaves the choice to `cover`."""
    if assignment.mix is None:
        return None
    n_bytes: dict[GgmlType, int] = {}
    for w in wanted:
        n_bytes[w.type] = n_bytes.get(w.type, 0) + w.n_bytes
    own = assignment.mix.type
    return own if own == max(n_bytes, key=lambda t: n_bytes[t], default=None) else None


def _prove(recipe: Recipe, model: Model, fitted: dict[str, Fitted], named: set[str]) -> None:
    """Apply the recipe to a model whose tensors have other types, so that an uncovered tensor is noticed."""
    others = tuple(_in_another_type(t) if t.name in named else t for t in model.tensors)
    stranger = replace(model, tensors=others)
    for given in fit(stranger, decide(stranger, recipe), "llama.cpp"):
        due = fitted[given.tensor.name].type
        if given.type != due or given.asked is not None or given.fault is not None:
            raise PlanError(
                f"{printable(given.tensor.name)}: no pattern tells this name from others, so no recipe "
                f"can give it {due.name}"
            )


def _in_another_type(tensor: TensorInfo) -> TensorInfo:
    other = BF16 if tensor.type == F16 else F16
    return replace(tensor, type=other, rows=None, stored=None)
