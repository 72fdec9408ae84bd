r"""Dialects: the formats in which other tools say which tensor gets which type, imported and exported.

    >>> print(import_recipe(r"output\.weight=q8_0,blk\..*=iq4_k", "list").text)  # doctest: +SKIP

`import_recipe` reads a text, whose dialect it detects, and gives the text of a recipe; `export_recipe` writes
the types that a recipe gives a model, as a list that every tool reads in the same way (see `flatten`), and
checks it by reading it back. A dialect with GGUF names is imported without a model; one with Hugging Face
names (`re:.*q_proj`, `model.layers.0.mlp`) or with layer numbers needs the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ggplan.dialects import (
    autoround,
    checkpoint_configs,
    compressed_tensors,
    ik_llama,
    layer_types,
    llama_quantize,
    mlx,
    thireus,
    torchao,
)
from ggplan.dialects.command_lines import without_quotation
from ggplan.dialects.flatten import fitted_types
from ggplan.dialects.ik_llama import BLOCK
from ggplan.dialects.recognising import recognised
from ggplan.dialects.source import Imported, Source
from ggplan.errors import RecipeError
from ggplan.model import Model
from ggplan.planning import Assignment, FallbackTable, Fitted, assign, types_by_hand
from ggplan.rules import Recipe, parse_recipe
from ggplan.text import nearest, printable

__all__ = ["DIALECTS", "Dialect", "Exported", "Imported", "detect", "export_recipe", "import_recipe"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """A dialect: its name, what it is, and how it is read and written.

    Attributes
    ----------
    read
        Makes the recipe's text from a source, the recipe's name, a model or None, and the number of the list.
    write
        Makes the text from a recipe and a model, and notes about it; None for a dialect that is only read.
    """

    name: str
    title: str
    read: Callable[[Source, str, Model | None, int | None], Imported]
    write: Callable[[Recipe | Assignment, Model], tuple[str, list[str]]] | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """A recipe in another dialect; `notes` say how to use it and what the dialect cannot express."""

    dialect: str
    text: str
    notes: tuple[str, ...] = ()


def _without_blocks(
    read: Callable[[Source, str, Model | None], Imported],
) -> Callable[[Source, str, Model | None, int | None], Imported]:
    def read_one(source: Source, name: str, model: Model | None, block: int | None) -> Imported:
        if block not in (None, 1):
            raise source.fault(0, f"there is no list {block}; this dialect has one")
        return read(source, name, model)

    return read_one


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect("llama-quantize", "llama-quantize", llama_quantize.import_, llama_quantize.export),
        Dialect("ik_llama.cpp", "ik_llama.cpp", ik_llama.import_, ik_llama.export),
        Dialect("thireus", "the GGUF Tool Suite", _without_blocks(thireus.import_), thireus.export),
        Dialect(
            "compressed-tensors",
            "compressed-tensors",
            _without_blocks(compressed_tensors.import_),
            compressed_tensors.export,
        ),
        Dialect("autoround", "AutoRound", _without_blocks(autoround.import_), autoround.export),
        Dialect("torchao", "torchao", _without_blocks(torchao.import_), torchao.export),
        Dialect("layer-types", "LAYER_TYPES", _without_blocks(layer_types.import_), layer_types.export),
        Dialect("mlx", "mlx-lm", _without_blocks(mlx.import_), mlx.export),
        *(
            Dialect(name, title, _without_blocks(checkpoint_configs.reader(name)))
            for name, title in checkpoint_configs.TITLES.items()
        ),
    )
}
"""By name, in the order of the documentation."""

# A model card may hold several dialects: the first of these that is found decides.
_SIGNS = (
    ("mlx", r"\A\s*mixed_\d_\d\s*\Z|--quant-predicate"),
    ("layer-types", r"\bLAYER_TYPES\s*=|--layer-types"),
    ("ik_llama.cpp", BLOCK.pattern + r"|--custom-q\b"),
    ("torchao", r"FqnToConfig\b|fqn_to_config"),
    (
        "compressed-tensors",
        r"(^[ \t]*(- )?|[{,]\s*)[\"']?"
        r"(config_groups|targets|ignore|scheme|\w+_modifiers|\w*Modifier)[\"']?[ \t]*:",
    ),
    ("autoround", r"\b(layer_config|extra_config)\b|[\"'](bits|data_type)[\"']\s*:|\b(auto-?round)\b"),
)
_RULE = re.compile(r"[^\s#]+=\w+")


def detect(source: Source) -> str:
    """The name of the dialect that a text is in.

    Raises
    ------
    RecipeError
        If it is in none of them.
    """
    if (config := recognised(source)) is not None:
        return config.dialect
    for name, sign in _SIGNS[:3]:
        if re.search(sign, source.text, re.M):
            return name
    if commands := llama_quantize.commands_of(source):
        return "ik_llama.cpp" if any(c.of == "ik_llama.cpp" for c in commands) else "llama-quantize"
    for name, sign in _SIGNS[3:]:
        if re.search(sign, source.text, re.M):
            return name
    rules = [rule for line in source.text.split("\n") if (rule := line.partition("#")[0].strip())]
    if rules and ("," in rules[0][rules[0].find("=") : rules[0].rfind("=")] or rules[0].endswith(",")):
        return "ik_llama.cpp"
    if rules and any("#" in line for line in source.text.split("\n")):
        return "thireus"
    if rules and all(_RULE.fullmatch(token) for token in rules[0].split()):
        return "llama-quantize"
    message = source.fault(0, "this is in no dialect that ggplan knows").message
    raise RecipeError(message, hint="name it with --dialect")


def import_recipe(
    text: str,
    file: str,
    *,
    dialect: str = "",
    name: str = "",
    model: Model | None = None,
    block: int | None = None,
) -> Imported:
    """The recipe with the same meaning as a text of another tool.

    Parameters
    ----------
    file
        The name of the text in messages.
    dialect
        A key of `DIALECTS`; "" to detect it from the text.
    name
        The recipe's name; "" for the file's.
    model
        The model or inventory it is for, where the dialect needs one.
    block
        The number of the list to read, from 1, if the text has several.

    Raises
    ------
    RecipeError
        If there is no such dialect, the text is not in it, or a recipe cannot express it; the message names
        file and line.
    """
    source = Source(without_quotation(re.sub(r"\r+\n", "\n", text.removeprefix("\ufeff"))), file)
    known = _dialect(dialect or detect(source))
    config = recognised(source)
    if config is not None and config.dialect != known.name:
        raise source.fault(0, f"this is a config of {_dialect(config.dialect).title}, not of {known.title}",
                           f"read it with --dialect {config.dialect}")  # fmt: skip
    stem = file.replace("\\", "/").rpartition("/")[2]
    title = name or (stem.rpartition(".")[0] or stem if stem != "-" else "imported")
    imported = known.read(source, title, model, block)
    parse_recipe(imported.text, f"{file}, imported")  # the written text must be a valid recipe
    return imported


def export_recipe(
    recipe: Recipe | Assignment, model: Model, dialect: str, *, fallback: FallbackTable | None = None
) -> Exported:
    """The types that a recipe or an assignment gives a model, in another dialect; exact for this model.

    The text is read back before it is returned, and must give each tensor the recipe's type.

    Parameters
    ----------
    fallback
        Whose table replaces a type that a shape forbids; None for the engine that `@target` names.

    Raises
    ------
    RecipeError
        If there is no such dialect, or it cannot express the type of a tensor.
    """
    known = _dialect(dialect)
    if known.write is None:
        others = ", ".join(d.name for d in DIALECTS.values() if d.write is not None)
        raise RecipeError(
            f"ggplan reads the configs of {known.title}, and writes none", hint=f"it writes {others}"
        )
    chosen = assign(model, recipe)  # once, for the writer and for the proof
    if fallback is not None:
        fitted = fitted_types(chosen, model, fallback)
        chosen = types_by_hand(model, {f.tensor.name: f.type for f in fitted}, recipe.name)
    text, notes = known.write(chosen, model)
    back = parse_recipe(
        import_recipe(text, recipe.name, dialect=dialect, model=model).text, "the exported list"
    )
    asked = fitted_types(chosen, model)
    for wanted, got in zip(asked, fitted_types(back, model), strict=True):
        if wanted.type != got.type:
            name = printable(wanted.tensor.name)
            raise RecipeError(
                f"{name}: {known.title} cannot say {wanted.type.name} here; it would be {got.type.name}"
            )
    return Exported(dialect, text, (*notes, *_kept_notes(asked)))


def _kept_notes(fitted: Sequence[Fitted]) -> list[str]:
    """A note on what `keep` means and no other tool can say."""
    moved = [f for f in fitted if f.tensor.codes is not None and f.tensor.is_quantized]
    n_moved = sum(f.type == f.tensor.type for f in moved)
    if n_moved:
        return [
            f"{n_moved:,} tensors have the types of the codes that `ggplan convert` moves; this tool decodes "
            "and encodes them anew, which loses"
        ]
    n_kept = sum(f.decision.keep is not None for f in fitted)
    if not n_kept:
        return []
    return [f"`keep` cannot be said here: {n_kept:,} tensors are named with the types that they have now"]


def _dialect(name: str) -> Dialect:
    found = DIALECTS.get(name)
    if found is None:
        near = nearest(name, DIALECTS)
        hint = f"the nearest is {near}" if near else f"there are {', '.join(DIALECTS)}"
        raise RecipeError(f"there is no dialect {printable(name[:40])}", hint=hint)
    return found
