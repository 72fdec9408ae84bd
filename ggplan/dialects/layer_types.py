r"""steampunque's LAYER_TYPES: one of llama-quantize's mixes for each layer, in a patched llama.cpp.

    LAYER_TYPES='[
       [0 ,"Q4_K_M"],[1 ,"Q4_K_S"],[2 ,"Q3_K_L"], ...
       ]'
    FLAGS="--token-embedding-type Q4_K --output-tensor-type Q6_K"

A layer's tensors get the types that its mix gives them if the whole model has that mix. Tensors outside the
layers that no flag names get the types of the first layer's mix. So a recipe can be written only for a given
model.
"""

from __future__ import annotations

import re

from ggplan.dialects.flatten import fitted_types
from ggplan.dialects.modules import fitting, need_model
from ggplan.dialects.source import Imported, Source, inert
from ggplan.errors import PlanError, RecipeError
from ggplan.ggml_types import GgmlType
from ggplan.model import Model
from ggplan.planning import Assignment, Fitted
from ggplan.recovering import Wanted, cover, write_recipe
from ggplan.rules import Recipe
from ggplan.rules.roles import block_of
from ggplan.stock import MIXES, Mix, find_mix, is_mix
from ggplan.text import printable

_BLANKS = r"\s{0,200}"  # without a limit two of them would try every division of many blanks
_LIST = re.compile(
    rf"LAYER_TYPES{_BLANKS}={_BLANKS}(?P<quote>['\"]?){_BLANKS}\[(?P<body>[^'=]*?)\]"
    rf"{_BLANKS}(?P=quote){_BLANKS}(?:$|\n)"
)
_PAIR = re.compile(
    rf"\[{_BLANKS}(\d{{1,4}}){_BLANKS},{_BLANKS}\\?\"?([A-Za-z0-9_]{{1,20}}){_BLANKS}\\?\"?{_BLANKS}\]"
)
_FLAGS = {"token_embd.weight": "--token-embedding-type", "output.weight": "--output-tensor-type"}


def import_(source: Source, name: str, model: Model | None) -> Imported:
    """Import a script or model card with LAYER_TYPES and FLAGS."""
    model = need_model(source, model)
    found = _LIST.search(source.text)
    if found is None:
        raise source.fault(0, "there is no LAYER_TYPES='[ [0,\"Q4_K_M\"], ... ]'")
    first = source.text.count("\n", 0, found.start()) + 1
    left = _PAIR.sub("", found["body"]).replace(",", "").strip()
    if left:
        raise source.fault(first, f"`{left[:60]}` is not a layer and its mix", 'a layer is `[0,"Q4_K_M"]`')
    mixes: dict[int, Mix] = {}
    for pair in _PAIR.finditer(found["body"]):
        if not is_mix(pair[2]):
            line = source.text.count("\n", 0, found.start("body") + pair.start()) + 1
            raise source.fault(line, f"`{pair[2]}` is none of llama-quantize's mixes")
        mixes[int(pair[1])] = find_mix(pair[2])
    by_mix = _fitted(source, {mix.name: mix for mix in mixes.values()}, model)
    layers = {n for t in model.tensors if (n := block_of(t.name)) is not None}
    missing = sorted(layers - mixes.keys())
    if missing or not mixes:
        raise source.fault(
            first, f"{model.path.name} has a layer {missing[0] if missing else 0}, which has no mix here"
        )
    notes = [f"layer {n} is not in {model.path.name}" for n in sorted(mixes.keys() - layers)[:1]]
    flags = _flags(source, found.end())
    first_mix = by_mix[mixes[min(mixes)].name]
    wanted = []
    for fitted in first_mix.values():
        tensor = fitted.tensor
        if fitted.decision.protected is not None:
            continue
        layer = block_of(tensor.name)
        chosen = fitted if layer is None else by_mix[mixes[layer].name][tensor.name]
        flag = flags.get(tensor.name)
        type_ = chosen.type if flag is None else fitting(flag, tensor)
        wanted.append(Wanted(tensor.name, type_, tensor.n_columns, False, type_.tensor_bytes(tensor.shape)))
    heading = [
        f"From {source.file}, steampunque's LAYER_TYPES, for {model.path.name}.",
        *(f"Note: {n}" for n in notes),
    ]
    text = write_recipe(
        cover(wanted), name=inert(name) or "imported", architecture=model.architecture, heading=heading
    )
    return Imported("layer-types", text, tuple(notes))


def _fitted(source: Source, mixes: dict[str, Mix], model: Model) -> dict[str, dict[str, Fitted]]:
    """For each mix the type it gives each tensor."""
    found = {}
    for name, mix in mixes.items():
        try:
            found[name] = {d.tensor.name: d for d in fitted_types(mix, model)}
        except PlanError as error:
            raise source.fault(0, f"{name} for this model: {error.message}", error.hint) from None
    return found


def _flags(source: Source, start: int) -> dict[str, GgmlType]:
    found = {}
    for tensor, flag in _FLAGS.items():
        stated = re.compile(rf"{flag}[ =]+([A-Za-z0-9_]+)").search(source.text, start)
        if stated:
            line = source.text.count("\n", 0, stated.start()) + 1
            found[tensor] = source.type(stated[1], line)
    return found


def export(recipe: Recipe | Assignment, model: Model) -> tuple[str, list[str]]:
    """LAYER_TYPES and FLAGS, if each layer of the recipe is that of a mix."""
    wanted = {d.tensor.name: d for d in fitted_types(recipe, model)}
    layers: dict[int, list[str]] = {}
    for name, fitted in wanted.items():
        layer = block_of(name)
        if layer is not None and fitted.decision.protected is None:
            layers.setdefault(layer, []).append(name)
    answers: dict[int, str] = {}
    for mix in sorted(MIXES, key=lambda m: m.name):
        if len(answers) == len(layers):
            break
        try:
            given = {d.tensor.name: d.type for d in fitted_types(mix, model)}
        except PlanError:
            continue
        for layer, names in layers.items():
            if layer not in answers and all(given[name] == wanted[name].type for name in names):
                answers[layer] = mix.name
    for layer in sorted(layers):
        if layer not in answers:
            raise RecipeError(
                f"no mix of llama-quantize gives the types of layer {layer}, all that LAYER_TYPES can say",
                hint="choose a dialect of single tensors, such as llama-quantize",
            )
    flags = []
    for name, fitted in wanted.items():
        if name in _FLAGS:
            flags.append(f"{_FLAGS[name]} {fitted.type.name.upper()}")
        elif block_of(name) is None and fitted.decision.protected is None:
            raise RecipeError(f"{printable(name)}: LAYER_TYPES has no flag for it")
    pairs = [f'[{layer},"{answers[layer]}"]' for layer in sorted(answers)]
    rows = [",".join(pairs[i : i + 8]) for i in range(0, len(pairs), 8)]
    text = "LAYER_TYPES='[\n" + ",\n".join(f"   {row}" for row in rows) + "\n   ]'\n"
    return text + f'FLAGS="{" ".join(flags)}"\n', []
