"""`ggplan rules new`: a commented recipe to start from."""

from __future__ import annotations

import click

from ggplan.cli.opening import OpeningOptions, opening_options
from ggplan.cli.options import force_option, model_option, output_option, quiet_option

_EPILOG = """\b
Examples:
  ggplan rules new -m GLM-4.5-Air -o my.recipe
  ggplan rules new -m model.gguf > my.recipe
"""


@click.command("new", epilog=_EPILOG, short_help="Write a commented recipe for a model.")
@model_option
@opening_options()
@click.option("--from", "from_name", metavar="MODEL", hidden=True)
@click.option("--name", default="start", show_default=True, metavar="NAME", help="What `@name` says.")
@output_option("Write to this file.")
@force_option("the file of -o")
@quiet_option
def new_command(
    model_name: str | None,
    from_name: str | None,
    opening: OpeningOptions,
    name: str,
    output: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Write a commented recipe for a model: a rule for each role it has, its size, and tests.

    Exits 0; 1 if the model cannot be read or the recipe not written; 2 for wrong usage.
    """
    asked = model_name or from_name
    if asked is None:
        raise click.UsageError("name the model with -m")
    from ggplan.cli.output import write_new
    from ggplan.linting.starting import starting_recipe
    from ggplan.text import printable

    text = starting_recipe(
        opening.open_noted(asked, quiet=quiet), " ".join(name.split()).replace("#", "") or "start"
    )
    shown = printable(output or "")
    write_new(text, output, f"; check it with `ggplan rules check {shown}`", force=force, quiet=quiet)
