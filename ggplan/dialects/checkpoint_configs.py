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
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from ggplan.arch.families import architectures
from ggplan.dialects.hf_names import LINEAR, modules_of
from ggplan.dialects.modules import expanded, hits_of, need_model, recipe_of_types, unmet_note
from ggplan.dialects.recognising import Config, recognised
from ggplan.dialects.settings import Settings
from ggplan.dialects.source import Imported, Source, imported_text
from ggplan.dialects.weight_formats import WEIGHT_FORMATS, WeightFormat, named_format, nearest_type
from ggplan.errors import RecipeError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import Model
from ggplan.recovering.patterns import escape

Read = Callable[[Source, Settings, "Scheme"], None]


@dataclass(slots=True)
class Scheme:
    """What a config gives the modules.

    Attributes
    ----------
    default
        The type of all linear modules in the blocks; None leaves them as they are.
    exceptions
        Patterns, their types, None for modules that are not quantized, and how the config says it; the first
        that matches decides.
    takes_output, takes_embeddings
        Whether `default` is for these, too.
    only
        Patterns of the only modules that `default` is for; empty for all.
    only_refines
        Whether exceptions that have a type apply only to modules that `default` is for.
    output_note
        What to say where the output gets the default.
    """

    default: GgmlType | None = None
    exceptions: list[tuple[str, GgmlType | None, str]] = field(default_factory=list)
    takes_output: bool = False
    takes_embeddings: bool = False
    only: list[str] = field(default_factory=list)
    only_refines: bool = False
    output_note: str = ""
    notes: list[str] = field(default_factory=list)


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
        if dialect == "mxfp4" and not scheme.only:  # experts only: GGUF's own names do
            notes += config.settings.left_out()
            if model is not None and not any("_exps." in tensor.name for tensor in model.tensors):
                notes.append(f"{model.path.name} has no experts: the rule matches no tensor of it")
            notes += class_notes(config, model) if model is not None else []
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


def _architecture(config: Config) -> str:
    return next((_classes()[c] for c in config.architectures if c in _classes()), "")


def _of_scheme(
    source: Source, dialect: str, name: str, model: Model, scheme: Scheme, notes: list[str]
) -> Imported:
    modules = modules_of(model)
    names = expanded(modules)
    kinds = [module.kind for module in modules for _ in range(module.n_experts)]
    hits = hits_of(source, [pattern for pattern, _, _ in scheme.exceptions], names)
    within = hits_of(source, scheme.only, names)
    types: list[GgmlType | None] = []
    beyond: dict[int, list[str]] = {}
    for module, kind, found, inside in zip(names, kinds, hits, within, strict=True):
        if "layers." in module:
            is_meant = bool(inside) or not scheme.only
        else:
            is_meant = scheme.takes_output if kind == LINEAR else scheme.takes_embeddings
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
            f"`{said}` also matches {modules_beyond[0]}{more}, which {TITLES[dialect]} does not quantize here"
        )
    met = {i for found in hits for i in found}
    left_out = []
    for i, (_, type_, said) in enumerate(scheme.exceptions):
        if i not in met and type_ is not None:
            notes.append(f"`{said}` ({type_.name}) matches no module of {model.path.name} that is quantized")
        elif i not in met:
            left_out.append(said)
    notes += unmet_note(left_out, model)
    return recipe_of_types(source, dialect, name, model, modules, types, list(dict.fromkeys(notes)))


def _type(source: Source, scheme: Scheme, format_: WeightFormat, where: str) -> GgmlType | None:
    """The nearest type to a format, with a note where it is not the same."""
    try:
        type_, same = nearest_type(format_)
    except ValueError as error:
        raise source.fault(0, f"{where}: {error}") from None
    if not same and type_ is not None:
        scheme.notes.append(f"{format_.described}; the nearest type is {type_.name}")
    return type_


def whole(source: Source, settings: Settings, *keys: str, default: int | None = None) -> int:
    """A whole number of the settings; an error names the key if it is none."""
    value = settings.get(*keys, default=default)
    if type(value) is not int or not -1 <= value < 1 << 20:
        raise source.fault(source.line_of(f'"{keys[0]}"'), f"{settings.path}{keys[0]} is a whole number")
    return value


def names_at(source: Source, settings: Settings, *keys: str) -> list[str]:
    """The list of names at the first of these keys that is there."""
    value = settings.get(*keys, default=[])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise source.fault(source.line_of(f'"{keys[0]}"'), f"{settings.path}{keys[0]} is a list of names")
    return values


def _integers(
    source: Source, settings: Settings, scheme: Scheme, general: Settings | None = None
) -> GgmlType | None:
    """The type of `bits`, `group_size` and `sym`, each from `general` where it is not stated."""

    def stated(key: str, default: object) -> object:
        below = default if general is None else general.get(key, default=default)
        return settings.get(key, default=below)

    if stated("data_type", "int") != "int":
        raise source.fault(source.line_of("data_type"), f"{settings.path}data_type: only int is read")
    bits, group, symmetric = stated("bits", None), stated("group_size", 128), stated("sym", True)
    if type(bits) is not int or type(group) is not int or type(symmetric) is not bool or not 0 < bits <= 64:
        raise source.fault(
            0,
            f"{settings.path or 'the config: '}bits (1 to 64) and group_size are whole numbers, "
            "sym is a bool",
        )
    return _type(source, scheme, WeightFormat(bits, max(0, group), symmetric), settings.path or "the config")


def _gptq(source: Source, settings: Settings, scheme: Scheme) -> None:
    scheme.default = _integers(source, settings, scheme)
    scheme.only_refines = True
    scheme.takes_output = settings.get("lm_head") is True
    dynamic = settings.inner("dynamic")
    for key in dynamic or ():
        sign, pattern = (key[:2], key[2:]) if key[:2] in ("+:", "-:") else ("+:", key)
        checked = f"^(?:{source.pattern(pattern, source.line_of(pattern))})"
        said = dynamic.inner(key) if dynamic is not None else None
        if dynamic is not None and said is None and dynamic.get(key) not in (None, {}, False):
            raise source.fault(
                source.line_of(pattern), f"`{key[:80]}` of dynamic is an object with bits, ..."
            )
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
    _exclude(source, settings, scheme, "modules_to_not_convert")


def _awq(source: Source, settings: Settings, scheme: Scheme) -> None:
    bits = whole(source, settings, "bits", "w_bit", default=4)
    group = whole(source, settings, "group_size", "q_group_size", default=128)
    asymmetric = settings.get("zero_point", default=True) is not False
    format_ = WeightFormat(bits, max(0, group), symmetric=not asymmetric)
    scheme.default = _type(source, scheme, format_, "the config")
    for key in ("modules_to_not_convert", "ignored_layers"):
        scheme.exceptions += [(escape(part), None, part) for part in names_at(source, settings, key)]
    scheme.takes_output = settings.get("lm_head") is True


def _bitsandbytes(source: Source, settings: Settings, scheme: Scheme) -> None:
    four = settings.get("load_in_4bit", "_load_in_4bit", default=False)
    eight = settings.get("load_in_8bit", "_load_in_8bit", default=False)
    if four is eight:
        raise source.fault(0, "bitsandbytes: one of load_in_4bit and load_in_8bit is true")
    if four:
        kind = settings.get("bnb_4bit_quant_type", default="fp4")
        if settings.get("bnb_4bit_use_double_quant", default=False) is True:
            scheme.notes.append(
                "bnb_4bit_use_double_quant: scales of 8 bits there; iq4_nl has one of 16 bits for 32 weights"
            )
        scheme.default = parse_type("iq4_nl")
        scheme.notes.append(
            f"{kind}: 4 bits that stand for 16 uneven levels, in blocks of 64; the nearest type is iq4_nl"
        )
    else:
        settings.get("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
        scheme.default = _type(source, scheme, WeightFormat(8), "the config")
    _exclude(source, settings, scheme, "llm_int8_skip_modules", "modules_to_not_convert")
    _take_output(settings, scheme, "llm_int8_skip_modules", "modules_to_not_convert")


def _hqq(source: Source, settings: Settings, scheme: Scheme) -> None:
    said = settings.inner("quant_config") or settings
    weights = said.inner("weight_quant_params")

    def of(params: Settings) -> GgmlType | None:
        params.get("axis")
        bits = whole(source, params, "nbits", "bits")
        group = whole(source, params, "group_size", default=64)
        return _type(source, scheme, WeightFormat(bits, max(0, group), symmetric=False), params.path)

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
    _exclude(source, settings, scheme, "skip_modules", "modules_to_not_convert")
    _take_output(settings, scheme, "skip_modules", "modules_to_not_convert")


def _quanto(source: Source, settings: Settings, scheme: Scheme) -> None:
    said = str(settings.get("weights", "weights_dtype", default="int8"))
    found = re.fullmatch(r"q?(int|float)(\d)(?:_\w+)?", said)
    if found is None:
        raise source.fault(source.line_of(said), f"weights = {said[:40]} is unknown")
    group = 0 if found[2] == "8" else 128  # quanto's own for 2 and 4 bits
    format_ = WeightFormat(int(found[2]), group, symmetric=found[2] == "8", is_float=found[1] == "float")
    scheme.default = _type(source, scheme, format_, "the config")
    _exclude(source, settings, scheme, "modules_to_not_convert")
    _take_output(settings, scheme, "modules_to_not_convert")


def _fp8(source: Source, settings: Settings, scheme: Scheme) -> None:
    settings.get("qformat_weight", "fmt", "scale_fmt")
    block = settings.get("weight_block_size")
    format_ = WeightFormat(8, is_float=True)
    if block is None:
        scheme.default = _type(source, scheme, format_, "the config")
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
    _exclude(source, settings, scheme, "modules_to_not_convert", "ignored_layers")
    _take_output(settings, scheme, "modules_to_not_convert")


def _mxfp4(source: Source, settings: Settings, scheme: Scheme) -> None:
    out = names_at(source, settings, "modules_to_not_convert")
    scheme.notes.append("mxfp4 is for the experts; all else keeps its type")
    for key in out:
        if "expert" in key:
            scheme.only = ["experts"]
    if scheme.only:
        scheme.default = parse_type("mxfp4")
        _exclude(source, settings, scheme, "modules_to_not_convert")


_ALGORITHMS = {
    "NVFP4": WEIGHT_FORMATS["nvfp4"],
    "MXFP4": WEIGHT_FORMATS["mxfp4"],
    "W4A8_MXFP4": WEIGHT_FORMATS["mxfp4"],
    "MXFP8": WeightFormat(8, 32, is_float=True),
    "FP8": WeightFormat(8, is_float=True),
    "W8A8_SQ": WeightFormat(8),
    "W8A16": WeightFormat(8),
    "INT8": WeightFormat(8),
}
"""What the names of modelopt's algorithms begin with."""


def _modelopt(source: Source, settings: Settings, scheme: Scheme) -> None:
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
    pointless = said.get("has_zero_point", default=general.get("has_zero_point", default=False)) is not True
    upper = name.upper()
    format_ = next((f for key, f in _ALGORITHMS.items() if upper.startswith(key)), None)
    weights = re.match(r"W(\d)A\d+", upper)
    if upper.startswith("W4A16_NVFP4") or "NVFP4" in upper:
        format_ = WEIGHT_FORMATS["nvfp4"]
    elif format_ is None and weights is not None and type(group) is int:
        format_ = WeightFormat(int(weights[1]), max(0, group), symmetric=pointless)
    format_ = format_ or named_format(name)
    if format_ is None:
        raise source.fault(source.line_of(name), f"{said.path}quant_algo {name[:40]} is unknown")
    return _type(source, scheme, format_, name)


def _wild(key: str) -> str:
    """A module's name or a parent's, with `*` for any text."""
    return rf"^{'.*'.join(escape(part) for part in key.split('*'))}(\.|$)"


def _exclude(source: Source, settings: Settings, scheme: Scheme, *keys: str) -> None:
    """Modules that are not quantized, in transformers' way; they decide before all other exceptions."""
    out: list[tuple[str, GgmlType | None, str]] = []
    for key in keys:
        for name in names_at(source, settings, key):
            out.append((transformers_pattern(source, name), None, name))
    scheme.exceptions[:0] = out


def _take_output(settings: Settings, scheme: Scheme, *keys: str) -> None:
    """Quantize the output where a list of modules to leave out is there and does not name it.

    transformers leaves the output out by itself only where there is no list (`get_modules_to_not_convert`).
    """
    said = next((key for key in keys if settings.get(key) is not None), None)
    if said is not None:
        scheme.takes_output = True
        scheme.output_note = f"`{said}` does not name lm_head, so that transformers quantizes it too"


def transformers_pattern(source: Source, name: str) -> str:
    """The pattern of a name in transformers' lists of modules that are not converted."""
    try:
        pattern = source.pattern(name, source.line_of(name))
    except RecipeError:  # a name with a bracket or the like
        pattern = escape(name)
    return rf"^(?:{pattern})(?:\.|$)|{escape(name)}$"


READERS: dict[str, Read] = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "modelopt": _modelopt,
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
