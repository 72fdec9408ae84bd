r"""Flattening: the types that a recipe gives a model, as a list that every tool reads in the same way.

A recipe's meaning depends on order, on what its patterns match, on chains and on protected tensors. Other
tools take the last match or the first, lower-case patterns, and have no comments and no chains. The list made
here has the same meaning in all of them:

- *flattened*: one type for each tensor, the one it has in a plan, fallbacks included;
- *anchored*: each pattern matches whole names;
- *disjoint*: no name of the model is matched by two patterns, so that order does not matter;
- *plain*: lower case, no blank, comma, quote or `=`, only syntax that std::regex, RE2 and Python share.

Tensors that differ only in their layer become one line, and so do names that have one type in the same
layers:

    ^blk\.\d+\.(attn_(k|q|v)|ffn_(gate|up)_exps)\.weight$     the same type in all layers
    ^blk\.([0-4]|4[2-6])\.ffn_down_exps\.weight$              another one in these
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ggplan.errors import RecipeError
from ggplan.model import Model
from ggplan.planning import Chosen, FallbackTable, Fitted, assign, fit
from ggplan.recovering.patterns import names_pattern
from ggplan.rules.matching import match_patterns
from ggplan.rules.ranges import alternation
from ggplan.text import printable

_BLOCK = re.compile(r"(.*?\b(?:blk|layers)\.)(0|[1-9]\d{0,3})\.(.+)", re.ASCII | re.DOTALL)
_PLAIN = re.compile(r"[^a-z0-9_.*-]")
_ANY = "\x01"  # stands for a character that some tools change; written as `.`
_LONGEST = 1_000
NUMBER = "*"
"""Stands for any number in a name to be flattened."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Flat(Generic[K]):
    """One line: a pattern, and the value for the names it matches."""

    pattern: str
    said: K
    names: tuple[str, ...]


def fitted_types(chosen: Chosen, model: Model, fallback: FallbackTable | None = None) -> list[Fitted]:
    """The type of each tensor of the model whose type can be chosen: all except integers.

    Raises
    ------
    PlanError
        If a shape forbids a type and no fallback exists.
    """
    fitted = [f for f in fit(model, assign(model, chosen), fallback) if f.tensor.type.kind != "integer"]
    for found in fitted:
        if found.fault is not None:
            raise found.error()
    return fitted


def flatten(
    wanted: Mapping[str, K], *, names_of: Callable[[Sequence[str]], str] = names_pattern, lower: bool = True
) -> list[Flat[K]]:
    r"""Disjoint, anchored patterns that give each name its value.

    Parameters
    ----------
    wanted
        The value for each name; a name may hold `NUMBER`, which becomes `\d+`.
    names_of
        Writes several names as one pattern.
    lower
        Whether the patterns hold lower-case letters only.

    Raises
    ------
    RecipeError
        If no such pattern tells two names apart.
    """
    layers: dict[tuple[str, str], dict[K, set[int]]] = {}
    home: dict[tuple[str, str, int], str] = {}
    for name, said in wanted.items():
        found = _BLOCK.fullmatch(name)
        prefix, number, rest = (found[1], int(found[2]), found[3]) if found else ("", -1, name)
        layers.setdefault((prefix, rest), {}).setdefault(said, set()).add(number)
        home[prefix, rest, number] = name
    groups: dict[tuple[K, str, frozenset[int] | None], list[str]] = {}
    for (prefix, rest), by_said in layers.items():
        for said, numbers in by_said.items():
            where = None if len(by_said) == 1 else frozenset(numbers)
            groups.setdefault((said, prefix, where), []).append(rest)
    lines: list[Flat[K]] = []
    for (said, prefix, where), rests in groups.items():
        if prefix:
            numbers_text = r"\d+" if where is None else alternation(where)
            head = f"{names_pattern([_masked(prefix, lower)])}{numbers_text}\\."
        else:
            head = ""
        for part, pattern in _within_length(head, sorted(rests), names_of, lower):
            members = {rest: layers[prefix, rest][said] for rest in part}
            names = tuple(home[prefix, rest, n] for rest, ns in members.items() for n in sorted(ns))
            lines.append(Flat(pattern, said, names))
    lines.sort(key=lambda line: (line.names[0].startswith(("blk", "model.layers")), _natural(line.names[0])))
    _prove(lines, wanted)
    return lines


def _within_length(
    head: str, rests: list[str], names_of: Callable[[Sequence[str]], str], lower: bool
) -> list[tuple[list[str], str]]:
    """The names in as many patterns as the limit of length requires."""
    body = names_of([_masked(rest, lower) for rest in rests]).replace(r"\*", r"\d+")
    pattern = f"^{head}{body}$"
    if len(pattern) <= _LONGEST or len(rests) == 1:
        return [(rests, pattern)]
    half = len(rests) // 2
    return [
        *_within_length(head, rests[:half], names_of, lower),
        *_within_length(head, rests[half:], names_of, lower),
    ]


def _masked(name: str, lower: bool) -> str:
    return _PLAIN.sub(lambda c: c[0] if not lower and c[0].isascii() and c[0].isalpha() else _ANY, name)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer 9 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,9})", name)]


def _prove(lines: Sequence[Flat[K]], wanted: Mapping[str, K]) -> None:
    """Match all patterns with all names: each name must match its own pattern and no other."""
    names = list(wanted)
    said = [line.said for line in lines]
    found = match_patterns([line.pattern for line in lines], [n.replace(NUMBER, "0") for n in names])
    for name, hits in zip(names, found, strict=True):
        if len(hits) != 1 or said[hits[0]] != wanted[name]:
            raise RecipeError(
                f"{printable(name)}: no pattern that every tool reads alike tells this name from the others"
            )
