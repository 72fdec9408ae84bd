r"""A rule that matches no tensor, with the word that was probably meant.

GP101: a rule matches no tensor
    It is misspelt, written for another model, or for blocks that this one does not have. Of `@role nextn`
    that is not told: a recipe is for checkpoints with such blocks and without them.
    - ffn_dwon_exps\.weight = q6_K
    + ffn_down_exps\.weight = q6_K
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import re2

from ggplan.inventories import words as words_of_gguf
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.trials import Trials
from ggplan.linting.wording import block_list, blocks_of, blocks_text, deleted, kind_of, rewritten
from ggplan.rules import Edit, Fix, Rule
from ggplan.rules.patterns import PATTERN_MEMORY, re2_options

_MOST_SEARCHED = 50  # dead rules that get a suggestion
_HIGHEST_BLOCK = 499  # that a rule is taken to list
_WORD = re.compile(r"[A-Za-z_]{3,}")
_HUB_WORDS = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down", "embed_tokens": "token_embd",
    "lm_head": "output", "layers": "blk", "self_attn": "attn_", "input_layernorm": "attn_norm",
}  # fmt: skip


# What a string of a program, a forum that eats backslashes, and other names of experts make of a pattern.
_SLIPS = (
    (r"\\\\", r"\\"),
    (r"(?<=[.(])d(?=[+*])", r"\\d"),
    (r"_?shared_experts?(?![a-z])", "_shexp"),
    (r"_experts?(?![a-z])", "_exps"),
    (r"(?<![a-z])experts?(?![a-z])", "exps"),
)


class DeadRule(Finding):
    """A rule without a tensor.

    Attributes
    ----------
    n_blocks
        Blocks of the model.
    is_searched
        Whether a similar pattern is looked for.
    in_blocks
        The blocks that have such tensors, where the rule lists others.
    """

    rule: Rule
    n_blocks: int
    is_searched: bool
    in_blocks: str

    says = "the rule matches no tensor of the model"

    def help(self, fix: Fix | None) -> str:
        pattern = self.rule.pattern
        if "=" in pattern:
            return "write one rule a line: the last `=` of a line parts the pattern from the type"
        if fix is not None and fix.edits[0].length is not None:
            return f"write `{fix.edits[0].text}`"
        if any(word in pattern and word not in words_of_gguf() for word in _HUB_WORDS):
            return "these are Hugging Face's names; a recipe speaks GGUF's, such as `blk.7.attn_q.weight`"
        if self.in_blocks:
            return f"the model has such tensors in {self.in_blocks}; correct the rule or delete it"
        if self.n_blocks and re.search(r"blk\\?\.", pattern):
            return f"the model has blocks 0 to {self.n_blocks - 1}; correct the rule or delete it"
        return "compare it with the names that `ggplan inspect` lists, or delete it"

    def fix(self, case: Case, trials: Trials) -> Fix | None:
        if split := _split(self.rule):
            return split
        near = _nearby(self.rule, case) if self.is_searched else ()
        fixes = [fix for pattern in near if (fix := rewritten(self.rule, pattern, safe=False))]
        alive = [fix for fix in fixes if (tried := trials.tried([fix])) and _decides(tried, self.rule)]
        if not alive and self.is_searched and _lists_only_missing(self.rule, case):
            return None  # nothing tells which block was meant
        return trials.best(alive) or deleted(self.rule, safe=False)


def check(case: Case) -> Iterator[DeadRule]:
    dead = [rule for i, rule in case.rules() if not case.members[i] and rule.roles != ("nextn",)]
    for n, rule in enumerate(dead):
        is_searched = n < _MOST_SEARCHED
        found = _blocks_with(rule, case) if is_searched else set()
        yield DeadRule(rule.location, rule, case.blocks.count, is_searched, _in_words(found))


def _blocks_with(rule: Rule, case: Case) -> set[int]:
    """The blocks that have tensors like those of a rule which lists other blocks."""
    place = block_list(rule)
    listed = _listed(rule, case)
    if place is None or not listed or min(listed) >= case.blocks.count:
        return set()
    search = re2.compile(_in_any_block(rule, place).regex(case.blocks.count)).search
    return blocks_of(case, (t for t, info in enumerate(case.tensors) if search(info.name)))


def _in_words(blocks: set[int]) -> str:
    """`block 0`, `blocks 1 to 46`, or "" for none."""
    if not blocks:
        return ""
    low, high = min(blocks), max(blocks)
    if low == high:
        return f"block {low}"
    some = "" if len(blocks) == high - low + 1 else "some of "
    return f"{some}blocks {low} to {high}"


def _decides(case: Case, rule: Rule) -> bool:
    """Whether the rule that now stands on the line decides a tensor."""
    return any(
        case.decided[i] for i, r in enumerate(case.recipe.rules) if (r.file, r.line) == (rule.file, rule.line)
    )


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


def _nearby(rule: Rule, case: Case) -> Iterator[str]:
    """Patterns like this one with a word that the model's names hold."""
    pattern = rule.pattern
    yield from _other_blocks(rule, case)
    for wrong, right in _SLIPS:
        if (mended := re.sub(wrong, right, pattern)) != pattern:
            yield mended
    names = " ".join(sorted({f".{kind_of(t.name)}" for t in case.tensors}))
    words = sorted(set(re.findall(r"[a-z0-9_]+", names)) | {"blk", "weight", "bias"})
    parts = sorted({p for w in words for p in (w, *w.split("_"))})
    for found in _WORD.finditer(re.sub(r"\\[a-z]", "  ", pattern)):
        word = found[0]
        # Beside an escaped dot a word must be whole: `ffn_down_exp` may go on, `ffn_down_exp\.` is a slip.
        left = "." if pattern.endswith("\\.", 0, found.start()) else ""
        right = "." if pattern.startswith("\\.", found.end()) else ""
        if left + word + right in names or word in words_of_gguf() or word in ("blk", "first", "last"):
            continue
        if word in _HUB_WORDS:
            yield pattern[: found.start()] + _HUB_WORDS[word] + pattern[found.end() :]
        near = difflib.get_close_matches(word.lower(), words, n=2, cutoff=0.7)
        for instead in near + difflib.get_close_matches(word.lower(), parts, n=1, cutoff=0.7):
            yield pattern[: found.start()] + instead + pattern[found.end() :]
    if pattern.endswith("$") and "weight" not in pattern:
        yield pattern[:-1] + r"\.weight$"
    if pattern.lower() != pattern and not re.search(r"\\[DSWB]", pattern):
        yield pattern.lower()


def _other_blocks(rule: Rule, case: Case) -> Iterator[str]:
    """The pattern for the blocks that have such a tensor and no rule for it, if they are no more than it
    lists: a rule for one block was not meant for all.
    """
    place = block_list(rule)
    if place is None:
        return
    before, after = rule.pattern[: place[0]], rule.pattern[place[1] :]
    search = re2.compile(_in_any_block(rule, place).regex(case.blocks.count)).search
    free = [t for t, d in enumerate(case.fitted) if d.decision.rule is None and search(d.tensor.name)]
    numbers = blocks_of(case, free)
    if numbers and len(numbers) <= len(_listed(rule, case)):
        yield before + blocks_text(numbers, rule.pattern[place[0] : place[1]]) + after


def _in_any_block(rule: Rule, place: tuple[int, int]) -> Rule:
    """The rule with any block number in place of those it lists."""
    return replace(rule, pattern=rf"{rule.pattern[: place[0]]}\d+{rule.pattern[place[1] :]}")


def _listed(rule: Rule, case: Case) -> frozenset[int]:
    """The block numbers that a pattern lists, whether the model has them or not."""
    if (place := block_list(rule)) is None:
        return frozenset()
    numbers = replace(rule, pattern=f"^(?:{rule.pattern[place[0] : place[1]]})$", whole=False)
    return _numbers(numbers.regex(case.blocks.count))


@lru_cache(maxsize=64)
def _numbers(pattern: str) -> frozenset[int]:
    try:
        search = re2.compile(pattern, re2_options(PATTERN_MEMORY)).search
    except re2.error:  # `{0}` is a repetition, and repeats nothing here
        return frozenset()
    return frozenset(number for number in range(_HIGHEST_BLOCK + 1) if search(str(number)))


def _lists_only_missing(rule: Rule, case: Case) -> bool:
    """Whether a pattern lists blocks, and none that the model has."""
    listed = _listed(rule, case)
    return bool(listed) and min(listed) >= case.blocks.count


GP101 = LintRule("GP101", "warning", check, yields_to=("GP111", "GP209"), shows_cost=True)
