r"""A pattern that cuts a word and so reaches tensors of several roles.

A pattern is searched for anywhere in a name, so `ffn_gate` is found in `ffn_gate.weight`, in
`ffn_gate_exps.weight` and in the router, `ffn_gate_inp.weight`. That may be meant; it is a slip where the
pattern holds a whole word of GGUF, the word goes on in some of the names, and these have other roles.

GP105: a pattern reaches several roles
    It ends or begins inside a word, and the names it is found in have different uses: `ffn_gate` is in
    the dense gate, in the experts' gate and in the router. Write whole words.
    - ffn_gate = q4_K
    + ffn_gate(_exps|_shexp)?\. = q4_K
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import re2

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.trials import Trials
from ggplan.linting.wording import join, kinds, rewritten, some
from ggplan.rules import Fix, Rule
from ggplan.rules.patterns import tokens

_WORDS = frozenset(
    f"{stem}{part}"
    for stem, parts in (
        ("ffn_", ("gate", "up", "down", "norm")),
        ("attn_", ("q", "k", "v", "output", "qkv", "norm", "q_a", "q_b", "kv_b", "k_b", "v_b")),
        ("", ("output", "token_embd")),
    )
    for part in parts
)
_SEARCHES = 100_000  # names searched, all rules together; a recipe of a stranger may hold ten thousand rules


class SeveralRoles(Finding):
    """A rule, and the roles it reaches with their tensors in words."""

    index: int
    rule: Rule
    roles: tuple[str, ...]

    @property
    def message(self) -> str:
        return f"the pattern reaches {len(self.roles)} roles: {join(self.roles)}"

    def help(self, fix: Fix | None) -> str:
        if fix is None:
            return "end the word with `\\.`, or begin it with `^` or `\\.`"
        return f"write `{fix.edits[0].text}`"

    def fix(self, case: Case, trials: Trials) -> Fix | None:
        patterns = _narrower(self.rule, case, self.index)
        return trials.best([fix for p in patterns if (fix := rewritten(self.rule, p, safe=False))])


def check(case: Case) -> Iterator[SeveralRoles]:
    searches = 0
    for i, rule in case.rules():
        if rule.roles or rule.whole:
            continue
        groups = kinds(case, case.members[i])
        searches += len(groups)
        if searches > _SEARCHES:
            return
        roles: dict[str, list[int]] = {}
        for members in groups.values():
            roles.setdefault(_role(case, members[0]), []).extend(members)
        roles.pop("norm", None)
        if len(roles) < 2:
            continue
        cuts = _cuts(rule, case, [members[0] for members in groups.values()])
        if cuts:
            told = tuple(f"{role} ({some(case, members)})" for role, members in roles.items())
            yield SeveralRoles(rule.location, i, rule, told)


def whole_word_pattern(rule: Rule, case: Case, index: int) -> str | None:
    """The rule's pattern narrowed to whole words, where it cuts one; else None."""
    return None if rule.roles or rule.expanded else next(_narrower(rule, case, index), None)


def _role(case: Case, index: int) -> str:
    roles = case.roles(index)
    return roles[1] if len(roles) > 1 and roles[0] == "nextn" else roles[0] if roles else "other"


def _cuts(rule: Rule, case: Case, examples: list[int]) -> dict[int, tuple[bool, bool]]:
    """The examples in which the match ends inside a word: on the left, on the right."""
    pattern = re2.compile(rule.regex(case.blocks.count))
    found: dict[int, tuple[bool, bool]] = {}
    for t in examples:
        name = case.tensors[t].name
        hit = pattern.search(name)
        if hit is None or not name.isascii():
            continue
        start, stop = hit.span()
        left = bool(re.search(r"\w$", name[:start]) and re.match(r"\w", name[start:stop]))
        right = bool(re.match(r"\w", name[stop:]) and re.search(r"\w$", name[start:stop]))
        head, tail = re.match(r"\w*", name[start:stop]), re.search(r"\w*$", name[start:stop])
        left = left and head is not None and head[0] in _WORDS
        right = right and tail is not None and tail[0] in _WORDS
        if left or right:
            found[t] = (left, right)
    return found


def _narrower(rule: Rule, case: Case, index: int) -> Iterator[str]:
    """Patterns that name whole words: with the tails it reaches but the router's, or without any."""
    groups = kinds(case, case.members[index])
    cuts = _cuts(rule, case, [members[0] for members in groups.values()])
    if not cuts:
        return
    pattern = rule.pattern
    if any(kind == "anchor" and text == "|" for kind, text, _ in _top_level(pattern)):
        pattern = f"(?:{pattern})"
    search = re2.compile(rule.regex(case.blocks.count)).search
    if any(left for left, _ in cuts.values()):
        whole = next((t for t in case.members[index] if t not in cuts and not _cuts(rule, case, [t])), None)
        at_start = whole is not None and search(case.tensors[whole].name).start() == 0
        end = "$" if pattern.endswith(("weight", "bias")) else ""
        yield f"^{pattern}{end}" if at_start else rf"\.{pattern}{end}"
        return
    tails: dict[str, None] = {}
    for members in groups.values():
        name = case.tensors[members[0]].name
        if _role(case, members[0]) in ("router", "norm"):
            continue
        tail = re.match(r"\w*", name[search(name).end() :])
        tails[tail[0] if tail else ""] = None
    if named := [tail for tail in tails if tail]:
        group = named[0] if len(tails) == 1 else f"({'|'.join(named)})" + ("?" if "" in tails else "")
        yield rf"{pattern}{group}\."
    if "" in tails:
        yield rf"{pattern}\."


def _top_level(pattern: str) -> Iterator[tuple[str, str, int]]:
    depth = 0
    for kind, text, start in tokens(pattern):
        depth += (kind == "group") - (kind == "group_end")
        if depth == 0:
            yield kind, text, start


GP105 = LintRule(
    "GP105",
    "warning",
    check,
    yields_to=("GP101", "GP102", "GP104", "GP111"),
    reads_patterns=True,
    shows_cost=True,
)
