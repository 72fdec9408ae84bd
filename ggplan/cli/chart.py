"""`ggplan chart`: pictures of records, of logs, and of mixes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from ggplan.cli.machine_options import machine_options
from ggplan.cli.opening import OpeningOptions, opening_options
from ggplan.cli.options import as_one, force_option, note, quiet_option
from ggplan.cli.sizes import TokenCount, measured_file_options

if TYPE_CHECKING:
    from pathlib import Path

    from ggplan.charts import Drawing
    from ggplan.charts.points import Panel, Quality
    from ggplan.charts.quality import Cost
    from ggplan.charts.style import Theme
    from ggplan.charts.tensors import TypedTensors
    from ggplan.ggml_types import Engine
    from ggplan.measure import Record
    from ggplan.measure.record_file import Scores
    from ggplan.offload.known_machine import Stated

_EPILOG = """\b
Examples:
  ggplan chart air.json -o air.svg                    what each mix loses against its size
  ggplan chart air.json -o air.svg --metric kld99 --x bpw
  ggplan chart air.json -o fast.svg --x speed         against tokens per second
  ggplan chart q8.log q4.log -o ppl.svg --gguf q8.gguf --size q4=24.6MiB
  ggplan chart sweep-bench.log -o ctx.svg             speed against context
  ggplan chart air-hq4_k.gguf -o types.svg            the type of every tensor
  ggplan chart GLM-4.5-Air -r my.recipe -o types.svg
  ggplan chart air.json -o gib.svg --kind parts       where the GiB are, by role and type
  ggplan chart GLM-4.5-Air -r glm4moe/hq4_k -r glm4moe/small -o gib.svg --kind parts
  ggplan chart curve.json air.json -o best.svg        the curve of `optimize --pareto`, and what was measured
  ggplan chart GLM-4.5-Air -o best.svg --kind frontier
  ggplan chart GLM-4.5-Air -r Q4_K_M -o loss.svg --kind damage    where the loss is
  ggplan chart GLM-4.5-Air -r Q8_0 -r glm4moe/hq4_k -o fit.svg --kind fit --cards 3090 --ram 128G
"""
_OPENING = ("pre", "converter", "header_only", "mtp", "prune_layers", "keep_experts", "fuse", "split")
_MACHINE = ("machine", "vram", "cards", "ram", "bandwidth", "cores")
_Kind = Literal["quality", "context", "parts", "types", "fit", "frontier", "damage"]
_USED: dict[_Kind, set[str]] = {
    "quality": {"metric", "cost", "text", "ctx", "mixed", "model_name", "sizes", "ggufs"},
    "context": {"model_name"},
    "parts": {"recipes", *_OPENING, "model_name", "ggufs"},
    "types": {"recipes", *_OPENING},
    "fit": {"recipes", *_OPENING, "ctx", "kv_types", "parts", "engine", *_MACHINE},
    "frontier": {"cost", "text", "ctx", "model_name", "sizes", "ggufs", *_OPENING},
    "damage": {"recipes", *_OPENING},
}
_OPTIONS = {
    "metric": "--metric", "cost": "--x", "text": "--text", "ctx": "--ctx", "mixed": "--mixed",
    "kv_types": "--kv-type", "parts": "--role", "engine": "--engine",
    "recipes": "-r", "model_name": "--model-name", "sizes": "--size", "ggufs": "--gguf",
    **{name: f"--{name.replace('_', '-')}" for name in (*_OPENING, *_MACHINE)},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Asked:
    """The values of the options that not every kind of chart uses."""

    metric: Quality | None
    cost: Cost | None
    text: str | None
    ctx: int | None
    mixed: bool
    sizes: tuple[tuple[str, int], ...]
    ggufs: tuple[tuple[str, str], ...]
    recipes: tuple[str, ...]
    kv_types: tuple[str, ...]
    parts: tuple[str, ...]
    engine: Engine | None
    stated: Stated
    opening: OpeningOptions
    model_name: str | None
    quiet: bool

    @property
    def given(self) -> set[str]:
        flags = {flag: name for name, flag in _OPTIONS.items()}
        own = {n for n in _OPTIONS if n not in (*_OPENING, *_MACHINE) and getattr(self, n)}
        own |= {n for n in _MACHINE if getattr(self.stated, "file" if n == "machine" else n)}
        return own | {flags[flag] for flag in self.opening.given}


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
    type=click.Choice(["quality", "context", "parts", "types", "fit", "frontier", "damage"]),
    help="Quality against cost, speed against context, bytes by role, types by layer, memory and speed on a "
    "machine, the best files of all sizes as predicted, predicted losses by layer [default: types of a model "
    "or a plan, frontier of a curve, else quality, else context].",
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
@click.option(
    "-c",
    "--ctx",
    type=TokenCount(),
    metavar="N",
    help="Draw what was measured with chunks of this many tokens only; of fit, the tokens of context.",
)
@click.option("--mixed", is_flag=True, help="Draw different texts, contexts or engines on one axis.")
@measured_file_options
@click.option(
    "-r",
    "--recipe",
    "recipes",
    multiple=True,
    metavar="RECIPE",
    help="For types, parts and fit: the recipe or mix to apply to the model; several for parts and fit.",
)
@click.option("--kv-type", "kv_types", multiple=True, metavar="TYPE[,TYPE]",
              help="For fit: type of keys and values; can be repeated.")  # fmt: skip
@click.option("--role", "parts", multiple=True, metavar="PART=TYPE,...",
              help="For fit: all matrices of a part in each of these types: experts.down=q8_0,q5_0.",
              )  # fmt: skip
@click.option("--engine", type=click.Choice(["llama.cpp", "ik_llama.cpp"]),
              help="For fit: whose memory and speed [default: llama.cpp].")  # fmt: skip
@machine_options
@opening_options()
@click.option("--model-name", help="Of a file that holds several models, the one to draw.")
@click.option("--title", default="", help="The heading.")
@click.option(
    "--theme",
    type=click.Choice(["auto", "light", "dark"]),
    default="auto",
    show_default=True,
    help="`auto` follows the reader's setting in SVG and HTML.",
)
@force_option("any file of -o: without it, pictures alone are drawn anew")
@quiet_option
@as_one("asked", _Asked)
def chart_command(
    files: tuple[str, ...],
    output: str,
    kind: _Kind | None,
    title: str,
    theme: Theme,
    force: bool,
    asked: _Asked,
) -> None:
    """Draw FILEs: records of `ggplan measure`, any log or table it can parse (`-`: standard input), models,
    plans (JSON).

    The same input gives the same bytes. Text stays text, points carry their names and numbers.

    Exits 0; 1 if a file cannot be read, or does not hold what is to be drawn; 2 for wrong usage.
    """
    from pathlib import Path

    from ggplan.charts.output import KINDS, STARTS, FontWarning
    from ggplan.measure.outputs import find_same, is_of_another_kind
    from ggplan.text import printable

    if Path(output).suffix.lower() not in KINDS:
        raise click.UsageError(f"-o {printable(output)}: the name must end in {', '.join(KINDS)}")
    same = find_same(Path(output), map(Path, files))
    if same is not None:
        raise click.UsageError(f"-o would overwrite {printable(str(same))}, which is read")
    start = STARTS[Path(output).suffix.lower()]
    if not force and Path(output).is_file() and is_of_another_kind(Path(output), start):
        raise click.UsageError(
            f"-o would overwrite {printable(output)}, which is no chart of ggplan; --force replaces it"
        )
    if kind is not None:
        _refuse_unused(kind, asked)
    drawing = _draw(files, kind, asked, title)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FontWarning)
        drawing.save(output, theme)
    note(*(str(warning.message) for warning in caught), quiet=asked.quiet)
    if not asked.quiet:
        click.echo(f"wrote {printable(output)}")


def _refuse_unused(kind: _Kind, asked: _Asked) -> None:
    """Refuse an option that this kind of chart does not use."""
    for name in sorted(asked.given - _USED[kind]):
        kinds = " and ".join(f"--kind {k}" for k, used in _USED.items() if name in used)
        raise click.UsageError(f"{_OPTIONS[name]} belongs to {kinds}, not to --kind {kind}")


def _draw(files: tuple[str, ...], kind: _Kind | None, asked: _Asked, title: str) -> Drawing:
    from pathlib import Path

    models = [name for name in files if _is_model(name)]
    others = [Path(name) for name in files if name not in models]
    if kind == "types" or (kind is None and models):
        _refuse_unused("types", asked)
        return _draw_types(files, asked, title)
    if kind == "fit":
        return _draw_fit(models, others, asked, title)
    if kind == "damage":
        from ggplan.cli.chart_predictions import draw_losses

        return draw_losses(models, others, asked.recipes, asked.opening, title=title, quiet=asked.quiet)
    from ggplan.cli.chart_predictions import sorted_out

    if kind == "frontier" or (kind is None and sorted_out(others)[0]):
        _refuse_unused("frontier", asked)
        return _draw_frontier(models, others, asked, title)
    if kind == "parts":
        return _draw_parts(models, others, asked, title)
    if models:
        from ggplan.errors import ChartError
        from ggplan.text import printable

        raise ChartError(
            f"{printable(models[0])} is a model or a plan, not a record or a log",
            hint="--kind types or --kind parts draws it",
        )
    if asked.recipes:
        raise click.UsageError("-r applies to a model (--kind types, --kind parts), not to a record or a log")
    records = _records(others, asked)
    if kind is None:
        kind = _kind_for(records, asked)
        _refuse_unused(kind, asked)
    if kind == "context":
        from ggplan.charts import draw_context
        from ggplan.charts.context import without_curve

        drawing = draw_context(records, title=title)
        left_out = without_curve(records)
        note(
            *(f"{name} is not drawn: it has no speeds at two contexts" for name in left_out),
            quiet=asked.quiet,
        )
        return drawing
    return _draw_quality(records, others, asked, title)


def _draw_frontier(models: list[str], others: list[Path], asked: _Asked, title: str) -> Drawing:
    from ggplan.cli.chart_predictions import draw_predicted, measured_panels, sorted_out

    curves, tables, files = sorted_out(others)
    measured = measured_panels(_records(files, asked) if files else [], asked.text, asked.ctx)
    return draw_predicted(
        models, curves, tables, measured, asked.opening, cost=asked.cost, title=title, quiet=asked.quiet
    )


def _is_model(name: str) -> bool:
    """Whether a name on the command line is a model, an inventory or a plan, not a record or a log."""
    from pathlib import Path

    from ggplan.charts.tensors import is_plan
    from ggplan.inventories import is_inventory
    from ggplan.sources.inventory import SCHEMA
    from ggplan.sources.remote import is_address

    path = Path(name)
    if is_address(name) or path.is_dir() or path.suffix in (".gguf", ".safetensors"):
        return True
    if path.exists() and not path.is_file():
        return False  # a pipe can be read once
    try:
        with path.open("rb") as file:
            start = file.read(2000)
    except OSError:
        return is_inventory(name)
    is_map = b":shape=(" in start and b":dtype=" in start
    is_json = start.lstrip().startswith(b"{") and SCHEMA.encode() in start
    return start.startswith(b"GGUF") or is_map or is_json or is_plan(start)


def _kind_for(records: list[Record], asked: _Asked) -> _Kind:
    """Quality, or if nothing was measured, speed against context; that is told."""
    quantizations = [q for record in records for q in record.quantizations]
    curves = any(len({s.n_kv for s in q.speeds}) > 1 for q in quantizations)
    if any(q.measurements for q in quantizations) or not curves or asked.given - _USED["context"]:
        return "quality"
    note("no perplexity or KL divergence is in it, so this is --kind context", quiet=asked.quiet)
    return "context"


def _draw_types(files: tuple[str, ...], asked: _Asked, title: str) -> Drawing:
    from ggplan.charts import draw_types

    if len(files) != 1 or len(asked.recipes) > 1:
        raise click.UsageError("--kind types draws one model, by one recipe")
    return draw_types(_tensors(files[0], asked, asked.opening)[0], title=title)


def _draw_fit(models: list[str], others: list[Path], asked: _Asked, title: str) -> Drawing:
    from ggplan.charts import draw_fit
    from ggplan.cli.comparing import Varied, named_placements
    from ggplan.cli.fit import WishOptions, asked_of, known_machine
    from ggplan.cli.planning import PlanningOptions
    from ggplan.errors import ChartError
    from ggplan.text import printable

    if others:
        raise ChartError(
            f"{printable(str(others[0]))} is no model", hint="--kind fit draws models, with -r by a recipe"
        )
    contexts = () if asked.ctx is None else (asked.ctx,)
    varied = Varied(True, tuple(models), asked.recipes, asked.parts, asked.kv_types, contexts)
    planning = PlanningOptions(
        recipe_name=None, pure=False, imatrix_path=None, fallback=None, nonfinite="refuse", effort="default",
        calibration_path=None, broad=False, method=None, correct=False,
        other_weights=False, strict=False, opening=asked.opening, quiet=asked.quiet,
    )  # fmt: skip
    wished = WishOptions(None, None, None, 1, None, ())
    machine = known_machine(asked.stated, None, quiet=asked.quiet)
    drawn = asked_of(varied, planning, wished, asked.engine or "llama.cpp", machine)
    return draw_fit(named_placements(drawn), title=title)


def _draw_parts(models: list[str], others: list[Path], asked: _Asked, title: str) -> Drawing:
    from ggplan.charts import draw_parts

    if others and asked.recipes:
        raise click.UsageError("-r applies to a model, not to a record or a log")
    records = _records(others, asked) if others else []
    pairs = zip(models, asked.opening.each(models), strict=True) if models else ()
    typed = [t for name, opening in pairs for t in _tensors(name, asked, opening)]
    return draw_parts([*records, *typed], title=title)


def _tensors(name: str, asked: _Asked, opening: OpeningOptions) -> list[TypedTensors]:
    """The tensors of a model or a plan, once for each recipe."""
    from pathlib import Path

    from ggplan.charts.tensors import is_plan_file, read_plan, typed
    from ggplan.cli.options import recipe_or_mix_of_name
    from ggplan.errors import ChartError, CheckpointError
    from ggplan.planning import assign
    from ggplan.text import printable

    if Path(name).is_file() and is_plan_file(Path(name)):
        if asked.recipes:
            raise click.UsageError("-r applies to a model; a plan has its types already")
        return [read_plan(Path(name))]
    try:
        model = opening.open_noted(name, quiet=asked.quiet)
    except CheckpointError:
        if _is_model(name) or not Path(name).is_file():
            raise
        raise ChartError(
            f"{printable(name)} is no model, inventory or plan",
            hint="records and logs are drawn by --kind quality, context and parts",
        ) from None
    if not asked.recipes:
        return [typed(model)]
    chosen = [recipe_or_mix_of_name(name, model.architecture, quiet=asked.quiet) for name in asked.recipes]
    return [typed(model, assign(model, recipe)) for recipe in chosen]


def _records(paths: list[Path], asked: _Asked) -> list[Record]:
    from pathlib import Path

    from ggplan.errors import ChartError
    from ggplan.measure.parsing import parse_files
    from ggplan.measure.sizes import with_sizes
    from ggplan.text import printable

    records = parse_files(
        [str(path) for path in paths],
        model_name=asked.model_name,
        note=lambda said: note(said, quiet=asked.quiet),
    )
    if len(records) > 1 and asked.model_name is None and len(paths) == 1:
        names = ", ".join(printable(r.model.name) for r in records[:6])
        raise ChartError(f"the file is of several models ({names})", hint="choose one with --model-name")
    return with_sizes(records, dict(asked.sizes), [(name, Path(file)) for name, file in asked.ggufs])


def _draw_quality(records: list[Record], paths: list[Path], asked: _Asked, title: str) -> Drawing:
    from ggplan.charts.points import panels
    from ggplan.charts.quality import draw_panels
    from ggplan.measure import kept_scores

    scores = kept_scores(*paths)
    drawn = panels(
        records, quality=asked.metric, text=asked.text, n_ctx=asked.ctx, mixed=asked.mixed, scores=scores
    )
    if not asked.quiet:
        bare = [q.name for record in records for q in record.quantizations if not q.measurements]
        note(*(f"{name} is not drawn: it has no perplexity or KL divergence" for name in bare))
        _warn(records, paths, drawn, scores)
    return draw_panels(drawn, cost=asked.cost, title=title)


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
