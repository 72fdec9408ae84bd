"""The recipe that says what an assignment says: few readable rules, found from the types.

A file records the recipe it was made by, so that it can be made again. Where no recipe chose the types (a
stock mix, another file's types, a table) one is written from them, by `ggplan.recovering`. It is checked
before it is used: parsed and applied, it must give exactly these types.
"""

from __future__ import annotations

from dataclasses import replace

from ggplan.errors import PlanError
from ggplan.ggml_types import BF16, F16, F32, GgmlType
from ggplan.model import Model, TensorInfo
from ggplan.planning.assignment import Assignment
from ggplan.planning.decisions import decide
from ggplan.planning.fallback import FallbackTable
from ggplan.planning.fitting import Fitted, fit
from ggplan.planning.makers import stored_types
from ggplan.planning.protection import is_vector_or_norm, n_dimensions
from ggplan.recovering import Wanted, cover, write_recipe
from ggplan.rules import Recipe, parse_recipe
from ggplan.text import printable


def recipe_of(model: Model, assignment: Assignment, fallback: FallbackTable | None = None) -> Recipe:
    """The recipe that gives the model the types of the assignment.

    It is the recipe that decided, or the shortest found. No rule of the latter names a tensor whose type is
    the same in every file: integers, and norms and vectors in f32.

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
    fitted = {f.tensor.name: f for f in fit(model, assignment, fallback)}
    for found in fitted.values():
        if found.fault is not None:
            raise found.error()
    named = [fitted[name] for name in assignment.decisions if _needs_a_rule(fitted[name])]
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

    Every tensor is covered but those whose type is no choice: integers, and norms and vectors in f32.

    Raises
    ------
    PlanError
        If no rule can name a tensor of the model.
    """
    return recipe_of(model, stored_types(model, name))


def _needs_a_rule(fitted: Fitted) -> bool:
    tensor, decision = fitted.tensor, fitted.decision
    if tensor.type.kind == "integer" or (decision.reason == "kept" and decision.protected is not None):
        return False
    return fitted.type != F32 or not is_vector_or_norm(tensor.name, n_dimensions(tensor.shape))


def _default(wanted: list[Wanted], assignment: Assignment) -> GgmlType | None:
    """A mix's own type, unless shapes leave little of it; None leaves the choice to `cover`."""
    if assignment.mix is None:
        return None
    n_bytes: dict[GgmlType, int] = {}
    for w in wanted:
        n_bytes[w.type] = n_bytes.get(w.type, 0) + w.n_bytes
    own = assignment.mix.type
    return own if own == max(n_bytes, key=lambda t: n_bytes[t], default=None) else None


def _prove(recipe: Recipe, model: Model, fitted: dict[str, Fitted], named: set[str]) -> None:
    """Apply the recipe to a model whose tensors have other types, so that one no rule reaches is noticed."""
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
    return replace(tensor, type=other, read_rows=None, read_bytes=None, read_bf16=None)
