r"""Rules without effect: what a model's tensor names say about a recipe.

A rule may match nothing, or only tensors that rules above it have taken. Both are warnings, for both are
mistakes more often than not: `output\.weight` at the top of a recipe takes every `attn_output.weight`
from the rule that was written for them. What matches comes from `match`; which rule decided a tensor comes
from the planner, which may pass over the first match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ggplan.rules.diagnostics import Diagnostic
from ggplan.rules.recipe import Recipe, Rule


def dead_rules(recipe: Recipe, matches: Sequence[tuple[int, ...]]) -> tuple[Diagnostic, ...]:
    """GP101 for each rule that matches no tensor.

    Parameters
    ----------
    matches
        What `match` returned for the model's tensors.
    """
    alive = set().union(*matches)
    return tuple(
        _warning("GP101", rule, "the rule matches no tensor of the model", _help_dead(rule))
        for i, rule in enumerate(recipe.rules)
        if i not in alive
    )


def shadowed_rules(
    recipe: Recipe, matches: Sequence[tuple[int, ...]], deciding: Sequence[int | None]
) -> tuple[Diagnostic, ...]:
    """GP102 for each rule that matches tensors but loses every one to a rule above it.

    A rule that loses tensors only because they are protected is not shadowed, and not reported here. Neither
    is an inherited one: to be overruled is what `@base` is for.

    Parameters
    ----------
    matches
        What `match` returned for the model's tensors.
    deciding
        For each tensor the index of the rule that gave it its type, or None.
    """
    winners = set(deciding)
    n_own = len(recipe.rules) - recipe.n_inherited
    taken: dict[int, Counter[int]] = {}  # rule -> deciding rule -> tensors
    n_matched: Counter[int] = Counter()
    for (hits, decider), n_tensors in Counter(zip(matches, deciding, strict=True)).items():
        for i in hits:
            if i in winners or i >= n_own:
                continue
            n_matched[i] += n_tensors
            if decider is not None and decider < i:
                taken.setdefault(i, Counter())[decider] += n_tensors
    return tuple(
        _shadowed(recipe, i, takers, n_matched[i]) for i, takers in sorted(taken.items()) if i not in winners
    )


def _shadowed(recipe: Recipe, index: int, takers: Counter[int], n_matched: int) -> Diagnostic:
    rule, first = recipe.rules[index], recipe.rules[min(takers)]
    n_taken = takers.total()
    tensors = "the only tensor" if n_matched == 1 else f"all {n_matched:,} tensors"
    if n_taken < n_matched:
        tensors = f"{n_taken:,} of the {n_matched:,} tensors"
    line = f"line {first.line}" if first.file == rule.file else first.where
    if len(takers) == 1:
        message = f"the rule never decides: {line} takes {tensors} it matches"
    else:
        n_first = takers[min(takers)]
        message = f"the rule never decides: rules above take {tensors} it matches, first {line} ({n_first:,})"
    if n_taken < n_matched:
        message += ", the others are protected"
    return _warning("GP102", rule, message, _help_shadowed(first, line))


def _help_shadowed(first: Rule, line: str) -> str:
    if not first.pattern.startswith("^") and not first.roles:
        return f"the first match wins: anchor the pattern of {line} with `^`, or put this rule above it"
    return f"the first match wins: narrow the pattern of {line}, or put this rule above it"


def _help_dead(rule: Rule) -> str:
    if "=" in rule.pattern:
        return "write one rule a line: the last `=` of a line parts the pattern from the type"
    return "compare it with the model's tensor names and layer numbers, or delete it"


def _warning(code: str, rule: Rule, message: str, help: str) -> Diagnostic:
    at = rule.location
    return Diagnostic(code, "warning", message, at.file, at.line, at.column, at.length, help)
