r"""Patterns that reach further than they look: words cut in the middle, dots, digits in brackets, capitals.

A pattern is searched for anywhere in a name, so `ffn_gate` is found in `ffn_gate.weight`, in
`ffn_gate_exps.weight` and in the router, `ffn_gate_inp.weight`. That may be meant; it is a slip where the
pattern holds a whole word of GGUF, the word goes on in some of the names, and these have other roles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import re2

from ggplan.checking.case import Case
from ggplan.checking.wording import at_rule, join, kinds, rewritten, some
from ggplan.checking.workspace import Workspace
from ggplan.rules import Diagnostic, Rule
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


def about_crossing(case: Case, space: Workspace) -> Iterator[Diagnostic]:
    """GP105: patterns that cut a word and so match tensors of several roles."""
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
        cut_roles = {_role(case, t) for t in cuts}
        if not cuts or (len(cut_roles | (roles.keys() - cut_roles)) < 2):
            continue
        told = [f"{role} ({some(case, members)})" for role, members in roles.items()]
        message = f"the pattern reaches {len(roles)} roles: {join(told)}"
        fixes = [
            fix for pattern in _narrower(rule, case, i, cuts) if (fix := rewritten(rule, pattern, safe=False))
        ]
        fix = space.best(fixes)
        help = (
            f"write `{fix.edits[0].text}`"
            if fix
            else "end the word with `\\.`, or begin it with `^` or `\\.`"
        )
        yield at_rule("GP105", "warning", rule, message, help, fix)


def whole_word_pattern(rule: Rule, case: Case, index: int) -> str | None:
    """The rule's pattern anchored to whole words, where it cuts one; else None."""
    if rule.roles or rule.expanded:
        return None
    first = [members[0] for members in kinds(case, case.members[index]).values()]
    cuts = _cuts(rule, case, first)
    return next(_narrower(rule, case, index, cuts), None) if cuts else None


def about_dots(case: Case) -> Iterator[Diagnostic]:
    r"""GP106: dots that stand for any character where only a dot is meant."""
    searches = 0
    for i, rule in case.rules():
        if rule.roles or rule.expanded or not case.members[i]:
            continue
        places = _bare_dots(rule.pattern)
        searches += len(case.tensors) if places else 0
        if not places or searches > _SEARCHES:
            continue
        escaped = "".join(f"\\{c}" if at in places else c for at, c in enumerate(rule.pattern))
        members = _matching(escaped, rule, case)
        if not members:
            continue
        n_now, n_then = len(case.members[i]), len(members)
        same = n_now == n_then
        message = "`.` stands for any character"
        if not same:
            message += f": the pattern matches {n_now:,} tensors, with `\\.` {n_then:,}"
        fix = rewritten(rule, escaped, safe=same)
        found = at_rule("GP106", "warning", rule, message, f"write `{escaped}`", fix)
        at = rule.column + min(places)
        yield replace(found, column=at, length=1)


def about_digits(case: Case, space: Workspace) -> Iterator[Diagnostic]:
    r"""GP111: `[12]` as a whole block number is 1 or 2, and `{1,3}` behind a dot repeats the dot."""
    for _, rule in case.rules():
        if rule.roles or rule.expanded:
            continue
        pieces = list(tokens(rule.pattern))
        for n, (kind, text, start) in enumerate(pieces):
            before = pieces[n - 1][1] if n else ""
            after = pieces[n + 1][1] if n + 1 < len(pieces) else ""
            stop = start + len(text)
            if kind == "set" and re.fullmatch(r"\[\d\d\d?\]", text) and _is_block(pieces, n, after):
                digits = text[1:-1]
                if int(digits) >= case.blocks.count:
                    continue
                meant, one_by_one = digits, f"({'|'.join(sorted(set(digits)))})"
                message = f"`{text}` is one digit, {join_or(sorted(set(digits)))}, not the block {digits}"
            elif kind == "set" and (ends := _written_range(text)) and _is_block(pieces, n, after):
                low, high = ends
                meant = one_by_one = f"{{{low}..{high}}}"
                message = f"`{text}` is one digit; it is not the blocks {low} to {high}"
            elif kind == "repeat" and text[0] == "{" and before in (r"\.", "."):
                numbers = [n for n in text[1:-1].split(",") if n]
                meant = one_by_one = numbers[0] if len(numbers) == 1 else f"({'|'.join(numbers)})"
                message = f"`{text}` repeats the dot before it; it is no block number"
            else:
                continue
            fixes = [
                fix
                for new in dict.fromkeys((meant, one_by_one))
                if (fix := rewritten(rule, rule.pattern[:start] + new + rule.pattern[stop:], safe=False))
            ]
            help = f"write `{meant}`" + (
                "" if meant == one_by_one else f", or `{one_by_one}` for these digits"
            )
            fix = space.best(fixes)
            found = at_rule("GP111", "warning", rule, message, help, fix)
            yield replace(found, column=rule.column + start, length=len(text))


def about_lowering(case: Case) -> Iterator[Diagnostic]:
    r"""GP110: what llama-quantize's lower-casing of patterns changes: `\D`, `\S`, `\W` and capitals."""
    if case.recipe.target == "ik_llama.cpp":
        return
    instead = {r"\D": "[^0-9]", r"\S": "[^ ]", r"\W": "[^a-z0-9_]"}
    for _, rule in case.rules():
        if rule.roles or rule.expanded:
            continue
        pieces = list(tokens(rule.pattern))
        hit = next((p for p in pieces if p[1] in (*instead, r"\B")), None)
        if hit is None:
            continue
        text = "".join(instead.get(p[1], p[1]) for p in pieces)
        message = f"llama-quantize lower-cases patterns: `{hit[1]}` becomes `{hit[1].lower()}`"
        fix = rewritten(rule, text, safe=True) if text != rule.pattern else None
        help = f"write `{text}`" if fix else "leave it out"
        found = at_rule("GP110", "warning", rule, message, help, fix)
        yield replace(found, column=rule.column + hit[2], length=len(hit[1]))


def join_or(words: list[str]) -> str:
    """`1 or 2`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


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


def _narrower(rule: Rule, case: Case, index: int, cuts: dict[int, tuple[bool, bool]]) -> Iterator[str]:
    """Patterns that name whole words: with the tails it reaches but the router's, or without any."""
    pattern = rule.pattern
    if any(kind == "anchor" and text == "|" for kind, text, _ in _top_level(pattern)):
        pattern = f"(?:{pattern})"
    if any(left for left, _ in cuts.values()):
        whole = [t for t in case.members[index] if t not in cuts and not _is_cut(rule, case, t)]
        at_start = any(re2.compile(rule.regex(case.blocks.count)).search(case.tensors[t].name).start() == 0
                       for t in whole[:1])  # fmt: skip
        end = "$" if pattern.endswith(("weight", "bias")) else ""
        yield f"^{pattern}{end}" if at_start else rf"\.{pattern}{end}"
        return
    search = re2.compile(rule.regex(case.blocks.count)).search
    tails: dict[str, None] = {}
    for members in kinds(case, case.members[index]).values():
        name = case.tensors[members[0]].name
        if _role(case, members[0]) in ("router", "norm"):
            continue
        tail = re.match(r"\w*", name[search(name).end() :])
        tails[tail[0] if tail else ""] = None
    named = [tail for tail in tails if tail]
    if named:
        group = (
            f"({'|'.join(named)})" + ("?" if "" in tails else "")
            if len(named) > 1 or "" in tails
            else named[0]
        )
        yield rf"{pattern}{group}\."
    if "" in tails:
        yield rf"{pattern}\."


def _is_cut(rule: Rule, case: Case, index: int) -> bool:
    return bool(_cuts(rule, case, [index]))


def _top_level(pattern: str) -> Iterator[tuple[str, str, int]]:
    depth = 0
    for kind, text, start in tokens(pattern):
        depth += (kind == "group") - (kind == "group_end")
        if depth == 0:
            yield kind, text, start


def _bare_dots(pattern: str) -> frozenset[int]:
    """Where a dot stands for one character: not escaped, not in a set, not repeated."""
    pieces = list(tokens(pattern))
    return frozenset(
        start
        for n, (kind, text, start) in enumerate(pieces)
        if kind == "character" and text == "." and (n + 1 == len(pieces) or pieces[n + 1][0] != "repeat")
    )


def _matching(pattern: str, rule: Rule, case: Case) -> frozenset[int]:
    search = re2.compile(replace(rule, pattern=pattern).regex(case.blocks.count)).search
    return frozenset(i for i, t in enumerate(case.tensors) if search(t.name.encode("utf-8", "surrogatepass")))


def _written_range(text: str) -> tuple[int, int] | None:
    """The numbers of a set like `[0-46]`, which is the digits 0 to 4 and 6."""
    found = re.fullmatch(r"\[(\d{1,4})-(\d{1,4})\]", text)
    if not found or len(found[0]) == len("[0-9]") or int(found[1]) >= int(found[2]):
        return None
    return int(found[1]), int(found[2])


def _is_block(pieces: list[tuple[str, str, int]], at: int, after: str) -> bool:
    r"""Whether the piece is a whole block number, between `blk\.` (or `(`, `|`) and `\.` (or `)`, `|`)."""
    before = "".join(text for _, text, _ in pieces[:at])
    return bool(re.search(r"blk\\?\.(\([^()]*[|(])?\(?$|blk\\?\.\($", before)) and after in (
        r"\.",
        ".",
        ")",
        "|",
    )
