r"""The quantization_config of checkpoints whose modules all have one scheme, but for exceptions.

GPTQ, AWQ, bitsandbytes, HQQ, quanto, EETQ, FP8 (fine-grained and fbgemm), MXFP4 and modelopt state a scheme
for all linear modules of the blocks, and which modules have another or none. They differ in the names of the
keys and in how a name is matched:

    gptq       `dynamic`, in order: `-:REGEX` is not quantized, `+:REGEX` or `REGEX` has other settings;
               Python's `re.match`, the first that matches decides
    awq        `modules_to_not_convert`: a part of the name
    modelopt   `ignore`, `exclude_modules`, `quantized_layers`: names or parents, `*` stands for any text
    others     `modules_to_not_convert` and its kin: a regular expression for the name or a parent's, or
               the end of the name

The output and the embeddings stay floats unless the config says otherwise. With transformers' own lists it
says so by a list that does not name the output: only without a list is that left out.

GPTQModel f4c327a (`quantization/config.py`), AutoAWQ 0.2.9 (`quantize/quantizer.py`), transformers 5.24
(`quantizers/quantizers_utils.py`, `utils/quantization_config.py`), nvidia-modelopt 0.47, hqq 0.2.8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

from ggplan.arch.families import architectures
from ggplan.dialects.hf_names import LINEAR, modules_of
from ggplan.dialects.modelopt import read_modelopt
from ggplan.dialects.modules import expanded, hits_of, need_model, recipe_of_types, unmet_note
from ggplan.dialects.recognising import Config, recognised
from ggplan.dialects.scheme import (
    Scheme,
    checked_whole,
    exclude,
    flag,
    names_at,
    take_output,
    type_of,
    whole,
)
from ggplan.dialects.settings import Settings
from ggplan.dialects.source import Imported, Source, imported_text
from ggplan.dialects.weight_formats import WeightFormat, nearest_type
from ggplan.errors import RecipeError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import Model
from ggplan.recovering.patterns import escape

Read = Callable[[Source, Settings, Scheme], None]
_MOST_LAYERS = 256  # of a model that is not known


def config_of(source: Source, dialect: str) -> Config:
    """The config of a dialect.

    Raises
    ------
    RecipeError
        If the text is another's, or none.
    """
    config = recognised(source)
    if config is None or config.dialect != dialect:
        whose = f"this is {config.dialect}'s" if config is not None else "this is no JSON object"
        hint = f"read it with --dialect {config.dialect}" if config is not None else ""
        raise source.fault(0, f"{whose}, not a quantization_config of {dialect}", hint)
    return config


@cache
def _classes() -> dict[str, str]:
    """The architecture of GGUF for each class of transformers."""
    return {key: architecture.name for key, architecture in architectures().items()}


def class_notes(config: Config, model: Model) -> list[str]:
    """A note where the config is of another architecture than the model."""
    for name in config.architectures:
        known = _classes().get(name)
        if known is not None and known != model.architecture:
            is_ = model.architecture or "of no known architecture"
            return [f"the config is for {name} ({known}), {model.path.name} is {is_}"]
    return []


def reader(dialect: str) -> Callable[[Source, str, Model | None], Imported]:
    """The function that imports the configs of one of `READERS`."""

    def import_(source: Source, name: str, model: Model | None) -> Imported:
        config = config_of(source, dialect)
        scheme = Scheme()
        READERS[dialect](source, config.settings, scheme)
        notes = [*config.notes, *scheme.notes]
        if dialect == "mxfp4" and not _leaves_experts(source, scheme):  # GGUF's own names do
            notes += config.settings.left_out()
            if model is not None and not any("_exps." in tensor.name for tensor in model.tensors):
                notes.append(f"{model.path.name} has no experts: the rule matches no tensor of it")
            if model is not None:
                notes += [*class_notes(config, model), *_unmet_of(source, scheme, model)]
            body = [r"^blk\.\d+\.ffn_(gate|up|down|gate_up)_exps\.weight$ = mxfp4"]
            architecture = model.architecture if model is not None else _architecture(config)
            head = [f"@arch {architecture}"] if architecture else []
            what = "a quantization_config of mxfp4"
            notes = list(dict.fromkeys(notes))
            return Imported(dialect, imported_text(source, what, name, body, notes, head), tuple(notes))
        model = need_model(source, model)
        return _of_scheme(source, dialect, name, model, scheme, [*class_notes(config, model), *notes,
                                                                 *config.settings.left_out()])  # fmt: skip

    return import_


def _unmet_of(source: Source, scheme: Scheme, model: Model) -> list[str]:
    """A note on exceptions that match no module, where the modules' names are known."""
    try:
        names = [scheme.seen_as(name) for name in expanded(modules_of(model))]
    except RecipeError:
        return []
    met = {i for found in hits_of(source, [p for p, _, _ in scheme.exceptions], names) for i in found}
    return unmet_note([said for i, (_, _, said) in enumerate(scheme.exceptions) if i not in met], model)


def _architecture(config: Config) -> str:
    return next((_classes()[c] for c in config.architectures if c in _classes()), "")


def _of_scheme(
    source: Source, dialect: str, name: str, model: Model, scheme: Scheme, notes: list[str]
) -> Imported:
    modules = modules_of(model)
    names = expanded(modules)
    kinds = [module.kind for module in modules for _ in range(module.n_experts)]
    seen = [scheme.seen_as(name) for name in names]
    hits = hits_of(source, [pattern for pattern, _, _ in scheme.exceptions], seen)
    within = hits_of(source, scheme.only, names)
    types: list[GgmlType | None] = []
    beyond: dict[int, list[str]] = {}
    for module, kind, found, inside in zip(names, kinds, hits, within, strict=True):
        if kind != LINEAR:
            is_meant = scheme.takes_embeddings
        elif "layers." in module:
            is_meant = bool(inside) or not scheme.only
        else:
            is_meant = scheme.takes_output
        type_ = scheme.exceptions[found[0]][1] if found else scheme.default
        if found and type_ is not None and scheme.only_refines and not is_meant:
            beyond.setdefault(found[0], []).append(module)
        if not found and is_meant and module == "lm_head" and type_ is not None and scheme.output_note:
            notes.append(scheme.output_note)
        types.append(type_ if is_meant or (found and not scheme.only_refines) else None)
    for i, modules_beyond in beyond.items():
        said = scheme.exceptions[i][2]
        more = f" and {len(modules_beyond) - 1:,} more" if len(modules_beyond) > 1 else ""
        notes.append(
            f"`{said}` changes nothing for {modules_beyond[0]}{more}: {TITLES[dialect]} does not quantize "
            f"{'it' if not more else 'them'} here"
        )
    met = {i for found in hits for i in found}
    notes += _hidden_notes(scheme, hits)
    left_out = []
    for i, (_, type_, said) in enumerate(scheme.exceptions):
        if i not in met and type_ is not None:
            notes.append(f"`{said}` ({type_.name}) matches no module of {model.path.name} that is quantized")
        elif i not in met:
            left_out.append(said)
    notes += unmet_note(left_out, model)
    return recipe_of_types(source, dialect, name, model, modules, types, list(dict.fromkeys(notes)))


def _hidden_notes(scheme: Scheme, hits: Sequence[tuple[int, ...]]) -> list[str]:
    """Notes on exceptions that others stand before wherever they match, and that say something else."""
    deciding = {found[0] for found in hits if found}
    before: dict[int, int] = {}
    for found in hits:
        for i in found[1:]:
            if i not in deciding and scheme.exceptions[i][1] != scheme.exceptions[found[0]][1]:
                before.setdefault(i, found[0])
    return [
        f"`{scheme.exceptions[i][2]}` never decides: `{scheme.exceptions[first][2]}` stands before it"
        for i, first in sorted(before.items())
    ]


def _integers(
    source: Source, settings: Settings, scheme: Scheme, general: Settings | None = None
) -> GgmlType | None:
    """The type of `bits`, `group_size` and `sym`, each from `general` where it is not stated."""

    def stated(key: str, default: object) -> object:
        below = default if general is None else general.get(key, default=default)
        return settings.get(key, default=below)

    def holder(key: str) -> Settings:
        return settings if general is None or settings.get(key) is not None else general

    if stated("data_type", "int") != "int":
        raise source.fault(source.line_of("data_type"), f"{settings.path}data_type: only int is read")
    bits = checked_whole(source, holder("bits"), ("bits",), stated("bits", None))
    group = checked_whole(source, holder("group_size"), ("group_size",), stated("group_size", 128))
    symmetric = flag(source, holder("sym"), "sym", default=True)
    return type_of(
        source, scheme, WeightFormat(bits, max(0, group), symmetric), settings.path or "the config"
    )


def _gptq(source: Source, settings: Settings, scheme: Scheme) -> None:
    scheme.default = _integers(source, settings, scheme)
    scheme.only_refines = True
    scheme.takes_output = flag(source, settings, "lm_head", default=False)
    dynamic = settings.inner("dynamic")
    for key in dynamic or ():
        sign, pattern = (key[:2], key[2:]) if key[:2] in ("+:", "-:") else ("+:", key)
        checked = f"^(?:{source.pattern(pattern)})"
        said = dynamic.inner(key) if dynamic is not None else None
        stated = dynamic.get(key) if dynamic is not None and said is None else None
        if stated not in (None, {}) and not (sign == "-:" and type(stated) is bool):
            hint = "write `-:` before the pattern to leave modules as they are" if stated is False else ""
            message = f"`{key[:80]}` of dynamic is an object with bits, ..., not {str(stated).lower()[:40]}"
            raise source.fault(source.line_of(pattern), message, hint)
        if sign == "-:":
            scheme.exceptions.append((checked, None, key))
            if said is not None and list(said):
                scheme.notes.append(f"dynamic `{key}` is not quantized; what it says besides is left out")
        elif said is not None:
            scheme.exceptions.append((checked, _integers(source, said, scheme, settings), key))
    inside = settings.get("modules_in_block_to_quantize", "inside_layer_modules", default=[])
    if not isinstance(inside, list):
        raise source.fault(0, f"{settings.path}modules_in_block_to_quantize is a list of lists of names")
    tails = [str(n) for group in inside for n in (group if isinstance(group, list) else [group])]
    heads = names_at(source, settings, "block_name_to_quantize")
    ends = [rf"\.{escape(tail)}$" for tail in tails]
    starts = [rf"^{escape(head)}\." for head in heads]
    scheme.only = [f"{head[:-2]}.*{tail}" for head in starts for tail in ends]
    scheme.only = scheme.only or ends or starts
    exclude(source, settings, scheme, "modules_to_not_convert")


def _awq(source: Source, settings: Settings, scheme: Scheme) -> None:
    bits = whole(source, settings, "bits", "w_bit", default=4)
    group = whole(source, settings, "group_size", "q_group_size", default=128)
    asymmetric = flag(source, settings, "zero_point", default=True)
    format_ = WeightFormat(bits, max(0, group), symmetric=not asymmetric)
    scheme.default = type_of(source, scheme, format_, "the config")
    for key in ("modules_to_not_convert", "ignored_layers"):
        scheme.exceptions += [(escape(part), None, part) for part in names_at(source, settings, key)]
    scheme.takes_output = flag(source, settings, "lm_head", default=False)


def _bitsandbytes(source: Source, settings: Settings, scheme: Scheme) -> None:
    four = flag(source, settings, "load_in_4bit", "_load_in_4bit", default=False)
    eight = flag(source, settings, "load_in_8bit", "_load_in_8bit", default=False)
    if four is eight:
        raise source.fault(0, "bitsandbytes: one of load_in_4bit and load_in_8bit is true")
    if four:
        kind = settings.get("bnb_4bit_quant_type", default="fp4")
        if kind not in ("nf4", "fp4"):
            raise source.fault(
                source.line_of("bnb_4bit_quant_type"), f"{settings.path}bnb_4bit_quant_type is nf4 or fp4"
            )
        if flag(source, settings, "bnb_4bit_use_double_quant", default=False):
            scheme.notes.append(
                "bnb_4bit_use_double_quant: scales of 8 bits there; iq4_nl has one of 16 bits for 32 weights"
            )
        scheme.default = parse_type("iq4_nl")
        scheme.notes.append(
            f"{kind}: 4 bits that stand for 16 uneven levels, in blocks of 64; the nearest type is iq4_nl"
        )
    else:
        settings.get("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
        scheme.default = type_of(source, scheme, WeightFormat(8), "the config")
    exclude(source, settings, scheme, "llm_int8_skip_modules", "modules_to_not_convert")
    take_output(settings, scheme, "llm_int8_skip_modules", "modules_to_not_convert")


def _hqq(source: Source, settings: Settings, scheme: Scheme) -> None:
    said = settings.inner("quant_config") or settings
    weights = said.inner("weight_quant_params")

    def of(params: Settings) -> GgmlType | None:
        params.get("axis")
        bits = whole(source, params, "nbits", "bits")
        group = whole(source, params, "group_size", default=64)
        return type_of(source, scheme, WeightFormat(bits, max(0, group), symmetric=False), params.path)

    if weights is not None:
        scheme.default = of(weights)
    for holder in (
        (said, settings.inner("dynamic_config")) if weights is None or "dynamic_config" in settings else ()
    ):
        for tag in holder or ():
            inner = holder.inner(tag) if holder is not None else None
            params = inner.inner("weight_quant_params") or inner if inner is not None else None
            if params is not None and ("nbits" in params or "bits" in params):
                scheme.exceptions.append((rf"\.{escape(tag)}$", of(params), tag))
    if weights is None and not scheme.exceptions:
        raise source.fault(0, "hqq: there is no quant_config with weight_quant_params")
    exclude(source, settings, scheme, "skip_modules", "modules_to_not_convert")
    take_output(settings, scheme, "skip_modules", "modules_to_not_convert")


def _quanto(source: Source, settings: Settings, scheme: Scheme) -> None:
    said = str(settings.get("weights", "weights_dtype", default="int8"))
    found = re.fullmatch(r"q?(int|float)(\d)(?:_\w+)?", said)
    if found is None:
        raise source.fault(source.line_of(said), f"weights = {said[:40]} is unknown")
    group = 0 if found[2] == "8" else 128  # quanto's own for 2 and 4 bits
    format_ = WeightFormat(int(found[2]), group, symmetric=found[2] == "8", is_float=found[1] == "float")
    scheme.default = type_of(source, scheme, format_, "the config")
    exclude(source, settings, scheme, "modules_to_not_convert")
    take_output(settings, scheme, "modules_to_not_convert")


def _fp8(source: Source, settings: Settings, scheme: Scheme) -> None:
    settings.get("qformat_weight", "fmt", "scale_fmt")
    block = settings.get("weight_block_size")
    format_ = WeightFormat(8, is_float=True)
    if block is None:
        scheme.default = type_of(source, scheme, format_, "the config")
    else:
        if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
            raise source.fault(
                source.line_of("weight_block_size"),
                f"{settings.path}weight_block_size is two whole numbers, rows and columns",
            )
        scheme.default = nearest_type(format_)[0]
        if scheme.default is not None:
            scheme.notes.append(
                f"8 bits as floats, a scale for each {block[0]} rows by {block[1]} columns; the nearest "
                f"type is {scheme.default.name}"
            )
    exclude(source, settings, scheme, "modules_to_not_convert", "ignored_layers")
    take_output(settings, scheme, "modules_to_not_convert")


def _mxfp4(source: Source, settings: Settings, scheme: Scheme) -> None:
    """MXFP4 is for the experts of a layer together: transformers asks for `...mlp.experts` alone."""
    scheme.notes.append("mxfp4 is for the experts; all else keeps its type")
    scheme.default = parse_type("mxfp4")
    scheme.only = [r"\.experts(\.|$)"]
    scheme.seen_as = lambda name: (
        name[: name.find(".experts.") + len(".experts")] if ".experts." in name else name
    )
    exclude(source, settings, scheme, "modules_to_not_convert")


def _leaves_experts(source: Source, scheme: Scheme) -> bool:
    """Whether the experts of a layer are among the exceptions, for whatever model."""
    names = [f"model.layers.{i}.mlp.experts" for i in range(_MOST_LAYERS)]
    return any(hits_of(source, [pattern for pattern, _, _ in scheme.exceptions], names))


READERS: dict[str, Read] = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "modelopt": read_modelopt,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "mxfp4": _mxfp4,
    "hqq": _hqq,
    "quanto": _quanto,
    "eetq": _quanto,
}
"""By the name of the dialect."""

TITLES = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "modelopt": "NVIDIA ModelOpt",
    "fp8": "FP8",
    "fbgemm_fp8": "fbgemm FP8",
    "mxfp4": "MXFP4",
    "hqq": "HQQ",
    "quanto": "quanto",
    "eetq": "EETQ",
}
"""What the dialects are called."""
