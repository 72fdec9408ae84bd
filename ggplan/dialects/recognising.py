r"""Whose config a JSON object is: by `quant_method` and what else tells them apart, never by common keys.

    {"quantization_config": {"quant_method": "gptq", "bits": 4, ...}}   config.json of a checkpoint
    {"bits": 4, "group_size": 128, "desc_act": false}                   quantize_config.json: GPTQ
    {"quantization": {"group_size": 64, "bits": 4}}                     config.json of mlx-lm
    {"producer": ..., "quantization": {"quant_algo": "FP8"}}            hf_quant_config.json: modelopt

`bits` and `group_size` stand in many of them. A method that ggplan does not read is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ggplan.dialects.literals import read_config, unique_keys
from ggplan.dialects.settings import Settings
from ggplan.dialects.source import Source
from ggplan.text import printable

_METHODS = {
    "gptq": "gptq", "awq": "awq", "auto-round": "autoround", "autoround": "autoround",
    "intel/auto-round": "autoround", "compressed-tensors": "compressed-tensors", "torchao": "torchao",
    "bitsandbytes": "bitsandbytes", "fp8": "fp8", "fbgemm-fp8": "fbgemm_fp8", "finegrained-fp8": "fp8",
    "mxfp4": "mxfp4", "hqq": "hqq", "quanto": "quanto", "eetq": "eetq", "modelopt": "modelopt",
    "modelopt-fp4": "modelopt", "modelopt-mixed": "modelopt", "mlx": "mlx", "bnb": "bitsandbytes",
    "gptqmodel": "gptq", "gptq-v2": "gptq", "gptq-marlin": "gptq", "awq-marlin": "awq",
}  # fmt: skip

# Keys that one tool alone writes, for configs without `quant_method`.
_SIGNS = (
    ("modelopt", ("quant_algo", "quantized_layers")),
    ("compressed-tensors", ("config_groups",)),
    ("bitsandbytes", ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type")),
    ("awq", ("zero_point", "q_group_size", "w_bit")),
    ("autoround", ("autoround_version", "packing_format", "extra_config", "layer_config")),
    ("gptq", ("desc_act", "damp_percent", "checkpoint_format", "dynamic", "static_groups")),
    ("torchao", ("quant_type", "fqn_to_config", "module_fqn_to_config")),
    ("hqq", ("weight_quant_params", "quant_config")),
    ("fp8", ("weight_block_size", "qformat_weight")),
    ("quanto", ("activations",)),
)
_BLOCKS = ("quantization_config", "quantization", "compression_config")
_SHOWN, _LONGEST = 10, 60
_OF_MODELS = ("architectures", "hidden_size", "num_hidden_layers", "n_layers")


@dataclass(frozen=True, slots=True)
class Config:
    """The quantization that a config states.

    Attributes
    ----------
    dialect
        Whose it is, as a key of `DIALECTS`.
    settings
        What it says.
    architectures
        The model's classes, where the config names them.
    notes
        What else of the file was not read.
    """

    dialect: str
    settings: Settings
    architectures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def recognised(source: Source) -> Config | None:
    """The config that a text is; None if it is no JSON object, or none with quantization of one method.

    Raises
    ------
    RecipeError
        If its method is one that ggplan does not read, or it is a model's config without quantization.
    """
    if not source.text.lstrip().startswith("{"):
        return None
    try:
        root = json.loads(source.text, object_pairs_hook=lambda pairs: unique_keys(source, pairs))
    except (ValueError, RecursionError):
        return None
    if not isinstance(root, dict):
        return None
    read_config(source)  # refuse what is too long or too deep
    return _config(source, root)


def _config(source: Source, root: Mapping[str, object]) -> Config | None:
    text_config = root.get("text_config")
    holders = [("", root)]
    if isinstance(text_config, Mapping):
        holders.append(("text_config.", text_config))
    found: list[tuple[str, Mapping[str, object]]] = []
    for prefix, holder in holders:
        for key in _BLOCKS:
            block = holder.get(key)
            if isinstance(block, Mapping):
                found.append((f"{prefix}{key}.", block))
    if not found:
        found = [("", root)]
    # mlx-lm writes its settings twice, as `quantization` and as `quantization_config`
    is_mlx = any("quantization." in path and _is_mlx(block) for path, block in found)
    if is_mlx:
        found.sort(key=lambda pair: not _is_mlx(pair[1]) or pair[0].endswith("config."))
    path, block = found[0]
    notes = [note for other, value in found[1:] for note in _differing(path, block, other, value)]
    dialect = "mlx" if is_mlx else _dialect(source, block)
    if dialect is None:
        if path == "" and any(key in root for key in _OF_MODELS):
            raise source.fault(0, "the config of a model that states no quantization",
                               "a recipe of a GGUF file: ggplan rules from FILE.gguf")  # fmt: skip
        return None
    classes = root.get("architectures")
    architectures = tuple(c for c in classes if isinstance(c, str)) if isinstance(classes, list) else ()
    if root.get("expert_dtype") is not None:
        notes.append(f"expert_dtype = {root['expert_dtype']} is not read: look at the experts' types")
    return Config(dialect, Settings(block, path), architectures, tuple(map(printable, notes)))


def _differing(path: str, block: Mapping[str, object], other: str, value: Mapping[str, object]) -> list[str]:
    """A note on the keys in which a second block differs from the one that is read."""
    said = []
    for key, stated in value.items():
        if key not in block and stated not in (None, {}, [], ""):
            said.append(f"{other}{key} = {_short(stated)}")
        elif key in block and block[key] != stated:
            said.append(f"{other}{key} = {_short(stated)} ({path}{key} = {_short(block[key])} is read)")
    if not said:
        return []
    more = f", and {len(said) - _SHOWN:,} more" if len(said) > _SHOWN else ""
    return [f"left out, as {path.removesuffix('.')} is read: {', '.join(said[:_SHOWN])}{more}"]


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _is_mlx(block: Mapping[str, object]) -> bool:
    return "bits" in block and "group_size" in block and not block.keys() & {"quant_method", "quant_algo"}


def _dialect(source: Source, block: Mapping[str, object]) -> str | None:
    method = block.get("quant_method")
    if method is not None:
        known = _METHODS.get(str(method).lower().replace("_", "-"))
        if known is None:
            names = ", ".join(sorted(set(_METHODS.values())))
            raise source.fault(source.line_of("quant_method"),
                               f"ggplan does not read the quant_method {str(method)[:40]}",
                               f"it reads {names}")  # fmt: skip
        return known
    keys = block.keys()
    producer = block.get("producer")
    if isinstance(producer, Mapping) and producer.get("name") == "modelopt":
        return "modelopt"
    if block.get("weights") in ("int2", "int4", "int8", "float8"):
        return "quanto" if "activations" in keys or block["weights"] != "int8" else "eetq"
    return next((name for name, signs in _SIGNS if keys & set(signs)), None)
