"""Modules with a `qweight`: GPTQ, AWQ, and AutoRound, which writes the layouts of both.

Shapes tell the layouts apart and give bits and groups; the config says how zero points are counted, and is
checked by the shapes. See `gptq` and `awq` for the layouts, `qweight_settings` for the config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ggplan.errors import CheckpointError
from ggplan.sources.files import shown
from ggplan.sources.schemes import awq, gptq, integer_parts, packed_bits
from ggplan.sources.schemes.awq import AwqLayout, Version
from ggplan.sources.schemes.gptq import GptqLayout
from ggplan.sources.schemes.integer_weights import weights_of
from ggplan.sources.schemes.integers import Form, IntegerMatrix
from ggplan.sources.schemes.qweight_settings import KEYS, METHODS, Settings, read_settings
from ggplan.sources.schemes.scheme import Group, QuantizationConfig, Recognised, Weights
from ggplan.sources.tensors import StoredTensor

NAME = "integers of GPTQ, AWQ and AutoRound"
_HINT = "download the file again, or use the original checkpoint in bf16"
_NOTE = (
    "its zero points are stored less 1 (GPTQ's first format), and not all are said to be symmetric; one of "
    "0 is read as GPTQModel writes it, with a carry from field to field (other tools lose it or read 16)"
)
_PARTS = {
    "codes": ("qweight",),
    "zero": ("qzeros", "scaled_zeros"),
    "scale": ("scales",),
    "order": ("g_idx",),
}


def recognise(tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> Recognised | None:
    """Every module with a `qweight`; see `Scheme`."""
    if config.method not in METHODS:
        return None
    modules = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    if not modules and config.method not in ("gptq", "awq"):
        # AutoRound also writes other forms, which its config says by values that are unknown here.
        return Recognised([], (), KEYS) if config.method else None
    settings = _with_signs(read_settings(config), modules)
    groups = [
        _group(module, tensors, replace(settings, symmetric=settings.is_symmetric(module)), config)
        for module in modules
    ]
    doubtful = settings.adds_one and any(
        isinstance(group.form, GptqLayout) and not group.form.form.symmetric for group in groups
    )
    return Recognised(groups, (), KEYS, (f"{config.where}: {_NOTE}",) if doubtful else ())


def _with_signs(settings: Settings, modules: Sequence[str]) -> Settings:
    """The settings; no module is symmetric if one that is not has another name here than in the config."""
    known = set(modules)
    if all(sign or name in known for name, sign in settings.signs.items()):
        return settings
    return replace(settings, symmetric=False, signs={})


def join(group: Group, config: QuantizationConfig) -> Weights:
    """The integers and what they stand for; see `Scheme`."""
    layout, parts = group.form, group.parts
    assert isinstance(layout, GptqLayout | AwqLayout)
    if isinstance(layout, AwqLayout) and layout.version == "gemv_fast":
        return awq.fast_weights(parts, layout)
    n_slices = parts["codes"].shape[0] if len(parts["codes"].shape) == 3 else 0

    def slice_(i: int) -> Mapping[str, StoredTensor]:
        return _slice(parts, i, n_slices) if n_slices else parts

    def matrix(i: int) -> IntegerMatrix:
        if isinstance(layout, GptqLayout):
            return gptq.matrix_of(slice_(i), layout)
        return awq.matrix_of(slice_(i), layout)

    def fault() -> str:
        found = integer_parts.scale_fault(parts["scale"])
        for i in range(n_slices or 1):
            own = matrix(i)
            if not found and own.order is not None:
                found = integer_parts.index_fault(slice_(i)["order"], own.n_groups)
            if not found and isinstance(layout, GptqLayout) and layout.form.symmetric:
                found = gptq.miscounted(parts["zero"].name, own, layout)
        return found

    shape = (*((n_slices,) if n_slices else ()), layout.n_rows, layout.n_columns)
    return weights_of(
        shape, matrix, layout.form, fault=fault, scale=parts["scale"], zero=parts["zero"], name=group.name
    )


def _slice(parts: Mapping[str, StoredTensor], i: int, n_slices: int) -> Mapping[str, StoredTensor]:
    return {
        name: part if name == "order" and len(part.shape) == 1 else integer_parts.slice_of(part, i, n_slices)
        for name, part in parts.items()
    }


def _group(
    module: str, tensors: Mapping[str, StoredTensor], settings: Settings, config: QuantizationConfig
) -> Group:
    parts: dict[str, StoredTensor] = {}
    for part, names in _PARTS.items():
        for name in names:
            if f"{module}.{name}" in tensors:
                parts[part] = tensors[f"{module}.{name}"]
    codes = parts["codes"]
    for part, what in (("zero", "zero points"), ("scale", "scales")):
        if part not in parts:
            raise _fault(codes, f"has no {what}: there is no '{shown(module)}.{_PARTS[part][0]}'")
    integer_parts.require_dtype(parts["scale"], "the scales", integer_parts.SCALE_DTYPES)
    if "order" in parts:
        integer_parts.require_dtype(parts["order"], "the groups of columns", ("I32", "I64"))
    n_slices = codes.shape[0] if len(codes.shape) == 3 else 0
    matrices = _slice(parts, 0, n_slices) if n_slices else parts
    for part in ("codes", "zero", "scale"):
        shape = parts[part].shape
        if len(matrices[part].shape) != 2 or 0 in shape or (n_slices and shape[0] != n_slices):
            raise _fault(parts[part], f"has the shape {list(shape)}, and is no matrix")
    layout = _layout(matrices, settings, config)
    if n_slices and isinstance(layout, AwqLayout) and layout.version == "gemv_fast":
        raise _fault(codes, f"has the shape {list(codes.shape)}, and is no matrix")
    kind = "GPTQ" if isinstance(layout, GptqLayout) else "AWQ"
    return Group(f"{module}.weight", f"{kind} {layout.form.told()}", parts, layout)


def _layout(
    parts: Mapping[str, StoredTensor], settings: Settings, config: QuantizationConfig
) -> GptqLayout | AwqLayout:
    """The layout that shapes tell, checked by the config."""
    codes, zero, scale = parts["codes"], parts["zero"], parts["scale"]
    if codes.dtype == "I16" and zero.dtype in integer_parts.SCALE_DTYPES:
        found = ["gemv_fast"]
    elif (codes.dtype, zero.dtype) != ("I32", "I32"):
        raise _fault(
            codes,
            f"and its zero points are {codes.dtype} and {zero.dtype}; ggplan reads I32 words, and I16 with "
            "zero points of F16",
        )
    else:
        fits = {
            "gptq": codes.shape[1] == scale.shape[1] and zero.shape[0] == scale.shape[0],
            "gemm": codes.shape[1] == zero.shape[1] and zero.shape[0] == scale.shape[0],
            "gemv": codes.shape[0] == zero.shape[0] == scale.shape[0],
        }
        found = [name for name, does in fits.items() if does]
    if not found:
        raise _fault(
            codes,
            f"has the shape {list(codes.shape)}, its zero points {list(zero.shape)}, its scales "
            f"{list(scale.shape)}: neither GPTQ's layout nor one of AWQ's",
        )
    meant = [name for name in found if _is_meant(name, settings)]
    if found == ["gptq"] and not settings.layout:
        raise CheckpointError(
            f"{config.where} holds GPTQ tensors, and no config says how their zero points are counted",
            hint="put the model's quantize_config.json into the folder",
        )
    if not meant:
        stated = "GPTQ" if settings.layout == "gptq" else f"AWQ {settings.version or ''}".strip()
        kind = "GPTQ" if found[0] == "gptq" else f"AWQ {found[0]}"
        raise _fault(codes, f"has the layout of {kind}, the config says {stated}")
    faults: list[CheckpointError] = []
    for name in meant:  # more than one only where a matrix is square and groups are tiny
        try:
            return _LAYOUTS[name](parts, settings)
        except CheckpointError as error:
            faults.append(error)
    raise faults[0]


def _is_meant(layout: str, settings: Settings) -> bool:
    """Whether the config means this layout; or, of one that needs no config, says nothing against it."""
    if layout == "gptq":
        return settings.layout == "gptq"
    return settings.layout in ("", "awq") and settings.version in (None, layout)


def _gptq_layout(parts: Mapping[str, StoredTensor], settings: Settings) -> GptqLayout:
    codes, zero, scale = parts["codes"], parts["zero"], parts["scale"]
    n_groups, n_rows = scale.shape
    unpack = settings.unpack
    faults: list[CheckpointError] = []
    for bits in settings.bits or range(1, 9):
        needed = packed_bits.n_words(unpack, bits, n_rows)
        if zero.shape[1] != needed:
            what = f"has {zero.shape[1]} words in a row, {n_rows} zero points of {bits} bits need {needed}"
            faults.append(_fault(zero, what))
            continue
        n_columns = parts["order"].n_weights if "order" in parts else codes.shape[0] * 32 // bits
        needed = packed_bits.n_words(unpack, bits, n_columns)
        if codes.shape[0] != needed:
            what = f"has {codes.shape[0]} rows of words, {n_columns} inputs of {bits} bits need {needed}"
            faults.append(_fault(codes, what))
            continue
        group = _group_size(scale, n_groups, n_columns, settings, is_listed="order" in parts)
        reordered = ""
        if "order" in parts and settings.act_order and n_groups > 1:
            reordered = "columns are in the order of their activations (desc_act)"
        form = Form(bits, settings.symmetric, group, reordered)
        return GptqLayout(form, n_rows, n_columns, unpack, settings.adds_one)
    raise faults[0]


def _gemm_layout(parts: Mapping[str, StoredTensor], settings: Settings) -> AwqLayout:
    codes, scale = parts["codes"], parts["scale"]
    n_columns, n_words = codes.shape
    n_groups, n_rows = scale.shape
    for bits in settings.bits or (4,):
        if n_words == packed_bits.n_words(packed_bits.dense, bits, n_rows):
            form = Form(bits, settings.symmetric, _group_size(scale, n_groups, n_columns, settings))
            return AwqLayout(form, "gemm", n_rows, n_columns, n_groups)
    stated = " or ".join(str(bits) for bits in settings.bits or (4,))
    raise _fault(codes, f"has {n_words} words in a row, its scales {n_rows}: not codes of {stated} bits")


def _gemv_layout(parts: Mapping[str, StoredTensor], settings: Settings) -> AwqLayout:
    codes, zero, scale = parts["codes"], parts["zero"], parts["scale"]
    n_rows, n_columns = codes.shape[0], codes.shape[1] * 8
    _require_four_bits(codes, settings)
    if scale.shape[1] != zero.shape[1] * 8:
        raise _fault(scale, f"has {scale.shape[1]} scales in a row, its zero points {zero.shape[1] * 8}")
    group = _padded_group(zero, zero.shape[1], n_columns, settings)
    return _of_groups(settings, "gemv", n_rows, n_columns, group)


def _fast_layout(parts: Mapping[str, StoredTensor], settings: Settings) -> AwqLayout:
    codes, zero, scale = parts["codes"], parts["zero"], parts["scale"]
    n_rows, n_columns = codes.shape[0] * awq.FAST_ROWS, codes.shape[1]
    _require_four_bits(codes, settings)
    if n_columns % awq.FAST_COLUMNS:
        raise _fault(codes, f"has {n_columns} inputs, which is no multiple of {awq.FAST_COLUMNS}")
    if scale.shape != zero.shape or scale.shape[1] != n_rows:
        raise _fault(
            scale, f"has the shape {list(scale.shape)}, zero points {list(zero.shape)}, for {n_rows} outputs"
        )
    group = 0
    if scale.shape[0] % 8 == 0:
        group = _padded_group(zero, scale.shape[0] // 8, n_columns, settings, is_needed=False)
    if not group:  # llm-awq has versions that do not pad
        group = _group_size(scale, scale.shape[0], n_columns, settings) or n_columns
    return _of_groups(settings, "gemv_fast", n_rows, n_columns, group)


def _of_groups(settings: Settings, version: Version, n_rows: int, n_columns: int, group: int) -> AwqLayout:
    n_groups = n_columns // group
    form = Form(4, settings.symmetric, 0 if n_groups == 1 else group)
    return AwqLayout(form, version, n_rows, n_columns, n_groups)


def _require_four_bits(codes: StoredTensor, settings: Settings) -> None:
    if settings.bits and 4 not in settings.bits:
        raise _fault(codes, f"has a layout of 4 bits, the config says {settings.bits[0]}")


def _padded_group(
    zero: StoredTensor, n_words: int, n_columns: int, settings: Settings, *, is_needed: bool = True
) -> int:
    """The group whose zero points fill that many words with GEMV's padding; 0 if none does and none need."""
    sizes = [size or n_columns for size in settings.sizes] or [128, 64, 32]
    fitting = [size for size in sizes if n_columns % size == 0 and awq.zero_words(n_columns, size) == n_words]
    if len(fitting) == 1 or (fitting and settings.sizes):
        return fitting[0]
    if not is_needed:
        return 0
    raise _fault(
        zero,
        f"has {n_words} words of zero points for {n_columns} inputs in groups of "
        f"{' or '.join(map(str, fitting or sizes))}, which need "
        f"{' or '.join(str(awq.zero_words(n_columns, size)) for size in fitting or sizes)}",
    )


def _group_size(
    scale: StoredTensor, n_groups: int, n_columns: int, settings: Settings, *, is_listed: bool = False
) -> int:
    """Columns of a group, of those sizes that the config states; 0 for the whole row.

    Where `is_listed`, `g_idx` has the group of each column, so that a wrong size changes no weight.
    """
    if n_groups == 1 and (not settings.sizes or any(not s or s >= n_columns for s in settings.sizes)):
        return 0
    fitting = [size for size in settings.sizes if size and -(-n_columns // size) == n_groups]
    if (
        n_groups > 1 and len(fitting) > 1 and not is_listed
    ):  # modules are named by expressions, which are not matched here
        raise _fault(
            scale,
            f"has {n_groups} groups; the config has groups of {' and of '.join(map(str, fitting))}, and "
            f"{n_columns} inputs make as many of each",
        )
    if fitting:
        return fitting[0]
    if not settings.sizes and n_columns % n_groups == 0:
        return n_columns // n_groups
    sizes = [size or n_columns for size in settings.sizes]
    raise _fault(
        scale,
        f"has {n_groups} groups; {n_columns} inputs in groups of {' or '.join(map(str, sizes)) or 'one size'}"
        f" make {' or '.join(str(-(-n_columns // size)) for size in sizes) or 'another number'}",
    )


_LAYOUTS: dict[str, Callable[[Mapping[str, StoredTensor], Settings], GptqLayout | AwqLayout]] = {
    "gptq": _gptq_layout, "gemm": _gemm_layout, "gemv": _gemv_layout, "gemv_fast": _fast_layout,
}  # fmt: skip


def _fault(tensor: StoredTensor, what: str) -> CheckpointError:
    return CheckpointError(f"{shown(tensor.file)}: '{shown(tensor.name)}' {what}", hint=_HINT)
