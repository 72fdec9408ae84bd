r"""decide: the rules of a recipe, tried in order, give each tensor its type.

The first rule that matches a tensor decides. There are exceptions, and the linter reports each:

- The tensor is *protected* (see `ggplan.planning.protection`): a rule of a quantized type passes it over,
  and so does a rule of a 16-bit float that also matches other tensors (`.* = bf16` is not meant for norms).
  A rule that matches only protected tensors (`_norm\.weight = f16`), gives f32, or is forced (`q8_0!`),
  applies.
- The tensor's rows do not hold whole blocks of the type: the next type of the rule's chain is taken. After
  the last one the engine's fallback table decides (see `ggplan.planning.fitting`).
- `keep` in a chain is taken by a tensor that is stored quantized (its type stays, so its bytes are copied),
  by a protected one, and as the last of the chain by any.
- The tensor is fused of several, or the rules are for a fused one: see `ggplan.planning.fused`.
- No rule matches: `@default` decides; without one the tensor keeps its own type. Norms and vectors that
  no rule matches are written as f32, which every llama.cpp graph expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ggplan.errors import RecipeError
from ggplan.ggml_types import F32, GgmlType
from ggplan.model import Model, TensorInfo, require_model
from ggplan.planning.assignment import Assignment, Decision
from ggplan.planning.fitting import allows
from ggplan.planning.fused import OtherForm, other_forms, rules_of_part, rules_of_parts
from ggplan.planning.protection import kept_type, protection_of
from ggplan.rules import Choice, Keep, Recipe, match
from ggplan.text import printable


def decide(model: Model, recipe: Recipe) -> Assignment:
    """The types that a recipe gives a model.

    Raises
    ------
    RecipeError
        If matching the rules takes too long.
    """
    require_model(model)
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"{printable(repr(recipe))[:80]} is not a recipe; ggplan.load_recipe reads one,"
            " and ggplan.make_plan takes its name"
        )
    tensors = model.tensors
    protected = [protection_of(t) for t in tensors]
    matches, forms, of_others = _matches(recipe, tensors)
    open_hits = {hits for hits, reason in zip(matches, protected, strict=True) if reason is None}
    broad = {i for hits in open_hits for i in hits}
    takes = [_takes_protected(rule.choice, i in broad) for i, rule in enumerate(recipe.rules)]
    first_taking: dict[tuple[int, ...], int] = {}  # for protected tensors: how many rules pass them over
    alike: dict[tuple[tuple[int, ...], str, tuple[int, ...]], Decision] = {}

    def decided(tensor: TensorInfo, reason: str | None, hits: tuple[int, ...]) -> Decision:
        if reason is None and tensor.codes is None:  # then nothing but these counts
            key = (hits, tensor.type.name, tensor.shape)
            if key not in alike:
                alike[key] = _decision(tensor, recipe, None, hits, 0)
            return alike[key]
        skipped = 0
        if reason is not None and tensor.type.kind != "integer":
            if hits not in first_taking:
                first_taking[hits] = next((n for n, i in enumerate(hits) if takes[i]), len(hits))
            skipped = first_taking[hits]
        return _decision(tensor, recipe, reason, hits, skipped)

    decisions = {}
    for tensor, reason, hits in zip(tensors, protected, matches, strict=True):
        decision = decided(tensor, reason, hits)
        if (form := forms.get(tensor.name)) is not None:
            each = [of_others[name] for name in form.names]
            if form.is_fused:
                parts = [decided(tensor, reason, h) for h in rules_of_parts(hits, each)]
                decision = _of_parts(decision, form.names, parts) if parts else decision
            elif (joined := rules_of_part(hits, each[0], each[1:])) != hits:
                decision = _told(decided(tensor, reason, joined), hits, form.names)
        decisions[tensor.name] = decision
    return Assignment(recipe.name, decisions, recipe)


def _matches(
    recipe: Recipe, tensors: Sequence[TensorInfo]
) -> tuple[tuple[tuple[int, ...], ...], dict[str, OtherForm], dict[str, tuple[int, ...]]]:
    """The rules that match each tensor; the other forms of tensors, and the rules that match their names."""
    names = [t.name for t in tensors]
    forms = other_forms(tensors)
    others = list(dict.fromkeys(name for form in forms.values() for name in form.names))
    try:
        found = match(recipe, [*names, *others])
    except RecipeError:
        if not others:
            raise
        return match(recipe, names), {}, {}  # so large a recipe that these names are too many
    return found[: len(names)], forms, dict(zip(others, found[len(names) :], strict=True))


def _told(decision: Decision, own: tuple[int, ...], names: tuple[str, ...]) -> Decision:
    """The decision for a part, which names the fused tensor if it is one of a rule for that."""
    is_others = decision.rule is not None and decision.rule not in own
    return replace(decision, fused=((names[0], decision.type),)) if is_others else decision


def _of_parts(own: Decision, names: tuple[str, ...], parts: list[Decision]) -> Decision:
    """The decision for a fused tensor: of its parts', that of most bits. Parts without a rule have no say."""
    asked = [(name, part) for name, part in zip(names, parts, strict=True) if part.reason != "kept"]
    if not asked:
        return own
    most = max(part.type.bits_per_weight for _, part in asked)
    able = [part for _, part in asked if part.type.bits_per_weight == most]
    chosen = min(able, key=lambda part: (part.rule is None, part.rule or 0))
    matching = tuple(sorted({*own.matching, *(rule for part in parts for rule in part.matching)}))
    types = {part.type for _, part in asked}
    is_own = chosen.rule == own.rule and chosen.reason == own.reason
    fused = () if is_own and len(types) == 1 else tuple((name, part.type) for name, part in asked)
    return replace(chosen, matching=matching, fused=fused)


def _decision(
    tensor: TensorInfo, recipe: Recipe, protected: str | None, hits: tuple[int, ...], skipped: int
) -> Decision:
    """The decision for a tensor that these rules match; the first `skipped` of them pass it over."""
    default = recipe.default
    if tensor.type.kind == "integer":
        return Decision(tensor.type, "kept", protected, matching=hits)
    if skipped < len(hits):
        rule = hits[skipped]
        choice = recipe.rules[rule].choice
        type_, keep = _first_allowed(choice, tensor, protected)
        return Decision(type_, "rule", protected, rule, choice.forced, hits, hits[:skipped], keep)
    if default is not None and (protected is None or default.forced):
        type_, keep = _first_allowed(default, tensor, protected)
        return Decision(type_, "default", protected, None, default.forced, hits, hits[:skipped], keep)
    return Decision(kept_type(tensor), "kept", protected, matching=hits, passed_over=hits[:skipped])


def _takes_protected(choice: Choice, is_broad: bool) -> bool:
    """Whether a rule is meant for protected tensors too; `is_broad` if it matches others as well."""
    first = choice.types[0]
    if choice.forced or isinstance(first, Keep) or first == F32:
        return True
    return first.is_float and not is_broad


def _first_allowed(choice: Choice, tensor: TensorInfo, protected: str | None) -> tuple[GgmlType, Keep | None]:
    """The first type of a chain that the tensor's shape allows, or that it keeps; else the last."""
    for wanted in choice.types:
        if not isinstance(wanted, Keep):
            if allows(tensor, wanted):
                return wanted, None
        elif tensor.is_quantized:
            has_nearly = tensor.codes is not None and tensor.codes.nearly is not None
            return (wanted.nearly if wanted.nearly and has_nearly else tensor.type), wanted
        elif protected is not None and not choice.forced:
            return kept_type(tensor), wanted
    last = choice.types[-1]
    return (kept_type(tensor), last) if isinstance(last, Keep) else (last, None)
