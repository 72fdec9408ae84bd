r"""The answer as a recipe: rules by kind and band of layers, what each weighs, and what one step would do.

    # 46 tensors, 12.3 GiB, 31 % of the loss; as iq3_s 2.1 GiB more and 14 % of the loss less
    ^blk\.{16..31}\.ffn_(gate|up)_exps\.weight$ = iq3_xxs

Pins come first, as they were given; then what is never quantized, blocks that only draft tokens, and the
rules that were solved for. These name the types that are written, so the recipe needs no fallback.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ggplan.allocation.budget import Row
from ggplan.allocation.candidates import TensorChoices
from ggplan.allocation.forecast import Forecast
from ggplan.allocation.grouping import Group
from ggplan.allocation.options import OptimizeOptions
from ggplan.allocation.patterns import exact_patterns, split_name
from ggplan.allocation.problem import Problem
from ggplan.ggml_types import F32, GgmlType
from ggplan.planning.roles import Role
from ggplan.rules.roles import Blocks, roles_of
from ggplan.stock import needs_imatrix
from ggplan.text import format_bytes, printable

_BY_ROLE = ("norm", "router")
_TITLES = {
    Role.EMBEDDINGS: "Embeddings are looked up, one row for a token.",
    Role.OUTPUT: "The output matrix chooses the words.",
    Role.ATTENTION: "Attention reads all of its weights for every token.",
    Role.SHARED_EXPERTS: "The shared expert sees every token.",
    Role.DENSE_FFN: "The plain feed-forward network.",
    Role.ROUTED_EXPERTS: "The routed experts: most of the file, of which a token uses few.",
    Role.NEXTN: "Blocks that only draft tokens: hardly a draft is accepted below q8_0.",
    Role.OTHER: "Other matrices.",
}
_ORDER = tuple(_TITLES)
_TIED = "Tied embeddings are the output matrix too, which chooses the words."


@dataclass(frozen=True)
class Answer:
    """What was solved: the type of each group, and with it of each tensor."""

    problem: Problem
    groups: tuple[Group, ...]
    chosen: tuple[int, ...]

    @property
    def choices(self) -> tuple[TensorChoices, ...]:
        """Of all tensors."""
        return self.problem.choices

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all tensors."""
        return tuple(c.tensor.name for c in self.choices)

    @cached_property
    def types(self) -> Mapping[str, GgmlType]:
        """The type of each tensor, by name."""
        found = {c.tensor.name: c.candidates[0].type for c in self.choices if c.fixed}
        for group, option in zip(self.groups, self.chosen, strict=True):
            found |= {m.tensor.name: group.types[option] for m in group.members}
        return found

    @cached_property
    def damages(self) -> Mapping[str, float]:
        """The damage of each tensor, in nats, by name."""
        found = {c.tensor.name: c.candidates[0].damage for c in self.choices if c.fixed}
        for group, option in zip(self.groups, self.chosen, strict=True):
            found |= {m.tensor.name: m.candidates[option].damage for m in group.members}
        return found

    @property
    def damage(self) -> float:
        """The sum of all tensors' damages, in nats."""
        return sum(self.damages.values())


@dataclass(frozen=True, slots=True)
class _Rule:
    """Groups of one kind that got one type."""

    role: Role
    type: GgmlType
    groups: tuple[tuple[Group, int], ...]

    @property
    def members(self) -> tuple[TensorChoices, ...]:
        return tuple(m for group, _ in self.groups for m in group.members)


def recipe_text(
    answer: Answer, rows: Sequence[Row], gap: Gap, forecast: Forecast, heading: Sequence[str] = (),
    promises: Sequence[str] = (),
) -> str:  # fmt: skip
    """The text of the recipe.

    Parameters
    ----------
    rows
        What the file keeps to.
    gap
        How far above the least possible the damage is at most.
    heading
        Further lines of it.
    promises
        Further `@assert` lines.
    """
    model, options = answer.problem.model, answer.problem.options
    lines = [*_heading(answer, rows, gap, forecast, heading), "@recipe 1", f"@name {_inert(options.name)}"]
    if model.architecture:
        lines.append(f"@arch {model.architecture}")
    if options.engine != "llama.cpp":
        lines.append(f"@target {options.engine}")
    lines += _standing(answer)
    lines += _protected(answer)
    lines += _drafting(answer)
    by_role: dict[Role, list[_Rule]] = {}
    for rule in _rules(answer):
        by_role.setdefault(rule.role, []).append(rule)
    for role in sorted(by_role, key=_place):
        is_tied = role is Role.EMBEDDINGS and "output.weight" not in answer.names
        lines += ["", f"# {_TIED if is_tied else _TITLES.get(role, _TITLES[Role.OTHER])}"]
        for rule in by_role[role]:
            names = [m.tensor.name for m in rule.members]
            patterns = exact_patterns(names, answer.names)
            lines += [f"# {_worth(rule, answer.damage)}", *(f"{p} = {rule.type.name}" for p in patterns)]
    promises = [*(row.promise for row in rows if row.promise), *promises]
    lines += ["", "@assert uncovered == 0", "@assert fallbacks == 0", *promises]
    return "\n".join(lines) + "\n"


def _heading(
    answer: Answer, rows: Sequence[Row], gap: Gap, forecast: Forecast, more: Sequence[str]
) -> list[str]:
    model, options, scales = answer.problem.model, answer.problem.options, answer.problem.scales
    n_bytes = sum(answer.types[t.name].tensor_bytes(t.shape) for t in model.tensors)
    bpw = 8 * n_bytes / max(sum(t.n_weights for t in model.tensors), 1)
    written = [(t, answer.types[t.name]) for t in model.tensors if answer.types[t.name] != t.type]
    kld, low, high = forecast.kld, forecast.low, forecast.high
    what = "The fewest bytes" if options.max_kld is not None else "The least loss"
    lines = [
        f"{what} within {' and '.join(row.words for row in rows)}, of {model.path.name}.",
        "",
        f"Tensors         {format_bytes(n_bytes)}, {bpw:.3f} bits per weight",
        f"KL divergence   {kld:.2g} nats predicted, probably between {low:.2g} and {high:.2g}",
        *more,
        f"Optimality      {gap_in_words(gap, options)}",
        f"Sensitivities   {scales.source}",
        f"Type errors     {answer.problem.errors.source}",
    ]
    needing = _names(
        type_
        for tensor, type_ in written
        if type_.requires_imatrix or needs_imatrix(None, tensor.name, type_)
    )
    foreign = _names(type_ for _, type_ in written if not type_.encodable)
    if needing:
        lines.append(f"Imatrix         needed (--imatrix), for {needing}")
    if foreign:
        lines.append(
            f"Written by      ik_llama.cpp (`ggplan rules export`): ggplan does not encode {foreign}"
        )
    if again := sum(t.type.is_quantized for t, _ in written):
        tensors = "1 tensor is" if again == 1 else f"{again:,} tensors are"
        lines.append(f"Source          quantized: {tensors} encoded again, on top of what that has lost")
    elif any(t.type.is_quantized for t in model.tensors):
        lines.append("Source          quantized: what that has lost is not counted")
    lines += ["", *scales.credit]
    # What a check would say of these stands above, and `convert` refuses to do without.
    codes = [
        *(["GP204"] if needing else []),
        *(["GP205"] if again else []),
        *(["GP208", "GP215"] if foreign else []),
    ]
    heading = [f"# {_without_marks(line)}".rstrip() for line in lines]
    return [*heading, f"# ggplan: ignore-file {', '.join(codes)}"] if codes else heading


def _names(types: Iterable[GgmlType]) -> str:
    return ", ".join(sorted({type_.name for type_ in types}))


@dataclass(frozen=True, slots=True)
class Gap:
    """How far an answer is from the best possible at most, as a part of that.

    Attributes
    ----------
    here
        With the tensors on the devices where they are; None where that is not known.
    anywhere
        Wherever they might be; None where that is not known.
    """

    here: float | None
    anywhere: float | None

    @property
    def least(self) -> float:
        """The one that is known to be less."""
        return min((gap for gap in (self.here, self.anywhere) if gap is not None), default=math.inf)


def gap_in_words(gap: Gap, options: OptimizeOptions) -> str:
    """How far from the best possible an answer is, for people."""
    kind = "larger than the smallest" if options.max_kld is not None else "above the least"
    if math.isinf(gap.least):
        return f"not known: by how much it is {kind} possible was not bounded"
    if options.target is None or (gap.anywhere is not None and gap.anywhere <= gap.least):
        where = "" if options.target is None else ", wherever its tensors are"
        return f"at most {_percent(gap.least)} {kind} possible for these numbers{where}"
    words = f"at most {_percent(gap.least)} {kind} possible for these numbers with its tensors where they are"
    return words if gap.anywhere is None else f"{words}, {_percent(gap.anywhere)} wherever they might be"


def _percent(part: float) -> str:
    percent = 100 * max(part, 1e-4)
    return f"{percent:.2g} %" if percent < 99.5 else f"{percent:,.0f} %"


def _protected(answer: Answer) -> list[str]:
    """The rules for what is never quantized."""
    left = [c for c in answer.choices if c.fixed == "protected"]
    if not left:
        return []
    lines = ["", "# Norms, biases and routers steer all else and weigh next to nothing."]
    blocks = Blocks.of(c.tensor.name for c in answer.choices)
    roles = {c.tensor.name: set(roles_of(c.tensor.name, blocks)) for c in answer.choices}
    words = []
    for word in _BY_ROLE:
        of_role = [c for c in answer.choices if word in roles[c.tensor.name] and c.fixed != "integers"]
        if of_role and all(c.fixed == "protected" and c.candidates[0].type == F32 for c in of_role):
            words.append(word)
    if words:
        lines.append(f"@role {', '.join(words)} = f32")
        left = [c for c in left if roles[c.tensor.name].isdisjoint(words)]
    for type_ in dict.fromkeys(c.candidates[0].type for c in left):
        wanted = "keep" if type_.is_quantized else type_.name
        names = [c.tensor.name for c in left if c.candidates[0].type == type_]
        lines += [f"{pattern} = {wanted}" for pattern in exact_patterns(names, answer.names)]
    return lines


def _standing(answer: Answer) -> list[str]:
    """The rules for what pins and the base recipe decide, as exact ones; fallbacks are worked in."""
    stands = answer.problem.standing
    found: dict[tuple[str, str], list[str]] = {}
    for choice in answer.choices:
        name = choice.tensor.name
        if choice.fixed != "pinned":
            continue
        decision = stands[name].decision
        wanted = "keep" if decision.keep is not None else choice.candidates[0].type.name
        forced = "!" if decision.forced and decision.protected is not None else ""
        by = stands[name].by
        if choice.candidates[0].type != decision.type and wanted != "keep":
            by += f" (rows of {choice.tensor.n_columns} do not hold it)"
        found.setdefault((by, wanted + forced), []).append(name)
    lines = []
    said = ""
    for (by, wanted), names in found.items():
        lines += ["", f"# {_inert(by)}"] if by != said else []
        said = by
        lines += [f"{pattern} = {wanted}" for pattern in exact_patterns(names, answer.names)]
    return lines


def _drafting(answer: Answer) -> list[str]:
    """The rules for blocks that only predict further tokens."""
    drafting = [c for c in answer.choices if c.fixed == "drafting"]
    if not drafting:
        return []
    lines = ["", f"# {_TITLES[Role.NEXTN]}"]
    for type_ in dict.fromkeys(c.candidates[0].type for c in drafting):
        names = [c.tensor.name for c in drafting if c.candidates[0].type == type_]
        lines += [f"{pattern} = {type_.name}" for pattern in exact_patterns(names, answer.names)]
    return lines


def _rules(answer: Answer) -> list[_Rule]:
    """One rule for each kind and type, in the order of the model."""
    found: dict[tuple[tuple[tuple[str, str], ...], GgmlType], list[tuple[Group, int]]] = {}
    for group, option in zip(answer.groups, answer.chosen, strict=True):
        kinds = tuple(sorted({split_name(m.tensor.name)[::2] for m in group.members}))
        found.setdefault((kinds, group.types[option]), []).append((group, option))
    return [_Rule(groups[0][0].members[0].role, type_, tuple(groups)) for (_, type_), groups in found.items()]


def _place(role: Role) -> int:
    return _ORDER.index(role) if role in _ORDER else len(_ORDER)


def _worth(rule: _Rule, total: float) -> str:
    """What a rule weighs, its part of the damage, and what the next larger or smaller type would change."""
    n_tensors = len(rule.members)
    n_bytes = sum(group.n_bytes[option] for group, option in rule.groups)
    damage = sum(group.damages[option] for group, option in rule.groups)
    tensors = "1 tensor" if n_tensors == 1 else f"{n_tensors:,} tensors"
    words = f"{tensors}, {format_bytes(n_bytes)}, {_part(damage, total)} of the loss"
    group, option = rule.groups[0]
    if any(g.types != group.types for g, _ in rule.groups):
        return words
    sizes = [sum(g.n_bytes[i] for g, _ in rule.groups) for i in range(len(group.types))]
    losses = [sum(g.damages[i] for g, _ in rule.groups) for i in range(len(group.types))]
    larger = next(
        (i for i in range(option + 1, len(sizes)) if sizes[i] > n_bytes and losses[i] < damage), None
    )
    smaller = next((i for i in range(option - 1, -1, -1) if sizes[i] < n_bytes and losses[i] > damage), None)
    if larger is not None:
        more, less = format_bytes(sizes[larger] - n_bytes), _part(damage - losses[larger], total)
        words += f"; as {group.types[larger]} {more} more and {less} of the loss less"
    elif smaller is not None:
        less, more = format_bytes(n_bytes - sizes[smaller]), _part(losses[smaller] - damage, total)
        words += f"; as {group.types[smaller]} {less} less and {more} of the loss more"
    return words


def _part(damage: float, total: float) -> str:
    part = 100 * damage / total if total else 0.0
    return f"{part:.0f} %" if part >= 9.95 else f"{part:.1f} %"


def _inert(text: str) -> str:
    return _without_marks(text).strip()


def _without_marks(text: str) -> str:
    return printable(text).replace("#", "")
