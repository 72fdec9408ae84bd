"""What a user should know about a plan before running it, each finding one diagnostic.

Tensors that share a fate share a diagnostic: "46 tensors with rows of 1408 …" instead of 46 lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggplan.model import Model
from ggplan.planning.decisions import Decision
from ggplan.planning.fallback import remainder
from ggplan.planning.importance import entry_of, uses_imatrix
from ggplan.rules import Choice, Diagnostic, Recipe, Severity
from ggplan.stock import Mix, needs_imatrix
from ggplan.text import printable

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

_SHOWN_NAMES = 3


def about_rules(model: Model, recipe: Recipe, decisions: Sequence[Decision]) -> tuple[Diagnostic, ...]:
    """Dead and shadowed rules, tensors passed over or forced, fallbacks, uncovered tensors."""
    return (
        *_about_architecture(model, recipe),
        *_about_protected(recipe, decisions),
        *about_fallbacks(recipe, decisions),
        *_about_uncovered(recipe, decisions),
    )


def about_fallbacks(recipe: Recipe, decisions: Sequence[Decision]) -> tuple[Diagnostic, ...]:
    """One warning for each rule, type and row length that the fallback table replaced."""
    groups: dict[tuple[int | None, str, int, str], list[Decision]] = {}
    for d in decisions:
        if d.asked is not None:
            groups.setdefault((d.rule, d.asked.name, d.tensor.n_columns, d.type.name), []).append(d)
    found = []
    for (rule, _, n_columns, got), members in groups.items():
        asked = members[0].asked
        assert asked is not None
        found.append(
            _at(
                _choice_of(recipe, rule),
                "GP201",
                "warning",
                f"{_some(members)}: rows of {n_columns} do not fit {asked.name} "
                f"({remainder(asked, n_columns)}); {got} takes its place",
                f"say which type you want there: `{asked.name} | {got}`",
            )
        )
    return tuple(found)


def about_imatrix(
    decisions: Sequence[Decision], imatrix: Imatrix | None, mix: Mix | None
) -> tuple[Diagnostic, ...]:
    """Tensors that need an imatrix, tensors it does not know, and experts it has no data for.

    Raises
    ------
    ImatrixError
        If an entry does not have its tensor's size; better now than hours into the work.
    """
    if imatrix is None:
        encoded = [d for d in decisions if d.type != d.tensor.type]
        advice = "give one with --imatrix, or choose a type of more bits"
        return _about_needs(encoded, mix, "GP204", "an imatrix", "", advice)
    file = printable(imatrix.path.name)
    missing: list[Decision] = []
    found = []
    for d in decisions:
        if not uses_imatrix(d.type):
            continue
        entry = entry_of(d.tensor, imatrix)
        if d.type == d.tensor.type:
            continue
        if entry is None:
            missing.append(d)
        elif empty := entry.matrices_without_data:
            message = (
                f"{printable(d.tensor.name)}: {len(empty)} of {len(entry.values)} experts were never "
                f"routed to in {file}; their columns count alike"
            )
            found.append(_plain("GP207", "note", message))
    if tolerable := [d for d in missing if not d.type.requires_imatrix and not _is_refused(d, mix)]:
        message = f"{_some(tolerable)}: no entry in {file}; encoded without importance"
        found.insert(0, _plain("GP206", "warning", message))
    advice = "collect an imatrix of this very model, or choose a type of more bits"
    return (*_about_needs(missing, mix, "GP206", "importance", f"no entry in {file}; ", advice), *found)


def _about_needs(
    decisions: Sequence[Decision], mix: Mix | None, code: str, what: str, why: str, advice: str
) -> tuple[Diagnostic, ...]:
    """What ggml cannot encode without importance, and what llama-quantize refuses to.

    The first is an error; so is the second in a stock mix, which promises llama-quantize's file.
    """
    impossible = [d for d in decisions if d.type.requires_imatrix]
    refused = [d for d in decisions if not d.type.requires_imatrix and _is_refused(d, mix)]
    found = []
    if impossible:
        message = f"{_some(impossible)}: {why}{_types(impossible)} cannot be encoded without {what}"
        found.append(_plain(code, "error", message, advice))
    if refused:
        message = f"{_some(refused)}: {why}llama-quantize refuses {_types(refused)} without {what}"
        if mix is None:
            found.append(_plain(code, "warning", f"{message}; expect garbage", advice))
        else:
            found.append(_plain(code, "error", message, advice))
    return tuple(found)


def _is_refused(decision: Decision, mix: Mix | None) -> bool:
    return needs_imatrix(mix, decision.tensor.name, decision.type)


def _types(decisions: Sequence[Decision]) -> str:
    return ", ".join(sorted({d.type.name for d in decisions}))


def about_types(decisions: Sequence[Decision]) -> tuple[Diagnostic, ...]:
    """Types ggplan cannot write or read yet, and tensors that would be quantized twice."""
    changed = [d for d in decisions if d.type != d.tensor.type]
    groups: dict[tuple[str, str], list[Decision]] = {}
    for d in changed:
        if not d.type.encodable:
            groups.setdefault(("GP208", f"ggplan cannot write {d.type.described}"), []).append(d)
        elif d.tensor.type.is_quantized:
            what = f"{d.tensor.type.name} in the source, encoded again as {d.type.name}"
            groups.setdefault(("GP205", what), []).append(d)
    return tuple(_plain(code, "warning", f"{_some(ds)}: {what}") for (code, what), ds in groups.items())


def _about_architecture(model: Model, recipe: Recipe) -> tuple[Diagnostic, ...]:
    if recipe.architecture and model.architecture and recipe.architecture != model.architecture:
        message = (
            f"{recipe.name} is for {printable(recipe.architecture)}, "
            f"the model is {printable(model.architecture)}"
        )
        return (_plain("GP209", "warning", message),)
    return ()


def _about_protected(recipe: Recipe, decisions: Sequence[Decision]) -> tuple[Diagnostic, ...]:
    passed: dict[int, list[Decision]] = {}
    forced: dict[int | None, list[Decision]] = {}
    for d in decisions:
        for i in d.passed_over:
            passed.setdefault(i, []).append(d)
        if d.forced and d.protected is not None and d.type.is_quantized:
            forced.setdefault(d.rule, []).append(d)
    deciding = {d.rule for d in decisions}
    found = []
    for i, members in sorted(passed.items()):
        choice = recipe.rules[i].choice
        kind = choice.types[0].name
        what = f"{_some(members)}: {members[0].protected}; {kind} is passed over"
        if i in deciding:
            found.append(_at(choice, "GP202", "note", what))
        else:
            found.append(_at(choice, "GP202", "warning", what, f"force it with `{kind}!`"))
    for rule, members in forced.items():
        first = members[0]
        what = f"{_some(members)}: forced to {first.type}; llama-quantize would keep {first.tensor.type}"
        found.append(_at(_choice_of(recipe, rule), "GP203", "warning", what))
    return tuple(found)


def _about_uncovered(recipe: Recipe, decisions: Sequence[Decision]) -> tuple[Diagnostic, ...]:
    missing = [d for d in decisions if d.rule is None and not d.by_default and d.protected is None]
    if not missing:
        return ()
    types = ", ".join(sorted({d.type.name for d in missing}))
    return (
        _plain(
            "GP108",
            "warning",
            f"{_some(missing)}: no rule of {printable(recipe.name)} matches; kept as {types}",
            "add a rule, or `@default q8_0` for all the rest",
            recipe.file,
        ),
    )


def _some(decisions: Sequence[Decision]) -> str:
    names = [printable(d.tensor.name) for d in decisions]
    if len(names) == 1:
        return names[0]
    shown = ", ".join(names[:_SHOWN_NAMES])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > _SHOWN_NAMES else ''})"


def _choice_of(recipe: Recipe, rule: int | None) -> Choice | None:
    return recipe.default if rule is None else recipe.rules[rule].choice


def _plain(code: str, severity: Severity, message: str, help: str = "", file: str = "") -> Diagnostic:
    return Diagnostic(code, severity, message, file, help=help)


def _at(choice: Choice | None, code: str, severity: Severity, message: str, help: str = "") -> Diagnostic:
    if choice is None:
        return _plain(code, severity, message, help)
    return Diagnostic(
        code, severity, message, choice.file, choice.line, choice.column, len(choice.text), help
    )
