"""The directives of a recipe: what stands behind each `@` word, and what is wrong with it.

    directive = "@recipe" "1" | "@name" TEXT | "@arch" NAME | "@base" RECIPE | "@target" ENGINE
              | "@order" ( "first" | "last" ) | "@match" ( "search" | "full" )
              | "@let" NAME "=" TEXT | "@include" FILE
              | "@default" choice | "@role" ROLE { "," ROLE } [ range ] "=" choice
              | "@assert" ( "bpw" | "size" ) [ "(" CLASS ")" ] COMPARISON VALUE
              | "@assert" ( "uncovered" | "fallbacks" ) COMPARISON NUMBER
              | "@assert" "type" "(" TENSOR ")" ( "==" | "!=" ) TYPE
              | "@assert" "fits" "(" conditions ")"
              | "@assert" "tokens_per_second" [ "(" conditions ")" ] ( "<=" | ">=" | "<" | ">" ) NUMBER
    conditions = WORD "=" VALUE { "," WORD "=" VALUE }      (`conditions.py` has the words)
              | "@test" TENSOR "->" TYPE

`READERS` is the one table of them. `@let`, `@include`, `@role`, `@assert` and `@test` may stand as often
as one likes, the others once; an included file may hold only those five, rules, and `@recipe 1`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import cast

from ggplan.ggml_types import GgmlType
from ggplan.rules.choices import parse_choice, parse_type_at
from ggplan.rules.draft import Draft, Mapped, deleting, replacing
from ggplan.rules.ranges import RangeError, parse_range
from ggplan.rules.recipe import Assertion, Comparison, Location, Quantity, Rule, TypeTest
from ggplan.rules.roles import ROLE_GROUPS, ROLES, expand_role

REPEATABLE = frozenset({"@let", "@include", "@role", "@assert", "@test"})
MAX_LINES_OF_A_KIND = 2_000  # assertions, tests, variables
CLASSES = (*ROLES, *ROLE_GROUPS, "gpu", "cpu")
"""What a size or bpw may be of."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_ASSERTION = re.compile(
    r"(?P<quantity>[a-z_]+)[ \t]*(\([ \t]*(?P<of>[^()]*?)[ \t]*\))?"
    r"[ \t]*(?P<op><=|>=|==|!=|<|>|=)?[ \t]*(?P<value>.*)",
    re.ASCII,
)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}  # fmt: skip
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)[ \t]*([A-Za-z]*)", re.ASCII)


def read_directive(draft: Draft, line: int, content: Mapped, comment: str) -> None:
    """Read a line whose first character is `@`."""
    word = re.split(r"[ \t]", content.text, maxsplit=1)[0]
    at = draft.span(line, content[: len(word)])
    read = READERS.get(word)
    if read is None:
        _unknown(draft, word, at)
        return
    if word not in REPEATABLE:
        if draft.stack and word != "@recipe":
            help = f"move it into {draft.stack[0]}"
            draft.error("GP011", f"`{word}` stands in an included file", at, help)
            return
        if not draft.stack:
            if before := draft.directives.get(word):
                fix = deleting(at.file, at.line, safe=False)
                message = f"`{word}` stands on line {before.line} already"
                draft.error("GP011", message, at, "keep one of them", fix)
                return
            draft.directives[word] = at
    read(draft, line, content[len(word) :].strip(), comment)


def _unknown(draft: Draft, word: str, at: Location) -> None:
    # `@default=q8_0`: the word ends where its letters do.
    letters = re.match(r"@[A-Za-z_-]*", word)
    name, rest = (letters[0], word[letters.end() :].lstrip("=:")) if letters else (word, "")
    near = difflib.get_close_matches(name.lower(), READERS, n=1) if len(name) < 40 else []
    known = ", ".join(f"`{known}`" for known in READERS)
    meant = f"{near[0]} {rest}".strip() if near else ""
    help = f"the nearest is `{near[0]}`" if near else f"the directives are {known}"
    if rest and near:
        help = f"write `{meant}`"
    fix = replacing(at, meant, safe=True) if near else None
    draft.error("GP006", f"unknown directive `{word[:40]}`", at, help, fix)


def _default(draft: Draft, line: int, text: Mapped, comment: str) -> None:
    draft.default = parse_choice(draft, line, text)


def _version(draft: Draft, line: int, text: Mapped, comment: str) -> None:
    if text.text != "1":
        at = draft.span(line, text)
        fix = replacing(at, "1", safe=False) if text.text else None
        draft.error("GP011", "this ggplan reads version 1 of the language", at, "write `@recipe 1`", fix)


def _name(draft: Draft, line: int, text: Mapped, comment: str) -> None:
    if not text.text:
        fix = deleting(draft.file, line, safe=False)
        at = draft.span(line, text)
        draft.error("GP011", "`@name` needs a name", at, "write one, such as `@name HQ4_K`", fix)
    draft.name = text.text


def _architecture(draft: Draft, line: int, text: Mapped, comment: str) -> None:
    if not re.fullmatch(r"[\w.-]+", text.text, re.ASCII):
        help = "write GGUF's `general.architecture`, such as `@arch glm4moe`"
        draft.error("GP011", "`@arch` needs the name of one architecture", draft.span(line, text), help)
    draft.architecture = text.text


def _base(draft: Draft, line: int, text: Mapped, comment: str) -> None:
    if not text.text:
        help = "write `@base glm4moe/hq4_k` or `@base other.recipe`"
        draft.error("GP011", "`@base` needs the recipe it inherits", draft.span(line, text), help)
        return
    draft.base, draft.base_at = text.text, draft.span(line, text)


def _one_of(word: str, *allowed: str) -> Callable[[Draft, int, Mapped, str], None]:
    def read(draft: Draft, line: int, text: Mapped, comment: str) -> None:
        if text.text in allowed:
            setattr(draft, word, text.text)
            return
        at = draft.span(line, text)
        near = difflib.get_close_matches(text.text[:40].lower(), allowed, n=1, cutoff=0.4)
        fix = replacing(at, near[0], safe=False) if near and text.text else None
        help = "write " + " or ".join(f"`@{word} {value}`" for value in allowed)
        draft.error("GP011", f"`@{word}` is " + " or ".join(f"`{a}`" for a in allowed), at, help, fix)

    return read


def _let(draft: Draft, line: int, text: Mapped, comment: str) -> None:
    name, equals, _ = text.text.partition("=")
    name_at = draft.span(line, text[: len(name)].strip())
    name = name.strip(" \t")
    if not equals or not _NAME.fullmatch(name):
        help = "write `@let NAME = text`; a name has letters, digits and `_`"
        draft.error("GP011", "`@let` needs a name, `=` and a text", name_at, help)
        return
    if name in draft.variables:
        fix = deleting(draft.file, line, safe=False)
        draft.error("GP011", f"`{name}` has a text already", name_at, "give this one another name", fix)
        return
    if len(draft.variables) >= MAX_LINES_OF_A_KIND:
        draft.stop(f"more than {MAX_LINES_OF_A_KIND:,} `@let`", name_at)
        return
    value = draft.expand(line, text[text.text.index("=") + 1 :].strip())
    draft.variables[name] = value.text if value else ""
    if not draft.stack:
        draft.unused[name] = name_at


def _role(draft: Draft, line: int, text: Mapped, comment: str) -> None:
    at_equals = text.text.rfind("=")
    if at_equals < 0:
        help = "write `@role attention = q8_0`"
        draft.error("GP001", "the rule has no `=`", draft.span(line, text), help)
        return
    left = text[:at_equals].strip()
    choice = parse_choice(draft, line, text[at_equals + 1 :])
    subject = draft.expand(line, left)
    if subject is None:
        return
    words, brace, _ = subject.text.partition("{")
    blocks = None
    if brace:
        try:
            if not subject.text.endswith("}"):
                raise RangeError("a range must be the last thing before `=`", 0, 1)
            blocks = parse_range(subject.text[len(words) + 1 : -1])
        except RangeError as error:
            at = draft.span(line, subject[len(words) :])
            instead = None
            if error.instead and error.instead.startswith("{"):
                instead = replacing(at, error.instead, safe=True)
            draft.error("GP015", error.message, at, error.help, instead)
            return
    roles: list[str] = []
    for piece in subject[: len(words)].split(","):
        word = piece.strip()
        found = expand_role(word.text)
        if found is None:
            _unknown_role(draft, line, word)
            return
        roles += [role for role in found if role not in roles]
    if choice is not None:
        column = left.span()[0] + 1
        rule = Rule(left.text, choice, draft.file, line, column, comment, roles=tuple(roles), blocks=blocks)
        draft.rules.append(rule)


def _unknown_role(draft: Draft, line: int, word: Mapped) -> None:
    known = (*ROLES, *ROLE_GROUPS)
    at = draft.span(line, word)
    near = difflib.get_close_matches(word.text[:40].lower(), known, n=1)
    if near:
        help, fix = f"the nearest is `{near[0]}`", replacing(at, near[0], safe=False)
    else:
        help, fix = "the roles are " + ", ".join(f"`{role}`" for role in known), None
    draft.error("GP016", f"unknown role `{word.text[:40]}`", at, help, fix)


def _test(draft: Draft, line: int, text: Mapped, comment: str) -> None:
    name, arrow, _ = text.text.partition("->")
    if not arrow or not name.strip(" \t"):
        help = "write `@test blk.7.ffn_down_exps.weight -> q8_0`"
        draft.error("GP011", "`@test` needs a tensor, `->` and a type", draft.span(line, text), help)
        return
    where = text[: len(name)].strip()
    right = text[len(name) + 2 :].strip()
    expected = parse_type_at(draft, line, right)
    if expected is not None and _room(draft, line, text, len(draft.tests)):
        draft.tests.append(TypeTest(where.text, expected, (draft.span(line, where), draft.span(line, right))))


def _assert(draft: Draft, line: int, text: Mapped, comment: str) -> None:
    found = _ASSERTION.fullmatch(text.text)
    at = draft.span(line, text)
    problem = "`@assert` needs what is measured, a comparison and a value"
    help = (
        "write `@assert bpw <= 5.6`, `size(experts) <= 90 GiB`, `uncovered == 0`, `type(NAME) == q8_0`, "
        "`fits(vram=24G, ram=110G)` or `tokens_per_second >= 8`"
    )
    if found is not None and found["quantity"] in ("fits", "tokens_per_second"):
        _assert_of_machine(draft, line, text, found)
        return
    if found is None or not found["op"] or not found["value"]:
        draft.error("GP011", problem, at, help)
        return
    quantity, of, op = found["quantity"], found["of"] or "", "==" if found["op"] == "=" else found["op"]
    value_at = text[found.start("value") : found.end("value")].strip()
    value = _value(draft, line, quantity, value_at)
    if value is None:
        return
    if quantity in ("bpw", "size") and of and of not in CLASSES:
        near = difflib.get_close_matches(of, CLASSES, n=1)
        span = draft.span(line, text[found.start("of") : found.end("of")])
        known = ", ".join(f"`{c}`" for c in CLASSES)
        fix = replacing(span, near[0], safe=False) if near else None
        draft.error("GP016", f"unknown class `{of[:40]}`", span,
                    f"the nearest is `{near[0]}`" if near else f"the classes are {known}", fix)  # fmt: skip
        return
    wrong_subject = (quantity == "type") != bool(of) and quantity not in ("bpw", "size")
    if wrong_subject or (quantity == "type" and op not in ("==", "!=")):
        draft.error("GP011", problem, at, help)
        return
    if _room(draft, line, text, len(draft.assertions)):
        draft.assertions.append(
            Assertion(cast(Quantity, quantity), of, cast(Comparison, op), value, text.text, at)
        )


def _assert_of_machine(draft: Draft, line: int, text: Mapped, found: re.Match[str]) -> None:
    """`fits(...)`, which is true or not, and `tokens_per_second(...)`, which is a number."""
    from ggplan.rules.conditions import FITS, SPEED, ConditionError, Conditions, parse_conditions

    quantity, at = found["quantity"], draft.span(line, text)
    is_speed = quantity == "tokens_per_second"
    if is_speed != bool(found["op"]) or bool(found["op"]) != bool(found["value"]):
        problem = "`tokens_per_second` needs a comparison and a number" if is_speed else "`fits` has no value"
        help = (
            "write `@assert tokens_per_second >= 8`"
            if is_speed
            else "write `@assert fits(vram=24G, ram=110G)`"
        )
        draft.error("GP011", problem, at, help)
        return
    conditions, value = Conditions(), 1.0
    if found["of"] is not None:
        of = text[found.start("of") : found.end("of")]
        try:
            conditions = parse_conditions(of.text, SPEED if is_speed else FITS)
        except ConditionError as error:
            start, end = error.span
            draft.error("GP011", error.message, draft.span(line, of[start:end]), error.help)
            return
    if not is_speed and not conditions.vram and conditions.ram is None:
        help = "write `@assert fits(vram=24G, ram=110G)`"
        draft.error("GP011", "`fits` needs the memory of a GPU, or RAM", at, help)
        return
    if is_speed:
        value_at = text[found.start("value") : found.end("value")].strip()
        number = _SIZE.fullmatch(value_at.text)
        if number is None or number[2] or found["op"] in ("=", "==", "!="):
            draft.error("GP011", "`tokens_per_second` is compared with a number by `>=`, `>`, `<=`, `<`",
                        at, "write `@assert tokens_per_second >= 8`")  # fmt: skip
            return
        value = float(number[1])
    if _room(draft, line, text, len(draft.assertions)):
        comparison = cast(Comparison, found["op"] or "==")
        draft.assertions.append(
            Assertion(cast(Quantity, quantity), str(conditions), comparison, value, text.text, at, conditions)
        )


def _value(draft: Draft, line: int, quantity: str, text: Mapped) -> float | GgmlType | None:
    """The right side of an assertion; None after an error."""
    at = draft.span(line, text)
    if quantity == "type":
        return parse_type_at(draft, line, text)
    if quantity not in ("bpw", "size", "uncovered", "fallbacks"):
        help = (
            "one can measure `bpw`, `size`, `uncovered`, `fallbacks`, `type(NAME)`, `fits(...)` and "
            "`tokens_per_second`"
        )
        draft.error("GP011", f"`@assert` cannot measure `{quantity[:40]}`", at, help)
        return None
    found = _SIZE.fullmatch(text.text)
    if found is None or (quantity == "size") != bool(found[2]):
        help = "write `90 GiB`" if quantity == "size" else "write a plain number"
        draft.error("GP011", f"`{text.text[:40]}` is no value of {quantity}", at, help)
        return None
    unit = 1
    if found[2]:
        units = {name.lower(): size for name, size in _UNITS.items()}
        if found[2].lower() not in units:
            draft.error("GP011", f"unknown unit `{found[2][:40]}`", at, "write GiB, MiB, GB or MB")
            return None
        unit = units[found[2].lower()]
    return float(found[1]) * unit


def _room(draft: Draft, line: int, text: Mapped, n_lines: int) -> bool:
    if n_lines >= MAX_LINES_OF_A_KIND:
        draft.stop(f"more than {MAX_LINES_OF_A_KIND:,} such lines", draft.span(line, text))
    return n_lines < MAX_LINES_OF_A_KIND


def _include(draft: Draft, line: int, text: Mapped, comment: str) -> None:
    if not text.text:
        help = "write `@include common/norms.recipe`"
        draft.error("GP011", "`@include` needs a file", draft.span(line, text), help)
        return
    draft.include(draft, text.text, draft.span(line, text))


# Each reads what stands behind its word: (draft, line number, text, comment).
READERS: dict[str, Callable[[Draft, int, Mapped, str], None]] = {
    "@default": _default,
    "@recipe": _version,
    "@name": _name,
    "@arch": _architecture,
    "@base": _base,
    "@order": _one_of("order", "first", "last"),
    "@match": _one_of("match", "search", "full"),
    "@target": _one_of("target", "llama.cpp", "ik_llama.cpp"),
    "@let": _let,
    "@include": _include,
    "@role": _role,
    "@assert": _assert,
    "@test": _test,
}
