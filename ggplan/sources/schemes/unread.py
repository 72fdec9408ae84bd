"""Ways of storing weights that ggplan knows by name and does not read.

Their tensors would otherwise look like those of another form, or be refused one by one as tensors without a
place. They are told by the config's `quant_method`, or by the names and types of tensors, since a config may
lack it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ggplan.errors import CheckpointError
from ggplan.sources.files import shown
from ggplan.sources.schemes.scheme import QuantizationConfig
from ggplan.sources.tensors import StoredTensor

_HINT = "use the original checkpoint in bf16 or fp8"
READ_METHODS = (
    None, "fp8", "mxfp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "gptq", "awq", "auto-round",
    "intel/auto-round", "autoround", "mxfp4", "bitsandbytes", "hqq", "torchao",
)  # fmt: skip
"""The values of `quant_method` whose checkpoints a scheme reads."""
# Layouts for kernels, and sparse ones: values of `format` or `checkpoint_format` in a config or a group.
_FORMATS = frozenset({
    "marlin", "bitblas", "gptq_marlin", "marlin-24", "sparse-bitmask", "sparse-24-bitmask",
    "mxfp6-pack-quantized", "mxfp6-quantized", "nvfp4_e2m1_ue8m0",
})  # fmt: skip
_INTEGER_MX = "mx_int"

Tensors = Mapping[str, StoredTensor]


def refuse_unread(tensors: Tensors, config: QuantizationConfig) -> None:
    """Refuse a checkpoint in a form that ggplan does not read, by the form's name.

    Raises
    ------
    CheckpointError
        If the config or a tensor shows such a form.
    """
    if config.method not in READ_METHODS:
        raise unread(config)
    _refuse_formats(config)
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if (sign := _SIGNS.get(last)) is not None and (form := sign(module, tensor, tensors)):
            raise CheckpointError(
                f"{shown(tensor.file)}: the tensor '{shown(name)}' is of the form {form}, which ggplan does "
                f"not "
                "read",
                hint=_HINT,
            )


def unread(config: QuantizationConfig, tensors: Tensors | None = None) -> CheckpointError:
    """The error of a config that names a form that ggplan does not read, or that none of `tensors` has."""
    kind = str(config.method)
    if named := config.values.get("format") or config.values.get("quant_algo"):
        kind += f" ({named})"
    codes = _codes_of(tensors or {})
    if codes is not None and config.method in READ_METHODS:
        return CheckpointError(
            f"{config.where} is quantized by {shown(kind)}, and '{shown(codes.name)}' holds {codes.dtype} "
            "codes, which ggplan does not read in a checkpoint of that kind",
            hint="use the original checkpoint in bf16 or fp8",
        )
    if config.method is not None and config.method in READ_METHODS:
        return CheckpointError(
            f"{config.where} is quantized by {shown(kind)}, which ggplan does not find in any of its tensors",
            hint="use the original checkpoint in bf16 or fp8; if these weights are plain, take "
            "quantization_config out of config.json",
        )
    return CheckpointError(
        f"{config.where} is quantized by {shown(kind)}, which ggplan does not read", hint=_HINT
    )


def has_codes(tensors: Tensors) -> bool:
    """Whether a tensor looks like codes of some quantization, by its name and what is beside it."""
    return _codes_of(tensors) is not None


def _codes_of(tensors: Tensors) -> StoredTensor | None:
    return next((tensor for tensor in tensors.values() if _are_codes(tensor, tensors)), None)


def _are_codes(tensor: StoredTensor, tensors: Tensors) -> bool:
    if tensor.name.endswith((".weight_packed", ".qweight", ".W_q")):
        return True
    return tensor.dtype in ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2") and f"{tensor.name}_scale" in tensors


def _refuse_formats(config: QuantizationConfig) -> None:
    groups = config.values.get("config_groups")
    layers = config.values.get("extra_config")
    objects = [config.values]
    for each in (groups, layers):
        objects += (
            [part for part in each.values() if isinstance(part, dict)] if isinstance(each, dict) else []
        )
    for values in objects:
        for key in ("format", "checkpoint_format", "data_type"):
            value = values.get(key)
            if isinstance(value, str) and (value in _FORMATS or value.startswith(_INTEGER_MX)):
                raise CheckpointError(
                    f"{config.where}: quantization_config in config.json says {key} {shown(value)}, which "
                    f"ggplan "
                    "does not read",
                    hint=_HINT,
                )


def _always(form: str) -> Callable[[str, StoredTensor, Tensors], str]:
    return lambda module, tensor, tensors: form


def _beside(form: str, *names: str) -> Callable[[str, StoredTensor, Tensors], str]:
    """The form, where a module has tensors of any of these names too."""
    return lambda module, tensor, tensors: (
        form if any(f"{module}.{name}" in tensors for name in names) else ""
    )


def _trellis(module: str, tensor: StoredTensor, tensors: Tensors) -> str:
    if f"{module}.suh" in tensors or f"{module}.su" in tensors:
        return "EXL3"
    return "QTIP" if f"{module}.SU" in tensors else ""


def _scales(module: str, tensor: StoredTensor, tensors: Tensors) -> str:
    weight = tensors.get(f"{module}.weight")
    return "MLX (or metal)" if weight is not None and weight.dtype == "U32" else ""


def _weight_scale(module: str, tensor: StoredTensor, tensors: Tensors) -> str:
    weight = tensors.get(f"{module}.weight")
    if weight is None:
        return ""
    if weight.dtype == "I32":
        return "humming"
    is_whole = tensor.n_weights == 1 and tensor.dtype in ("F32", "BF16", "F16")
    return "BitNet" if weight.dtype == "U8" and is_whole and len(weight.shape) == 2 else ""


def _weight_scales(module: str, tensor: StoredTensor, tensors: Tensors) -> str:
    weight = tensors.get(f"{module}.weight")
    return "EETQ" if weight is not None and weight.dtype in ("I8", "U8") else ""


def _data(module: str, tensor: StoredTensor, tensors: Tensors) -> str:
    return "quanto" if f"{module}._scale" in tensors or f"{module}._data._data" in tensors else ""


def _factor(module: str, tensor: StoredTensor, tensors: Tensors) -> str:
    """Factors of columns, which only two forms of 4 bits in bytes are read with."""
    names = (f"{module}.{name}" for name in ("weight", "weight_packed", "qweight"))
    codes = next((tensors[name] for name in names if name in tensors), None)
    if codes is None or (codes.dtype == "U8" and tensor.name.endswith("pre_quant_scale")):
        return ""
    return f"{codes.dtype} with a factor for each column (AWQ or SmoothQuant)"


# By the last part of a tensor's name: the form it shows, or "" where it does not.
_SIGNS: Mapping[str, Callable[[str, StoredTensor, Tensors], str]] = {
    "trellis": _trellis,
    "q_weight": _beside("EXL2", "q_scale", "q_groups"),
    "Qidxs": _always("QuIP#"),
    "codebooks": _beside("AQLM", "codes"),
    "indices": _beside("VPTQ", "centroids", "centroids.weight"),
    "dense_weights": _beside("SpQR", "row_offsets", "col_vals"),
    "tables2": _beside("HIGGS", "tables"),
    "dqweight": _beside("FP-Quant", "forward_hadamard_matrix", "scales"),
    "forward_hadamard_matrix": _always("FP-Quant"),
    "_data": _data,
    "weight_scales": _weight_scales,
    "B": _beside("Marlin", "s"),
    "bitmask": _beside("sparse-bitmask of compressed-tensors", "compressed"),
    "scale_packed": _beside("marlin-24 of compressed-tensors", "meta"),
    "nvfp4_csf_fixed": _always("NVFP4-CSF"),
    "svdquant_lora_a": _always("SVDQuant of ModelOpt (NVFP4_SVD)"),
    "pre_quant_scale": _factor,
    "smooth_scale": _factor,
    "scales": _scales,
    "weight_scale": _weight_scale,
}
