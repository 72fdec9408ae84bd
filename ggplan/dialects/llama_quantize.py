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
from collections.abc import Callable, Sequence
from typing import TypeVar

from ggplan.dialects.command_lines import command_lines
from ggplan.dialects.flatten import fitted_types, flatten
from ggplan.dialects.modules import fitting
from ggplan.dialects.quantize_command import Command, mix_of, read_command
from ggplan.dialects.source import (
    MAX_RULES,
    Imported,
    ImportedRule,
    Source,
    imported_text,
    rules_text,
    with_dots,
)
from ggplan.errors import PlanError, RecipeError, TypeNameError
from ggplan.ggml_types import Engine, GgmlType, parse_type
from ggplan.model import Model
from ggplan.planning import Assignment, decide
from ggplan.planning.layout import file_order
from ggplan.planning.protection import kept_type
from ggplan.recovering import Wanted, cover, write_recipe
from ggplan.rules import Recipe, parse_recipe
from ggplan.stock import Mix, choose_types, facts_of
from ggplan.text import printable

_PROTECTED = re.compile(r"norm|bias|gate_inp")
_OUTPUT = r"^output\.weight$"
_EMBEDDINGS, _PER_LAYER = r"^token_embd\.weight$", r"^per_layer_token_embd\.weight$"
T = TypeVar("T")


def import_(source: Source, name: str, model: Model | None, block: int | None = None) -> Imported:
    """Import a command line of llama-quantize, in a script or alone, or a `--tensor-type-file`."""
    commands = commands_of(source)
    if not commands:
        return _import_file(source, name, model, block)
    foreign = next((c for c in commands if c.of == "ik_llama.cpp"), None)
    if foreign is not None:
        raise source.fault(foreign.line, "this is a command line of ik_llama.cpp's llama-quantize",
                           "read it with --dialect ik_llama.cpp")  # fmt: skip
    command, notes = one_command(source, commands, block)
    entries = [_entry(source, text, line) for text, line in command.rules]
    return _written(source, name, "a command line of llama-quantize", command, entries, model, notes)


def commands_of(source: Source) -> list[Command]:
    """All commands of llama-quantize in a text.

    Raises
    ------
    RecipeError
        If there are only commands that are commented out, or one has an option that llama-quantize has not.
    """
    lines, silent = command_lines(source)
    if silent and not lines:
        places = ", ".join(map(str, silent[:5]))
        raise source.fault(silent[0], f"the command lines are comments (line {places})",
                           "take away what makes them comments")  # fmt: skip
    return [read_command(source, line) for line in lines]


def one_command(source: Source, commands: Sequence[Command], block: int | None) -> tuple[Command, list[str]]:
    """The command to read, and a note on each that chooses no types.

    Raises
    ------
    RecipeError
        If there are several with different rules and none was chosen.
    """
    choosing = [c for c in commands if c.chooses] or list(commands)
    notes = plain_notes([c for c in commands if c not in choosing])
    return one_of(source, choosing, block, lambda c: c.line, Command.meaning), notes


def plain_notes(commands: Sequence[Command]) -> list[str]:
    """Notes on commands beside the one that is read, without a rule of their own."""
    return [
        f"the command in line {c.line} has no rules, only {c.mix or 'no type'}; it is another file's"
        for c in commands
    ]


def one_of(
    source: Source,
    found: Sequence[T],
    block: int | None,
    line: Callable[[T], int],
    meaning: Callable[[T], object],
) -> T:
    """The list of rules to read: the only one, or number `block` (from 1) of those that differ.

    Raises
    ------
    RecipeError
        If there are several and none was chosen, or fewer than the number.
    """
    differing: dict[object, T] = {}
    for candidate in found:
        differing.setdefault(meaning(candidate), candidate)
    lists = list(differing.values())
    if len(lists) > 1 and block is None:
        places = ", ".join(str(line(c)) for c in lists[:20])
        raise source.fault(line(lists[1]), f"there are {len(lists)} lists of rules, in lines {places}",
                           f"choose one: --block N, N from 1 to {len(lists)}")  # fmt: skip
    if block is not None and not 1 <= block <= len(lists):
        raise source.fault(
            0, f"there is no list {block}; there {'is' if len(lists) == 1 else 'are'} {len(lists)}"
        )
    return lists[(block or 1) - 1]


def _import_file(source: Source, name: str, model: Model | None, block: int | None) -> Imported:
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
    one_of(source, [entries], block, lambda _: 1, len)
    return _written(source, name, "a tensor-type file of llama-quantize", Command(), entries, model, [])


def _entry(source: Source, text: str, line: int) -> ImportedRule:
    pattern, equals, type_ = text.partition("=")
    if "(?" in text:
        source.pattern(text.rpartition("=")[0] or text, line)  # look-around
    if not (pattern and equals and type_):
        raise source.fault(line, f"`{text[:80]}` is not a rule `PATTERN=TYPE`")
    checked = source.pattern(pattern, line)  # a fault is shown with the text as written
    if checked != checked.lower():
        checked = source.pattern(checked.lower(), line)
    return ImportedRule(with_dots(checked), source.type(type_, line), line)


def _written(
    source: Source,
    name: str,
    what: str,
    command: Command,
    entries: Sequence[ImportedRule],
    model: Model | None,
    notes: list[str],
) -> Imported:
    if re.search(r"\\[DSWB]", source.text):
        notes.append(
            r"llama-quantize lower-cases patterns; `\D`, `\S`, `\W`, `\B` are written as it reads them"
        )
    text, notes = recipe_text(source, name, what, command, entries, model, [*command.notes, *notes])
    return Imported("llama-quantize", text, tuple(notes))


def recipe_text(
    source: Source,
    name: str,
    what: str,
    command: Command,
    body: Sequence[ImportedRule | str],
    model: Model | None,
    notes: Sequence[str],
    head: Sequence[str] = (),
) -> tuple[str, list[str]]:
    """A recipe of rules (and comment lines) and of the command they belong to, and all notes about it.

    Raises
    ------
    RecipeError
        If there is nothing that gives a tensor a type.
    """
    notes = list(notes)
    before, parts, more = _of_options(command, model)
    if _is_float_file(command):
        kept = [entry for entry in body if not isinstance(entry, ImportedRule)]
        notes += _ignored_notes(command, len(kept) < len(body), parts)
        body, parts = kept, []
    elif command.pure and command.rules:
        notes.append(
            "llama.cpp b11434 applies the rules of --tensor-type beside --pure, as here; earlier versions"
            " ignored them"
        )
    rules = [entry for entry in body if isinstance(entry, ImportedRule)]
    rest, about = rest_of(source, command, [*before, *rules, *parts], model)
    notes += [*more, *about, *protected_notes(rules)]
    if not (rules or before or parts or rest):
        raise source.fault(0, "there are no rules `PATTERN=TYPE`, and no type of the whole file")
    laid = rules_text([*before, *rules, *parts])
    laid_out = iter(laid)
    lines = [next(laid_out) for _ in before]
    lines += [next(laid_out) if isinstance(entry, ImportedRule) else entry for entry in body]
    lines += [*laid_out, *(rest if laid else rest[1:])]
    architecture = model.architecture if model is not None else command.architecture
    if model is not None and command.architecture not in ("", model.architecture):
        notes.append(f"the command is for {command.architecture}, {model.path.name} is {model.architecture}")
    top = [f"@arch {architecture}"] if architecture else []
    return imported_text(source, what, name, lines, notes, [*top, *head]), notes


def _of_options(
    command: Command, model: Model | None
) -> tuple[list[ImportedRule], list[ImportedRule], list[str]]:
    """The rules of options before and after all others, and notes; those that meet no tensor are left out."""
    names = None if model is None else [tensor.name for tensor in model.tensors]
    before, parts, notes = list(command.flags), list(command.parts), []
    if command.leaves_output and (names is None or "output.weight" in names):
        notes += [
            f"{rule.comment}: --leave-output-tensor goes before it, so output.weight keeps its type"
            for rule in before
            if rule.pattern == _OUTPUT
        ]
        before = [rule for rule in before if rule.pattern != _OUTPUT]
        own = {} if model is None else {t.name: kept_type(t) for t in model.tensors}
        type_ = own.get("output.weight")
        if type_ is not None:
            before.append(ImportedRule(_OUTPUT, type_, command.line, "--leave-output-tensor"))
        elif model is None:
            notes.append(
                "--leave-output-tensor: output.weight keeps the type that the model has, which -m MODEL tells"
            )
    for rule in before if names is None or "output.weight" not in names else ():
        if rule.pattern != _OUTPUT:
            continue
        if names is None:
            if not command.pure:
                notes.append(
                    f"{rule.comment}: of a model with tied embeddings it means the embeddings; -m MODEL tells"
                )
        elif command.pure:  # llama.cpp looks for tied embeddings only where it follows the mix
            before.remove(rule)
            notes.append(
                f"{rule.comment} is for no tensor of a model with tied embeddings, since --pure is given"
            )
        else:  # tied: the embeddings are the output
            before.remove(rule)
            parts += [
                ImportedRule(pattern, rule.type, rule.line, rule.comment)
                for pattern in (_EMBEDDINGS, _PER_LAYER)
                if pattern == _EMBEDDINGS or "per_layer_token_embd.weight" in names
            ]
        break
    for rule in command.flags:
        if rule.pattern == _EMBEDDINGS and names and "per_layer_token_embd.weight" in names:
            parts.insert(0, ImportedRule(_PER_LAYER, rule.type, rule.line, rule.comment))
    if names is not None and model is not None:
        for rules in (before, parts):
            for rule in list(rules):
                if not any(re.search(rule.pattern, name) for name in names):
                    rules.remove(rule)
                    notes.append(f"{rule.comment} is for no tensor of {model.path.name}")
    return before, parts, notes


def _is_float_file(command: Command) -> bool:
    """Whether the type of the whole file is F32, F16 or BF16."""
    mix = mix_of(command)
    if mix is not None:
        return mix.type.is_float
    try:
        return bool(command.mix) and command.mix.upper() != "COPY" and parse_type(command.mix).is_float
    except TypeNameError:
        return False


def _ignored_notes(command: Command, has_rules: bool, parts: Sequence[ImportedRule]) -> list[str]:
    """What llama-quantize ignores where the whole file is of floats."""
    ignored = [rule.comment for rule in parts]
    if has_rules:
        ignored.insert(
            0, "all rules of " + ("--custom-q" if command.of == "ik_llama.cpp" else "--tensor-type")
        )
    if not ignored:
        return []
    return [
        f"with {command.mix} for the whole file llama-quantize ignores {', '.join(ignored)}; "
        "they are left out"
    ]


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


def rest_of(
    source: Source, command: Command, rules: Sequence[ImportedRule], model: Model | None
) -> tuple[list[str], list[str]]:
    """What the type of the whole file gives tensors that none of `rules` matches: lines, and notes."""
    if not command.mix:
        return [], []
    tool = "ik_llama.cpp" if command.of == "ik_llama.cpp" else "llama.cpp"
    if command.mix.upper() == "COPY":
        return [], ["with COPY llama-quantize keeps every type and ignores all rules; here they apply"]
    mix = mix_of(command)
    if mix is None:
        try:
            type_ = parse_type(command.mix)
        except TypeNameError:
            return [], [f"{command.mix} is unknown here; what no rule names keeps its type"]
        notes = []
        if not type_.is_float and type_.engine != "ik_llama.cpp" and tool == "llama.cpp":
            notes = [
                f"llama.cpp's llama-quantize refuses {command.mix} for a whole file, it has it for single "
                f"tensors only; here what no rule names is {type_.name}"
            ]
        elif not type_.is_float and not command.pure:
            notes = [
                f"{command.mix} is a mix of ik_llama.cpp's, which gives some tensors more bits; here what no"
                f" rule names is {type_.name}"
            ]
        return ["", f"@default {type_.name}"], notes
    if mix.type.is_float:
        return ["", f"@default {mix.type.name}"], []
    if command.pure or mix.name == "Q8_0":  # which has no exception
        return ["", f"@default {mix.type.name}"], []
    if model is None:
        note = f"{mix.name} depends on the model: -m MODEL writes it out, without one all is {mix.type.name}"
        return ["", f"@default {mix.type.name}"], [note]
    notes = []
    if tool == "ik_llama.cpp":
        notes.append(
            f"{mix.name} is written out as llama.cpp has it; ik_llama.cpp gives some tensors other types"
        )
    lines = _of_mix(source, command, mix, rules, model)
    return ["", f"# {mix.name}, written out for this model", *lines] if lines else [], notes


def _of_mix(
    source: Source, command: Command, mix: Mix, rules: Sequence[ImportedRule], model: Model
) -> list[str]:
    """Rules for the tensors whose type the mix decides.

    A tensor that a rule matches does not count among the layers of llama.cpp's mix; it does in ik_llama.cpp.
    """
    ruled = decide(model, parse_recipe("\n".join(rules_text(rules)), source.file)).decisions
    tensors = [t for t in sorted(model.tensors, key=lambda t: file_order(t.name)) if t.type.kind != "integer"]
    open_ = [ruled[t.name].protected is None for t in tensors]
    free = [ruled[t.name].reason != "rule" for t in tensors]
    counts = open_ if command.of == "ik_llama.cpp" else [o and f for o, f in zip(open_, free, strict=True)]
    wanted = []
    try:
        chosen = choose_types(
            mix, tensors, facts_of(model), quantizable=counts, has_imatrix=command.has_imatrix
        )
        for tensor, type_, is_open, is_free in zip(tensors, chosen, open_, free, strict=True):
            if is_open and is_free:
                given = kept_type(tensor) if type_ is None else fitting(type_, tensor)
                n_bytes = given.tensor_bytes(tensor.shape)
                wanted.append(Wanted(tensor.name, given, tensor.n_columns, False, n_bytes))
    except PlanError as error:
        raise source.fault(command.line, f"{mix.name} for this model: {error.message}", error.hint) from None
    if not wanted:
        return []
    most = max({w.type for w in wanted}, key=lambda t: sum(w.n_bytes for w in wanted if w.type == t))
    text = write_recipe(cover(wanted, default=mix.type if most == mix.type else None), name="")
    return [line for line in text.split("\n") if line and not line.startswith(("@recipe", "@name"))]


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
