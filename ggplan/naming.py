"""What a name on the command line stands for: a model, a recipe, a mix or a plan.

One order for all commands:

    -                  standard input
    hf://org/name      a repository of the hub; https://host/model.gguf, a file on a server
    a path             a file or folder that exists, by what is in it
    Q4_K_M             one of llama-quantize's mixes
    glm4moe/hq4_k      a recipe that ships with ggplan
    GLM-4.5-Air        an inventory that ships with ggplan

Where one kind is asked for (`-m`, `-r`), a name of another kind is refused by saying what it is.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ggplan.errors import NoSuchCheckpointError, RecipeError
from ggplan.inventories import is_inventory, names_of_inventories
from ggplan.model import Model
from ggplan.opening import is_there, open_model, with_family
from ggplan.planning import find_recipe
from ggplan.planning.export import SCHEMA as PLAN_SCHEMA
from ggplan.rules import Recipe, load_recipe, parse_recipe, shipped_recipes
from ggplan.rules.loading import following
from ggplan.sources.files import begins_with, read_at, read_whole
from ggplan.sources.inventory import is_map, parse_inventory
from ggplan.sources.json_files import SIZE_LIMIT, parse_object
from ggplan.sources.remote import is_address
from ggplan.standard_input import NAME, SHOWN, read_standard_input
from ggplan.stock import MIXES, Mix, is_mix
from ggplan.text import nearest, printable

_RECIPE_ENDING = ".recipe"
_SNIFFED = 4096  # bytes of a file that say what it holds
_MODEL_ENDINGS = (".gguf", ".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class PlanDocument:
    """A plan as `ggplan plan --json` prints it."""

    content: Mapping[str, object]


def model_named(
    name: str,
    *,
    pre: str | None = None,
    header_only: bool = False,
    weights: bool = False,
    converter: str | None = None,
) -> Model:
    """The model of this name, as `ggplan.opening.open_model` finds it.

    Raises
    ------
    CheckpointError
        As `open_model`; for the name of a recipe or mix with what it is.
    """
    try:
        return open_model(name, pre=pre, header_only=header_only, weights=weights, converter=converter)
    except NoSuchCheckpointError as error:
        kind = _kind_of_recipe(name)
        if kind:
            raise NoSuchCheckpointError(
                f"{printable(name)} is {kind}, not a model", hint=f"give it with `-r {printable(name)}`"
            ) from None
        raise error from None


def recipe_or_mix_named(name: str, architecture: str = "") -> Recipe | Mix:
    """The recipe or mix of this name, as `ggplan.planning.find_recipe` finds it for an architecture.

    Raises
    ------
    RecipeError
        As `find_recipe`; for the name of a model with what it is.
    """
    if not is_there(name) and not _kind_of_recipe(name) and is_inventory(name):
        raise RecipeError(
            f"{printable(name)} is a model, the shipped inventory of this name, not a recipe",
            hint=f"`ggplan rules list {printable(name)}` names the recipes for it",
        )
    return find_recipe(name, architecture)


def recipe_named(name: str, architecture: str = "") -> Recipe:
    """The recipe of this name; a mix is refused.

    Raises
    ------
    RecipeError
        As `recipe_or_mix_named`, and for the name of a mix.
    """
    found = recipe_or_mix_named(name, architecture)
    if isinstance(found, Mix):
        raise RecipeError(
            f"{printable(name)} is one of llama-quantize's mixes, not a recipe",
            hint=f"`ggplan rules from MODEL --mix {found.name}` writes it as a recipe",
        )
    return found


def anything_named(
    name: str,
    *,
    pre: str | None = None,
    header_only: bool = False,
    converter: str | None = None,
) -> Model | Recipe | Mix | PlanDocument:
    """Whatever this name stands for. `converter` reads it if it is a folder.

    Raises
    ------
    CheckpointError, RecipeError
        If there is nothing of this name (the hint has the nearest), or it is damaged.
    """
    if name == NAME:
        return _from_standard_input()
    if is_address(name):
        return open_model(name, pre=pre, header_only=header_only)
    if converter is not None and os.path.isdir(name):
        return open_model(name, pre=pre, header_only=header_only, converter=converter)
    if is_there(name):
        return _from_path(name, pre, header_only)
    if _kind_of_recipe(name) or name.endswith(_RECIPE_ENDING):
        return find_recipe(name)
    known = (*names_of_inventories(), *shipped_recipes(), *(mix.name for mix in MIXES))
    if not is_inventory(name) and (near := nearest(name, known)):
        raise NoSuchCheckpointError(
            f"{printable(name)} is not a file, a shipped recipe, a mix or a shipped inventory",
            hint=f"the nearest is {near}",
        )
    return open_model(name, pre=pre)


def kind_named(name: str) -> Literal["file", "mix", "recipe", "inventory", ""]:
    """What there is of this name, the first in the order of the page; "" for nothing."""
    if name == NAME or is_address(name) or is_there(name):
        return "file"
    if is_mix(name):
        return "mix"
    if _kind_of_recipe(name):
        return "recipe"
    return "inventory" if is_inventory(name) else ""


def other_meaning(name: str) -> str:
    """What else a name that is a file would stand for, in words: `a recipe that ships with ggplan`; or ""."""
    return _kind_of_recipe(name) if is_there(name) else ""


def _kind_of_recipe(name: str) -> str:
    if is_mix(name):
        return "one of llama-quantize's mixes"
    if name.removesuffix(_RECIPE_ENDING).replace(os.sep, "/") in shipped_recipes():
        return "a recipe that ships with ggplan"
    return ""


def _from_standard_input() -> Model | Recipe | PlanDocument:
    data = read_standard_input(SIZE_LIMIT, RecipeError).removeprefix(codecs.BOM_UTF8)
    if data.lstrip()[:1] == b"{":
        content = parse_object(data, SHOWN)
        if content.get("schema") == PLAN_SCHEMA:
            return PlanDocument(content)
        return with_family(parse_inventory(data, Path(SHOWN)))
    if is_map(data[:_SNIFFED].decode("utf-8", "replace")):
        return with_family(parse_inventory(data, Path(SHOWN)))
    try:
        return parse_recipe(data.decode("utf-8"), SHOWN, follow=following(SHOWN))
    except UnicodeDecodeError:
        raise RecipeError("standard input is not UTF-8 text") from None


def _from_path(name: str, pre: str | None, header_only: bool) -> Model | Recipe | PlanDocument:
    path = Path(name)
    if path.is_dir() or path.suffix in _MODEL_ENDINGS:
        return open_model(path, pre=pre, header_only=header_only)
    if path.suffix == _RECIPE_ENDING:
        return load_recipe(path)
    if begins_with(path, b"GGUF"):
        return open_model(path, pre=pre, header_only=header_only)
    head = read_at(path, 0, min(_SNIFFED, path.stat().st_size))
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        content = parse_object(read_whole(path, SIZE_LIMIT), name)
        return (
            PlanDocument(content)
            if content.get("schema") == PLAN_SCHEMA
            else open_model(path, pre=pre, header_only=header_only)
        )
    if is_map(head.decode("utf-8", "replace")) or b"\0" in head:
        return open_model(path, pre=pre, header_only=header_only)
    return load_recipe(path)
