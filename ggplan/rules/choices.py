"""The right side of a rule: a chain of types, `q6_K | q8_0` or `keep | q5_K`, perhaps forced with `!`."""

from __future__ import annotations

import re

from ggplan.errors import TypeNameError
from ggplan.ggml_types import TYPES, GgmlType
from ggplan.rules.diagnostics import Edit, Fix
from ggplan.rules.draft import Draft, Mapped, replacing
from ggplan.rules.recipe import Choice, Keep, Location, Wanted, parse_wanted

MAX_CHAIN = 16
_SYNONYMS = {
    "fp32": "f32", "float32": "f32", "float": "f32", "fp16": "f16", "float16": "f16", "half": "f16",
    "bfloat16": "bf16", "brain16": "bf16",
    "kept": "keep", "copy": "keep", "same": "keep", "source": "keep", "original": "keep", "as-is": "keep",
}  # fmt: skip
_BITS = re.compile(r"u?int(\d)|(\d)-?bits?", re.IGNORECASE)
_OF_BITS = {
    "8": ("q8_0",), "6": ("q6_K",), "5": ("q5_K", "q5_0"), "4": ("q4_K", "iq4_xs", "q4_0"),
    "3": ("q3_K", "iq3_s"), "2": ("q2_K", "iq2_xs"),
}  # fmt: skip
_SQUASHED_MIX = re.compile(r"(?:ud)?q(\d)k(?:xxs|xs|s|m|l|xl|xxl)")
LONGEST_TYPE = 40  # characters; more is not worth a search for the nearest name


def parse_choice(draft: Draft, line: int, written: Mapped) -> Choice | None:
    """A chain of types out of the text as written; None after an error."""
    expanded = draft.expand(line, written)
    if expanded is None:
        return None
    shown = written.strip().text
    text = expanded.strip()
    forced = text.text.endswith("!")
    chain = text[: len(text.text) - forced].strip()
    if not chain.text:
        at = draft.span(line, text)
        fix = Fix((Edit(at.file, at.line, at.column, 0, " q8_0"),), safe=False)
        draft.error("GP007", "the type is missing", at, "write one, such as `q8_0`", fix)
        return None
    pieces = [piece.strip() for piece in chain.split("|")]
    if len(pieces) > MAX_CHAIN:
        draft.error("GP009", f"a chain may hold {MAX_CHAIN} types", draft.span(line, chain))
        return None
    found = [(parse_wanted_at(draft, line, piece, chain), draft.span(line, piece)) for piece in pieces]
    types = tuple(type_ for type_, _ in found if type_ is not None)
    if len(types) < len(pieces):
        return None
    return Choice(types, forced, shown, tuple(location for _, location in found))


def parse_type_at(draft: Draft, line: int, name: Mapped) -> GgmlType | None:
    """The type of an assertion or a test; None after an error."""
    found = parse_wanted_at(draft, line, name)
    if isinstance(found, Keep):
        help = "write the type that is kept, such as `q4_0`"
        draft.error("GP002", f"`{found}` is not one type", draft.span(line, name), help)
        return None
    return found


def parse_wanted_at(draft: Draft, line: int, name: Mapped, chain: Mapped | None = None) -> Wanted | None:
    """One type or `keep` of a chain; None after an error."""
    at = draft.span(line, name)
    text = name.text
    if not text:
        help, fix = "write types between `|`: `q6_K | q8_0`", None
        if chain is not None:
            left = " | ".join(piece.strip().text for piece in chain.split("|") if piece.strip().text)
            fix = replacing(draft.span(line, chain), left, safe=True) if left else None
        draft.error("GP007", "a type is missing in the chain", at, help, fix)
    elif text.endswith("!"):
        message = f"`!` after `{text[:-1]}` is not at the end"
        fix = None
        if chain is not None:
            whole = " | ".join(p.strip().text.rstrip("!") for p in chain.split("|")) + "!"
            fix = replacing(draft.span(line, chain), whole, safe=True)
        draft.error("GP002", message, at, "`!` forces a whole chain: `q8_0 | f16!`", fix)
    elif len(text) > LONGEST_TYPE:
        draft.error("GP002", "unknown tensor type", at, "`ggplan types` lists all types")
    else:
        try:
            return parse_wanted(text)
        except TypeNameError as error:
            _bad_type(draft, text, error, at)
    return None


def _bad_type(draft: Draft, text: str, error: TypeNameError, at: Location) -> None:
    """An unknown type, and the one that is surely or probably meant."""
    names = [t.name for t in TYPES if not t.internal]
    same = [name for name in names if _letters(name) == _letters(text)]
    message, help = error.message, error.hint
    fix = replacing(at, error.meant, safe=False) if error.meant else None
    if (synonym := _SYNONYMS.get(text.lower())) is not None:
        same = [synonym]
    if len(same) == 1:
        help, fix = f"write `{same[0]}`", replacing(at, same[0], safe=True)
    elif (bits := _BITS.fullmatch(text)) and (near := _OF_BITS.get(bits[1] or bits[2])):
        help = f"ggml's types of about as many bits are {', '.join(f'`{name}`' for name in near)}"
        fix = replacing(at, near[0], safe=False)
    elif "_" not in text and (mix := _SQUASHED_MIX.fullmatch(_letters(text))):
        base = f"q{mix[1]}_K"
        message = f"`{text}` is a mix of several types, not a tensor type"
        help, fix = f"use `{base}` for every tensor of the rule", replacing(at, base, safe=False)
    draft.error("GP002", message, at, help, fix)


def _letters(name: str) -> str:
    """A type's name without what people get wrong: case, `_`, `-`, `.` between its parts, O for 0."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).replace("o", "0")
