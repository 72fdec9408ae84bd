"""What the config says of modules with a `qweight`: that of GPTQ, AWQ and AutoRound.

Settings for single modules (`dynamic`, `extra_config`) only name more bits and groups that modules may have:
which one has which, its tensors say. So the expressions in them, of which some are slow and some are only
Python's, need no matching.

AutoRound's `packing_format` says which layout a file has, and how zero points are counted (auto-round 0.16.1,
`export`):

    auto_round:auto_gptq     GPTQ's layout, zero points less 1, no g_idx
    auto_round:gptqmodel     GPTQ's layout, zero points as they are
    auto_round               the same, without g_idx
    auto_round:auto_awq      AWQ's GEMM
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ggplan.errors import CheckpointError
from ggplan.sources.files import listed, shown
from ggplan.sources.schemes import packed_bits
from ggplan.sources.schemes.awq import Version
from ggplan.sources.schemes.packed_bits import Unpack
from ggplan.sources.schemes.scheme import QuantizationConfig

_AUTOROUND = ("auto-round", "intel/auto-round", "autoround")
METHODS = (None, "gptq", "awq", *_AUTOROUND)
# Keys that are used, and keys that change no weight: they are about activations, kernels and calibration,
# name modules, which are known by their tensors, or say who wrote the file.
KEYS = frozenset({
    "quant_method", "bits", "w_bit", "group_size", "q_group_size", "sym", "zero_point", "desc_act",
    "checkpoint_format", "format", "version", "packing_format", "backend", "provider", "pack_dtype",
    "dynamic", "extra_config", "data_type",
    "lm_head", "quant_lm_head", "modules_to_not_convert", "modules_in_block_to_quantize",
    "block_name_to_quantize", "to_quant_block_names", "quant_block_list", "module_name_preceding_first_block",
    "inside_layer_modules", "quant_nontext_module", "ignore_layers", "fp_layers",
    "meta", "producer", "autoround_version", "quantizer", "damp_percent", "damp_auto_increment",
    "true_sequential", "static_groups", "act_group_aware", "mse", "hyb_act", "dataset", "tokenizer", "model",
    "model_name_or_path", "model_file_base_name", "model_seqlen", "seqlen", "nsamples", "iters", "lr",
    "minmax_lr", "amp", "batch_size", "gradient_accumulate_steps", "enable_quanted_input", "enable_alg_ext",
    "enable_minmax_tuning", "enable_norm_bias_tuning", "enable_torch_compile", "low_gpu_mem_usage",
    "low_cpu_mem_usage", "seed", "sampler", "train_bs", "device", "device_map", "scale_dtype", "super_bits",
    "super_group_size", "supported_types", "act_bits", "act_group_size", "act_sym", "act_dynamic",
    "act_data_type", "static_kv_dtype", "use_exllama", "disable_exllama", "exllama_config",
    "max_input_length", "use_cuda_fp16", "cache_block_outputs", "pad_token_id", "do_fuse", "modules_to_fuse",
    "fuse_max_seq_len", "dequantize", "offload_to_disk", "offload_to_disk_path", "compression_ratio",
    "hessian", "gptaq", "failsafe", "fallback", "method", "adapter", "rotation", "is_marlin_format",
    "kv_cache_scheme", "packed_modules_mapping", "parallel_packing", "nblocks", "not_use_best_mse",
    "multimodal", "layer_config", "static_attention_dtype", "enable_adam", "attention_mask_dtype",
})  # fmt: skip
# Keys of settings for single modules besides: those that are used.
_MODULE_KEYS = KEYS | {"name", "scheme", "rank"}
# What changes the weights or the layout where it says something.
_REFUSED_KEYS = ("adapter", "rotation", "is_marlin_format")
_GPTQ_FORMATS = ("gptq", "gptq_v2", "gptq_p")
_AWQ_VERSIONS: dict[str, Version] = {
    "gemm": "gemm", "marlin": "gemm", "exllama": "gemm", "exllamav2": "gemm", "ipex": "gemm",
    "gemv": "gemv", "gemv_fast": "gemv_fast", "gemvfast": "gemv_fast",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """What the config says.

    Attributes
    ----------
    layout
        "gptq" or "awq"; "" if the config does not say.
    bits, sizes
        Those of most modules first, then those of single ones; empty if the config does not say. A size is 0
        for the whole row.
    symmetric, act_order
        Whether all modules are symmetric, and whether columns were quantized out of order and so lie in
        groups that are not neighbours.
    unpack, adds_one
        Of GPTQ: the packing, and whether zero points are stored less 1.
    version
        Of AWQ, None if the config does not say.
    """

    layout: str
    bits: tuple[int, ...]
    sizes: tuple[int, ...]
    symmetric: bool
    act_order: bool
    unpack: Unpack
    adds_one: bool
    version: Version | None


def read_settings(config: QuantizationConfig) -> Settings:
    """The config, its values checked.

    Raises
    ------
    CheckpointError
        If a value is impossible, or says something that ggplan does not read.
    """
    values = config.values
    for key in _REFUSED_KEYS:
        if values.get(key):
            raise _refusal(config, f"{key} {shown(values[key])}")
    if values.get("data_type") not in (None, "int", "int_sym", "int_asym"):
        raise _refusal(config, f"data_type {shown(values['data_type'])}")
    modules = _modules(config)
    bits = [_number(config, values, ("bits", "w_bit"), 1, 8)]
    sizes = [_number(config, values, ("group_size", "q_group_size"), -1, 1 << 30)]
    signs = [values.get("sym")]
    for of_module in modules:
        number = _number(config, of_module, ("bits",), 1, 64)
        if number is not None and number > 8:  # left as it was
            continue
        bits.append(number)
        sizes.append(_number(config, of_module, ("group_size",), -1, 1 << 30))
        signs.append(of_module.get("sym", values.get("sym")))
    layout, unpack, adds_one = _gptq_or_awq(config)
    symmetric = all(sign is True for sign in signs) and values.get("zero_point") is not True
    stated_bits = tuple(dict.fromkeys(n for n in bits if n is not None))
    if unpack is packed_bits.dense and layout == "gptq" and config.method == "gptq":
        unusual = [n for n in stated_bits if n in (5, 6, 7)]
        if unusual and values.get("provider") != "auto-round" and "autoround_version" not in values:
            raise _refusal(config, f"{unusual[0]} bits of GPTQ in a format other than gptq_p")
    return Settings(
        layout,
        stated_bits,
        tuple(dict.fromkeys(max(n, 0) for n in sizes if n is not None)),
        symmetric,
        any(_leaves_groups({**values, **of_module}) for of_module in ({}, *modules)),
        unpack,
        adds_one,
        _awq_version(config),
    )


def _leaves_groups(values: Mapping[str, object]) -> bool:
    """Whether columns of a group are no neighbours; static groups are made before columns are sorted."""
    return values.get("desc_act") is True and values.get("static_groups") is not True


def _gptq_or_awq(config: QuantizationConfig) -> tuple[str, Unpack, bool]:
    """The layout that the config names, and GPTQ's packing and whether its zero points are stored less 1."""
    values = config.values
    if config.method == "awq":
        return "awq", packed_bits.dense, False
    if config.method in _AUTOROUND:
        packing = values.get("packing_format") or values.get("backend") or "auto_round:auto_gptq"
        if not isinstance(packing, str) or not packing.startswith("auto_round"):
            raise _refusal(config, f"packing_format {shown(packing)}")
        if "awq" in packing:
            return "awq", packed_bits.dense, False
        return "gptq", packed_bits.dense, "gptq" in packing and "gptqmodel" not in packing
    if config.method != "gptq":
        return "", packed_bits.dense, False
    formats = [values[key] for key in ("checkpoint_format", "format") if values.get(key) is not None]
    format_ = formats[0] if formats else "gptq"
    if any(other != format_ for other in formats):
        raise CheckpointError(
            f"{config.where}: config.json says checkpoint_format {shown(formats[0])} and format "
            f"{shown(formats[1])}",
            hint="keep the one that tells how these weights are stored",
        )
    if format_ not in _GPTQ_FORMATS:
        raise _refusal(config, f"checkpoint_format {shown(format_)} of GPTQ")
    return "gptq", packed_bits.planar if format_ == "gptq_p" else packed_bits.dense, format_ == "gptq"


def _awq_version(config: QuantizationConfig) -> Version | None:
    """AWQ's version, or the format that GPTQModel states in its place."""
    said = (config.values.get(key) for key in ("version", "checkpoint_format", "format"))
    version = next((value for value in said if value is not None), None)
    if config.method != "awq" or version in (None, "llm-awq", "llm_awq"):
        return None
    if config.values.get("backend") == "llm-awq":  # whose own layout does not depend on the version
        return None
    found = _AWQ_VERSIONS.get(version.lower()) if isinstance(version, str) else None
    if found is None:
        raise _refusal(config, f"version {shown(version)} of AWQ")
    return found


def _modules(config: QuantizationConfig) -> list[Mapping[str, object]]:
    """The settings of single modules: of `dynamic` in GPTQModel, of `extra_config` in AutoRound."""
    found: list[Mapping[str, object]] = []
    for key in ("dynamic", "extra_config"):
        stated = config.values.get(key)
        if stated in (None, False):
            continue
        if not isinstance(stated, dict):
            raise CheckpointError(f"{config.where}: config.json has a {key} that is not an object")
        for name, settings in stated.items():
            if name.startswith("-:") or settings in (None, False):
                continue
            if not isinstance(settings, dict):
                raise CheckpointError(
                    f"{config.where}: {key} in config.json has settings for '{shown(name)}' that are no "
                    "object"
                )
            if unknown := [k for k in settings if k not in _MODULE_KEYS]:
                raise CheckpointError(
                    f"{config.where}: {key} in config.json says {listed(unknown)} of '{shown(name)}', which "
                    "ggplan does not know",
                    hint="use the original checkpoint in bf16",
                )
            for refused in (*_REFUSED_KEYS, "rank"):
                if settings.get(refused):
                    raise _refusal(config, f"{refused} {shown(settings[refused])} for '{shown(name)}'")
            for same in ("checkpoint_format", "format", "packing_format"):
                if settings.get(same) not in (None, config.values.get(same)):
                    raise _refusal(config, f"{same} {shown(settings[same])} for '{shown(name)}'")
            found.append(settings)
    return found


def _number(
    config: QuantizationConfig, values: Mapping[str, object], keys: Sequence[str], low: int, high: int
) -> int | None:
    """The whole number under one of some keys; None if there is none."""
    key = next((key for key in keys if values.get(key) is not None), None)
    if key is None:
        return None
    value = values[key]
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(f"{config.where}: config.json gives the impossible {key} {shown(value)}")
    return value


def _refusal(config: QuantizationConfig, what: str) -> CheckpointError:
    return CheckpointError(
        f"{config.where} is quantized with {what}, which ggplan does not read",
        hint="use the original checkpoint in bf16",
    )
