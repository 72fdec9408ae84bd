"""Recipes that nobody wrote: a stock mix's for a model, and the one that a file's own types follow.

Both begin with a type for each tensor, let `ggplan.recovering` find few rules that give these types, and end
with a proof: the recipe is parsed and applied, and must give exactly what was wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ggplan.errors import PlanError
from ggplan.ggml_types import BF16, F16, F32, GgmlType
from ggplan.model import Model, TensorInfo
from ggplan.planning.decisions import decide, n_dimensions
from ggplan.planning.fallback import fallback_type
from ggplan.planning.layout import file_order
from ggplan.planning.protection import is_vector_or_norm, protected_reason
from ggplan.recovering import Wanted, cover, write_recipe
from ggplan.rules import Recipe, parse_recipe
from ggplan.stock import PURE, Mix, choose_types, facts_of
from ggplan.text import format_bytes, printable


def recipe_of_mix(mix: Mix, model: Model, *, has_imatrix: bool = False) -> Recipe:
    """The recipe that gives this model the types llama-quantize's mix gives it.

    Parameters
    ----------
    has_imatrix
        Whether there is an importance matrix; some mixes choose other types then.

    Raises
    ------
    PlanError
        If a shape forbids a type and llama.cpp has no fallback, or a layer is not the model's.
    """
    tensors = sorted(model.tensors, key=lambda t: file_order(t.name))
    quantizable = [not _is_protected(t) and t.type.kind != "integer" for t in tensors]
    chosen = choose_types(mix, tensors, facts_of(model), quantizable=quantizable, has_imatrix=has_imatrix)
    kept = [decision.type for decision in decide(tensors, None, "llama.cpp")]
    types = [
        own if type_ is None else _fitting(type_, tensor)
        for tensor, type_, own in zip(tensors, chosen, kept, strict=True)
    ]
    wanted = [
        Wanted(t.name, type_, t.n_columns, False, type_.tensor_bytes(t.shape))
        for t, type_ in zip(tensors, types, strict=True)
        if not _is_protected(t) and t.type.kind != "integer"
    ]
    name = mix.name + PURE if mix.pure else mix.name
    heading = (
        f"What llama-quantize's {mix.name}{' --pure' if mix.pure else ''} gives this model, "
        f"{'with' if has_imatrix else 'without'} an imatrix (llama.cpp b11434).",
    )
    n_bytes: dict[GgmlType, int] = {}
    for w in wanted:
        n_bytes[w.type] = n_bytes.get(w.type, 0) + w.n_bytes
    # Where shapes leave little of the mix's own type, another one is the better default.
    default = mix.type if mix.type == max(n_bytes, key=lambda t: n_bytes[t], default=None) else None
    text = write_recipe(
        cover(wanted, default=default), name=name, architecture=model.architecture, heading=heading
    )
    recipe = parse_recipe(text, mix.name)
    _prove(recipe, tensors, types)
    return recipe


def recipe_from_types(model: Model, name: str = "") -> Recipe:
    """The shortest recipe found that gives a model with these tensors the types they have here.

    Every tensor is covered but those whose type is no choice: integers, and norms and vectors in f32.

    Raises
    ------
    PlanError
        If no rule can name a tensor of the model.
    """
    tensors = [t for t in model.tensors if not _is_given(t)]
    wanted = [Wanted(t.name, t.type, t.n_columns, _is_protected(t), t.n_bytes) for t in tensors]
    n_bytes = sum(t.n_bytes for t in model.tensors)
    n_weights = sum(t.n_weights for t in model.tensors)
    heading = (
        f"The types of {model.path.name}: {len(model.tensors):,} tensors, {format_bytes(n_bytes)}, "
        f"{8 * n_bytes / n_weights if n_weights else 0.0:.4f} bpw.",
    )
    title = name or model.path.name.removesuffix(model.path.suffix)
    text = write_recipe(cover(wanted), name=title, architecture=model.architecture, heading=heading)
    recipe = parse_recipe(text, f"{title}.recipe")
    # Another type in the source than the one wanted, so that a tensor no rule reaches is noticed.
    others = [replace(t, type=BF16 if t.type == F16 else F16, rows=None, stored=None) for t in tensors]
    _prove(recipe, others, [t.type for t in tensors])
    return recipe


def _is_protected(tensor: TensorInfo) -> bool:
    return protected_reason(tensor.name, n_dimensions(tensor.shape)) is not None


def _is_given(tensor: TensorInfo) -> bool:
    """Whether the tensor has its type in every file, with or without a rule."""
    if tensor.type.kind == "integer":
        return True
    return tensor.type == F32 and is_vector_or_norm(tensor.name, n_dimensions(tensor.shape))


def _fitting(type_: GgmlType, tensor: TensorInfo) -> GgmlType:
    if type_.fits(tensor.n_columns):
        return type_
    try:
        return fallback_type(type_, tensor.n_columns, "llama.cpp")
    except PlanError as error:
        raise PlanError(f"{printable(tensor.name)}: {error.message}", hint=error.hint) from None


def _prove(recipe: Recipe, tensors: Sequence[TensorInfo], types: Sequence[GgmlType]) -> None:
    """Apply the recipe and compare."""
    for decision, type_ in zip(decide(tensors, recipe, "llama.cpp"), types, strict=True):
        if decision.type != type_ or decision.asked is not None:
            raise PlanError(
                f"{printable(decision.tensor.name)}: no pattern tells this name from others, so no recipe "
                f"can give it {type_.name}"
            )
