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
from collections.abc import Sequence
from dataclasses import dataclass

from ggplan.dialects.llama_quantize import commands_of, flat_rules, one_of, plain_notes, recipe_text
from ggplan.dialects.quantize_command import Command
from ggplan.dialects.source import MAX_RULES, Imported, ImportedRule, Source, with_dots
from ggplan.model import Model
from ggplan.planning import Assignment
from ggplan.rules import Recipe

BLOCK = re.compile(
    r"^[ \t>]*(?:export[ \t]+|local[ \t]+)?"
    r"(?P<name>\w{0,64}custom\w{0,64}|CUSTOM\w{0,64})=(?P<quote>[\"'])(?P<body>)",
    re.M,
)
_MAX_BLOCKS = 100
_EXPANSION = re.compile(r"\$(\{|\(|[A-Za-z_])|`")


@dataclass(frozen=True, slots=True)
class _Block:
    line: int
    body: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _List:
    """A list of rules, and the command that uses it; without a block the rules stand in the command."""

    block: _Block | None
    command: Command

    @property
    def line(self) -> int:
        return self.block.line if self.block is not None else self.command.line

    def meaning(self) -> object:
        return (self.block.body if self.block is not None else "", self.command.meaning())


def import_(source: Source, name: str, model: Model | None, block: int | None = None) -> Imported:
    """A script or model card with `custom="..."`, a command line with `--custom-q`, or the bare list."""
    blocks, commands = _blocks(source), commands_of(source)
    foreign = next((c for c in commands if c.of == "llama.cpp"), None)
    if foreign is not None:
        raise source.fault(foreign.line, "this is a command line of llama.cpp's llama-quantize",
                           "read it with --dialect llama-quantize")  # fmt: skip
    lists, others = _lists(blocks, commands)
    if not lists:
        what = "a list of ik_llama.cpp's --custom-q"
        body = _entries(source, source.text, 1)
        command = one_of(source, [Command()], block, lambda _: 1, id)
    else:
        chosen = one_of(source, lists, block, lambda c: c.line, _List.meaning)
        command = chosen.command
        if chosen.block is not None:
            what = "rules for ik_llama.cpp's --custom-q"
            body = _entries(source, chosen.block.body, chosen.block.line)
        else:
            what = "a command line of ik_llama.cpp's llama-quantize"
            body = []
        body += [e for text, line in command.custom for e in _entries(source, text, line)]
        if command.has_variable and chosen.block is None:
            message = "the rules of --custom-q stand in a variable of the shell that is not set here"
            raise source.fault(command.line, message, 'a list is `custom="PATTERN=TYPE,..."`')
    command.of = "ik_llama.cpp"
    if not lists and not any(isinstance(entry, ImportedRule) for entry in body):
        raise source.fault(0, "there are no rules `PATTERN=TYPE,PATTERN=TYPE`")
    notes = [*command.notes, *plain_notes(others)]
    text, notes = recipe_text(source, name, what, command, body, model, notes, ["@target ik_llama.cpp"])
    return Imported("ik_llama.cpp", text, tuple(notes))


def _lists(blocks: Sequence[_Block], commands: Sequence[Command]) -> tuple[list[_List], list[Command]]:
    """The lists of rules of a text, in its order, and the commands that belong to none.

    A block is used by the commands behind it that name a variable, up to the next block.
    """
    found: list[_List] = []
    left = list(commands)
    for at, block in enumerate(blocks):
        end = blocks[at + 1].start if at + 1 < len(blocks) else None
        users = [c for c in left if c.has_variable and c.start > block.end and (end is None or c.start < end)]
        found += [_List(block, command) for command in users or [Command(line=block.line)]]
        left = [c for c in left if c not in users]
    found += [_List(None, command) for command in left if command.chooses]
    others = [c for c in left if not c.chooses]
    if not found:
        return [_List(None, command) for command in others], []
    return sorted(found, key=lambda one: one.line), others


def _blocks(source: Source) -> list[_Block]:
    """The quoted texts of `custom=` as bash reads them; assignments of `$(...)` are left out."""
    found, at, line, counted = [], 0, 1, 0
    while block := BLOCK.search(source.text, at):
        quote, start = block["quote"], block.end()
        end = start
        while end < len(source.text) and source.text[end] != quote:
            end += 2 if quote == '"' and source.text[end] == "\\" else 1
        line += source.text.count("\n", counted, start)
        counted = start
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
        found.append(_Block(line, body, block.start(), at))
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
                    with_dots(source.pattern(pattern, number)),
                    source.type(type_, number),
                    number,
                    comment.strip(),
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
