"""`ggplan rules export`: a recipe in another tool's dialect, exact for one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ggplan.cli.opening import OpeningOptions, opening_options
from ggplan.cli.options import (
    fallback_option,
    force_option,
    model_option,
    note,
    output_option,
    quiet_option,
    recipe_or_mix_of_name,
)
from ggplan.cli.rules_import import WRITTEN

if TYPE_CHECKING:
    from ggplan.planning import FallbackTable

_EPILOG = """\b
Examples:
  ggplan rules export glm4moe/hq4_k --dialect llama-quantize -m GLM-4.5-Air > types.txt
  ggplan rules export my.recipe --dialect ik_llama.cpp -m model.gguf
  ggplan rules export my.recipe --dialect compressed-tensors -m Qwen3-8B
"""


@click.command("export", epilog=_EPILOG, short_help="Write a recipe as another tool reads it.")
@click.argument("recipe")
@click.option("--dialect", type=click.Choice(WRITTEN), required=True, help="Which tool is to read it.")
@model_option
@opening_options()
@fallback_option
@output_option("Write to this file.")
@force_option("the file of -o")
@quiet_option
def export_command(
    recipe: str,
    dialect: str,
    model_name: str | None,
    opening: OpeningOptions,
    fallback: FallbackTable | None,
    output: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Write what RECIPE gives a model as another tool reads it.

    Each line says one type and matches whole names, and no name is matched twice, so the tool's order,
    lower-casing and lack of comments change nothing. The list is read back before it is printed, and must
    give every tensor its type. What the tool cannot say is an error.

    Exits 0; 1 if it cannot be said, read or written; 2 for wrong usage.
    """
    from ggplan.cli.output import write_new
    from ggplan.dialects import export_recipe
    from ggplan.errors import CheckpointError
    from ggplan.linting import subject_of
    from ggplan.planning import assign
    from ggplan.rules import Recipe

    opening.refuse_without(model_name)
    loaded = recipe_or_mix_of_name(recipe, quiet=quiet)
    model = opening.open_noted(model_name, quiet=quiet) if model_name else None
    if model is None and isinstance(loaded, Recipe):
        model = subject_of(loaded)
    if model is None:
        raise CheckpointError("an export is exact for one model", hint="name it with -m")
    exported = export_recipe(assign(model, loaded), model, dialect, fallback=fallback)
    write_new(exported.text, output, force=force, quiet=quiet)
    note(*exported.notes, quiet=quiet)
