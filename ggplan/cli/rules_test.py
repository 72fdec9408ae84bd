"""`ggplan rules test`: whether a recipe keeps what its @assert and @test lines promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ggplan.cli.opening import OpeningOptions, opening_options
from ggplan.cli.options import fallback_option, json_option, model_option, quiet_option

if TYPE_CHECKING:
    from ggplan.planning import FallbackTable

_EPILOG = """\b
Examples:
  ggplan rules test my.recipe
  ggplan rules test glm4moe/hq4_k -m GLM-4.6
"""


@click.command("test", epilog=_EPILOG, short_help="Hold recipes to their @assert and @test lines.")
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@model_option
@opening_options()
@fallback_option
@json_option("the outcomes")
@quiet_option
def test_command(
    recipes: tuple[str, ...],
    model_name: str | None,
    opening: OpeningOptions,
    fallback: FallbackTable | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the @assert and @test lines of RECIPEs.

    Exits 0 if all hold; 1 if one fails, or a recipe or model cannot be read; 2 for wrong usage.
    """
    from ggplan.cli.rules_subject import recipe_and_model
    from ggplan.linting import lint_rules
    from ggplan.linting.case import make_case
    from ggplan.linting.engine import diagnostic
    from ggplan.linting.rules.gp301_promises import outcomes
    from ggplan.rules import render
    from ggplan.text import printable

    failed = total = 0
    documents = []
    for name in recipes:
        recipe, model = recipe_and_model(name, model_name, opening, quiet=quiet)
        found = list(outcomes(make_case(model, recipe, fallback)))
        total += len(found)
        failed += sum(outcome.finding is not None for outcome in found)
        documents.append(
            {
                "recipe": recipe.file,
                "model": str(model.path),
                "outcomes": [{"text": o.text, "holds": o.finding is None, "actual": o.actual} for o in found],
            }
        )
        if as_json:
            continue
        for outcome in found:
            if outcome.finding is None:
                if not quiet:
                    click.echo(printable(f"ok      {outcome.text}  ({outcome.actual})"))
            else:
                broken = diagnostic(lint_rules()[outcome.code], outcome.finding, None)
                line = recipe.source_line(broken.line, broken.file)
                click.echo(f"FAILED  {printable(outcome.text)}\n{render(broken, line)}\n")
        kept = sum(outcome.finding is None for outcome in found)
        click.echo(
            f"{printable(recipe.file)} against {printable(str(model.path))}: {kept} of {len(found)} hold"
        )
    if as_json:
        import json

        click.echo(json.dumps({"schema": "ggplan/test@1", "recipes": documents}, indent=2))
    if failed:
        raise SystemExit(1)
