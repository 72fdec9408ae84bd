r"""Find few rules that give each tensor its type.

Tensors of one *kind* differ only in their layer (`attn_v.weight` of `blk.0` to `blk.46`). For each kind one
answer is the base: a last rule with `\d+`, or `@default`, gives it to all layers. Every other answer is an
exception: a rule above that one, which names layers. So a recipe has

    one rule for each base answer  +  one for each set of exceptions that can share a pattern.

Two exceptions with the same answer can share a pattern unless one kind would get this answer in a layer
where a later rule must give it another. Layers that a kind does not have, or that an earlier rule has
decided, can be in the pattern or not, so sets of layers that look different often fit together. A kind with a
single answer may join an exception if that saves the rule of its base.

A chain of types turns two answers into one if shapes tell them apart: `q6_K | q8_0` is q8_0 for rows that
are not whole blocks of q6_K, and q6_K for all others. Chains are tried pair by pair and kept if they save
rules.

Which kinds share a rule is a clique cover. A greedy search solves it well here, with few answers and few
different sets. Which answer is the base is found by trying, kind by kind, until nothing gets shorter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from ggplan.ggml_types import F32, GgmlType, parse_type
from ggplan.recovering.patterns import escape, layers_pattern, names_pattern, runs
from ggplan.recovering.writing import Cover, CoverRule, Wanted

_BLOCK = re.compile(r"(.*?\bblk\.)(0|[1-9]\d{0,3})\.(.+)", re.ASCII | re.DOTALL)
_PASSES = 4
_EFFORT = 1_000_000  # exceptions tried in the search; real files need a tenth; a limit for made-up ones
_GROUPS = 100  # exceptions with one answer that are tried as hosts of another
_LONGEST = 1_000  # characters of a pattern; a recipe allows no more


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """What a rule says: a chain of types, and whether it is forced on protected tensors.

    There is one object for each answer (see `_answer`), so that comparing them costs nothing; `order` sorts
    the one with most bits first.
    """

    types: tuple[GgmlType, ...]
    forced: bool
    order: tuple[float, str, bool]

    def said_of(self, tensors: Iterable[Wanted]) -> tuple[GgmlType, ...]:
        """The part of the chain that these tensors need."""
        used = {t.type for t in tensors}
        return tuple(type_ for type_ in self.types if type_ in used)


_Chains = dict[GgmlType, GgmlType]
"""First type of a chain: its second."""


@dataclass(slots=True)
class _Budget:
    """How much searching is left; when it is 0, the best result so far is taken."""

    left: int = _EFFORT


@dataclass(slots=True, eq=False)
class _Part:
    """Tensors that differ only in their layer and get one type; without a prefix, one tensor in no block."""

    prefix: str
    name: str
    tensors: list[Wanted]
    layers: int = 0


@dataclass(slots=True, eq=False)
class _Kind:
    """All tensors that differ only in their layer; `layers` are those with each answer, as bits."""

    prefix: str
    name: str
    parts: list[tuple[_Answer, _Part]]
    layers: dict[_Answer, int]
    base: _Answer

    def tensors_with(self, answer: _Answer) -> list[Wanted]:
        """Its tensors with this answer."""
        return [tensor for own, part in self.parts if own == answer for tensor in part.tensors]

    def most_frequent(self, but: _Answer | None = None) -> _Answer:
        """The answer of most of its layers, `but` left out."""
        answers = [answer for answer in self.layers if answer != but]
        return max(answers, key=lambda answer: (self.layers[answer].bit_count(), answer.order))

    def takes(self, default: _Answer | None) -> bool:
        """Whether `@default` saves the rule of its base."""
        return self.base == default and not any(t.protected for t in self.tensors_with(self.base))


@dataclass(slots=True, eq=False)
class _Exception:
    """Kinds that share an answer in some layers; in the `barred` layers a later rule gives another answer."""

    prefix: str
    answer: _Answer
    needed: int
    barred: int
    kinds: list[_Kind]

    def joins(self, other: _Exception) -> bool:
        """Whether the two can share a pattern."""
        return not (self.needed & other.barred or other.needed & self.barred)

    def add(self, other: _Exception) -> None:
        """Share the pattern with the other."""
        self.needed |= other.needed
        self.barred |= other.barred
        self.kinds += other.kinds

    def has_room_for(self, kind: _Kind) -> bool:
        """Whether a kind of one answer fits in without a longer list of layers."""
        layers = kind.layers[kind.base]
        if len(kind.layers) > 1 or layers & self.barred:
            return False
        now = runs(self.needed, ~self.barred)
        return len(runs(self.needed | layers, ~self.barred)) <= len(now)


def cover(wanted: Iterable[Wanted], *, default: GgmlType | None = None) -> Cover:
    """Find the rules.

    Parameters
    ----------
    default
        The type of `@default`; None for the one that saves the most rules.
    """
    parts, budget = _parts(wanted), _Budget()
    chains = _choose_chains(parts, default, budget)
    budget.left = max(budget.left, _EFFORT // 10)
    return _cover(parts, chains, default, budget)


def _parts(wanted: Iterable[Wanted]) -> list[_Part]:
    parts: dict[tuple[object, ...], _Part] = {}
    for tensor in wanted:
        found = _BLOCK.fullmatch(tensor.name)
        prefix, name = (found[1], found[3]) if found else ("", tensor.name)
        key = (prefix, name, tensor.type.name, tensor.n_columns, tensor.protected)
        part = parts.setdefault(key, _Part(prefix, name, []))
        part.tensors.append(tensor)
        if found:
            part.layers |= 1 << int(found[2])
    return list(parts.values())


def _choose_chains(parts: Sequence[_Part], default: GgmlType | None, budget: _Budget) -> _Chains:
    """The chains that save rules; a type is in one at most."""
    columns: dict[GgmlType, set[int]] = {}
    for part in parts:
        tensor = part.tensors[0]
        if not tensor.protected:
            columns.setdefault(tensor.type, set()).add(tensor.n_columns)
    types = sorted(columns, key=lambda t: (-t.bits_per_weight, t.name))
    pairs = [
        (first, second)
        for first in types
        for second in types
        if first != second and not all(first.fits(n) for n in columns[second])
    ]
    chains: _Chains = {}
    best = len(_cover(parts, chains, default, budget).rules) if pairs else 0
    while pairs:
        found = None
        for first, second in pairs:
            if budget.left <= 0:
                return chains
            now = len(_cover(parts, {**chains, first: second}, default, budget).rules)
            if now < best:
                best, found = now, (first, second)
        if found is None:
            break
        chains[found[0]] = found[1]
        pairs = [pair for pair in pairs if not {*pair} & {*found}]
    return chains


def _cover(parts: Sequence[_Part], chains: _Chains, default: GgmlType | None, budget: _Budget) -> Cover:
    """The rules under these chains."""
    kinds, singles = _sorted_out(parts, chains)
    given = None
    if default is not None:
        given = _answer(default.name, *((chains[default].name,) if default in chains else ()))
    _choose_bases(kinds, singles, given, budget)
    chosen = given or _choose_default(kinds, singles)
    exceptions, based = _arrange(kinds, chosen)
    rules = [
        *_rules_of_singles(singles, chosen),
        *(rule for exception in exceptions for rule in _rules_of_exception(exception)),
        *_rules_of_bases(based),
    ]
    left = [t for answer, t in singles if _by_default(t, answer, chosen)]
    left += [t for kind in kinds if kind.takes(chosen) for t in kind.tensors_with(kind.base)]
    said = chosen.said_of(left) if chosen else ()
    return Cover(tuple(rules), said, len(left), sum(t.n_bytes for t in left))


def _answer_of(tensor: Wanted, chains: _Chains) -> _Answer:
    """The tensor's type, as a chain if one gives it."""
    type_ = tensor.type
    if tensor.protected:
        return _answer(type_.name, forced=type_ != F32)
    if type_ in chains:
        return _answer(type_.name, chains[type_].name)
    for first, second in chains.items():
        if second == type_ and not first.fits(tensor.n_columns):
            return _answer(first.name, second.name)
    return _answer(type_.name)


@cache
def _answer(*names: str, forced: bool = False) -> _Answer:
    types = tuple(parse_type(name) for name in names)
    return _Answer(types, forced, (-types[0].bits_per_weight, names[0], forced))


def _by_default(tensor: Wanted, answer: _Answer, default: _Answer | None) -> bool:
    return not tensor.protected and answer == default


_Single = tuple[_Answer, Wanted]


def _sorted_out(parts: Iterable[_Part], chains: _Chains) -> tuple[list[_Kind], list[_Single]]:
    """The kinds, each with its most frequent answer as base, and the tensors outside the blocks."""
    kinds: dict[tuple[str, str], _Kind] = {}
    singles: list[_Single] = []
    for part in parts:
        answer = _answer_of(part.tensors[0], chains)
        if not part.prefix:
            singles.append((answer, part.tensors[0]))
            continue
        kind = kinds.setdefault((part.prefix, part.name), _Kind(part.prefix, part.name, [], {}, answer))
        kind.parts.append((answer, part))
        kind.layers[answer] = kind.layers.get(answer, 0) | part.layers
    for kind in kinds.values():
        kind.base = kind.most_frequent()
    return [kinds[key] for key in sorted(kinds)], singles


def _choose_bases(
    kinds: Sequence[_Kind], singles: Sequence[_Single], given: _Answer | None, budget: _Budget
) -> None:
    """Choose the base of each kind; `given` is the answer of `@default` if the caller chose it.

    Kinds with the same answers in the same layers get the same base.
    """
    families: dict[tuple[str, frozenset[tuple[_Answer, int]]], list[_Kind]] = {}
    for kind in kinds:
        families.setdefault((kind.prefix, frozenset(kind.layers.items())), []).append(kind)
    heads = [family[0] for family in families.values()]  # all kinds of a family get the base of its first
    mixed = [head for head in heads if len(head.layers) > 1]
    best: tuple[int, int] | None = None
    bases: list[_Answer] = []
    # Changing one kind at a time may stop at a local minimum, so start again, without one answer at a time.
    answers = sorted({answer for head in mixed for answer in head.layers}, key=lambda a: a.order)
    n_exceptions = sum(len(head.layers) for head in heads)
    price = n_exceptions * (1 + min(_GROUPS, n_exceptions // max(1, len(answers))) // 8)
    for avoided in (None, *answers):
        for head in mixed:
            head.base = head.most_frequent(but=avoided)
        _improve(heads, mixed, budget, price)
        default = given or _choose_default(heads, singles)
        in_rules = {answer for answer, tensor in singles if not _by_default(tensor, answer, default)}
        n_rules, length = _cost(heads, default)
        if best is None or (n_rules + len(in_rules), length) < best:
            best, bases = (n_rules + len(in_rules), length), [head.base for head in mixed]
        budget.left -= price
        if budget.left <= 0:
            break
    for head, base in zip(mixed, bases, strict=True):
        head.base = base
    for family in families.values():
        for kind in family:
            kind.base = family[0].base


def _improve(heads: Sequence[_Kind], mixed: Sequence[_Kind], budget: _Budget, price: int) -> None:
    """Change one base after the other while that lowers the cost."""
    best = _cost(heads)
    for _ in range(_PASSES):
        before = best
        for head in mixed:
            for answer in sorted(head.layers, key=lambda a: a.order):
                budget.left -= price
                if budget.left <= 0:
                    return
                old, head.base = head.base, answer
                now = _cost(heads) if answer != old else best
                if now < best:
                    best = now
                else:
                    head.base = old
        if best == before:
            break


def _cost(kinds: Sequence[_Kind], default: _Answer | None = None) -> tuple[int, int]:
    """How many rules these bases need, and how long their lists of layers are."""
    exceptions, based = _arrange(kinds, default)
    n_rules = len(exceptions) + len({(k.prefix, k.base) for k in based})
    return n_rules, sum(len(_layers(e.needed, e.barred)) for e in exceptions)


@lru_cache(maxsize=4096)
def _layers(needed: int, barred: int) -> str:
    """The pattern of an exception's layers."""
    return layers_pattern(runs(needed, ~barred)) if barred else r"\d+"


def _arrange(kinds: Sequence[_Kind], default: _Answer | None) -> tuple[list[_Exception], list[_Kind]]:
    """All exceptions in the order of their rules, and the kinds that need a rule for their base."""
    answers = sorted({answer for kind in kinds for answer in kind.layers}, key=lambda a: a.order)
    rank = {answer: i for i, answer in enumerate(answers)}
    items: list[_Exception] = []
    for kind in kinds:
        barred = kind.layers[kind.base]
        # From the last of its rules to the first: layers of a later rule are barred in an earlier one.
        for answer in sorted(kind.layers, key=lambda a: rank[a], reverse=True):
            if answer != kind.base:
                needed = kind.layers[answer]
                items.append(_Exception(kind.prefix, answer, needed, barred, [kind]))
                barred |= needed
    items.sort(key=lambda e: (rank[e.answer], e.prefix, -e.needed.bit_count()))
    joined: dict[tuple[str, _Answer], list[_Exception]] = {}
    for item in items:
        groups = joined.setdefault((item.prefix, item.answer), [])
        host = next((group for group in groups[:_GROUPS] if group.joins(item)), None)
        if host:
            host.add(item)
        else:
            groups.append(item)
    by_base: dict[tuple[str, _Answer], list[_Kind]] = {}
    for kind in kinds:
        if not kind.takes(default):
            by_base.setdefault((kind.prefix, kind.base), []).append(kind)
    based = []
    for key, members in by_base.items():
        groups = joined.get(key, [])[:_GROUPS]
        hosts = [next((e for e in groups if e.has_room_for(kind)), None) for kind in members]
        if None in hosts:
            based += members
            continue
        for kind, host in zip(members, hosts, strict=True):
            if host:
                host.add(_Exception(kind.prefix, kind.base, kind.layers[kind.base], 0, [kind]))
    return [group for groups in joined.values() for group in groups], based


def _choose_default(kinds: Sequence[_Kind], singles: Sequence[_Single]) -> _Answer | None:
    """The answer whose rules `@default` saves: the most rules, then the most bytes."""
    saved: dict[_Answer, list[int]] = {}
    for answer in {k.base for k in kinds} | {a for a, _ in singles}:
        own = [k for k in kinds if k.base == answer]
        taken = [k for k in own if k.takes(answer)]
        alone = [t for a, t in singles if a == answer]
        left = [t for t in alone if _by_default(t, answer, answer)]
        left += [t for k in taken for t in k.tensors_with(answer)]
        if left and not answer.forced:
            n_rules = len({k.prefix for k in own}) if len(own) == len(taken) else 0
            n_rules += bool(alone) and all(not t.protected for t in alone)
            saved[answer] = [n_rules, sum(t.n_bytes for t in left)]
    return max(saved, key=lambda a: (*saved[a], a.order), default=None)


def _rules_of_singles(singles: Sequence[_Single], default: _Answer | None) -> list[CoverRule]:
    groups: dict[_Answer, dict[str, list[Wanted]]] = {}
    for answer, tensor in singles:
        if not _by_default(tensor, answer, default):
            groups.setdefault(answer, {})[tensor.name] = [tensor]
    return [
        rule
        for answer in sorted(groups, key=lambda a: a.order)
        for rule in _rules("", groups[answer], answer)
    ]


def _rules_of_exception(exception: _Exception) -> list[CoverRule]:
    layers = _layers(exception.needed, exception.barred)
    return _block_rules(exception.prefix, layers, exception.kinds, exception.answer)


def _rules_of_bases(kinds: Sequence[_Kind]) -> list[CoverRule]:
    groups: dict[tuple[_Answer, str], list[_Kind]] = {}
    for kind in kinds:
        groups.setdefault((kind.base, kind.prefix), []).append(kind)
    return [
        rule
        for answer, prefix in sorted(groups, key=lambda group: (group[0].order, group[1]))
        for rule in _block_rules(prefix, r"\d+", groups[answer, prefix], answer)
    ]


def _block_rules(prefix: str, layers: str, kinds: Sequence[_Kind], answer: _Answer) -> list[CoverRule]:
    by_name = {kind.name: kind.tensors_with(answer) for kind in kinds}
    return _rules(rf"{escape(prefix)}{layers}\.", by_name, answer)


def _rules(head: str, by_name: dict[str, list[Wanted]], answer: _Answer) -> list[CoverRule]:
    """One rule for all these names; more where the pattern would be too long."""
    names = sorted(by_name)
    pattern = f"^{head}{names_pattern(names)}$"
    if len(pattern) > _LONGEST and len(names) > 1:
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        return [rule for half in halves for rule in _rules(head, {n: by_name[n] for n in half}, answer)]
    tensors = [t for name in names for t in by_name[name]]
    said = answer.said_of(tensors)
    return [CoverRule(pattern, said, answer.forced, len(tensors), sum(t.n_bytes for t in tensors))]
