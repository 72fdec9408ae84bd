r"""mlx-lm: the mixed predicates of `mlx_lm.convert --quant-predicate`, and the config.json it writes.

A predicate has two numbers of bits. Value and down projections get the higher one in the first and the last
eighth of the layers and in every third layer between, and embeddings and output get it always; all other
tensors get the lower one. mlx stores a scale and a smallest weight for groups of 64; ggml's nearest types are
the k-quants.

A config.json has `quantization`: bits, group_size and mode for all modules, embeddings and output too, and
others for single modules, by name, or `false` for one that is not quantized. The experts of a layer are one
module, `switch_mlp`:

    {"quantization": {"group_size": 64, "bits": 4, "lm_head": {"group_size": 64, "bits": 6},
                      "model.layers.0.mlp.switch_mlp.down_proj": false}}

mlx-lm d78bf58 (`mlx_lm/utils.py`, `mlx_lm/convert.py`); `mixed_3_5`, `mixed_3_8` and `mixed_4_8` are
mlx-vlm's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ggplan.dialects.checkpoint_configs import class_notes
from ggplan.dialects.flatten import NUMBER, fitted_types
from ggplan.dialects.hf_names import modules_of
from ggplan.dialects.modules import need_model, recipe_of_types
from ggplan.dialects.recognising import Config, recognised
from ggplan.dialects.scheme import whole
from ggplan.dialects.settings import Settings
from ggplan.dialects.source import Imported, Source, imported_text
from ggplan.dialects.weight_formats import WEIGHT_FORMATS, WeightFormat, nearest_type
from ggplan.errors import RecipeError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import Model
from ggplan.planning import Assignment
from ggplan.recovering.patterns import layers_pattern, runs
from ggplan.rules import Recipe, parse_recipe
from ggplan.rules.roles import Blocks

PREDICATES = ("mixed_2_6", "mixed_3_4", "mixed_3_5", "mixed_3_6", "mixed_3_8", "mixed_4_6", "mixed_4_8")
_TYPES = {2: "q2_K", 3: "q3_K", 4: "q4_K", 5: "q5_K", 6: "q6_K", 8: "q8_0"}


def import_(source: Source, name: str, model: Model | None) -> Imported:
    """Import the name of a predicate, alone or on a command line, or a config.json."""
    model = need_model(source, model)
    config = recognised(source)
    if config is not None:
        return _import_config(source, config, name, model)
    found = re.search(r"\bmixed_\d_\d\b", source.text)
    if found is None or found[0] not in PREDICATES:
        raise source.fault(0, "there is no mixed predicate", f"there are {', '.join(PREDICATES)}")
    low, high = (_chain(_TYPES[int(bits)]) for bits in found[0].split("_")[1:])
    blocks = Blocks.of([t.name for t in model.tensors])
    n = blocks.count - len(blocks.nextn)
    if not n:
        raise source.fault(0, f"{model.path.name} has no layers")
    more = sum(1 << i for i in range(n) if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2)
    body = [
        "# In more bits: embeddings, output, and at both ends and in every third layer values and down.",
        rf"^(token_embd|output)\.weight$ = {high}",
        rf"^blk\.{layers_pattern(runs(more, 0))}\.(attn_v|ffn_down(_exps|_shexp)?)\.weight$ = {high}",
        "",
        f"@default {low}",
    ]
    notes = ("groups of 64 with a scale and a smallest weight become k-quants",)
    head = [f"@arch {model.architecture}"] if model.architecture else []
    what = f"mlx-lm's {found[0]}, for {model.path.name}"
    return Imported("mlx", imported_text(source, what, name, body, notes, head), notes)


def _import_config(source: Source, config: Config, name: str, model: Model) -> Imported:
    settings, notes = config.settings, [*class_notes(config, model), *config.notes]
    general = _type(source, settings, settings, notes)
    exceptions: dict[str, GgmlType | None] = {}
    for key in settings:
        value = settings.peek(key)
        if isinstance(value, Mapping) and (said := settings.inner(key)) is not None:
            exceptions[key] = _type(source, said, settings, notes)
        elif isinstance(value, bool):
            exceptions[key] = general if settings.get(key) else None
    notes += settings.left_out()
    modules, types = modules_of(model), []
    met: set[str] = set()
    for module in modules:
        keys = [key for key in _names(module.name) if key in exceptions]
        known = keys[0] if keys else None
        met.update(keys)
        notes += [
            f"`{key}` never decides: `{known}` is the same module"
            for key in keys[1:]
            if exceptions[key] != exceptions[keys[0]]
        ]
        types += [exceptions[known] if known is not None else general] * module.n_experts
    for key, type_ in exceptions.items():
        if key not in met:
            what = "unquantized" if type_ is None else type_.name
            notes.append(f"`{key}` ({what}) matches no module of {model.path.name} whose type can be chosen")
    return recipe_of_types(source, "mlx", name, model, modules, types, list(dict.fromkeys(notes)))


# The modes of mlx.core.quantize, with the bits and the group size that each has by default.
_MODES = {
    "affine": WeightFormat(4, 64, symmetric=False),
    "mxfp4": WEIGHT_FORMATS["mxfp4"],
    "nvfp4": WEIGHT_FORMATS["nvfp4"],
    "mxfp8": WeightFormat(8, 32, is_float=True),
}
_OF_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def _names(module: str) -> Iterator[str]:
    """What mlx-lm may call a module; the experts of a layer are `switch_mlp`."""
    head, star, tail = module.partition(f"experts.{NUMBER}.")
    plain = f"{head}switch_mlp.{_OF_MIXTRAL.get(tail, tail)}" if star else module
    for name in (module, plain):
        yield from (name, f"language_model.{name}", name.replace("model.", "model.language_model.", 1))


def _type(source: Source, said: Settings, general: Settings, notes: list[str]) -> GgmlType | None:
    """The type of what `quantization` says of all modules, or of one.

    A module takes nothing from the general settings: mlx-lm hands what is said of it to `to_quantized`, whose
    mode is affine by default, and whose bits and group size are the mode's.
    """
    mode = str(said.get("mode", default="affine"))
    own = _MODES.get(mode)
    if own is None:
        raise source.fault(source.line_of(mode), f"{said.path}mode {mode[:40]} is unknown")
    is_one = said is not general
    bits = whole(source, said, "bits", default=own.bits if is_one else None)
    group = whole(source, said, "group_size", default=own.group if is_one else None)
    if own.is_float and (bits, group) != (own.bits, own.group):
        notes.append(
            f"{said.path}mode {mode} has {own.bits} bits in groups of {own.group} whatever else is said, "
            f"here {bits} bits in groups of {group}"
        )
    format_ = own if own.is_float else WeightFormat(bits, group, symmetric=False)
    try:
        type_, same = nearest_type(format_)
    except ValueError as error:
        raise source.fault(0, f"{said.path}bits: {error}") from None
    if not same and type_ is not None:
        notes.append(f"{format_.described}; the nearest type is {type_.name}")
    return type_


def _chain(name: str) -> str:
    fallback = parse_type(name).fallback
    return f"{name} | {fallback}" if fallback else name


def export(recipe: Recipe | Assignment, model: Model) -> tuple[str, list[str]]:
    """The name of the predicate that gives the recipe's types."""
    wanted = [d.type for d in fitted_types(recipe, model)]
    nearest, fewest = "", len(wanted) + 1
    for predicate in PREDICATES:
        like = parse_recipe(import_(Source(predicate, predicate), predicate, model).text)
        differing = sum(d.type != w for d, w in zip(fitted_types(like, model), wanted, strict=True))
        if differing < fewest:
            nearest, fewest = predicate, differing
    if fewest:
        raise RecipeError(
            f"no mixed predicate of mlx-lm gives {recipe.name}'s types",
            hint=f"the nearest is {nearest}, with other types for {fewest:,} of {len(wanted):,} tensors",
        )
    return f"{nearest}\n", [f"use it as: mlx_lm.convert -q --quant-predicate {nearest}"]
