"""Matching: all rules against all tensor names at once.

`re2.Set` joins the patterns into one automaton and reads each name once: 40 rules on the 803 tensors of
GLM-4.5-Air take 3 ms. The planner wants every rule that matches, not only the first, because it passes
over a rule that would quantize a protected tensor and goes on with the next.

RE2 never backtracks, but patterns written to be slow (`a(a|b){60}b` a thousand times over) can still take
minutes. So the steps of a recipe on a model are counted before the first is taken (`steps`), and a recipe is
legal on every machine or on none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import re2

from ggplan.errors import RecipeError
from ggplan.rules.diagnostics import Diagnostic, invalid_recipe
from ggplan.rules.patterns import PATTERN_MEMORY, re2_options
from ggplan.rules.ranges import Range
from ggplan.rules.recipe import Recipe, Rule
from ggplan.rules.roles import Blocks, block_of, roles_of
from ggplan.rules.steps import MAX_STEPS, count_steps

_MAX_MATCHES = 2_000_000  # of all rules and names together, names that the same rules match counted once
_SET_MEMORY = 128 << 20  # holds the largest set of programs that the parser lets through, and an automaton
_STATE_BYTES = 4  # of the automaton for an instruction, at each character


def match(recipe: Recipe, names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """For each name the indices of all rules that match it, ascending.

    Parameters
    ----------
    names
        Of all the model's tensors: `{last 2}` and the role nextn depend on them together.

    Raises
    ------
    RecipeError
        If matching may take more than `MAX_STEPS`, or the patterns were put into the recipe by hand and RE2
        refuses them.
    """
    blocks = Blocks.of(names)
    patterns = [rule.regex(blocks.count) for rule in recipe.rules]
    try:
        if steps_of(patterns, names, recipe.program) > MAX_STEPS:
            message = f"matching the rules may take more than {MAX_STEPS:,} steps"
            help = "write fewer and simpler rules, without counted repetitions such as `{60}`"
            raise invalid_recipe([Diagnostic("GP009", "error", message, recipe.file, help=help)])
        found = match_patterns(patterns, names)
        return _with_roles(recipe.rules, names, blocks, found)
    except OverflowError:
        message = f"the rules match names more than {_MAX_MATCHES:,} times together"
        help = "write fewer rules that match everything"
        raise invalid_recipe([Diagnostic("GP009", "error", message, recipe.file, help=help)]) from None
    except (re2.error, UnicodeEncodeError) as error:
        raise RecipeError(f"{recipe.file}: RE2 refuses a pattern: {error}") from error


def _with_roles(
    rules: Sequence[Rule], names: Sequence[str], blocks: Blocks, found: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], ...]:
    """What the patterns match, and what the rules on roles do."""
    limits: dict[tuple[frozenset[str], Range | None], tuple[frozenset[int] | None, list[int]]] = {}
    for i, rule in enumerate(rules):
        if rule.roles:
            key = (frozenset(rule.roles), rule.blocks)
            numbers = None if rule.blocks is None else rule.blocks.numbers(blocks.count)
            limits.setdefault(key, (numbers, []))[1].append(i)
    if not limits:
        return found
    answers = []
    known: dict[tuple[tuple[int, ...], tuple[str, ...], int | None], tuple[int, ...]] = {}
    n_matches = 0
    for name, hits in zip(names, found, strict=True):
        block = block_of(name)
        roles = roles_of(name, blocks)
        if (hits, roles, block) not in known:
            more = [
                i
                for (wanted, _), (numbers, rules_) in limits.items()
                if not wanted.isdisjoint(roles) and (numbers is None or block in numbers)
                for i in rules_
            ]
            known[hits, roles, block] = tuple(sorted((*hits, *more))) if more else hits
            n_matches += len(known[hits, roles, block])
            if n_matches > _MAX_MATCHES:
                raise OverflowError
        answers.append(known[hits, roles, block])
    return tuple(answers)


def recipe_steps(recipe: Recipe, names: Sequence[str]) -> int:
    """The most steps that `match` takes, or more than `MAX_STEPS` where it refuses them.

    Raises
    ------
    re2.error, UnicodeEncodeError
        If RE2 refuses a pattern that was put into the recipe by hand.
    """
    n_blocks = Blocks.of(names).count
    return steps_of([rule.regex(n_blocks) for rule in recipe.rules], names, recipe.program)


def steps_of(patterns: Sequence[str], names: Sequence[str], program: int) -> int:
    """The most steps that `match_patterns` takes; `program` is the instructions of all patterns together."""
    longest = max((len(name.encode("utf-8", "surrogatepass")) for name in names), default=0)
    # `match_patterns` goes through the names in order. Either half of the memory holds what the automaton
    # made of the last one, or nothing is sure to be remembered.
    share = program * longest * _STATE_BYTES <= _SET_MEMORY // 2
    return count_steps(patterns, names, share=share)


def program_of(patterns: Sequence[str]) -> int:
    """RE2 instructions of all patterns together.

    Raises
    ------
    OverflowError
        If RE2 refuses one as too large.
    """
    try:
        return sum(re2.compile(p, re2_options(PATTERN_MEMORY)).programsize for p in patterns)
    except re2.error as error:
        raise OverflowError from error


def match_patterns(
    patterns: Sequence[str], names: Sequence[str], *, memory: int = _SET_MEMORY
) -> tuple[tuple[int, ...], ...]:
    """For each name the indices of all patterns found in it, ascending.

    The automaton grows as names need it, within `memory` bytes. Where that is not enough, RE2 answers "no
    match"; an empty pattern at the end of the set, which is found in everything, tells the two apart, and
    such a name is searched pattern by pattern.

    Raises
    ------
    OverflowError
        After `_MAX_MATCHES` matches.
    """
    return _answers(tuple(patterns), tuple(names), memory)


@lru_cache(maxsize=4)  # a plan and its check ask the same, and a check does so again and again
def _answers(patterns: tuple[str, ...], names: tuple[str, ...], memory: int) -> tuple[tuple[int, ...], ...]:
    automaton = re2.Set.SearchSet(re2_options(memory))
    for pattern in (*patterns, ""):
        automaton.Add(pattern)
    automaton.Compile()
    sentinel = len(patterns)
    answers: list[tuple[int, ...]] = [()] * len(names)
    n_matches = 0
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}  # the tensors of a role have one answer
    # In order, so that what the automaton knows of a common beginning is used before it is forgotten.
    for at in sorted(range(len(names)), key=names.__getitem__):
        raw = names[at].encode("utf-8", "surrogatepass")
        found = automaton.Match(raw)
        if found and sentinel in found:
            hits = tuple(sorted(found)[:-1])
        else:
            hits = tuple(i for i, pattern in enumerate(patterns) if _search(pattern, raw))
        if hits not in shared:
            n_matches += len(hits)
            if n_matches > _MAX_MATCHES:
                raise OverflowError
        answers[at] = shared.setdefault(hits, hits)
    return tuple(answers)


def _search(pattern: str, name: bytes) -> bool:
    return re2.compile(pattern, re2_options(PATTERN_MEMORY)).search(name) is not None
