"""Which model a recipe is for: the one it names, or those of its architecture, or the one it fits best."""

from __future__ import annotations

import re

from ggplan.checking.case import make_case
from ggplan.inventories import inventories_of, inventory, names_of_inventories
from ggplan.model import Model
from ggplan.planning.fallback import table_of
from ggplan.rules import Recipe

_HEAD_LINES = 60
_LARGEST_TRIED = 200_000  # rules times tensors


def subject_of(recipe: Recipe) -> Model | None:
    """The shipped inventory to check a recipe against, or None where it says nothing of its model.

    What its first lines name (`# Model name: GLM-4.5-Air`), within the architecture that `@arch` names. Of
    several, the one that leaves the fewest rules without a tensor and tensors without a rule.
    """
    mentioned = _mentioned(recipe)
    candidates = list(inventories_of(recipe.architecture)) if recipe.architecture else mentioned
    candidates = [name for name in candidates if name in mentioned] or candidates
    if not candidates:
        return None
    models = [inventory(name) for name in candidates]
    if len(models) == 1 or len(recipe.rules) * len(models[0].tensors) > _LARGEST_TRIED:
        return models[0]
    return min(models, key=lambda model: _misfits(recipe, model))


def _mentioned(recipe: Recipe) -> list[str]:
    head = "\n".join(recipe.text.split("\n", _HEAD_LINES)[:_HEAD_LINES])
    text = f"{recipe.file}\n{head}".lower()
    found = {
        home: None
        for name, home in names_of_inventories().items()
        if re.search(rf"(?<![\w.-]){re.escape(name.lower())}(?![\w-]|\.\d)", text)
    }
    return list(found)


def _misfits(recipe: Recipe, model: Model) -> int:
    case = make_case(model, recipe, table_of(recipe))
    return sum(not members for members in case.members) + len(case.uncovered())
