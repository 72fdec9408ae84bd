"""NVIDIA ModelOpt's config, in `config.json` or `hf_quant_config.json`: algorithms by their names.

`ignore` and `exclude_modules` come before `quantized_layers`; in all of them a name stands for a module or a
parent, and `*` for any text. A name of an algorithm is known in full or not at all.

nvidia-modelopt 0.47 (`torch/export/quant_utils.py`, `torch/export/model_config.py`).
"""

from __future__ import annotations

import re

from ggplan.dialects.hf_names import LINEAR
from ggplan.dialects.scheme import Scheme, checked_whole, flag, names_at, type_of
from ggplan.dialects.settings import Settings
from ggplan.dialects.source import Source
from ggplan.dialects.weight_formats import WEIGHT_FORMATS, WeightFormat, named_format
from ggplan.ggml_types import GgmlType
from ggplan.recovering.patterns import escape

_ALGORITHMS: tuple[tuple[str, WeightFormat], ...] = (
    (r"NVFP4(_AWQ(_LITE|_CLIP|_FULL)?|_SVDQUANT|_MLP_ONLY|_FP8_MHA)?|W4A16_NVFP4(_AWQ)?|W4A8_NVFP4_FP8",
     WEIGHT_FORMATS["nvfp4"]),
    ("MXFP4(_MLP_ONLY)?|W4A8_MXFP4_(FP8|MXFP8)|W4A16_MXFP4", WEIGHT_FORMATS["mxfp4"]),
    ("MXFP8", WeightFormat(8, 32, is_float=True)),
    ("FP8(_PB_WO|_PB_REAL|_PC_PT|_PER_CHANNEL_PER_TOKEN|_BLOCK_SCALES|_DYNAMIC|_STATIC)?|W8A8_FP8",
     WeightFormat(8, is_float=True)),
    (r"W8A8_SQ(_PER_(CHANNEL|TENSOR))?(_PER_(TOKEN|TENSOR))?(_PLUGIN)?|W8A16(_GPTQ|_AWQ)?|W8A8"
     r"|INT8(_SQ|_WO)?", WeightFormat(8)),
)  # fmt: skip
_GROUPED = (
    r"(?:W([2-8])A(?:8|16)|INT([2-8]))(?:_AWQ(?:_LITE|_CLIP|_FULL)?|_GPTQ|_QSERVE_PER_(?:GROUP|CHANNEL)|_WO)?"
)


def read_modelopt(source: Source, settings: Settings, scheme: Scheme) -> None:
    """Read what the config says into `scheme`.

    Raises
    ------
    RecipeError
        For an algorithm that is unknown, or a value of the wrong kind.
    """
    nested = settings.inner("quantization")
    if nested is not None:  # hf_quant_config.json read as a whole
        settings = nested
    for key in names_at(source, settings, "ignore") + names_at(source, settings, "exclude_modules"):
        scheme.exceptions.append((_wild(key), None, key))
    layers = settings.inner("quantized_layers")
    for name in layers or ():
        said = layers.inner(name) if layers is not None else None
        if said is not None:
            scheme.exceptions.append((_wild(name), _of_algorithm(source, said, scheme, settings), name))
    algorithm = settings.get("quant_algo")
    groups = settings.inner("config_groups")
    if algorithm in (None, "MIXED_PRECISION") and groups is not None and layers is None:
        raise source.fault(
            0, "modelopt: the modules of MIXED_PRECISION stand in quantized_layers, which is not here"
        )
    for name in groups or ():
        group = groups.inner(name) if groups is not None else None
        weights = group.inner("weights") if group is not None else None
        for key in ("num_bits", "type", "dynamic", "group_size", "strategy", "symmetric"):
            if weights is not None:
                weights.get(key)
        if group is not None and "targets" in group:
            targets = names_at(source, group, "targets")
            if targets != [LINEAR]:
                raise source.fault(source.line_of("targets"), f"{group.path}targets: only Linear is read")
    if algorithm == "MIXED_PRECISION":
        return
    scheme.default = _of_algorithm(source, settings, scheme, settings)


def _of_algorithm(source: Source, said: Settings, scheme: Scheme, general: Settings) -> GgmlType | None:
    name = str(said.get("quant_algo", default=""))
    group = said.get("group_size", default=general.get("group_size", default=128))
    has_zero = said if said.get("has_zero_point") is not None else general
    symmetric = not flag(source, has_zero, "has_zero_point", default=False)
    upper = name.upper()
    format_ = next((f for known, f in _ALGORITHMS if re.fullmatch(known, upper)), None)
    if format_ is None and (weights := re.fullmatch(_GROUPED, upper)) is not None:
        size = checked_whole(source, said if "group_size" in said else general, ("group_size",), group)
        format_ = WeightFormat(int(weights[1] or weights[2]), max(0, size), symmetric=symmetric)
    format_ = format_ or named_format(name)
    if format_ is None:
        raise source.fault(source.line_of(name), f"{said.path}quant_algo {name[:40]} is unknown")
    return type_of(source, scheme, format_, name)


def _wild(key: str) -> str:
    """A module's name or a parent's, with `*` for any text."""
    return rf"^{'.*'.join(escape(part) for part in key.split('*'))}(\.|$)"
