r"""Rules that meet names: which match nothing, which never decide, which say the same, which reach too far.

All of it is exact, for it asks what each rule matches and decides on the names of a model, never what a
pattern looks like. `output\.weight = q8_0` at the top of a recipe takes all `attn_output` tensors: of 379
published recipes 51 hold that slip.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import re2

from ggplan.checking.case import Case
from ggplan.checking.coverage import block_list, blocks_text
from ggplan.checking.reach import whole_word_pattern
from ggplan.checking.wording import at_rule, deleted, kind_of, lines_of, rewritten, some
from ggplan.checking.workspace import Workspace
from ggplan.inventories import words as words_of_gguf
from ggplan.rules import Diagnostic, Edit, Fix, Rule, dead_rules, shadowed_rules
from ggplan.rules.recipe import split_lines
from ggplan.rules.roles import block_of

_MANY_BELOW = 3
_MOST_SEARCHED = 50  # dead rules that get a suggestion
_WORD = re.compile(r"[A-Za-z_]{3,}")
_HUB_WORDS = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down", "embed_tokens": "token_embd",
    "lm_head": "output", "layers": "blk", "self_attn": "attn_", "input_layernorm": "attn_norm",
}  # fmt: skip


def about_dead(case: Case, space: Workspace) -> Iterator[Diagnostic]:
    """GP101: rules that match no tensor, with the word that was probably meant."""
    own = {(rule.file, rule.line): rule for _, rule in case.rules()}
    searched = 0
    for found in dead_rules(case.recipe, [d.decision.matching for d in case.decisions]):
        rule = own.get((found.file, found.line))
        if rule is None:
            continue
        searched += 1
        near = _nearby(rule, case) if searched <= _MOST_SEARCHED else ()
        fixes = [fix for pattern in near if (fix := rewritten(rule, pattern, safe=False))]
        alive = [fix for fix in fixes if (tried := space.tried([fix])) and _alive(tried, rule)]
        if split := _split(rule):
            fix, help = split, _help_dead(rule, case)
        elif alive:
            fix = space.best(alive) or alive[0]
            help = f"write `{fix.edits[0].text}`"
        else:
            fix, help = deleted(rule, safe=False), _help_dead(rule, case)
        yield at_rule("GP101", "warning", rule, found.message, help, fix)


def about_shadowed(case: Case, space: Workspace) -> Iterator[Diagnostic]:
    """GP102 and GP104: rules that never decide, because rules above take all they match."""
    at = {(rule.file, rule.line): i for i, rule in case.rules()}
    searched = 0
    deciding = [d.decision.rule for d in case.decisions]
    known: dict[frozenset[int], list[int]] = {}

    def takers_of(members: frozenset[int]) -> list[int]:
        if members not in known:
            known[members] = sorted({d for t in members if (d := deciding[t]) is not None})
        return known[members]

    only: Counter[int] = Counter()  # rules that one rule alone shadows
    for i, _ in case.rules():
        takers = takers_of(case.members[i])
        if not case.decided[i] and len(takers) == 1 and takers[0] < i:
            only[takers[0]] += 1
    catching = dict(_catch_all(case, only))
    yield from catching.values()
    for found in shadowed_rules(case.recipe, [d.decision.matching for d in case.decisions], deciding):
        index = at.get((found.file, found.line))
        if index is None:
            continue
        rule = case.recipe.rules[index]
        takers = takers_of(case.members[index])
        if len(takers) == 1 and takers[0] in catching:
            continue
        first = case.recipe.rules[takers[0]]
        twin = next((t for t in takers if case.members[t] == case.members[index]), None)
        if twin is not None:
            yield _duplicate(case.recipe.rules[twin], rule)
            continue
        searched += 1
        fix = (
            _unshadow(case, space, index, takers) if searched <= _MOST_SEARCHED else deleted(rule, safe=False)
        )
        help = found.help
        if fix is not None and len(fix.edits) == 1 and fix.edits[0].length is not None:
            help = f"{lines_of(first, rule)} reaches too far: write `{fix.edits[0].text}` there"
        elif fix is not None and len(fix.edits) == 1:
            same = all(case.recipe.rules[t].choice.types == rule.choice.types for t in takers)
            help = "delete it: its tensors get this type already" if same else "delete it"
        yield at_rule("GP102", "warning", rule, found.message, help, fix)


def _split(rule: Rule) -> Fix | None:
    """A list `a=q8_0,b=q4_K`, as ik_llama.cpp's command line has it, as one rule a line."""
    if "=" not in rule.pattern or "," not in rule.pattern or rule.expanded:
        return None
    whole = f"{rule.pattern}={rule.choice.text}"
    rules = [item.rpartition("=") for item in whole.split(",") if item.strip()]
    if not all(pattern.strip() and type_.strip() for pattern, _, type_ in rules):
        return None
    text = "\n".join(f"{pattern.strip()} = {type_.strip()}" for pattern, _, type_ in rules)
    length = rule.choice.column + len(rule.choice.text) - rule.column
    return Fix((Edit(rule.file, rule.line, rule.column, length, text),), safe=False)


def _catch_all(case: Case, takers: Counter[int]) -> Iterator[tuple[int, Diagnostic]]:
    """Rules that match most of the model and leave nothing to several below: one finding for each."""
    for index, n_rules in takers.items():
        rule = case.recipe.rules[index]
        if n_rules < _MANY_BELOW or 2 * len(case.members[index]) < len(case.tensors):
            continue
        message = (
            f"the rule matches {len(case.members[index]):,} tensors and leaves nothing to {n_rules} below"
        )
        fix = None
        if case.recipe.order == "first" and rule.file == case.recipe.file and not rule.expanded:
            lines = split_lines(case.recipe.text)
            end = "" if not lines[-1].strip() else "\n"
            moved = Edit(rule.file, len(lines), len(lines[-1]) + 1, 0, f"{end}{lines[rule.line - 1]}\n")
            fix = Fix((Edit(rule.file, rule.line, 1, None, ""), moved), safe=False)
        yield index, at_rule("GP102", "warning", rule, message, "move it below them all", fix)


def _duplicate(first: Rule, rule: Rule) -> Diagnostic:
    same_types = first.choice.types == rule.choice.types
    message = f"{lines_of(first, rule)} matches the same tensors"
    if not same_types:
        message += f", as {first.choice.text}"
    help = "delete it" if same_types else "delete the one you do not mean"
    return at_rule("GP104", "warning", rule, message, help, deleted(rule, safe=same_types))


def _unshadow(case: Case, space: Workspace, index: int, takers: list[int]) -> Fix | None:
    """Narrow the rule that takes too much, or move the narrow rule above the broad one, or delete it."""
    rules = case.recipe.rules
    rule, first = rules[index], rules[takers[0]]
    fixes: list[Fix] = []
    if len(takers) == 1:
        if (narrow := whole_word_pattern(first, case, takers[0])) and (
            fix := rewritten(first, narrow, safe=False)
        ):
            fixes.append(fix)
        movable = case.recipe.order == "first" and first.file == rule.file and not rule.expanded
        if case.members[index] < case.members[takers[0]] and movable:
            line = case.recipe.source_line(rule.line, rule.file)
            insert = Edit(first.file, first.line, 1, 0, f"{line}\n")
            fixes.append(Fix((Edit(rule.file, rule.line, 1, None, ""), insert), safe=False))
    if all(rules[t].choice == rule.choice or rules[t].choice.types == rule.choice.types for t in takers):
        fixes.append(deleted(rule, safe=True))
        if len(takers) > 1:
            return fixes[-1]
    return space.best(fixes) or deleted(rule, safe=False)


def about_partly_shadowed(case: Case) -> Iterator[Diagnostic]:
    """GP103, a note: rules that lose some of their tensors to rules above; exceptions look just so."""
    for i, rule in case.rules():
        lost = {
            t for t in case.members[i] if (d := case.decisions[t].decision.rule) is not None and d < i
        }  # not those passed over
        if not lost or not case.decided[i]:
            continue
        first = case.recipe.rules[min(d for t in lost if (d := case.decisions[t].decision.rule) is not None)]
        message = f"{lines_of(first, rule)} and rules like it take {some(case, lost)} before this rule"
        yield at_rule("GP103", "note", rule, message)


def about_order(case: Case) -> Iterator[Diagnostic]:
    """GP109, a note: tensors that get another type where the last match wins."""
    other: list[int] = []
    for t, decision in enumerate(case.decisions):
        usable = [i for i in decision.decision.matching if i not in decision.decision.passed_over]
        if decision.decision.rule is None or len(usable) < 2:
            continue
        last = case.recipe.rules[usable[-1]].choice
        if last.types != case.recipe.rules[decision.decision.rule].choice.types:
            other.append(t)
    if other:
        rule = case.recipe.rules[case.decisions[other[0]].decision.rule or 0]
        message = f"where the last match wins, as in llama.cpp of 2025, {some(case, other)} get another type"
        yield at_rule(
            "GP109", "note", rule, message, "`ggplan rules export` writes rules that do not overlap"
        )


def _alive(case: Case, rule: Rule) -> bool:
    """Whether the rule that now stands on the line decides a tensor."""
    return any(
        case.decided[i] for i, r in enumerate(case.recipe.rules) if (r.file, r.line) == (rule.file, rule.line)
    )


def _nearby(rule: Rule, case: Case) -> Iterator[str]:
    """Patterns like this one with a word that the model's names hold."""
    pattern = rule.pattern
    yield from _other_blocks(rule, case)
    names = " ".join(sorted({kind_of(t.name) for t in case.tensors}))
    words = sorted(set(re.findall(r"[a-z0-9_]+", names)) | {"blk", "weight", "bias"})
    parts = sorted({p for w in words for p in (w, *w.split("_"))})
    for found in _WORD.finditer(re.sub(r"\\[a-z]", "  ", pattern)):
        word = found[0]
        if word in names or word in words_of_gguf() or word in ("blk", "first", "last"):
            continue
        if word in _HUB_WORDS:
            yield pattern[: found.start()] + _HUB_WORDS[word] + pattern[found.end() :]
        for near in difflib.get_close_matches(
            word.lower(), words, n=2, cutoff=0.7
        ) + difflib.get_close_matches(word.lower(), parts, n=1, cutoff=0.7):
            yield pattern[: found.start()] + near + pattern[found.end() :]
    if pattern.endswith("$") and "weight" not in pattern:
        yield pattern[:-1] + r"\.weight$"
    if pattern.lower() != pattern and not re.search(r"\\[DSWB]", pattern):
        yield pattern.lower()


def _other_blocks(rule: Rule, case: Case) -> Iterator[str]:
    """The pattern for the blocks that have such a tensor and no rule for it."""
    place = block_list(rule)
    if place is None:
        return
    before, after = rule.pattern[: place[0]], rule.pattern[place[1] :]
    search = re2.compile(replace(rule, pattern=rf"{before}\d+{after}").regex(case.blocks.count)).search
    free = [t for t, d in enumerate(case.decisions) if d.decision.rule is None and search(d.tensor.name)]
    numbers = {b for t in free if (b := block_of(case.tensors[t].name)) is not None}
    if numbers:
        yield before + blocks_text(numbers, rule.pattern[place[0] : place[1]]) + after


def _help_dead(rule: Rule, case: Case) -> str:
    if "=" in rule.pattern:
        return "write one rule a line: the last `=` of a line parts the pattern from the type"
    if any(word in rule.pattern and word not in words_of_gguf() for word in _HUB_WORDS):
        return "these are Hugging Face's names; a recipe speaks GGUF's, such as `blk.7.attn_q.weight`"
    if case.blocks.count and re.search(r"blk\\?\.", rule.pattern):
        return f"the model's blocks are 0 to {case.blocks.count - 1}; correct the rule or delete it"
    return "compare it with the model's tensor names, or delete it"
