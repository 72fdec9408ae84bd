"""A recipe that has to be found again: what it includes and inherits, kept beside its text.

A file records the recipe it was made by. The texts of `@include` and `@base` are recorded by the names by
which the recipe reaches them from its own folder, with no word of where that folder was.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Mapping
from pathlib import PurePath

from ggplan.rules.draft import Follow, FollowError
from ggplan.rules.loading import shipped_recipes
from ggplan.rules.recipe import Recipe
from ggplan.text import printable

_ENDING = ".recipe"


def record_parts(recipe: Recipe) -> str:
    """The texts that a recipe includes and inherits, as JSON: {name: text}; "" where there are none."""
    folder = os.path.dirname(recipe.file)
    named = {_name_from(folder, file): text for file, text in recipe.parts}
    return json.dumps(named, ensure_ascii=False, sort_keys=True) if named else ""


def follow_recorded(parts: str) -> Follow:
    """How a recorded recipe finds what it includes.

    Raises
    ------
    ValueError
        If `parts` is not what `record_parts` gives.
    """
    texts = json.loads(parts) if parts else {}
    if not isinstance(texts, Mapping) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("the recorded parts of the recipe are no texts")

    def follow(target: str, file: str) -> tuple[str, str]:
        folder = posixpath.dirname(file) if file in texts else ""
        beside = posixpath.normpath(posixpath.join(folder, target))
        for name in (beside, f"{target.removesuffix(_ENDING)}{_ENDING}"):
            if name in texts:
                return name, texts[name]
        raise FollowError(f"`{printable(target)}` is not recorded beside the recipe")

    return follow


def _name_from(folder: str, file: str) -> str:
    if file.removesuffix(_ENDING) in shipped_recipes():
        return file
    return PurePath(os.path.relpath(file, folder or ".")).as_posix()
