r"""llama-quantize's dialect: `--tensor-type PATTERN=TYPE` on a command line, or in a `--tensor-type-file`.

A file holds rules separated by blanks and line ends, without comments or quotes. A rule is split at its first
`=`. The pattern is lower-cased, so that `\D` becomes `\d`, and searched for anywhere in the name; the first
that matches decides. Types may have any case. Norms, biases, vectors and the router are left as they are. All
rules are ignored where the type of the whole file is F32, F16 or BF16. `--output-tensor-type` and
`--token-embedding-type` are applied before the rules; for all other tensors the mix (`Q4_K_M`) decides.

llama.cpp b11434: `tools/quantize/quantize.cpp`, `src/llama-quant.cpp`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from ggplan.dialects.flatten import fitted_types, flatten
from ggplan.dialects.source import MAX_RULES, Imported, ImportedRule, Source, imported_text, rules_text
from ggplan.errors import PlanError, RecipeError, TypeNameError
from ggplan.ggml_types import Engine, GgmlType, parse_type
from ggplan.model import Model
from ggplan.planning import Assignment, mix_types, recipe_of
from ggplan.planning.protection import kept_type
from ggplan.rules import Recipe
from ggplan.stock import find_mix, is_mix
from ggplan.text import printable

_PROTECTED = re.compile(r"norm|bias|gate_inp")
_WITH_VALUE = re.compile(
    r"--(imatrix|(in|ex)clude-weights|override-kv|prune-layers|max-buffer-size|repack-pattern"
    r"|(attn|ffn)-[a-z-]+-type)"
)
_FLAGS = {"--output-tensor-type": r"^output\.weight$", "--token-embedding-type": r"^token_embd\.weight$"}


@dataclass(slots=True)
class Command:
    """The options of a llama-quantize command that choose types.

    Attributes
    ----------
    flags
        The rules of `--output-tensor-type` and `--token-embedding-type`.
    rules
        The rules of `--tensor-type` and `--custom-q`, each with its line.
    mix
        The type of the whole file, as written, or "".
    """

    flags: list[ImportedRule] = field(default_factory=list)
    rules: list[tuple[str, int]] = field(default_factory=list)
    custom: list[tuple[str, int]] = field(default_factory=list)
    mix: str = ""
    line: int = 0
    pure: bool = False
    notes: list[str] = field(default_factory=list)


def import_command_line(source: Source, name: str, model: Model | None) -> Imported:
    """Import a command line with `--tensor-type`, in a script or alone."""
    command = read_command(source, 0)
    if command is None:
        raise source.fault(
            0, "there is no command line of llama-quantize", "give a `--tensor-type-file` as it is"
        )
    entries = [_entry(source, text, line) for text, line in command.rules]
    return _written(source, name, "a command line of llama-quantize", command, entries, model)


def import_file(source: Source, name: str, model: Model | None) -> Imported:
    """Import a `--tensor-type-file`."""
    entries = []
    for number, line in enumerate(source.text.split("\n"), 1):
        for token in line.split():
            if token.startswith("#"):
                hint = "delete comments, or read them with `--dialect thireus`"
                raise source.fault(number, "llama-quantize knows no comments and stops here", hint)
            entries.append(_entry(source, token, number))
        if len(entries) > MAX_RULES:
            raise source.fault(number, f"a recipe may hold {MAX_RULES:,} rules")
    return _written(source, name, "a tensor-type file of llama-quantize", Command(), entries, model)


def _entry(source: Source, text: str, line: int) -> ImportedRule:
    pattern, equals, type_ = text.partition("=")
    if "(?" in text:
        source.pattern(text.rpartition("=")[0] or text, line)  # look-around
    if not (pattern and equals and type_):
        raise source.fault(line, f"`{text[:80]}` is not a rule `PATTERN=TYPE`")
    checked = source.pattern(pattern, line)  # a fault is shown with the text as written
    if checked != checked.lower():
        checked = source.pattern(checked.lower(), line)
    return ImportedRule(checked, source.type(type_, line), line)


def _written(
    source: Source,
    name: str,
    what: str,
    command: Command,
    entries: Sequence[ImportedRule],
    model: Model | None,
) -> Imported:
    notes = list(command.notes)
    if re.search(r"\\[DSWB]", source.text):
        notes.append(
            r"llama-quantize lower-cases patterns; `\D`, `\S`, `\W`, `\B` are written as it reads them"
        )
    rest, more = rest_of(source, command, model)
    notes += more + protected_notes(entries)
    body = [*rules_text([*command.flags, *entries]), *rest]
    if not entries and not command.flags and not rest:
        raise source.fault(0, "there are no rules")
    return Imported("llama-quantize", imported_text(source, what, name, body, notes), tuple(notes))


def protected_notes(entries: Sequence[ImportedRule]) -> list[str]:
    """Notes on rules that ggplan applies and llama-quantize ignores."""
    found = [
        e.pattern
        for e in entries
        if e.type.is_float and e.type.name != "f32" and _PROTECTED.search(e.pattern)
    ]
    if not found:
        return []
    return [f"llama-quantize leaves norms, biases and the router alone; here `{found[0]}` is applied"]


def rest_of(source: Source, command: Command, model: Model | None) -> tuple[list[str], list[str]]:
    """What the type of the whole file gives tensors that no rule matches: lines of a recipe, and notes."""
    if not command.mix:
        return [], []
    if not is_mix(command.mix):
        try:
            type_ = parse_type(command.mix)
        except TypeNameError:
            return [], [f"{command.mix} is unknown here; what no rule names keeps its type"]
        notes = []
        if type_.is_float:
            notes = [f"with {command.mix} for the whole file llama-quantize ignores its --tensor-type rules"]
        return ["", f"@default {type_.name}"], notes
    mix = find_mix(command.mix)
    if command.pure:
        return ["", f"@default {mix.type.name}"], []
    if model is None:
        note = f"{mix.name} depends on the model: -m MODEL writes it out, without one all is {mix.type.name}"
        return ["", f"@default {mix.type.name}"], [note]
    try:
        rest = recipe_of(model, mix_types(model, mix))
    except PlanError as error:
        raise source.fault(command.line, f"{mix.name} for this model: {error.message}", error.hint) from None
    lines = [
        line for line in rest.text.split("\n") if not line.startswith(("@recipe", "@name", "@arch", "# "))
    ]
    return ["", f"# {mix.name}, written out for this model", *[line for line in lines if line]], []


def read_command(source: Source, start: int, *, assignments: frozenset[str] = frozenset()) -> Command | None:
    """The first command of llama-quantize from character `start`, or None.

    A line that ends in a backslash continues. Shell variables in arguments are not expanded, but those named
    in `assignments` are allowed.
    """
    found = re.compile(r"llama-quantize\b|^[ \t]*--tensor-type\b|^[ \t]*--custom-q\b", re.M).search(
        source.text, start
    )
    while found is not None:
        words = _words(source, found.start())
        if any(word.startswith(("--tensor-type", "--custom-q")) for word, _ in words):
            return _parse_command(source, words, assignments)
        found = re.compile(r"llama-quantize\b").search(source.text, max(found.end(), start))
    return None


def _words(source: Source, start: int) -> list[tuple[str, int]]:
    """The words of the command that begins at `start`, each with its line."""
    line = source.text.count("\n", 0, start) + 1
    words: list[tuple[str, int]] = []
    for piece in _logical_line(source.text, start):
        try:
            words += [(word, line) for word in shlex.split(piece)]
        except ValueError:
            raise source.fault(line, "the command ends inside a quotation") from None
        line += piece.count("\n") + 1
    return words


def _logical_line(text: str, start: int) -> list[str]:
    """The physical lines of a command; a line that ends inside quotes continues on the next."""
    pieces: list[str] = []
    held = ""
    for line in text[start:].split("\n"):
        stripped = line.rstrip()
        held = f"{held}\n{stripped}" if held else stripped
        body = held.removesuffix("\\") if held.endswith("\\") and not held.endswith("\\\\") else held
        if body.count("'") % 2 or body.count('"') % 2:
            if len(held) > 200_000:
                break
            continue
        pieces.append(body)
        if body == held:
            return pieces
        held = ""
    return [*pieces, held] if held else pieces


def _parse_command(source: Source, words: list[tuple[str, int]], assignments: frozenset[str]) -> Command:
    command = Command(line=words[0][1])
    positional: list[tuple[str, int]] = []
    at = 0
    while at < len(words):
        word, line = words[at]
        value = words[at + 1] if at + 1 < len(words) else ("", line)
        at += 1
        if word in (";", "&&", "||", "|", ">", "2>&1", "```"):
            break
        if word == "--pure":
            command.pure = True
        elif word == "--leave-output-tensor":
            command.notes.append(
                "--leave-output-tensor keeps the type of output.weight; no rule here says so"
            )
        elif word == "--tensor-type-file":
            command.notes.append(f"the rules in {value[0]} are not here; import that file too")
            at += 1
        elif word in _FLAGS:
            command.flags.append(ImportedRule(_FLAGS[word], source.type(*value), line, word))
            at += 1
        elif word == "--tensor-type":
            command.rules.append(value)
            at += 1
        elif word == "--custom-q":
            if not re.fullmatch(r"\$\{?\w+\}?", value[0]):
                command.custom.append(value)
            at += 1
        elif _WITH_VALUE.fullmatch(word):
            if word.endswith("-type"):
                command.notes.append(f"{word} {value[0]} is not taken over")
            at += 1
        elif not word.startswith("--"):
            positional.append((word, line))
    named = [word for word, _ in positional if not word.isdecimal()]
    # llama-quantize IN [OUT] TYPE [THREADS]
    if len(named) > 1 and _names_types(named[-1]):
        command.mix = named[-1]
    return command


def _names_types(word: str) -> bool:
    if word.upper() == "COPY":
        return False
    try:
        return is_mix(word) or parse_type(word) is not None
    except TypeNameError:
        return re.fullmatch(r"i?q\d_[a-z0-9_]+", word, re.I) is not None


def flat_rules(
    recipe: Recipe | Assignment, model: Model, tool: str, engine: Engine, *, everything: bool = False
) -> list[tuple[str, GgmlType, int]]:
    """The recipe's types for the model as disjoint rules: pattern, type, number of tensors.

    Parameters
    ----------
    tool
        The tool that reads the rules, for messages.
    engine
        The engine whose types may be used.
    everything
        Whether protected tensors are named too.

    Raises
    ------
    RecipeError
        If the tool cannot give a tensor the type that the recipe gives it.
    """
    decisions = fitted_types(recipe, model)
    kept = [kept_type(d.tensor) for d in decisions]
    wanted: dict[str, tuple[str, bool]] = {}
    for fitted, own in zip(decisions, kept, strict=True):
        name, type_, protected = fitted.tensor.name, fitted.type, fitted.decision.protected is not None
        if protected and type_ != own and (type_.is_quantized or not everything):
            raise RecipeError(
                f"{printable(name)}: {tool} cannot make it {type_.name}, for {fitted.decision.protected}",
                hint="take the rule out of the recipe, or write the file with `ggplan convert`",
            )
        if type_.engine != "llama.cpp" and engine == "llama.cpp":
            raise RecipeError(
                f"{printable(name)}: {tool} has no type {type_.name}", hint="export for ik_llama.cpp"
            )
        if everything or not protected:
            wanted[name] = (type_.name, protected)
    return [(line.pattern, parse_type(line.said[0]), len(line.names)) for line in flatten(wanted)]


def export(recipe: Recipe | Assignment, model: Model) -> tuple[str, list[str]]:
    """A `--tensor-type-file`, and notes about it."""
    rules = flat_rules(recipe, model, "llama-quantize", "llama.cpp")
    text = "".join(f"{pattern}={type_.name}\n" for pattern, type_, _ in rules)
    return text, [
        "use it as: llama-quantize --tensor-type-file FILE IN.gguf OUT.gguf Q8_0 (no float type in its place)"
    ]
