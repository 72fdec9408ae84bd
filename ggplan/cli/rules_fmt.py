"""`ggplan rules fmt`: one layout for every recipe."""

from __future__ import annotations

import click

from ggplan.cli.options import quiet_option

_EPILOG = """\b
Examples:
  ggplan rules fmt my.recipe              rewrite it in place
  ggplan rules fmt --check *.recipe       exit 1 if one would change
  ggplan rules fmt - < my.recipe          from standard input to standard output
"""


@click.command("fmt", epilog=_EPILOG, short_help="Lay recipes out alike, comments and meaning kept.")
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if a recipe would change.")
@quiet_option
def fmt_command(recipes: tuple[str, ...], check: bool, quiet: bool) -> None:
    """Rewrite RECIPEs in ggplan's layout: `=` aligned, types as ggml spells them, comments kept.

    A recipe with errors is left alone. `-` is standard input, printed to standard output.

    Exits 0; 1 if one has errors or cannot be written, or would change with --check; 2 for wrong usage.
    """
    from pathlib import Path

    from ggplan.cli.rules_check import refuse_shipped, write_texts
    from ggplan.rules.formatting import format_recipe
    from ggplan.rules.loading import recipe_text
    from ggplan.rules.parser import parse_recipe
    from ggplan.text import printable

    changed = 0
    for name in recipes:
        refuse_shipped(name)
    for name in recipes:
        text, file, follow = recipe_text("-" if name == "-" else Path(name))
        parse_recipe(text, file, follow=follow)
        new = format_recipe(text)
        if name == "-" and not check:
            click.echo(new, nl=False)
            continue
        if new == text:
            continue
        changed += 1
        if check:
            click.echo(f"{printable(file)} would change")
            continue
        write_texts({file: new})
        if not quiet:
            click.echo(f"{printable(name)} laid out")
    if check and changed:
        raise SystemExit(1)
