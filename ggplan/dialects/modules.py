r"""Shared code of the dialects with Hugging Face names: from modules to a recipe, and back.

A GGUF tensor holds all experts of a layer in one type. A text that gives experts of one layer different
schemes cannot be written as a recipe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ggplan.dialects.flatten import Flat, fitted_types, flatten
from ggplan.dialects.hf_names import Module, modules_of
from ggplan.dialects.source import Imported, Source, inert
from ggplan.errors import PlanError, RecipeError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import Model, TensorInfo
from ggplan.planning import Assignment
from ggplan.planning.fallback import fallback_type
from ggplan.recovering import Wanted, cover, write_recipe
from ggplan.recovering.patterns import escape
from ggplan.rules import Recipe
from ggplan.rules.matching import match_patterns, program_of, steps_of
from ggplan.rules.steps import MAX_STEPS
from ggplan.text import printable


def need_model(source: Source, model: Model | None) -> Model:
    """The model; an error if there is none, since Hugging Face names cannot be read without it."""
    if model is None:
        hint = "add -m MODEL: a checkpoint, a GGUF file or a shipped inventory, such as -m GLM-4.5-Air"
        raise source.fault(
            0, "these are names of Hugging Face or layers, which only a model turns into GGUF's", hint
        )
    return model


def expanded(modules: Sequence[Module]) -> list[str]:
    """The names of all modules, with one name for each expert."""
    return [name for module in modules for name in module.names()]


# Modules that are never quantized in a GGUF, or are in no text model's: to leave them out says nothing new.
_NO_MATTER = re.compile(
    r"gate|\w{0,40}(router|norm|embed|visual|vision|audio|projector|conv1d)\w{0,40}|lm_head|mtp\w{0,40}"
    r"|rotary\w{0,40}|bias|output"
)
_SEGMENT = re.compile(r"[^\w(|)]+")


def unmet_note(left_out: Sequence[str], model: Model) -> list[str]:
    """A note on names of modules to leave out that the model has not, but for those that change nothing."""
    unmet = [name for name in left_out if not _is_no_matter(name)]
    if not unmet:
        return []
    more = f" (and {len(unmet) - 1:,} more)" if len(unmet) > 1 else ""
    return [f"`{unmet[0][:200]}`{more} is to stay as it is, and matches no module of {model.path.name}"]


def _is_no_matter(name: str) -> bool:
    """Whether a whole segment of a name or pattern, or each of its alternatives, is such a module."""
    for segment in _SEGMENT.split(name.replace("?:", "")):
        words = segment.removeprefix("(").removesuffix(")").split("|")
        if all(_NO_MATTER.fullmatch(word) for word in words):
            return True
    return False


# A part of a name or of a pattern, with more of the name after it.
_OF_TEXT_PART = re.compile(r"language_model\\?\.(?=\w)")


def hits_of(source: Source, patterns: Sequence[str], names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """For each name the indices of the patterns that match, anchors included; patterns are matched by RE2.

    Where a model also sees or hears, its modules are `model.language_model.layers...` or
    `language_model.model.layers...`; `names` are those of the text part alone.
    """
    if not patterns:
        return ((),) * len(names)
    patterns = [_OF_TEXT_PART.sub("", pattern) for pattern in patterns]
    try:
        if steps_of(patterns, names, program_of(patterns)) > MAX_STEPS:
            raise OverflowError
        return match_patterns(patterns, names)
    except OverflowError:
        raise source.fault(
            0, "matching the patterns takes too many steps", "write fewer and simpler ones"
        ) from None


def recipe_of_types(
    source: Source,
    dialect: str,
    name: str,
    model: Model,
    modules: Sequence[Module],
    types: Sequence[GgmlType | None],
    notes: Sequence[str],
) -> Imported:
    """The recipe that gives each module its type, None standing for "as it is".

    `types` are in the order of `expanded(modules)`.
    """
    wanted, at, replaced = [], 0, 0
    for module in modules:
        found = set(types[at : at + module.n_experts])
        at += module.n_experts
        if len(found) > 1:
            said = ", ".join(sorted("float" if t is None else t.name for t in found))
            message = f"{module.name}: the experts of a layer are one tensor of one type, not {said}"
            raise source.fault(0, message, "give all experts of a layer the same scheme")
        type_ = found.pop() or module.own
        for tensor in module.tensors:
            try:
                given = fitting(type_, tensor)
            except PlanError as error:
                raise source.fault(0, f"{tensor.name}: {error.message}", error.hint) from None
            replaced += given != type_
            wanted.append(
                Wanted(tensor.name, given, tensor.n_columns, False, given.tensor_bytes(tensor.shape))
            )
    all_notes = list(notes)
    if replaced:
        all_notes.append(
            f"{replaced} tensor{'s have' if replaced > 1 else ' has'} rows that do not hold whole blocks; "
            "llama.cpp's fallback takes the type's place"
        )
    heading = [f"From {source.file}, for {model.path.name}.", *(f"Note: {note}" for note in all_notes)]
    text = write_recipe(
        cover(wanted), name=inert(name) or "imported", architecture=model.architecture, heading=heading
    )
    return Imported(dialect, text, tuple(all_notes))


def fitting(type_: GgmlType, tensor: TensorInfo) -> GgmlType:
    """The type, or llama.cpp's fallback for it if rows have this length.

    Raises
    ------
    PlanError
        If llama.cpp has no fallback.
    """
    return type_ if type_.fits(tensor.n_columns) else fallback_type(type_, tensor.n_columns, "llama.cpp")


def _gives(asked: GgmlType, tensor: TensorInfo, wanted: GgmlType) -> bool:
    try:
        return fitting(asked, tensor) == wanted
    except PlanError:
        return False


def flat_modules(
    recipe: Recipe | Assignment, model: Model, tool: str, known: Sequence[str]
) -> list[Flat[str]]:
    """The recipe's types by module, as disjoint patterns; "" leaves the module as it is.

    Raises
    ------
    RecipeError
        If the tool has no format for a type, or a tensor shares its module with one of another type.
    """
    types = {}
    for fitted in fitted_types(recipe, model):
        types[fitted.tensor.name] = fitted.type
        own = fitted.tensor.type
        if fitted.decision.protected is not None and fitted.type not in (own, parse_type("f32")):
            raise RecipeError(
                f"{printable(fitted.tensor.name)}: {tool} leaves it alone, for {fitted.decision.protected}"
            )
    wanted = {}
    for module in modules_of(model):
        tensor = printable(module.tensors[0].name)
        asked = {types[t.name] for t in module.tensors}
        fit = [a for a in asked if all(_gives(a, t, types[t.name]) for t in module.tensors)]
        if not fit:
            raise RecipeError(f"{tensor}: {tool} stores it with another tensor, and both need one type")
        type_ = fit[0]
        if type_ == module.own:
            wanted[module.name] = ""
        elif type_.name in known:
            wanted[module.name] = type_.name
        else:
            raise RecipeError(
                f"{tensor}: {tool} has nothing like {type_.name}", hint=f"it has {', '.join(known)}"
            )
    return flatten(wanted, names_of=dotted_pattern, lower=False)


def dotted_pattern(names: Sequence[str]) -> str:
    r"""A pattern for exactly these names, split at their dots: `(mlp\.(down|up)_proj|self_attn\.q_proj)`."""
    heads: dict[str, list[str]] = {}
    for name in sorted(names):
        head, _, tail = name.partition(".")
        heads.setdefault(head, []).append(tail)
    parts = []
    for head, tails in heads.items():
        longer = [tail for tail in tails if tail]
        if "" in tails:
            parts.append(escape(head))
        if longer:
            parts.append(rf"{escape(head)}\.{dotted_pattern(longer)}")
    return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"
