"""Types that meet shapes, engines and sources: fallbacks, protected tensors, foreign types, upcasts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ggplan.checking.case import Case
from ggplan.checking.wording import at_choice, rechosen, some
from ggplan.ggml_types import TYPES, GgmlType
from ggplan.planning.fallback import remainder
from ggplan.rules import Choice, Diagnostic

_NEVER_NEED = frozenset({"token_embd.weight", "output.weight"})


def about_shapes(case: Case) -> Iterator[Diagnostic]:
    """GP201 to GP211, each rule and cause once."""
    yield from _fallbacks(case)
    yield from _protected(case)
    yield from _engines(case)
    yield from _imatrix(case)
    yield from _sources(case)


def _fallbacks(case: Case) -> Iterator[Diagnostic]:
    groups: dict[tuple[int | None, str, int, str], list[int]] = {}
    instead: dict[int | None, list[str]] = {}
    for t, d in enumerate(case.decisions):
        choice = _choice(case, d.decision.rule if d.decision.reason != "default" else None)
        if choice is None:
            continue
        if d.fault is not None:
            message = f"{some(case, [t])}: {d.fault.message}"
            text = " | ".join(str(type_) for type_ in choice.types) + " | f16" + "!" * choice.forced
            yield at_choice(
                "GP201", "error", choice, message, d.fault.hint, rechosen(choice, text, safe=False)
            )
            return
        if d.asked is not None:
            groups.setdefault((d.decision.rule, d.asked.name, d.tensor.n_columns, d.type.name), []).append(t)
            known = instead.setdefault(d.decision.rule, [])
            if d.type.name not in known:
                known.append(d.type.name)
    for (rule, _, n_columns, got), members in groups.items():
        choice, asked = _choice(case, rule), case.decisions[members[0]].asked
        assert choice is not None
        assert asked is not None
        # Longer blocks first, so that the chain gives each shape what the fallback gave it.
        order = sorted(instead[rule], key=lambda name: -_type(name).block_size)
        text = " | ".join([*(str(type_) for type_ in choice.types), *order]) + "!" * choice.forced
        message = (
            f"{some(case, members)}: rows of {n_columns} do not fit {asked.name} "
            f"({remainder(asked, n_columns)}); {got} takes its place"
        )
        fix = rechosen(choice, text, safe=True)
        found = at_choice("GP201", "warning", choice, message, f"say what you want there: `{text}`", fix)
        weights = sum(case.tensors[t].n_weights for t in members)
        bits = _type(got).bits_per_weight - asked.bits_per_weight
        yield replace(found, cost_bytes=round(weights * bits / 8))


def _protected(case: Case) -> Iterator[Diagnostic]:
    together: dict[tuple[int, ...], list[int]] = {}
    forced: dict[int | None, list[int]] = {}
    for t, d in enumerate(case.decisions):
        if d.decision.passed_over:
            together.setdefault(d.decision.passed_over, []).append(t)
        if d.decision.forced and d.decision.protected is not None and d.type.is_quantized:
            forced.setdefault(d.decision.rule, []).append(t)
    passed: dict[int, list[list[int]]] = {}
    for rules, some_members in together.items():
        for i in rules:
            passed.setdefault(i, []).append(some_members)
    own = {i for i, _ in case.rules()}
    for i, groups in sorted(passed.items()):
        if i not in own:
            continue
        members = sorted(t for group in groups for t in group) if len(groups) > 1 else groups[0]
        choice = case.recipe.rules[i].choice
        kind = choice.types[0].name
        message = (
            f"{some(case, members)}: {case.decisions[members[0]].decision.protected}; {kind} is passed over"
        )
        if case.decided[i]:
            yield at_choice("GP202", "note", choice, message)
            continue
        types = {case.decisions[t].type.name for t in members}
        kept = types.pop() if len(types) == 1 else "f32"
        help = f"write `{kept}`, which it stays, or force it with `{kind}!`"
        yield at_choice("GP202", "warning", choice, message, help, rechosen(choice, kept, safe=True))
    for rule, members in forced.items():
        d, forcing = case.decisions[members[0]], _choice(case, rule)
        if forcing is None:
            continue
        message = f"{some(case, members)}: forced to {d.type}; llama-quantize would keep {d.tensor.type}"
        help = f"write `{d.tensor.type}`, unless your engine loads it so"
        fix = rechosen(forcing, str(d.tensor.type), safe=False)
        yield at_choice("GP203", "warning", forcing, message, help, fix)


def _engines(case: Case) -> Iterator[Diagnostic]:
    """GP210: types of another engine than `@target` names."""
    if case.recipe.target != "llama.cpp":
        return
    for choice in _choices(case):
        for type_, at in zip(choice.types, choice.locations, strict=True):
            if type_.engine == "llama.cpp":
                continue
            near = min(_OWN, key=lambda t: (abs(t.bits_per_weight - type_.bits_per_weight), t.name))
            text = " | ".join((near if t == type_ else t).name for t in choice.types) + "!" * choice.forced
            found = at_choice(
                "GP210",
                "error",
                choice,
                f"llama.cpp does not know {type_}, a type of ik_llama.cpp",
                f"write `{near}` ({near.bits_per_weight:.4g} bits a weight), or `@target ik_llama.cpp`",
                rechosen(choice, text, safe=False),
            )
            yield replace(found, column=at.column, length=at.length)


def _imatrix(case: Case) -> Iterator[Diagnostic]:
    groups: dict[tuple[int | None, str], list[int]] = {}
    for t, d in enumerate(case.decisions):
        if d.type.expects_imatrix and d.type != d.tensor.type and d.tensor.name not in _NEVER_NEED:
            groups.setdefault((d.decision.rule, d.type.name), []).append(t)
    for (rule, name), members in groups.items():
        choice = _choice(case, rule)
        if choice is not None:
            message = f"{some(case, members)}: llama-quantize refuses {name} without an imatrix"
            yield at_choice("GP204", "note", choice, message, "give one with --imatrix")


def _sources(case: Case) -> Iterator[Diagnostic]:
    """GP205 and GP211: weights that are quantized twice, or written with more bits than they have."""
    twice: dict[tuple[int | None, str, str], list[int]] = {}
    upcast: dict[tuple[int | None, str, str], list[int]] = {}
    for t, d in enumerate(case.decisions):
        source = d.tensor.type
        if d.decision.reason == "kept" or source == d.type or source.kind == "integer":
            continue
        key = (d.decision.rule, source.name, d.type.name)
        if source.is_quantized and d.type.is_quantized:
            twice.setdefault(key, []).append(t)
        elif d.type.bits_per_weight > source.bits_per_weight and d.decision.protected is None:
            upcast.setdefault(key, []).append(t)
    for (rule, source_name, name), members in twice.items():
        if (choice := _choice(case, rule)) is not None:
            message = f"{some(case, members)}: {source_name} in the source, encoded again as {name}"
            help = f"each encoding loses: write `{source_name}`, or start from the original weights"
            yield at_choice(
                "GP205", "warning", choice, message, help, rechosen(choice, source_name, safe=False)
            )
    for (rule, source_name, name), members in upcast.items():
        if (choice := _choice(case, rule)) is not None:
            message = f"{some(case, members)}: {source_name} in the source, written as {name}"
            fix = rechosen(choice, source_name, safe=False)
            help = f"more bits say no more: write `{source_name}`"
            found = at_choice("GP211", "warning", choice, message, help, fix)
            more = _type(name).bits_per_weight - _type(source_name).bits_per_weight
            yield replace(found, cost_bytes=round(sum(case.tensors[t].n_weights for t in members) * more / 8))


_OWN = [t for t in TYPES if t.engine == "llama.cpp" and t.is_quantized and not t.internal and t.encodable]
_BY_NAME = {t.name: t for t in TYPES}


def _type(name: str) -> GgmlType:
    return _BY_NAME[name]


def _choice(case: Case, rule: int | None) -> Choice | None:
    """A rule's choice, or `@default`'s; None where it stands in a recipe that this one inherits."""
    found = case.recipe.default if rule is None else case.recipe.rules[rule].choice
    own = {case.recipe.file, *(file for file, _ in case.recipe.parts)}
    return found if found is not None and found.file in own else None


def _choices(case: Case) -> Iterator[Choice]:
    yield from (rule.choice for _, rule in case.rules())
    if case.recipe.default is not None:
        yield case.recipe.default
