"""The config of compressed-tensors, the one way in which a checkpoint may store weights in several forms.

    {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {
        "group_0": {"targets": ["re:.*self_attn.*"], "format": "float-quantized",
                    "weights": {"num_bits": 8, "type": "float", "strategy": "channel", ...}},
        "group_1": {"targets": ["Linear"], "format": "pack-quantized",
                    "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, ...}}}}

A target is the name of a module, `re:` and an expression that matches from the start of the name, or the
class of a module (`Linear`). A name goes before expressions, expressions go in alphabetical order, and
classes come last, whatever the order of the groups (compressed-tensors 0.20.1, `utils/match.py`,
`is_match` and `match_targets`). Whether a module is quantized at all, its tensors say: lists of `ignore` name
modules that are quantized, and leave out some that are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ggplan.errors import CheckpointError
from ggplan.sources.files import listed, shown
from ggplan.sources.schemes.scheme import QuantizationConfig

METHOD = "compressed-tensors"
# Keys of the config that are used here, and keys that change no weight: they are about activations, caches
# and sparsity that was asked for, name modules, or say who wrote the file.
KEYS = frozenset({
    "quant_method", "format", "config_groups", "transform_config", "version",
    "quantization_status", "global_compression_ratio", "sparsity_config", "moe_sparsity_config",
    "kv_cache_scheme", "ignore", "packed_modules_mapping", "dequantize", "run_compressed",
})  # fmt: skip
_GROUP_KEYS = ("targets", "weights", "format")
_UNUSED_GROUP_KEYS = ("input_activations", "output_activations")
_UNUSED_WEIGHT_KEYS = ("dynamic", "observer", "observer_kwargs", "zp_dtype", "scale_dtype")
_STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")
_EXPRESSION = "re:"
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_MAX_EXPRESSIONS = 1000
_MATCHER_MEMORY = 1 << 20
_HINT = "use the original checkpoint in bf16"


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """How the weights of some modules are stored: one entry of `config_groups`.

    Attributes
    ----------
    name
        Of the group, for messages: `group_0`.
    targets
        The modules, see above.
    format
        `pack-quantized`, `float-quantized`, ...; of the group, else of the whole config; "" if neither says.
    type, bits
        "int" or "float", and the bits of a code.
    symmetric
        Whether all zero points are 0.
    strategy
        What shares a scale: `tensor`, `channel` (a row), `group` (neighbours in a row), `block`,
        `tensor_group` (a group, and a second scale for the tensor); "" if the config does not say.
    group_size
        Weights of a `group`; 0 if the config does not say.
    block
        Rows and columns of a `block`.
    act_order
        "" or the kind of `actorder`; the tensors show whether columns were really reordered.
    """

    name: str
    targets: tuple[str, ...]
    format: str
    type: str
    bits: int
    symmetric: bool
    strategy: str = ""
    group_size: int = 0
    block: tuple[int, int] | None = None
    act_order: str = ""


def is_compressed_tensors(config: QuantizationConfig) -> bool:
    """Whether a checkpoint's config is one of compressed-tensors."""
    if config.method is None:
        return "config_groups" in config.values and "quant_algo" not in config.values
    return config.method == METHOD


def require_untransformed(config: QuantizationConfig) -> None:
    """Refuse weights that were rotated before they were quantized.

    Raises
    ------
    CheckpointError
        If the config says so.
    """
    if config.values.get("transform_config"):
        raise CheckpointError(
            f"{config.where}: its weights were transformed (transform_config in config.json), which ggplan "
            "does not undo",
            hint=_HINT,
        )


def weight_groups(config: QuantizationConfig) -> tuple[WeightGroup, ...]:
    """The groups of the config that have quantized weights; none if the config is not of this kind.

    Raises
    ------
    CheckpointError
        If a group is not as described, has a key that ggplan does not know, or the weights were transformed
        or are sparse.
    """
    if not is_compressed_tensors(config):
        return ()
    require_untransformed(config)
    sparsity = config.values.get("sparsity_config")
    form = sparsity.get("format") if isinstance(sparsity, dict) else None
    if form not in (None, "dense"):
        raise CheckpointError(
            f"{config.where} stores sparse weights as {shown(form)} (compressed-tensors), which ggplan does "
            "not read",
            hint=_HINT,
        )
    stated = config.values.get("config_groups")
    if not isinstance(stated, dict):
        named = config.values.get("format")
        raise CheckpointError(
            f"{config.where} is quantized by compressed-tensors{f' ({shown(named)})' if named else ''}, but "
            "config.json has no config_groups",
            hint="use the config.json that belongs to these weights",
        )
    groups = [_group(config, name, values) for name, values in stated.items()]
    return tuple(group for group in groups if group is not None)


def group_of(module: str, groups: Sequence[WeightGroup], where: str) -> WeightGroup | None:
    """The group of a module, which is named without `.weight`; None if no target names it.

    Without the model's code the class of a module is not known: any class matches if only one group has
    classes, else `Embedding` matches the embeddings and `Linear` all others.

    Raises
    ------
    CheckpointError
        If an expression is not one that ggplan matches; `where` is the checkpoint's name in the message.
    """
    for group in groups:
        if module in group.targets:
            return group
    expressions = sorted(
        (target, i) for i, group in enumerate(groups) for target in group.targets if _is_expression(target)
    )
    if len(expressions) > _MAX_EXPRESSIONS:
        raise CheckpointError(f"{where}: config_groups have more than {_MAX_EXPRESSIONS:,} expressions")
    for target, i in expressions:
        if _matches(target.removeprefix(_EXPRESSION), module, where):
            return groups[i]
    classes = {
        target: group for group in groups for target in group.targets
        if "." not in target and not _is_expression(target)
    }  # fmt: skip
    if len(set(map(id, classes.values()))) == 1:
        return next(iter(classes.values()))
    return classes.get("Embedding" if module.endswith(("embed_tokens", "wte")) else "Linear")


def _is_expression(target: str) -> bool:
    return target.startswith(_EXPRESSION)


def _matches(expression: str, module: str, where: str) -> bool:
    """Whether an expression matches the start of a name; by RE2, which no expression makes slow."""
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MATCHER_MEMORY
    try:
        return re2.compile(expression, options).match(module) is not None
    except (re2.error, UnicodeEncodeError) as error:
        raise CheckpointError(
            f"{where}: the target 're:{shown(expression)}' of config_groups in config.json is no expression "
            f"that ggplan matches: {shown(error)}",
            hint=_HINT,
        ) from None


def _group(config: QuantizationConfig, name: str, values: object) -> WeightGroup | None:
    """One group of `config_groups`; None if its weights are not quantized."""
    where = f"{config.where}: the group '{shown(name)}' of config_groups in config.json"
    if not isinstance(values, dict):
        raise CheckpointError(f"{where} is not an object")
    weights = values.get("weights")
    if weights is None:
        return None
    if not isinstance(weights, dict):
        raise CheckpointError(f"{where} has weights that are not an object")
    targets = values.get("targets", [])
    if isinstance(targets, str):
        targets = [targets]
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise CheckpointError(f"{where} has targets that are not a list of names")
    _require_known(where, values, (*_GROUP_KEYS, *_UNUSED_GROUP_KEYS))
    format_ = values.get("format") or config.values.get("format") or ""
    if not isinstance(format_, str):
        raise CheckpointError(f"{where} has the impossible format {shown(format_)}")
    return _weights(where, name, tuple(targets), format_, weights)


def _weights(
    where: str, name: str, targets: tuple[str, ...], format_: str, values: Mapping[str, object]
) -> WeightGroup:
    known = ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "actorder")
    _require_known(where, values, (*known, *_UNUSED_WEIGHT_KEYS))
    type_, bits = values.get("type", "int"), values.get("num_bits")
    if type_ not in ("int", "float"):
        raise CheckpointError(f"{where} has weights of the unknown type {shown(type_)}")
    if type(bits) is not int or not 1 <= bits <= 16:
        raise CheckpointError(f"{where} has weights of {shown(bits)} bits (num_bits)")
    symmetric = values.get("symmetric")
    if symmetric is not None and not isinstance(symmetric, bool):
        raise CheckpointError(f"{where} says symmetric: {shown(symmetric)}, which is not true or false")
    strategy = values.get("strategy") or ""
    if strategy and strategy not in _STRATEGIES:
        raise CheckpointError(
            f"{where} has weights of the strategy {shown(strategy)}, which ggplan does not know", hint=_HINT
        )
    size = values.get("group_size")
    if size is not None and (type(size) is not int or not (size > 0 or size == -1)):
        raise CheckpointError(f"{where} has weights of the impossible group_size {shown(size)}")
    if not strategy:  # as compressed-tensors fills it in (`QuantizationArgs.validate_model_after`)
        strategy = "" if size is None else "channel" if size == -1 else "group"
    order = values.get("actorder")
    act_order = "group" if order is True else str(order or "")
    if act_order not in ("", "group", "weight", "static", "dynamic"):
        raise CheckpointError(f"{where} has the unknown actorder {shown(order)}")
    return WeightGroup(
        name, targets, format_, str(type_), bits, symmetric is not False, str(strategy),
        size if size and size > 0 else 0, _block(where, values.get("block_structure")), act_order,
    )  # fmt: skip


def _block(where: str, value: object) -> tuple[int, int] | None:
    """Rows and columns of a block: [128, 128], or in old files "128x128"."""
    if value is None:
        return None
    parts: object = value
    if isinstance(value, str):
        parts = [int(part) if _NUMBER.fullmatch(part) else None for part in value.split("x")]
    if not isinstance(parts, list) or len(parts) != 2 or not all(type(n) is int and n > 0 for n in parts):
        raise CheckpointError(f"{where} has weights in blocks of the impossible shape {shown(value)}")
    return parts[0], parts[1]


def _require_known(where: str, values: Mapping[str, object], known: Sequence[str]) -> None:
    if unknown := [key for key in values if key not in known]:
        raise CheckpointError(
            f"{where} says {listed(unknown)}, which ggplan does not know; the weights may not be what they "
            "seem",
            hint=_HINT,
        )
