r"""Tensors left out: kinds that no rule speaks of, and blocks that one rule forgot and its siblings did not.

A recipe that lists blocks, `blk\.([1-9]|[1-3][0-9]|4[0-5])\.`, is one digit away from leaving out the
last. The blocks of each kind (`ffn_up_exps.weight`) are known exactly, and so are those its rules decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ggplan.checking.case import Case
from ggplan.checking.wording import at_rule, kind_of, kinds, rewritten, some
from ggplan.checking.workspace import Workspace
from ggplan.rules import Diagnostic, Edit, Fix, Rule
from ggplan.rules.ranges import alternation
from ggplan.rules.recipe import split_lines
from ggplan.rules.roles import block_of
from ggplan.text import format_bytes, printable

_ANY_BLOCK = re.compile(r"(\\d|\[0-9\]|\.)[+*]\??|\\d\{\d+,\d*\}")
_GROUP = re.compile(r"_(gate|up|down|q|k|v|output)(?=_|\.|$)")
_MOST_LEFT_TO_DEFAULT = 2  # blocks; leaving more to `@default` is a way to write a recipe
_MOST_MISSING = 0.25  # of a kind's blocks; more is a plan, not a slip


def about_gaps(case: Case) -> Iterator[tuple[Diagnostic, frozenset[int]]]:
    """GP107: blocks that the rules of a kind leave out beside its siblings, and the tensors concerned."""
    by_kind = kinds(case, (i for i, t in enumerate(case.tensors) if block_of(t.name) is not None))
    listing = {i: place for i, rule in case.rules() if (place := block_list(rule))}
    by_default = case.recipe.default is not None
    left_out: dict[str, list[int]] = {}
    for kind, members in by_kind.items():
        left = [
            t
            for t in members
            if case.decisions[t].decision.protected is None and case.decisions[t].decision.rule is None
        ]
        listed = sum(1 for t in members if case.decisions[t].decision.rule in listing)
        most = _MOST_LEFT_TO_DEFAULT if by_default else max(1, _MOST_MISSING * len(members))
        if left and listed and len(left) <= most and len(left) < len(members) / 2:
            left_out[kind] = left
    for kind, left in left_out.items():
        blocks = {block_of(case.tensors[t].name) for t in left}
        siblings = [k for k in by_kind if k != kind and _GROUP.sub("_*", k) == _GROUP.sub("_*", kind)]
        beside = [
            k
            for k in siblings
            if any(
                block_of(case.tensors[t].name) in blocks and case.decisions[t].decision.rule is not None
                for t in by_kind[k]
            )
        ]
        if not beside and by_default:
            continue
        index = max(
            (i for i in listing if any(case.decisions[t].decision.rule == i for t in by_kind[kind])),
            key=lambda i: (len(case.decided[i]), -i),
        )
        yield _gap(case, index, listing[index], kind, left, beside), frozenset(left)


def _gap(
    case: Case, index: int, place: tuple[int, int], kind: str, left: list[int], beside: list[str]
) -> Diagnostic:
    rule = case.recipe.rules[index]
    start, stop = place
    missing = sorted({b for t in left if (b := block_of(case.tensors[t].name)) is not None})
    numbers = {b for t in case.members[index] if (b := block_of(case.tensors[t].name)) is not None}
    text = blocks_text(numbers | set(missing), rule.pattern[start:stop])
    pattern = rule.pattern[:start] + text + rule.pattern[stop:]
    message = f"{some(case, left)} left out"
    if beside:
        message += f", while {', '.join(f'`{printable(k)}`' for k in beside[:2])} of the same blocks are not"
    message = message.replace("` left out", "` is left out").replace(") left out", ") are left out")
    found = at_rule(
        "GP107", "warning", rule, message, f"write `{pattern}`", rewritten(rule, pattern, safe=False)
    )
    return replace(found, column=rule.column + start, length=stop - start)


def block_list(rule: Rule) -> tuple[int, int] | None:
    r"""Where a pattern lists block numbers, between `blk\.` and the next `\.`; None where any will do."""
    if rule.roles or rule.expanded:
        return None
    found = re.search(r"blk\\?\.", rule.pattern)
    if not found:
        return None
    depth = 0
    start = at = found.end()
    while at < len(rule.pattern):
        char = rule.pattern[at]
        if depth == 0 and (rule.pattern.startswith(r"\.", at) or char == "."):
            break
        depth += (char in "([{") - (char in ")]}")
        at += 2 if char == "\\" else 1
    text = rule.pattern[start:at]
    return (start, at) if re.search(r"\d|first|last", text) and not _ANY_BLOCK.fullmatch(text) else None


def blocks_text(numbers: set[int], like: str) -> str:
    """Block numbers as a pattern: a range where the text they replace is one, else an alternation."""
    if not like.startswith("{"):
        return alternation(numbers)
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    if len(runs) < 3 and all(low == high for low, high in runs):
        return alternation(numbers)
    return "{" + ",".join(str(low) if low == high else f"{low}..{high}" for low, high in runs) + "}"


def about_uncovered(case: Case, space: Workspace, explained: frozenset[int]) -> Iterator[Diagnostic]:
    """GP108: tensors no rule matches, but for those that another finding has explained."""
    missing = [t for t in case.uncovered() if t not in explained]
    if not missing:
        return
    groups: dict[str, list[int]] = {}
    for t in missing:
        groups.setdefault(case.decisions[t].type.name, []).append(t)
    kept = ", ".join(sorted(groups))
    n_bytes = sum(case.decisions[t].type.tensor_bytes(case.tensors[t].shape) for t in missing)
    message = (
        f"{some(case, missing)}: no rule of {printable(case.recipe.name)} matches; "
        f"kept as {kept}, {format_bytes(n_bytes)}"
    )
    small = sum(1 for d in case.decisions if d.decision.reason == "kept" and d.decision.protected is not None)
    if small:
        message += f" (and {small} norms, biases and the like)"
    rules = [rule_for(case, members) for _, members in _by_kind_and_type(case, missing)]
    text = space.texts[case.recipe.file]
    lines = split_lines(text)
    column = len(lines[-1]) + 1
    lead = "" if not lines[-1].strip() else "\n"
    fix = Fix((Edit(case.recipe.file, len(lines), column, 0, lead + "\n".join(rules) + "\n"),), safe=False)
    help = f"add `{rules[0]}`" + (f" and {len(rules) - 1} more" if len(rules) > 1 else "")
    help += ", or `@default q8_0` for all the rest"
    yield Diagnostic("GP108", "warning", message, case.recipe.file, help=help, fix=fix)


def _by_kind_and_type(case: Case, chosen: list[int]) -> list[tuple[str, list[int]]]:
    found: dict[tuple[str, str], list[int]] = {}
    for t in chosen:
        found.setdefault((kind_of(case.tensors[t].name), case.decisions[t].type.name), []).append(t)
    return [(kind, members) for (kind, _), members in found.items()]


def rule_for(case: Case, members: list[int]) -> str:
    r"""A rule for tensors of one kind and type: `^blk\.{1..46}\.ffn_up\.weight$ = bf16`."""
    name = case.tensors[members[0]].name
    type_ = case.decisions[members[0]].type
    kind = re.sub(r"([.+*?()\[\]{}|^$\\])", r"\\\1", kind_of(name))
    if block_of(name) is None:
        return f"^{kind}$ = {type_}"
    numbers = {b for t in members if (b := block_of(case.tensors[t].name)) is not None}
    of_kind = {
        b for t in case.tensors if kind_of(t.name) == kind_of(name) and (b := block_of(t.name)) is not None
    }
    blocks = r"\d+" if numbers == of_kind else blocks_text(numbers, "{")
    return rf"^blk\.{blocks}\.{kind}$ = {type_}"
