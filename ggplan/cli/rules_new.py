"""`ggplan rules new`: a commented recipe to start from."""

from __future__ import annotations

import click

_EPILOG = """\b
Examples:
  ggplan rules new --from GLM-4.5-Air -o my.recipe
  ggplan rules new --from model.gguf > my.recipe
"""


@click.command("new", epilog=_EPILOG, short_help="Write a commented recipe for a model.")
@click.option("--from", "model_name", required=True, metavar="MODEL",
              help="A checkpoint, an inventory, or the name of a shipped one.")  # fmt: skip
@click.option("--name", default="start", show_default=True, help="What `@name` says.")
@click.option("-o", "--output", type=click.Path(), help="Write to this file, which must not exist.")
def new_command(model_name: str, name: str, output: str | None) -> None:
    """Write a commented recipe for a model: a rule for each role it has, its size, and tests."""
    from ggplan.cli.options import open_noted
    from ggplan.cli.output import write_new
    from ggplan.linting.starting import starting_recipe
    from ggplan.text import printable

    text = starting_recipe(open_noted(model_name), " ".join(name.split()).replace("#", "") or "start")
    shown = printable(output or "")
    write_new(text, output, f"; check it with `ggplan rules check {shown}`")
