r"""Recipes of llm-compressor, and the quantization_config of compressed-tensors checkpoints: YAML or JSON.

    quant_stage:
      quant_modifiers:
        GPTQModifier:
          targets: [Linear]
          scheme: W4A16
          ignore: [lm_head, 're:.*mlp\.gate$']

A target is a module's name, `re:` and a regular expression matched from the left (Python's `re.match`), or a
class (`Linear`, `Embedding`). `ignore` decides first, then names, then expressions, then classes.
Modules that no target matches stay as they are. If several modifiers match a module, the last decides.

compressed-tensors ac8e2ba (`utils/match.py`, `quantization/quant_scheme.py`), llm-compressor ab1ba3e.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ggplan.dialects.checkpoint_configs import class_notes
from ggplan.dialects.hf_names import EMBEDDING, LINEAR, modules_of
from ggplan.dialects.literals import read_config
from ggplan.dialects.modules import (
    expanded,
    flat_modules,
    hits_of,
    need_model,
    recipe_of_types,
    unmet_note,
)
from ggplan.dialects.recognising import recognised
from ggplan.dialects.scheme import flag, names_at, whole
from ggplan.dialects.settings import Settings
from ggplan.dialects.source import Imported, Source, inert
from ggplan.dialects.weight_formats import WEIGHT_FORMATS, WeightFormat, named_format, nearest_type
from ggplan.ggml_types import GgmlType
from ggplan.model import Model
from ggplan.planning import Assignment
from ggplan.rules import Recipe

_DEPTH = 20
_NAME, _EXPRESSION, _CLASS = range(3)


@dataclass(frozen=True, slots=True)
class _Target:
    """A target, its kind (`_NAME`, ...), and its type: None leaves the module as it is."""

    text: str
    kind: int
    type: GgmlType | None


def import_(source: Source, name: str, model: Model | None) -> Imported:
    """Import a recipe or a quantization_config."""
    model = need_model(source, model)
    modules = modules_of(model)
    names = expanded(modules)
    kinds = [module.kind for module in modules for _ in range(module.n_experts)]
    notes: list[str] = []
    types: list[GgmlType | None] = [None] * len(names)
    config = recognised(source)
    value = read_config(source)
    root = config.settings if config else Settings(value if isinstance(value, dict | list) else {})
    modifiers = list(_modifiers(root, 0))
    if not modifiers:
        hint = "a recipe of llm-compressor has `targets` and `scheme`, or `config_groups`"
        raise source.fault(0, "there is no modifier that quantizes", hint)
    for modifier in modifiers:
        targets = _targets(source, modifier, notes)
        ignored = [_target(source, text, None) for text in names_at(source, modifier, "ignore")]
        hits = _hits(source, targets, names, kinds)
        left = _hits(source, ignored, names, kinds)
        met = {i for found in hits for i in found}
        idle = {i for found in left for i in found}
        notes += unmet_note([t.text for i, t in enumerate(ignored) if i not in idle], model)
        for i, target in enumerate(targets):
            if i not in met and target.type is not None:
                notes.append(f"`{target.text}` matches no module of {model.path.name} that is quantized")
        before = list(types)
        decided: dict[int, list[tuple[int, ...]]] = {}  # the targets that match each module, by the deciding
        for at, (found, out) in enumerate(zip(hits, left, strict=True)):
            if found and not out:
                best = min(found, key=lambda i: (targets[i].kind, i))
                types[at] = targets[best].type
                decided.setdefault(best, []).append(found)
        notes += _hidden(targets, decided)
        changed = sum(old is not None and old != new for old, new in zip(before, types, strict=True))
        if changed:
            notes.append(f"{_modules(changed)} matched by several modifiers; the last decides")
    if config is not None:
        notes += [*class_notes(config, model), *config.notes]
    notes += root.left_out()
    return recipe_of_types(
        source, "compressed-tensors", name, model, modules, types, list(dict.fromkeys(notes))
    )


def _modifiers(settings: Settings, depth: int) -> Iterator[Settings]:
    """All objects with quantization settings, at any depth."""
    if depth > _DEPTH:
        return
    if "config_groups" in settings or "scheme" in settings:
        yield settings
        return
    for key in settings:
        inner = settings.inner(key)
        if inner is not None:
            yield from _modifiers(inner, depth + 1)


def _targets(source: Source, modifier: Settings, notes: list[str]) -> list[_Target]:
    """The targets of a modifier, in order."""
    stated: list[tuple[object, list[str]]] = []  # scheme, targets
    groups = modifier.inner("config_groups")
    for name in groups or ():
        group = groups.inner(name) if groups is not None else None
        if groups is not None and isinstance(groups.get(name), list):  # `W4A16: [targets]`
            stated.append((name, names_at(source, groups, name)))
        elif group is not None:
            how = group.inner("weights") or group.get("weights")
            stated.append((how, names_at(source, group, "targets") or [LINEAR]))
    scheme = modifier.inner("scheme")
    if scheme is not None:
        stated += [(key, names_at(source, scheme, key)) for key in scheme]
    elif modifier.get("scheme") is not None:
        stated.append((modifier.get("scheme"), names_at(source, modifier, "targets") or [LINEAR]))
    found = []
    for how, targets in stated:
        type_ = _type(source, how, notes)
        found += [_target(source, text, type_) for text in targets]
    return found


def _type(source: Source, how: object, notes: list[str]) -> GgmlType | None:
    if how is None:
        return None
    if isinstance(how, str):
        format_ = named_format(how)
        if format_ is None:
            raise source.fault(
                source.line_of(how), f"the scheme `{how[:60]}` is unknown", "state `config_groups`"
            )
        name = how
    elif isinstance(how, Settings):
        bits = whole(source, how, "num_bits", default=8)
        group = whole(source, how, "group_size", default=0)
        if how.get("type", default="int") not in ("int", "float"):
            raise source.fault(source.line_of('"type"'), f"{how.path}type is int or float")
        grouped = how.get("strategy") in (None, "group", "tensor_group", "GROUP") and group > 0
        is_float, symmetric = how.get("type") == "float", flag(source, how, "symmetric", default=True)
        symmetric = symmetric or is_float
        how.get("dynamic")
        format_ = WeightFormat(bits, group if grouped else 0, symmetric, is_float)
        name = format_.described
    else:
        raise source.fault(0, "a scheme is a name such as W4A16, or an object with `num_bits`")
    try:
        type_, same = nearest_type(format_)
    except ValueError as error:
        raise source.fault(0, f"{name}: {error}") from None
    if not same and type_ is not None:
        stated = "" if name == format_.described else f"{name}: "
        notes.append(f"{stated}{format_.described}; the nearest type is {type_.name}")
    return type_


def _target(source: Source, text: str, type_: GgmlType | None) -> _Target:
    if text.startswith("re:"):
        source.pattern(text[3:])
        return _Target(text, _EXPRESSION, type_)
    return _Target(text, _CLASS if text in (LINEAR, EMBEDDING) else _NAME, type_)


def _hits(
    source: Source, targets: Sequence[_Target], names: Sequence[str], kinds: Sequence[str]
) -> list[tuple[int, ...]]:
    """For each module the targets that match it."""
    expressions = [i for i, target in enumerate(targets) if target.kind == _EXPRESSION]
    by_class = {k: [i for i, t in enumerate(targets) if t.text == k] for k in (LINEAR, EMBEDDING)}
    by_name: dict[str, list[int]] = {}
    for i, target in enumerate(targets):
        if target.kind == _NAME:
            by_name.setdefault(target.text, []).append(i)
    matched = hits_of(source, [f"^(?:{targets[i].text[3:]})" for i in expressions], names)
    return [
        (*by_name.get(name, ()), *(expressions[k] for k in found), *by_class[kind])
        for name, kind, found in zip(names, kinds, matched, strict=True)
    ]


def _hidden(targets: Sequence[_Target], decided: Mapping[int, Sequence[tuple[int, ...]]]) -> Iterator[str]:
    """Notes on targets that match modules which another, of another type, decides.

    A class gives way to names and expressions, and these are its exceptions, unless they leave it nothing.
    """
    others: dict[int, list[int]] = {}
    for best, matching in decided.items():
        for found in matching:
            for i in found:
                if targets[i].type != targets[best].type:
                    others.setdefault(i, []).append(best)
    for i, winners in sorted(others.items()):
        equal = [best for best in winners if targets[best].kind == targets[i].kind]
        if not equal and i in decided:
            continue
        by = equal or winners
        rest = "" if i in decided else f"; `{targets[i].text}` decides none"
        both = f"`{targets[by[0]].text}` and `{targets[i].text}`"
        yield f"{_modules(len(by))} matched by {both}: the former decides{rest}"


def _modules(count: int) -> str:
    return f"{count:,} modules are" if count > 1 else "1 module is"


def export(recipe: Recipe | Assignment, model: Model) -> tuple[str, list[str]]:
    """A recipe of llm-compressor, and notes about it."""
    lines = flat_modules(recipe, model, "compressed-tensors", list(WEIGHT_FORMATS))
    text = [
        f"# {inert(recipe.name)} for {inert(model.path.name)}.",
        "# Groups are called after the ggml types they stand for.",
        "quant_stage:",
        "  quant_modifiers:",
        "    QuantizationModifier:",
        "      config_groups:",
    ]
    said = list(dict.fromkeys(line.said for line in lines if line.said))
    for name in said:
        format_ = WEIGHT_FORMATS[name]
        text.append(f"        {name}:")
        text.append("          targets:")
        text += [f"            - 're:{line.pattern}'" for line in lines if line.said == name]
        text += [
            "          weights:",
            f"            num_bits: {format_.bits}",
            f"            type: {'float' if format_.is_float else 'int'}",
            f"            symmetric: {'true' if format_.symmetric else 'false'}",
            "            strategy: group",
            f"            group_size: {format_.group}",
        ]
    if not said:
        text[-1] += " {}"
    left = [line.pattern for line in lines if not line.said]
    text.append("      ignore:" if left else "      ignore: []")
    text += [f"        - 're:{pattern}'" for pattern in left]
    return "\n".join(text) + "\n", [
        "k-quants become integers in groups of the same size, without superblocks"
    ]
