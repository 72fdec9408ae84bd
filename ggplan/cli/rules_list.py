"""`ggplan rules list`: the recipes that ship with ggplan, and what they give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ggplan.rules.library import Figures, ShippedRecipe

SCHEMA = "ggplan/library@1"

_EPILOG = """\b
Examples:
  ggplan rules list                       all of them
  ggplan rules list GLM-4.5-Air           those for a model
  ggplan rules list qwen3moe --json       those of a family
  ggplan plan GLM-4.5-Air -r glm4moe/hq4_k
"""


@click.command("list", epilog=_EPILOG, short_help="List the recipes that ship with ggplan.")
@click.argument("names", nargs=-1, metavar="[MODEL|FAMILY]...")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def list_command(names: tuple[str, ...], as_json: bool) -> None:
    """List the shipped recipes, by family: what each gives on the models it is for.

    Sizes are of all tensors. "token reads" is how much of the routed experts, which are meant for RAM, one
    token needs: the bandwidth of the RAM divided by it bounds the tokens per second.
    """
    entries = _asked(names)
    if as_json:
        from ggplan.cli.output import print_json

        print_json({"schema": SCHEMA, "recipes": [_json(entry) for entry in entries]})
        return
    for family in dict.fromkeys(entry.family for entry in entries):
        _print(family, [entry for entry in entries if entry.family == family])
    click.echo("`-r NAME` uses one, as in `ggplan plan MODEL -r glm4moe/hq4_k`")


def _asked(names: tuple[str, ...]) -> list[ShippedRecipe]:
    """The recipes of these families and for these models, each model under any of its names."""
    import difflib
    from dataclasses import replace

    from ggplan.errors import RecipeError
    from ggplan.inventories import names_of_inventories
    from ggplan.rules.library import library
    from ggplan.text import printable

    entries = library()
    if not names:
        return list(entries)
    models = {name.lower(): home for name, home in names_of_inventories().items()}
    families = {entry.family.lower(): entry.family for entry in entries if entry.family}
    for name in names:
        if name.lower() not in models and name.lower() not in families:
            known = {word.lower(): word for word in (*families.values(), *names_of_inventories())}
            near = difflib.get_close_matches(name.lower()[:60], known, n=1)
            hint = f"the nearest is {known[near[0]]}" if near else f"families are {', '.join(families)}"
            raise RecipeError(f"no shipped recipe is for {printable(name)}", hint=hint)
    wanted = {families.get(name.lower()) for name in names} - {None}
    homes = {models.get(name.lower()) for name in names} - {None}
    found = []
    for entry in entries:
        figures = entry.figures
        if entry.family not in wanted:
            figures = tuple(f for f in figures if f.model in homes)
        if figures:
            found.append(replace(entry, figures=figures))
    return found


def _print(family: str, entries: list[ShippedRecipe]) -> None:
    """The table of a family: a recipe to a row, in it a line for each model."""
    from rich import box
    from rich.table import Table

    from ggplan.cli.output import console

    table = Table(title=family or "any mixture of experts", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("recipe", "model"):
        table.add_column(heading, no_wrap=True)
    for heading in ("GiB", "bpw", "token reads"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what it is")
    for entry in entries:
        columns = zip(*(_cells(figures) for figures in entry.figures), strict=True)
        table.add_row(entry.name, *("\n".join(cells) for cells in columns), entry.summary)
    console().print(table)


def _cells(figures: Figures) -> tuple[str, str, str, str]:
    token = "all" if figures.ram_per_token is None else f"{figures.ram_per_token:.2f} GiB"
    return figures.model, f"{figures.size:.2f}", f"{figures.bits_per_weight:.3f}", token


def _json(entry: ShippedRecipe) -> dict[str, object]:
    return {
        "name": entry.name,
        "family": entry.family,
        "summary": entry.summary,
        "target": entry.target,
        "models": [
            {
                "model": f.model,
                "gib": f.size,
                "bits_per_weight": f.bits_per_weight,
                "ram_gib": f.ram,
                "ram_gib_per_token": f.ram_per_token,
                "gpu_gib": f.gpu,
            }
            for f in entry.figures
        ],
    }
