"""Assignments that no recipe makes: a stock mix's, a file's own types, a caller's table, all types kept.

`assign` takes any of them, or a recipe, or a name, and gives the assignment for a model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ggplan.errors import PlanError, RecipeError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import Model, TensorInfo, require_model
from ggplan.planning.assignment import Assignment, Decision, unknown_tensor
from ggplan.planning.decisions import decide
from ggplan.planning.fitting import fitted
from ggplan.planning.layout import file_order
from ggplan.planning.protection import kept_type, protection_of
from ggplan.rules import Recipe, load_recipe, shipped_recipes
from ggplan.stock import MIXES, Mix, choose_types, facts_of, find_mix, is_mix
from ggplan.text import format_bytes, nearest, printable

Chosen = Recipe | Mix | Assignment | str | Path | None
"""What `assign` makes an assignment of."""


def assign(model: Model, chosen: Chosen, *, has_imatrix: bool = False) -> Assignment:
    """The types that a recipe, a mix, or the name of one gives a model.

    Parameters
    ----------
    chosen
        A recipe, a stock mix, an assignment (which is returned), the file of a recipe, or any name that `-r`
        takes (see `find_recipe`). None keeps all types.
    has_imatrix
        Whether there is an importance matrix; some mixes choose other types then.

    Raises
    ------
    RecipeError
        If there is no recipe or mix of the name, or the recipe has errors.
    PlanError
        If a mix has no type for a tensor.
    """
    require_model(model)
    if isinstance(chosen, str | Path):
        chosen = find_recipe(chosen, model.architecture)
    if chosen is None:
        return kept_types(model)
    if isinstance(chosen, Mix):
        return mix_types(model, chosen, has_imatrix=has_imatrix)
    return decide(model, chosen) if isinstance(chosen, Recipe) else chosen


def find_recipe(name: str | Path, architecture: str = "") -> Recipe | Mix:
    """The recipe or mix that `-r` names: a file, a shipped recipe, or one of llama-quantize's mixes.

    A file that exists is preferred to a mix or a shipped recipe of the same name; a `Path` is always a file.
    Where there is none, the nearest recipe of the model's `architecture` is named in the hint.

    Raises
    ------
    RecipeError
        If it is none of them, with the nearest name in the hint; or if the recipe has errors.
    """
    if isinstance(name, Path) or _exists(name):
        return load_recipe(name, architecture)
    if not name:
        return load_recipe(name)  # which refuses it
    if is_mix(name):
        return find_mix(name)
    mixes = [mix.name for mix in MIXES]
    if any(shipped.endswith(f"/{name.lower()}") for shipped in shipped_recipes()):
        return load_recipe(name, architecture)  # which tells the whole name
    tails = [shipped.rpartition("/")[2] for shipped in shipped_recipes()]
    if (near := nearest(name, (*shipped_recipes(), *tails, *mixes))) in mixes:
        raise RecipeError(
            f"{printable(name)} is not a recipe's file, a shipped recipe or one of llama-quantize's mixes",
            hint=f"the nearest is {near}; `ggplan types` lists the mixes",
        )
    return load_recipe(name, architecture)


def kept_types(model: Model) -> Assignment:
    """Every tensor keeps its type, as in a plain conversion; norms and vectors are written as f32."""
    return Assignment("", {t.name: _kept(t) for t in model.tensors})


def mix_types(model: Model, mix: Mix, *, has_imatrix: bool = False) -> Assignment:
    """The types that llama-quantize's mix gives a model, llama.cpp's fallbacks included.

    Raises
    ------
    PlanError
        If a shape forbids a type and llama.cpp has no fallback, or a tensor is in none of the model's layers.
    """
    tensors = sorted(model.tensors, key=lambda t: file_order(t.name))
    decisions = {t.name: _kept(t) for t in tensors}
    quantizable = [decisions[t.name].protected is None and t.type.kind != "integer" for t in tensors]
    chosen = choose_types(mix, tensors, facts_of(model), quantizable=quantizable, has_imatrix=has_imatrix)
    for tensor, type_ in zip(tensors, chosen, strict=True):
        if type_ is not None:
            found = fitted(tensor, Decision(type_, "mix"), "llama.cpp")
            if found.fault is not None:
                raise found.error()
            decisions[tensor.name] = Decision(found.type, "mix")
    description = (
        f"What llama-quantize's {mix.name}{' --pure' if mix.pure else ''} gives this model, "
        f"{'with' if has_imatrix else 'without'} an imatrix (llama.cpp b11434)."
    )
    return Assignment(mix.full_name, decisions, mix=mix, description=description)


def stored_types(model: Model, name: str = "") -> Assignment:
    """The types that the tensors of a file have in it.

    Parameters
    ----------
    name
        The name of the assignment; by default the file's, without its ending.
    """
    decisions = {t.name: Decision(t.type, "file", protection_of(t)) for t in model.tensors}
    n_bytes = sum(t.n_bytes for t in model.tensors)
    n_weights = sum(t.n_weights for t in model.tensors)
    description = (
        f"The types of {model.path.name}: {len(model.tensors):,} tensors, {format_bytes(n_bytes)}, "
        f"{8 * n_bytes / n_weights if n_weights else 0.0:.4f} bpw."
    )
    title = name or model.path.name.removesuffix(model.path.suffix)
    return Assignment(title, decisions, description=description)


def types_by_hand(model: Model, types: Mapping[str, GgmlType | str], name: str = "by hand") -> Assignment:
    """The types of a table; tensors that it does not name keep theirs.

    Raises
    ------
    PlanError
        If the table names a tensor that the model lacks (the hint has the nearest name), or gives another
        type to a tensor of integers.
    TypeNameError
        If a type is not one.
    """
    decisions = {t.name: _kept(t) for t in model.tensors}
    for tensor_name, wanted in types.items():
        if tensor_name not in decisions:
            raise unknown_tensor(tensor_name, decisions, printable(str(model.path)))
        kept = decisions[tensor_name]
        type_ = parse_type(wanted) if isinstance(wanted, str) else wanted
        if kept.type.kind == "integer" and type_ != kept.type:
            raise PlanError(f"{printable(tensor_name)} holds integers, which are never quantized")
        decisions[tensor_name] = Decision(type_, "hand", kept.protected, forced=True)
    return Assignment(name, decisions, description="Types that were given tensor by tensor.")


def _kept(tensor: TensorInfo) -> Decision:
    return Decision(kept_type(tensor), "kept", protection_of(tensor))


def _exists(name: str) -> bool:
    try:
        return os.path.exists(name)
    except ValueError:  # a NUL in the name
        return False
