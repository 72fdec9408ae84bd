r"""ik_llama.cpp's dialect: `--custom-q "PATTERN=TYPE,PATTERN=TYPE"`, and the bash idiom around it.

The list is split at commas and each rule at `=`, so a pattern can hold neither. A pattern is searched for,
case-sensitive; the first that matches decides. In scripts and model cards such lists are written on several
lines:

    custom="
    # attention
    blk\..*\.attn_q.*=q8_0
    "
    custom=$(echo "$custom" | grep -v '^#' | sed -Ez 's:\n+:,:g;s:,$::;s:^,::')
    llama-quantize --custom-q "$custom" IN.gguf OUT.gguf IQ4_K

Comments are kept as comments, and the command after the block gives the type of all other tensors. Nothing is
executed: a block that needs another variable of the shell is an error.

ik_llama.cpp 8337e4c: `examples/quantize/quantize.cpp`, `src/llama-quantize.cpp`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ggplan.dialects.llama_quantize import Command, flat_rules, protected_notes, read_command, rest_of
from ggplan.dialects.source import MAX_RULES, Imported, ImportedRule, Source, imported_text, rules_text
from ggplan.model import Model
from ggplan.planning import Assignment
from ggplan.rules import Recipe

BLOCK = re.compile(
    r"^[ \t>]*(?:export[ \t]+|local[ \t]+)?(?P<name>\w*custom\w*|CUSTOM\w*)=(?P<quote>[\"'])(?P<body>)", re.M
)
_MAX_BLOCKS = 100
_EXPANSION = re.compile(r"\$(\{|\(|[A-Za-z_])|`")


@dataclass(frozen=True, slots=True)
class _Block:
    line: int
    body: str
    end: int


def import_(source: Source, name: str, model: Model | None, block: int | None = None) -> Imported:
    """A script or model card with `custom="..."`, a command line with `--custom-q`, or the bare list."""
    blocks = _blocks(source)
    if len(blocks) > 1 and block is None:
        places = ", ".join(str(b.line) for b in blocks)
        raise source.fault(blocks[1].line, f"there are {len(blocks)} lists of rules, in lines {places}",
                           f"choose one with --block 1 to {len(blocks)}")  # fmt: skip
    if block is not None and not 1 <= block <= max(1, len(blocks)):
        raise source.fault(0, f"there is no list {block}; there are {len(blocks)}")
    if blocks:
        chosen = blocks[(block or 1) - 1]
        following = [b.end for b in blocks if b.end > chosen.end]
        head = Source(source.text[: following[0]] if following else source.text, source.file)
        command = read_command(head, chosen.end) or Command()
        body: list[ImportedRule | str] = list(_entries(source, chosen.body, chosen.line))
        what = "rules for ik_llama.cpp's --custom-q"
    else:
        command = read_command(source, 0) or Command()
        body = [e for text, line in command.custom for e in _entries(source, text, line)]
        what = "a command line of ik_llama.cpp's llama-quantize"
        if not command.custom:
            body, what = list(_entries(source, source.text, 1)), "a list of ik_llama.cpp's --custom-q"
    entries = [e for e in body if isinstance(e, ImportedRule)]
    if not entries:
        raise source.fault(0, "there are no rules `PATTERN=TYPE,PATTERN=TYPE`")
    rest, notes = rest_of(source, command, model)
    notes = [*command.notes, *notes, *protected_notes(entries)]
    laid_out = iter(rules_text(entries))
    lines = [next(laid_out) if isinstance(part, ImportedRule) else part for part in body]
    lines = [*rules_text(command.flags), *lines, *rest]
    text = imported_text(source, what, name, lines, notes, ["@target ik_llama.cpp"])
    return Imported("ik_llama.cpp", text, tuple(notes))


def _blocks(source: Source) -> list[_Block]:
    """The quoted texts of `custom=` as bash reads them; assignments of `$(...)` are left out."""
    found, at = [], 0
    while block := BLOCK.search(source.text, at):
        quote, start = block["quote"], block.end()
        end = start
        while end < len(source.text) and source.text[end] != quote:
            end += 2 if quote == '"' and source.text[end] == "\\" else 1
        line = source.text.count("\n", 0, start) + 1
        if end >= len(source.text):
            raise source.fault(line, f"`{block['name']}={quote}` is never closed")
        body = source.text[start:end]
        at = end + 1
        if "=" not in body:
            continue
        if quote == '"':
            for offset, text in enumerate(body.split("\n")):
                if not text.lstrip().startswith("#") and (
                    expansion := _EXPANSION.search(re.sub(r"\\.", "..", text))
                ):
                    message = (
                        f"`{text[expansion.start() : expansion.start() + 20]}` is filled in by the shell"
                    )
                    raise source.fault(line + offset, message, "put in its place what the shell would")
            body = re.sub(r'\\([$`"\\\n])', r"\1", body)
        found.append(_Block(line, body, at))
        if len(found) > _MAX_BLOCKS:
            raise source.fault(line, f"there are more than {_MAX_BLOCKS} lists of rules")
    return found


def _entries(source: Source, text: str, first: int) -> list[ImportedRule | str]:
    """Rules, and comment lines as they are; blank lines between them stay."""
    found: list[ImportedRule | str] = []
    for number, whole in enumerate(text.split("\n"), first):
        line, hash_, comment = whole.partition("#")
        if not line.strip():
            if hash_ and comment.strip("# \t"):
                found.append(f"# {' '.join(comment.strip('# ').split())}")
            elif not whole.strip() and found and found[-1] != "":
                found.append("")
            continue
        for rule in (part.strip() for part in line.split(",")):
            if not rule:
                continue
            pattern, equals, type_ = (piece.strip() for piece in rule.rpartition("="))
            if "(?" in pattern:
                source.pattern(pattern, number)  # look-around
            if not (pattern and equals and type_) or "=" in pattern:
                raise source.fault(number, f"`{rule[:80]}` is not a rule `PATTERN=TYPE`")
            found.append(
                ImportedRule(
                    source.pattern(pattern, number), source.type(type_, number), number, comment.strip()
                )
            )
        if len(found) > MAX_RULES:
            raise source.fault(number, f"a recipe may hold {MAX_RULES:,} rules")
    while found and found[-1] == "":
        found.pop()
    return found


def export(recipe: Recipe | Assignment, model: Model) -> tuple[str, list[str]]:
    """The bash idiom, and notes about it."""
    rules = flat_rules(recipe, model, "ik_llama.cpp", "ik_llama.cpp")
    lines = "".join(f"{pattern}={type_.name}\n" for pattern, type_, _ in rules)
    text = (
        f"custom='\n{lines}'\n"
        "custom=$(echo \"$custom\" | grep -v '^#' | sed -Ez 's:\\n+:,:g;s:,$::;s:^,::')\n"
    )
    return text, [
        'use it as: llama-quantize --custom-q "$custom" IN.gguf OUT.gguf Q8_0 (no float type in its place)'
    ]
