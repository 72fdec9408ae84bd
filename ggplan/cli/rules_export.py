"""`ggplan rules export`: a recipe in another tool's dialect, exact for one model."""

from __future__ import annotations

import click

from ggplan.cli.rules_import import WRITTEN

_EPILOG = """\b
Examples:
  ggplan rules export glm4moe/hq4_k --dialect llama-quantize -m GLM-4.5-Air > types.txt
  ggplan rules export my.recipe --dialect ik_llama.cpp -m model.gguf
  ggplan rules export my.recipe --dialect compressed-tensors -m Qwen3-8B
"""


@click.command("export", epilog=_EPILOG, short_help="Write a recipe as another tool reads it.")
@click.argument("recipe")
@click.option("--dialect", type=click.Choice(WRITTEN), required=True, help="Which tool is to read it.")
@click.option(
    "-m",
    "--model",
    "model_name",
    metavar="MODEL",
    help="A checkpoint, an inventory, or the name of a shipped one.",
)
@click.option("-o", "--output", type=click.Path(), help="Write to this file, which must not exist.")
def export_command(recipe: str, dialect: str, model_name: str | None, output: str | None) -> None:
    """Write what RECIPE gives a model as another tool reads it.

    Each line says one type and matches whole names, and no name is matched twice, so the tool's order,
    lower-casing and lack of comments change nothing. The list is read back before it is printed, and must
    give every tensor its type. What the tool cannot say is an error.
    """
    from ggplan.cli.options import open_noted
    from ggplan.cli.output import write_new
    from ggplan.dialects import export_recipe
    from ggplan.errors import CheckpointError
    from ggplan.linting import subject_of
    from ggplan.planning import assign, find_recipe
    from ggplan.rules import Recipe
    from ggplan.text import printable

    loaded = find_recipe(recipe)
    model = open_noted(model_name) if model_name else None
    if model is None and isinstance(loaded, Recipe):
        model = subject_of(loaded)
    if model is None:
        raise CheckpointError("an export is exact for one model", hint="name it with -m")
    exported = export_recipe(assign(model, loaded), model, dialect)
    write_new(exported.text, output)
    for note in exported.notes:
        click.echo(f"note: {printable(note)}", err=True)
