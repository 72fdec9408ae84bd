"""From command-line arguments to a recipe and the model it is looked at with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggplan.model import Model
    from ggplan.rules import Recipe


def recipe_and_model(recipe_name: str, model_name: str | None) -> tuple[Recipe, Model]:
    """The recipe, and the model of this name or the shipped inventory that the recipe is for."""
    from ggplan.cli.options import open_noted
    from ggplan.errors import CheckpointError
    from ggplan.inventories import inventories
    from ggplan.linting import subject_of
    from ggplan.rules import load_recipe

    model = open_noted(model_name) if model_name else None
    recipe = load_recipe(recipe_name, "" if model is None else model.architecture)
    model = model or subject_of(recipe)
    if model is None:
        raise CheckpointError(
            "the recipe does not say which model it is for",
            hint=f"give one with -m: a path, or one of {', '.join(inventories())}",
        )
    return recipe, model
