r"""torchao's `FqnToConfig` (once `ModuleFqnToConfig`): Python text, or the JSON that transformers saves.

    FqnToConfig({"_default": Int4WeightOnlyConfig(group_size=32), "re:.*down_proj": None})

A key is the name of a weight or module, `re:` and a regular expression that must match the whole of either,
or `_default` for every other linear module. Names are tried before expressions, weights before modules, and
the first of several expressions decides; None leaves a module as it is. Python is read, never run.

torchao 0.14 (`torchao/quantization/quant_api.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ggplan.dialects.checkpoint_configs import class_notes
from ggplan.dialects.hf_names import LINEAR, modules_of
from ggplan.dialects.literals import read_config, read_python
from ggplan.dialects.modules import expanded, flat_modules, hits_of, need_model, recipe_of_types
from ggplan.dialects.recognising import recognised
from ggplan.dialects.scheme import names_at, transformers_pattern
from ggplan.dialects.settings import Settings
from ggplan.dialects.source import Imported, Source, inert
from ggplan.dialects.weight_formats import WEIGHT_FORMATS, WeightFormat, nearest_type
from ggplan.ggml_types import GgmlType
from ggplan.model import Model
from ggplan.planning import Assignment
from ggplan.rules import Recipe

_CALLS = ("FqnToConfig", "ModuleFqnToConfig")
_KEYS = ("fqn_to_config", "module_fqn_to_config")
_DEPTH = 20
_OLD_NAMES = {
    "int4_weight_only": "Int4WeightOnlyConfig",
    "int8_weight_only": "Int8WeightOnlyConfig",
    "int8_dynamic_activation_int8_weight": "Int8DynamicActivationInt8WeightConfig",
    "int8_dynamic_activation_int4_weight": "Int8DynamicActivationInt4WeightConfig",
    "float8_weight_only": "Float8WeightOnlyConfig",
    "float8_dynamic_activation_float8_weight": "Float8DynamicActivationFloat8WeightConfig",
}


def import_(source: Source, name: str, model: Model | None) -> Imported:
    """Import a FqnToConfig."""
    model = need_model(source, model)
    notes: list[str] = []
    excluded: list[str] = []
    has_list = False  # without one, transformers leaves the output out
    config = recognised(source)
    if config is not None:
        table = _saved(source, config.settings)
        excluded = names_at(source, config.settings, "modules_to_not_convert")
        has_list = config.settings.get("modules_to_not_convert") is not None
        if config.settings.get("include_input_output_embeddings") is True:
            notes.append("include_input_output_embeddings: embeddings and output are not taken over")
        notes += [*class_notes(config, model), *config.notes, *config.settings.left_out()]
    elif source.text.lstrip().startswith("{") and '"' in source.text and "FqnToConfig(" not in source.text:
        table = _table(read_config(source), 0)
    else:
        tables = [_table(value, 0) for _, value in read_python(source)]
        table = next((t for t in tables if t is not None), None)
    if table is None:
        raise source.fault(0, "there is no FqnToConfig")
    modules = modules_of(model)
    names = expanded(modules)
    kinds = [module.kind for module in modules for _ in range(module.n_experts)]
    types = {str(key): _type(source, str(key), value, notes) for key, value in table.items()}
    expressions = [key for key in types if key.startswith("re:")]
    patterns = [f"^(?:{source.pattern(key[3:])})$" for key in expressions]
    by_weight = hits_of(source, patterns, [f"{n}.weight" for n in names])
    by_module = hits_of(source, patterns, names)
    chosen: list[GgmlType | None] = []
    for n, kind, weight, whole in zip(names, kinds, by_weight, by_module, strict=True):
        if f"{n}.weight" in types:
            chosen.append(types[f"{n}.weight"])
        elif n in types:
            chosen.append(types[n])
        elif weight or whole:
            chosen.append(types[expressions[(weight or whole)[0]]])
        elif kind == LINEAR and (config is None or n != "lm_head" or has_list):
            chosen.append(types.get("_default"))
        else:
            chosen.append(None)
    out = hits_of(source, [transformers_pattern(source, n) for n in excluded], names)
    chosen = [None if found else type_ for found, type_ in zip(out, chosen, strict=True)]
    if has_list and any(n == "lm_head" and t is not None for n, t in zip(names, chosen, strict=True)):
        notes.append("`modules_to_not_convert` does not name lm_head, so that transformers quantizes it too")
    return recipe_of_types(source, "torchao", name, model, modules, chosen, list(dict.fromkeys(notes)))


def _saved(source: Source, settings: Settings) -> Mapping[object, object] | None:
    """The table of a quantization_config: transformers saves one config for all, or a FqnToConfig."""
    stated = settings.get("quant_type")
    if isinstance(stated, str):
        arguments = settings.get("quant_type_kwargs", default={})
        name = _OLD_NAMES.get(stated)
        if name is None or not isinstance(arguments, dict):
            raise source.fault(source.line_of(stated), f"quant_type {stated[:60]} is unknown",
                               f"ggplan reads {', '.join(_OLD_NAMES)}")  # fmt: skip
        return {"_default": {"_type": name, **arguments}}
    table = _table(stated, 0) or _table({key: settings.get(key) for key in _KEYS if key in settings}, 0)
    if table is not None:
        return table
    default = stated.get("default", stated) if isinstance(stated, dict) else None
    return {"_default": default} if isinstance(default, dict) else None


def _table(value: object, depth: int) -> Mapping[object, object] | None:
    """The dict of the first FqnToConfig in a value."""
    if depth > _DEPTH:
        return None
    if isinstance(value, list):
        return next((t for inner in value if (t := _table(inner, depth + 1)) is not None), None)
    if not isinstance(value, dict):
        return None
    for key in _KEYS:
        found: object = value.get(key)
        if isinstance(found, dict):
            # TorchAoConfig saves an ordered dict as an object with its data inside
            data: object = found.get("_data")
            return data if isinstance(data, dict) else found
    arguments = value.get("_args")
    if (
        value.get("_type") in _CALLS
        and isinstance(arguments, list)
        and arguments
        and isinstance(arguments[0], dict)
    ):
        return arguments[0]
    return next((t for inner in value.values() if (t := _table(inner, depth + 1)) is not None), None)


def _type(source: Source, key: str, value: object, notes: list[str]) -> GgmlType | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("_type"), str):
        raise source.fault(source.line_of(key), f"`{key[:80]}`: the value is not a config of torchao")
    name = value["_type"]
    inner = value.get("_data")
    said = Settings(inner if isinstance(inner, dict) else value, f"{key}.")
    format_ = _format(name, said)
    notes += said.left_out()
    if format_ is None:
        raise source.fault(
            source.line_of(key), f"`{key[:80]}`: {name[:60]} says nothing about weights that ggplan reads"
        )
    try:
        type_, same = nearest_type(format_)
    except ValueError as error:
        raise source.fault(source.line_of(key), f"`{key[:80]}`: {error}") from None
    if not same and type_ is not None:
        notes.append(f"{name}: {format_.described}; the nearest type is {type_.name}")
    return type_


def _format(name: str, said: Settings) -> WeightFormat | None:
    """The format of a config class: its weights, not its activations."""
    for key in ("weight_dtype", "granularity", "group_size"):
        said.get(key)
    if "NVFP4" in name:
        return WEIGHT_FORMATS["nvfp4"]
    if "MXFP4" in name or name.startswith("MXDynamic"):
        return WEIGHT_FORMATS["mxfp4"]
    if name.startswith(("Float8", "FPX")):
        return WeightFormat(8, is_float=True)
    weights = re.search(r"Int(\d|x)Weight|^U?Int(\d|X)", name)
    if weights is None:
        return None
    dtype = re.search(r"u?int(\d)", str(said.get("weight_dtype", "dtype", default="")))
    digit = weights[1] or weights[2]
    bits = int(dtype[1]) if dtype else int(digit) if digit.isdigit() else 8
    granularity = said.get("granularity", "weight_granularity")
    group = _group(said, granularity)
    mapping = str(said.get("mapping_type", "weight_mapping_type", default=""))
    # int4 weight-only kernels keep a zero point; everything else is symmetric unless it says so
    asymmetric = "ASYM" in mapping.upper() or name in ("Int4WeightOnlyConfig", "UIntXWeightOnlyConfig")
    if name == "Int4WeightOnlyConfig" and not group:
        group = 128
    return WeightFormat(bits, group, symmetric=not asymmetric)


def _group(said: Settings, granularity: object) -> int:
    group: object = said.get("group_size")
    if isinstance(granularity, dict):
        inner = granularity.get("_data")
        arguments = granularity.get("_args")
        stated = (inner if isinstance(inner, dict) else granularity).get("group_size")
        group = (
            stated if stated is not None else arguments[0] if isinstance(arguments, list) and arguments else 0
        )
    return group if type(group) is int and 0 < group < 1 << 20 else 0


def export(recipe: Recipe | Assignment, model: Model) -> tuple[str, list[str]]:
    """Python text that makes a FqnToConfig, and notes about it."""
    known = [name for name, format_ in WEIGHT_FORMATS.items() if not format_.is_float]
    lines = flat_modules(recipe, model, "torchao", known)
    text = [
        f"# {inert(recipe.name)} for {inert(model.path.name)}.",
        "from collections import OrderedDict",
        "",
        "import torch",
        "from torchao.quantization import FqnToConfig, IntxWeightOnlyConfig, PerGroup",
        "from torchao.quantization.quant_primitives import MappingType",
        "",
    ]
    for name in dict.fromkeys(line.said for line in lines if line.said):
        format_ = WEIGHT_FORMATS[name]
        text += [
            f"{name} = IntxWeightOnlyConfig(",
            f"    weight_dtype=torch.int{format_.bits},",
            f"    granularity=PerGroup({format_.group}),",
            f"    mapping_type=MappingType.{'SYMMETRIC' if format_.symmetric else 'ASYMMETRIC'},",
            ")",
        ]
    text.append("config = FqnToConfig(OrderedDict([")
    text += [f'    (r"re:{line.pattern}", {line.said or None}),' for line in lines]
    text.append("]))")
    return "\n".join(text) + "\n", [
        "k-quants become integers in groups of the same size, without superblocks"
    ]
