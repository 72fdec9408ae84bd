"""From command-line arguments to a recipe and the model it is looked at with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggplan.cli.options import recipe_of_name

if TYPE_CHECKING:
    from ggplan.cli.opening import OpeningOptions
    from ggplan.model import Model
    from ggplan.rules import Recipe


def recipe_and_model(
    recipe_name: str, model_name: str | None, opening: OpeningOptions, *, quiet: bool = False
) -> tuple[Recipe, Model]:
    """The recipe, and the model of this name or the shipped inventory that the recipe is for."""
    from ggplan.errors import CheckpointError
    from ggplan.inventories import inventories
    from ggplan.linting import subject_of

    opening.refuse_without(model_name)
    model = opening.open_noted(model_name, quiet=quiet) if model_name else None
    recipe = recipe_of_name(recipe_name, "" if model is None else model.architecture, quiet=quiet)
    model = model or subject_of(recipe)
    if model is None:
        raise CheckpointError(
            "the recipe does not say which model it is for",
            hint=f"give one with -m: a path, or one of {', '.join(inventories())}",
        )
    return recipe, model
