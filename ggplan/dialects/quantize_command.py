r"""The options of llama-quantize, llama.cpp's and ik_llama.cpp's: each is a rule, a note, or refused by name.

    llama-quantize [OPTIONS] IN.gguf [OUT.gguf] TYPE [THREADS]

What decides the type of a tensor, the first that applies:

    llama.cpp                                  ik_llama.cpp
    --token-embedding-type, --output-...       --token-embedding-type, --output-..., --ffn-gate-inp-type
    --tensor-type, the first that matches      --custom-q, the first that matches; none with --pure
                                               --attn-v-type, --attn-k-type, ... on parts of the name
    the mix                                    the mix

`--attn-k-type` is for every name that contains `attn_k`, so for `attn_kv_b` too. With the mixes of 1 and 2
bits ik_llama.cpp ignores most of these options.

llama.cpp b11434: `tools/quantize/quantize.cpp`, `src/llama-quant.cpp`. ik_llama.cpp 8337e4c:
`examples/quantize/quantize.cpp`, `src/llama-quantize.cpp`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ggplan.dialects.command_lines import CommandLine
from ggplan.dialects.source import ImportedRule, Source
from ggplan.errors import TypeNameError
from ggplan.ggml_types import Engine, GgmlType, parse_type
from ggplan.stock import MIXES, Mix, find_mix, is_mix
from ggplan.text import nearest

Named = Literal["", "llama.cpp", "ik_llama.cpp"]


@dataclass(frozen=True, slots=True)
class Option:
    """An option of llama-quantize.

    Attributes
    ----------
    n_values
        How many words follow it.
    of
        The engine that alone has it, or "".
    note
        What becomes of it, where it is not a rule; `{}` stands for its value.
    pattern
        Of an option that gives some tensors a type: which.
    comes
        When such a type decides: "first" before all rules, "last" after them.
    """

    n_values: int = 0
    of: Named = ""
    note: str = ""
    pattern: str = ""
    comes: Literal["first", "last"] = "first"


_IK: Named = "ik_llama.cpp"
_MAIN: Named = "llama.cpp"


def _of_part(pattern: str) -> Option:
    return Option(1, _IK, pattern=pattern, comes="last")


OPTIONS = {
    "--token-embedding-type": Option(1, pattern=r"^token_embd\.weight$"),
    "--output-tensor-type": Option(1, pattern=r"^output\.weight$"),
    "--ffn-gate-inp-type": Option(1, _IK, pattern=r"ffn_gate_inp\.weight"),
    "--tensor-type": Option(1, _MAIN),
    "--tensor-type-file": Option(1, _MAIN, "the rules in the file {} are not here; import that file too"),
    "--custom-q": Option(1, _IK),
    "--per-layer-token-embedding-type": _of_part(r"^per_layer_token_embd\.weight$"),
    "--attn-v-type": _of_part(r"attn_v\.weight"),
    "--attn-k-type": _of_part("attn_k"),
    "--attn-qkv-type": _of_part(r"attn_qkv\.weight"),
    "--attn-q-type": _of_part("attn_q"),
    "--attn-output-type": _of_part(r"attn_output\.weight"),
    "--ffn-down-type": _of_part("ffn_down"),
    "--ffn-gate-type": _of_part("ffn_gate"),
    "--ffn-up-type": _of_part("ffn_up"),
    "--pure": Option(),
    "--leave-output-tensor": Option(),
    "--imatrix": Option(1, note="{} is no part of a recipe: ggplan convert --imatrix FILE"),
    "--include-weights": Option(
        1, note="uses the importance matrix for names with `{}` only; ggplan uses it for every tensor it has"
    ),
    "--exclude-weights": Option(
        1, note="ignores the importance matrix for names with `{}`; ggplan uses it for every tensor it has"
    ),
    "--allow-requantize": Option(note="is no part of a recipe: ggplan convert --allow-requantize"),
    "--keep-split": Option(note="is no part of a recipe: ggplan convert --split-like source"),
    "--dry-run": Option(note="shows sizes only, as `ggplan plan` does; the recipe says nothing of it"),
    "--override-kv": Option(1, note="{} changes metadata, not types; ggplan keeps the model's"),
    "--prune-layers": Option(
        1, _MAIN, "takes the layers {} out of the model; ggplan converts all, so prune it first"
    ),
    "--max-buffer-size": Option(1, _MAIN, "{} MiB limits memory, not types: ggplan convert --memory"),
    "--hide-imatrix": Option(0, _IK, "leaves the importance matrix out of the metadata; ggplan names it"),
    "--ignore-imatrix-rules": Option(
        0, _IK, "lets small types be written without an importance matrix, as ggplan does where ggml can"
    ),
    "--partial-requant": Option(0, _IK, "goes on with a split file, as ggplan convert does by itself"),
    "--repack": Option(
        0, _IK, "interleaves the types that a file has, and ignores all rules; no recipe says so"
    ),
    "--repack-pattern": Option(1, _IK, "chooses with {} what --repack interleaves; no recipe says so"),
    "--symmetric-q40": Option(0, _IK, "encodes q4_0 on -7..7; ggplan's q4_0 is llama.cpp's, on -8..7"),
    "--slow-iq2ks": Option(0, _IK, "chooses how iq2_ks is encoded; the type is the same"),
    "--extra-output-tensor": Option(
        1, _IK, "adds a second output tensor of type {} to the file; a recipe has one type for a tensor"
    ),
}  # fmt: skip
"""By name, those that give tensors types in the order in which they decide."""

_SMALL = re.compile(r"IQ1_|IQ2_(XXS|XS|S|M|KS|KT)")
"""Mixes with which ik_llama.cpp has types of its own for most parts."""
_EXPANDED = re.compile(r"\$[\w{(]|%\w+%|`")
_NAME = re.compile(r"(?:iq|q|tq|mxfp|bf|f)\d+(?:_[a-z0-9]+)*(?:_r\d+)?", re.I)


@dataclass(slots=True)
class Command:
    """A command of llama-quantize, as far as it chooses types.

    Attributes
    ----------
    flags
        The rules of options that decide before all others.
    rules, custom
        The rules of `--tensor-type` and `--custom-q`, each with its line.
    parts
        The rules of options that decide after those.
    has_variable
        Whether `--custom-q` has a shell variable.
    mix
        The type of the whole file, as written, or "".
    of
        The engine whose command it is, as far as options and mix tell: "" if either's.
    notes
        What becomes of the options that are no rules.
    """

    line: int = 0
    start: int = 0
    flags: list[ImportedRule] = field(default_factory=list)
    rules: list[tuple[str, int]] = field(default_factory=list)
    custom: list[tuple[str, int]] = field(default_factory=list)
    parts: list[ImportedRule] = field(default_factory=list)
    has_variable: bool = False
    mix: str = ""
    pure: bool = False
    leaves_output: bool = False
    has_imatrix: bool = False
    architecture: str = ""
    of: Named = ""
    notes: list[str] = field(default_factory=list)

    @property
    def chooses(self) -> bool:
        """Whether it has options that give tensors types."""
        return bool(
            self.flags or self.rules or self.custom or self.parts or self.has_variable
            or self.leaves_output or any(note.startswith("--tensor-type-file") for note in self.notes)
        )  # fmt: skip

    def meaning(self) -> tuple[object, ...]:
        """What it says of types; commands with one meaning are one recipe."""
        rules = [
            *((text, "") for text, _ in (*self.rules, *self.custom)),
            *((r.pattern, r.type.name) for r in (*self.flags, *self.parts)),
        ]
        return (*rules, self.mix.upper(), self.pure, self.leaves_output, self.has_variable)


def read_command(source: Source, words: CommandLine) -> Command:
    """The command that these words are.

    Raises
    ------
    RecipeError
        For an option that neither llama-quantize has, or options that no one of them has together.
    """
    command = Command(line=words.line, start=words.start)
    if words.has_comments:
        command.notes.append("comment lines stand inside the command; a shell would end it there")
    positional: list[tuple[str, int]] = []
    engines: dict[Named, tuple[str, int]] = {}
    types: dict[str, ImportedRule] = {}
    behind: list[str] = []
    at = 0
    while at < len(words.words):
        word, line = words.words[at]
        at += 1
        if not word.startswith(("-", "\u2013", "\u2014")) or re.fullmatch(r"-?\d+", word):
            positional.append((word, line))
            continue
        option = OPTIONS.get(word)
        if option is None:
            raise _unknown(source, word, line)
        values = words.words[at : at + option.n_values]
        at += option.n_values
        if len(values) < option.n_values:
            raise source.fault(line, f"{word} has no value")
        value, value_line = values[0] if values else ("", line)
        if option.of:
            engines.setdefault(option.of, (word, line))
        if positional:
            behind.append(word)
        if option.pattern:
            types[word] = ImportedRule(
                option.pattern,
                _type(source, value, value_line),
                line,
                f"{word} {value}",
                forced="gate-inp" in word,
            )
        elif word == "--custom-q" and re.fullmatch(r"\$\{?\w+\}?|%\w+%", value):
            command.has_variable = True
        elif word in ("--tensor-type", "--custom-q"):
            _expanded(source, value, value_line)
            (command.rules if word == "--tensor-type" else command.custom).append((value, value_line))
        command.pure |= word == "--pure"
        command.leaves_output |= word == "--leave-output-tensor"
        command.has_imatrix |= word == "--imatrix"
        if option.note:
            note = option.note.format(value or "?")
            command.notes.append(f"{word}: {note}")
        key = re.match(r"([a-z0-9-]+(?:_[a-z0-9]+)*)\.[\w.]+=", value) if word == "--override-kv" else None
        if key and key[1] not in ("general", "tokenizer", "split", "quantize", "imatrix", "adapter"):
            command.architecture = key[1]
    _files_and_mix(source, command, positional)
    if behind:
        command.notes.append(_behind(behind))
    if len(engines) > 1:
        (a, line), (b, other) = engines.values()
        raise source.fault(max(line, other), f"no llama-quantize has both {a} and {b}",
                           f"{a} is {next(iter(engines))}'s, {b} is {list(engines)[1]}'s")  # fmt: skip
    command.of = next(iter(engines), _mix_engine(command.mix))
    _order(command, types)
    return command


def _behind(options: Sequence[str]) -> str:
    said = ", ".join(options[:3]) + (f" and {len(options) - 3} more" if len(options) > 3 else "")
    stands = "stands" if len(options) == 1 else "stand"
    return (
        f"llama-quantize reads options only before the file, and takes what follows the type for a number of "
        f"threads; {said} {stands} behind it, and {'is' if len(options) == 1 else 'are'} read here as meant"
    )


def _order(command: Command, types: dict[str, ImportedRule]) -> None:
    """Sort the types of options into those before and those after the rules, as the engine takes them."""
    small = _SMALL.match(command.mix.upper()) is not None and not command.pure
    kept = (
        {"--ffn-down-type"}
        if re.match(r"IQ1_[SM]_R4|IQ2_KT", command.mix.upper())
        else {"--attn-output-type"}
    )
    for name, option in OPTIONS.items():
        rule = types.get(name)
        if rule is None:
            continue
        if option.comes == "first":
            command.flags.append(rule)
        elif command.pure or (small and name not in kept and name.startswith(("--attn", "--ffn"))):
            why = "--pure" if command.pure else command.mix
            command.notes.append(f"ik_llama.cpp ignores {rule.comment} with {why}")
        else:
            command.parts.append(rule)
    if "--attn-qkv-type" in types and types["--attn-qkv-type"] in command.parts:
        command.notes.append(
            "--attn-qkv-type is taken as it is meant; ik_llama.cpp 8337e4c looks for `attn_q` first and gives"
            " attn_qkv.weight the type of --attn-q-type"
        )
    if command.pure and (command.custom or command.has_variable):
        command.notes.append("ik_llama.cpp ignores --custom-q with --pure; its rules are taken out")
        command.custom, command.has_variable = [], False


def _unknown(source: Source, word: str, line: int) -> Exception:
    if word.lower() in ("-argumentlist", "-args", "-filepath", "-nonewwindow", "-wait"):
        return source.fault(
            line,
            f"`{word}` is Start-Process's: the options of llama-quantize stand in a list of PowerShell's",
            "write the command itself: & .\\llama-quantize.exe --tensor-type ... IN.gguf OUT.gguf TYPE",
        )
    near = nearest("--" + word.lstrip("-\u2013\u2014").partition("=")[0], OPTIONS)
    if near and word != near and word.startswith(near + "="):
        hint = f"write {near} and its value with a blank between them"
    else:
        hint = f"the nearest is {near}" if near else "take it out if it does not choose types"
    return source.fault(line, f"llama-quantize has no option {word[:60]}", hint)


def _expanded(source: Source, value: str, line: int) -> None:
    """Refuse a rule with a shell variable."""
    found = _EXPANDED.search(value.replace("\\$", "").rstrip("$"))
    if found:
        said = value[found.start() : found.start() + 20]
        raise source.fault(
            line, f"`{said}` is filled in by the shell", "put in its place what the shell would"
        )


def _type(source: Source, value: str, line: int) -> GgmlType:
    _expanded(source, value, line)
    return source.type(value, line)


def _files_and_mix(source: Source, command: Command, positional: list[tuple[str, int]]) -> None:
    """Find the type among `IN [OUT] TYPE [THREADS]`, which is a name or a number."""
    for word, line in positional:
        if re.search(r"\$\{\w+\[[@*]\]\}|\$[@*]|^@\w+$", word):
            raise source.fault(line, f"`{word[:60]}` is filled in by the shell and may hold options",
                               "put in its place what the shell would")  # fmt: skip
    if len(positional) > 3 and _EXPANDED.match(positional[0][0]) and not _mix_name(positional[2][0]):
        word, line = positional[0]
        if not _mix_name(positional[1][0]) and _mix_name(positional[3][0]):
            raise source.fault(line, f"`{word[:60]}` is filled in by the shell and holds options",
                               "put in its place what the shell would")  # fmt: skip
    rest = positional[1:]  # behind the input
    names = [i for i, (word, _) in enumerate(rest[:2]) if _mix_name(word)]
    if not names:
        said = rest[1] if len(rest) > 1 else None
        if said is not None and _EXPANDED.search(said[0]):
            command.notes.append(
                f"the type of the whole file, `{said[0][:60]}`, is filled in by the shell: what no rule "
                "names keeps its type here; to give it one, put `@default TYPE` at the end of the recipe"
            )
        elif said is not None and len(positional) <= 4:
            command.notes.append(
                f"`{said[0][:60]}` is no type of a whole file; what no rule names keeps its type"
            )
        extra = positional[4:]
    else:
        command.mix = _mix_name(rest[names[0]][0])
        extra = rest[names[0] + 2 :]
    if extra:
        command.notes.append(
            f"llama-quantize does not read `{extra[0][0][:60]}`, behind the number of threads"
        )


def _mix_name(word: str) -> str:
    """The type of a whole file as llama-quantize's name, or ""."""
    if word.upper() == "COPY" or is_mix(word):
        return word
    if re.fullmatch(r"\d{1,3}", word):
        return next((mix.name for mix in MIXES if mix.file_type == int(word)), "")
    try:
        return word if parse_type(word) is not None else ""
    except TypeNameError:
        return word if _NAME.fullmatch(word) else ""


def _mix_engine(mix: str) -> Named:
    """ik_llama.cpp for a mix or type that it alone has, else ""."""
    if not mix or is_mix(mix) or mix.upper() == "COPY":
        return ""
    try:
        engine: Engine = parse_type(mix).engine
    except TypeNameError:
        return ""
    return engine if engine == "ik_llama.cpp" else ""


def mix_of(command: Command) -> Mix | None:
    """The command's mix, where it is one of llama.cpp's."""
    return find_mix(command.mix) if command.mix and is_mix(command.mix) else None
