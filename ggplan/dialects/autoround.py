r"""AutoRound's `layer_config`, and the `quantization_config` of its checkpoints: Python, JSON or YAML.

    {"bits": 4, "group_size": 128, "sym": true,
     "extra_config": {"lm_head": {"bits": 16}, ".*down_proj": {"bits": 8, "group_size": 32}}}

The outer scheme is for all linear modules in the blocks, not for `lm_head` and the embeddings. A key of
`extra_config` is a module's name, or a text or a regular expression that is searched for in the names.
Expressions are applied after names, in order, and the last that matches decides. A value may be a scheme's
name (`W8A16`) or a ggml type (`gguf:q4_k`). `data_type: int_asym_dq` says that the scales are quantized too,
as in k-quants.

auto-round b9f3d00 (`auto_round/compressors/utils.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ggplan.dialects.checkpoint_configs import class_notes
from ggplan.dialects.hf_names import LINEAR, modules_of
from ggplan.dialects.literals import read_config, read_python
from ggplan.dialects.modules import (
    expanded,
    flat_modules,
    hits_of,
    need_model,
    recipe_of_types,
    unmet_note,
)
from ggplan.dialects.recognising import recognised
from ggplan.dialects.scheme import number_fault
from ggplan.dialects.settings import Settings
from ggplan.dialects.source import Imported, Source
from ggplan.dialects.weight_formats import DOUBLY_QUANTIZED, WeightFormat, named_format, nearest_type
from ggplan.ggml_types import GgmlType
from ggplan.model import Model
from ggplan.planning import Assignment
from ggplan.rules import Recipe

_LAYERS = ("layer_config", "extra_config")
_GENERAL = ("bits", "group_size", "sym", "data_type", "scheme")
_WHERE = ("block_name_to_quantize", "to_quant_block_names", "quant_lm_head")
_META = re.compile(r"\.\*|[\^$|()\[\]?+]")


@dataclass(frozen=True, slots=True)
class _Config:
    """The outer scheme; for each key of the layers its settings or scheme; all that was read; more notes."""

    general: Mapping[str, object]
    layers: Mapping[str, object]
    read: Sequence[Settings]
    notes: Sequence[str]


def import_(source: Source, name: str, model: Model | None) -> Imported:
    """Import a layer_config or quantization_config."""
    model = need_model(source, model)
    config = _config(source, model)
    modules = modules_of(model)
    names = expanded(modules)
    notes: list[str] = []
    types: list[GgmlType | None] = [None] * len(names)
    if any(key in config.general for key in ("bits", "scheme")):
        with_output = _flag(source, "", config.general, "quant_lm_head", default=False)
        general = _type(source, "the general scheme", {}, config.general, notes)
        kinds = [module.kind for module in modules for _ in range(module.n_experts)]
        blocks = tuple(f"{block}." for block in _blocks(source, config.general))
        for i, (n, kind) in enumerate(zip(names, kinds, strict=True)):
            in_blocks = "layers." in n and (not blocks or n.startswith(blocks))
            is_output = n == "lm_head" and with_output
            types[i] = general if kind == LINEAR and (in_blocks or is_output) else None
    places = {n: i for i, n in enumerate(names)}
    expressions = {}
    for key, value in config.layers.items():
        type_ = _type(source, key, config.general, value, notes)
        if key in places:
            types[places[key]] = type_
        else:
            expressions[key] = type_
    keys = list(expressions)
    patterns = [_pattern(source, key) for key in keys]
    met: set[int] = set()
    hits = hits_of(source, patterns, names)
    deciding = {found[-1] for found in hits if found}
    for at, found in enumerate(hits):
        met.update(found)
        if found:
            types[at] = expressions[keys[found[-1]]]
        for i in found[:-1]:
            if i not in deciding and expressions[keys[i]] != types[at]:
                notes.append(f"`{keys[i]}` never decides: `{keys[found[-1]]}` stands behind it")
    for i, key in enumerate(keys):
        if i not in met and expressions[key] is not None:
            notes.append(f"`{key}` matches no module of {model.path.name} that is quantized")
    notes += unmet_note([k for i, k in enumerate(keys) if i not in met and expressions[k] is None], model)
    notes += [*config.notes, *(note for settings in config.read for note in settings.left_out())]
    return recipe_of_types(source, "autoround", name, model, modules, types, list(dict.fromkeys(notes)))


def _blocks(source: Source, general: Mapping[str, object]) -> list[str]:
    """The names of the blocks that are quantized; none for all."""
    stated = general.get("block_name_to_quantize") or general.get("to_quant_block_names") or []
    values = stated.split(",") if isinstance(stated, str) else stated
    if not isinstance(values, list):
        raise source.fault(0, "block_name_to_quantize is a list of names")
    flat = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return [str(name).strip() for name in flat]


def _config(source: Source, model: Model) -> _Config:
    recognised_ = recognised(source)
    values: list[tuple[str, object]]
    notes: list[str] = []
    if recognised_ is not None:
        values = [("", recognised_.settings)]
        notes = [*class_notes(recognised_, model), *recognised_.notes]
    elif source.text.lstrip().startswith("{") or not re.search(r"^[ \t]*[\w.]+[ \t]*[=(]", source.text, re.M):
        try:
            values = [("", read_config(source))]
        except Exception:
            if not source.text.lstrip().startswith("{"):
                raise
            values = list(read_python(source))
    else:
        values = list(read_python(source))
    general: dict[str, object] = {}
    layers: dict[str, object] = {}
    read = []
    for name, value in values:
        if not isinstance(value, dict | Settings):
            continue
        settings = value if isinstance(value, Settings) else Settings(value)
        outer, settings = settings, settings.inner("quantization_config") or settings
        found = next((inner for key in _LAYERS if (inner := settings.inner(key)) is not None), None)
        stated = {key: settings.get(key) for key in (*_GENERAL, *_WHERE) if key in settings}
        general |= stated
        if found is None and (name in _LAYERS or not any(key in settings for key in (*_GENERAL, "_type"))):
            found = settings
        if stated or found is not None:
            read.append(outer)
        for key in found or ():
            layers[key] = (found.inner(key) or found.get(key)) if found is not None else None
    if not layers and not general:
        raise source.fault(
            0, "there is no layer_config", "AutoRound's is a dict: module -> bits, group_size, sym"
        )
    return _Config(general, layers, read, notes)


def _type(
    source: Source, key: str, general: Mapping[str, object], value: object, notes: list[str]
) -> GgmlType | None:
    if isinstance(value, Settings):
        value = {key: value.get(key) for key in (*_GENERAL, "super_bits") if key in value}
    if isinstance(value, Mapping) and isinstance(value.get("scheme"), str):
        value = value["scheme"]
    if isinstance(value, str):
        named = re.fullmatch(r"gguf:(\w+)", value, re.I)
        if named:
            return source.type(named[1], source.line_of(value))
        format_ = named_format(value)
        if format_ is None:
            raise source.fault(0, f"{key[:80]}: the scheme `{value[:60]}` is unknown")
        format_ = WeightFormat(format_.bits, format_.group, format_.symmetric, format_.is_float)
    elif isinstance(value, Mapping):
        said = {**general, **value}
        bits, group, data_type = (
            said.get("bits", 16),
            said.get("group_size") or 0,
            str(said.get("data_type", "int")),
        )
        for name, number in (("bits", bits), ("group_size", group)):
            if fault := number_fault(name, number):
                raise source.fault(0, f"{key[:80]}: {name} {fault}")
        if not re.search("int|fp|float|bf16", data_type):
            raise source.fault(0, f"{key[:80]}: data_type {data_type[:40]} is unknown")
        symmetric_said = _flag(source, f"{key[:80]}: ", said, "sym", default=True)
        is_float = "fp" in data_type or data_type.startswith(("float", "bf"))
        double = data_type.endswith("_dq") or "super_bits" in said
        symmetric = is_float or (symmetric_said and "asym" not in data_type)
        format_ = WeightFormat(bits, max(0, group), symmetric, is_float, double)
    else:
        raise source.fault(0, f"{key[:80]}: the value is not a scheme", "write bits, group_size and sym")
    try:
        type_, same = nearest_type(format_, DOUBLY_QUANTIZED)
    except ValueError as error:
        raise source.fault(0, f"{key[:80]}: {error}") from None
    if not same and type_ is not None:
        notes.append(f"{format_.described}; the nearest type is {type_.name}")
    return type_


def _flag(source: Source, where: str, said: Mapping[str, object], key: str, *, default: bool) -> bool:
    value = default if said.get(key) is None else said[key]
    if type(value) is not bool:
        raise source.fault(source.line_of(f'"{key}"'), f"{where}{key} is true or false")
    return value


def _pattern(source: Source, key: str) -> str:
    if not _META.search(key):
        return re.sub(r"([.\\*{}])", r"\\\1", key)
    return source.pattern(key)


def export(recipe: Recipe | Assignment, model: Model) -> tuple[str, list[str]]:
    """A layer_config as JSON, and notes about it."""
    config: dict[str, object] = {}
    for line in flat_modules(recipe, model, "AutoRound", list(DOUBLY_QUANTIZED)):
        if not line.said:
            config[line.pattern] = {"bits": 16, "data_type": "float"}
            continue
        format_ = DOUBLY_QUANTIZED[line.said]
        kind = f"int_{'sym' if format_.symmetric else 'asym'}_dq" if format_.double else "int"
        config[line.pattern] = {
            "bits": format_.bits, "group_size": format_.group, "sym": format_.symmetric, "data_type": kind,
        }  # fmt: skip
    lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in config.items()]
    return '{\n  "layer_config": {\n' + ",\n".join(lines) + "\n  }\n}\n", [
        'use it as: AutoRound(model, layer_config=json.load(open(FILE))["layer_config"])'
    ]
