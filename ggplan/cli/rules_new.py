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
    from ggplan.checking import open_subject
    from ggplan.checking.starting import starting_recipe
    from ggplan.errors import RecipeError
    from ggplan.text import printable

    text = starting_recipe(open_subject(model_name), " ".join(name.split()).replace("#", "") or "start")
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with open(output, "x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{printable(output)} exists", hint="name another file, or delete it") from None
    click.echo(f"{printable(output)} written; check it with `ggplan rules check {printable(output)}`")
