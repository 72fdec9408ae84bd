"""`ggplan chart`: pictures of records and of mixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from ggplan.charts.drawing import Drawing
    from ggplan.charts.points import Panel, Quality
    from ggplan.charts.quality import Cost
    from ggplan.charts.style import Theme
    from ggplan.measure import Record
    from ggplan.measure.record_file import Scores

_EPILOG = """\b
Examples:
  ggplan chart air.json -o air.svg                    what each mix loses against its size
  ggplan chart air.json -o air.svg --metric kld99 --x bpw
  ggplan chart air.json -o fast.svg --x speed         against tokens per second
  ggplan chart air.json -o gib.svg --kind parts       where the GiB are, by role and type
  ggplan chart sweep-bench.log -o ctx.svg --kind context
  ggplan chart air-hq4_k.gguf -o types.svg --kind types
  ggplan chart GLM-4.5-Air -r my.recipe -o types.svg --kind types
"""


@click.command("chart", epilog=_EPILOG, short_help="Draw records: quality against size, speed, types.")
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(),
    metavar="OUT",
    help="The .svg, .png or .html to write.",
)
@click.option(
    "--kind",
    type=click.Choice(["quality", "context", "parts", "types"]),
    default="quality",
    show_default=True,
    help="Quality against cost, speed against context, bytes by role, types by layer.",
)
@click.option(
    "--metric",
    type=click.Choice(["kld", "kld99", "kld999", "dppl", "ppl"]),
    help="What is lost: divergence, its percentiles, % of perplexity, perplexity [default: the best].",
)
@click.option(
    "--x",
    "cost",
    type=click.Choice(["size", "bpw", "speed"]),
    help="What it costs [default: size, else bits per weight].",
)
@click.option("--text", metavar="NAME", help="Draw what was measured on this text only.")
@click.option("--mixed", is_flag=True, help="Draw different texts, contexts or engines on one axis.")
@click.option("-r", "--recipe", metavar="RECIPE", help="For `types`: the recipe to apply to the model.")
@click.option("--pre", metavar="NAME", help="For `types`: the pre-tokenizer's name of a checkpoint.")
@click.option("--model-name", help="Of a file that holds several models, the one to draw.")
@click.option("--title", default="", help="The heading.")
@click.option(
    "--theme",
    type=click.Choice(["auto", "light", "dark"]),
    default="auto",
    show_default=True,
    help="`auto` follows the reader's setting in SVG and HTML.",
)
def chart_command(
    files: tuple[str, ...], output: str, kind: str, metric: Quality | None, cost: Cost | None,
    text: str | None, mixed: bool, recipe: str | None, pre: str | None, model_name: str | None, title: str,
    theme: Theme,
) -> None:  # fmt: skip
    """Draw FILEs: records of `ggplan measure`, or any log or table it can parse; a model for `types`.

    The same input gives the same bytes. Text stays text, points carry their names and numbers.

    Exits 0; 1 if a file cannot be read, or does not hold what is to be drawn; 2 for wrong usage.
    """
    from pathlib import Path

    from ggplan.charts.output import KINDS, save
    from ggplan.measure.outputs import find_same
    from ggplan.text import printable

    if Path(output).suffix.lower() not in KINDS:
        raise click.UsageError(f"-o {printable(output)}: the name must end in {', '.join(KINDS)}")
    same = find_same(Path(output), map(Path, files))
    if same is not None:
        raise click.UsageError(f"-o would overwrite {printable(str(same))}, which is read")
    if kind == "types":
        drawing = _types(files, recipe, pre, title)
    else:
        paths = [Path(f) for f in files]
        records = _records(paths, model_name)
        drawing = (
            _draw_quality(records, paths, metric, cost, text, mixed, title)
            if kind == "quality"
            else _draw(kind, records, title)
        )
    save(drawing, output, theme)
    click.echo(f"wrote {printable(output)}")


def _types(files: tuple[str, ...], recipe: str | None, pre: str | None, title: str) -> Drawing:
    from ggplan.charts.types_map import draw_types
    from ggplan.cli.options import open_noted, recipe_or_mix_of_name
    from ggplan.planning import assign

    if len(files) != 1:
        raise click.UsageError("--kind types draws one model")
    chosen = recipe_or_mix_of_name(recipe) if recipe else None
    model = open_noted(files[0], pre=pre)
    return draw_types(model, assign(model, chosen), title=title)


def _records(paths: list[Path], model_name: str | None) -> list[Record]:
    from ggplan.errors import ChartError
    from ggplan.measure.parsing import parse_files
    from ggplan.text import printable

    records = parse_files(paths, model_name=model_name)
    if len(records) > 1 and model_name is None and len(paths) == 1:
        names = ", ".join(printable(r.model.name) for r in records[:6])
        raise ChartError(f"the file is of several models ({names})", hint="choose one with --model-name")
    return records


def _draw(kind: str, records: list[Record], title: str) -> Drawing:
    if kind == "context":
        from ggplan.charts.context import draw_context

        return draw_context(records, title=title)
    from ggplan.charts.parts import draw_parts

    return draw_parts(records, title=title)


def _draw_quality(
    records: list[Record], paths: list[Path], metric: Quality | None, cost: Cost | None, text: str | None,
    mixed: bool, title: str,
) -> Drawing:  # fmt: skip
    from ggplan.charts.points import panels
    from ggplan.charts.quality import draw_quality
    from ggplan.measure import kept_scores

    scores = kept_scores(*paths)
    drawn = panels(records, quality=metric, text=text, mixed=mixed, scores=scores)
    _warn(records, paths, drawn, scores)
    return draw_quality(drawn, cost=cost, title=title)


def _warn(records: list[Record], paths: list[Path], drawn: list[Panel], scores: Scores) -> None:
    """Print notes on scores that are not used, and where the held-out text contradicts the text of choice."""
    from ggplan.measure import disagreements
    from ggplan.measure.record_file import stray_scores
    from ggplan.text import printable

    strays = stray_scores(records, *paths)
    if strays:
        click.echo(
            f"note: {printable(str(strays[0]))} is not used: these scores belong to no measurement"
            + (f" ({len(strays):,} such files)" if len(strays) > 1 else ""),
            err=True,
        )
    if len(drawn) < 2:
        return
    for found in (d for record in records for d in disagreements(record.quantizations, scores)):
        click.echo(
            f"warning: {printable(found.better_chosen)} wins on the text of choice,"
            f" {printable(found.better_held_out)} on the held-out one",
            err=True,
        )
