"""`ggplan chart --kind frontier` and `--kind damage`: what `ggplan optimize` predicts, as pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.options import note

if TYPE_CHECKING:
    from ggplan.charts import Drawing
    from ggplan.charts.damage import FileDamage
    from ggplan.charts.points import Panel
    from ggplan.charts.predictions import Published
    from ggplan.cli.opening import OpeningOptions
    from ggplan.measure import Record

_MAX_BYTES = 256 << 20
_START = 4096


def sorted_out(paths: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Curves, tables of what others measured, and records or logs."""
    from ggplan.allocation.curve_files import is_curve
    from ggplan.allocation.sensitivity_tables import is_sensitivity_table

    curves, tables, others = [], [], []
    for path in paths:
        if path.is_file() and is_curve(_start_of(path)):
            curves.append(path)
        elif is_sensitivity_table(path):
            tables.append(path)
        else:
            others.append(path)
    return curves, tables, others


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_START)
    except OSError:
        return b""


def draw_predicted(
    models: Sequence[str],
    curves: Sequence[Path],
    tables: Sequence[Path],
    panels: Sequence[Panel],
    opening: OpeningOptions,
    *,
    cost: str | None,
    title: str,
    quiet: bool,
) -> Drawing:
    """The curve of one model with what was measured of it."""
    from ggplan.allocation.curve_files import read_curve
    from ggplan.allocation.pareto import pareto
    from ggplan.charts.predictions import draw_frontier

    if len(models) + len(curves) != 1:
        raise click.UsageError(
            "--kind frontier draws one model, or one curve of `ggplan optimize --pareto -o`, with records"
        )
    if cost == "speed":
        raise click.UsageError("--kind frontier has --x size and --x bpw")
    if curves:
        curve = read_curve(curves[0])
    else:
        curve = pareto(opening.open_noted(models[0], quiet=quiet))
        note(*curve.notes, quiet=quiet)
    published = [point for path in tables for point in _published(path, curve.model)]
    if len(panels) > 1:
        others = ", ".join(panel.text for panel in panels[1:])
        note(f"measured on {panels[0].text}; --text draws {others}", quiet=quiet)
    return draw_frontier(
        curve, measured=panels[0] if panels else None, published=published,
        x="bpw" if cost == "bpw" else "size", title=title,
    )  # fmt: skip


def _published(path: Path, model: str) -> list[Published]:
    """KL divergences of whole files that others measured; of a table of many models, those of this one."""
    from ggplan.allocation.sensitivity_tables import read_sensitivities
    from ggplan.charts.predictions import Published
    from ggplan.errors import ChartError
    from ggplan.ggml_types import parse_type
    from ggplan.text import printable

    tables = [t for t in read_sensitivities(path) if t.figure == "kld" and t.of != "tensor"]
    if len(tables) > 1:
        tables = [t for t in tables if t.model == model]
    found = []
    for table in tables:
        credit = " ".join(table.remarks) or table.model or path.name
        if not table.bpw:
            credit += " (placed at the bits of the type)"
        for place in table.places:
            for name, kld in place.figures.items():
                type_ = parse_type(name)
                bpw = table.bpw.get(name) if table.bpw else type_.bits_per_weight
                # Rows in another order are the same file again.
                if bpw and kld > 0 and type_.plain == type_:
                    found.append(Published(name, bpw, kld, credit))
    if not found:
        raise ChartError(
            f"{printable(str(path))} has no KL divergences of whole files of {printable(model)}",
            hint="a table QTYPE,bpw,group0 has them",
        )
    return found


def draw_losses(
    models: Sequence[str], paths: Sequence[Path], recipes: Sequence[str], opening: OpeningOptions, *,
    title: str, quiet: bool,
) -> Drawing:  # fmt: skip
    """What is lost where: of an answer of `ggplan optimize --json`, or of a model by a recipe."""
    from ggplan.charts.damage import draw_damage

    if len(models) + len(paths) != 1 or len(recipes) > 1:
        raise click.UsageError(
            "--kind damage draws one answer of `ggplan optimize --json`, or one model by one recipe (-r)"
        )
    if paths:
        if recipes:
            raise click.UsageError("-r applies to a model; an answer has its types already")
        return draw_damage(_answered(paths[0]), title=title)
    if not recipes:
        raise click.UsageError("-r is missing: the recipe or mix whose losses are to be drawn")
    return draw_damage(_rated(models[0], recipes[0], opening, quiet=quiet), title=title)


def _answered(path: Path) -> FileDamage:
    """What `ggplan optimize --json` printed."""
    from ggplan.charts.damage import FileDamage, TensorDamage
    from ggplan.cli.optimize import SCHEMA
    from ggplan.errors import ChartError
    from ggplan.substitutes import read_limited
    from ggplan.text import printable

    raw = read_limited(path, _MAX_BYTES, "answer", ChartError)
    try:
        found: dict[str, Any] = json.loads(raw)
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        tensors = tuple(
            TensorDamage(str(t["name"]), str(t["type"]), int(t["bytes"]), float(t["damage"]))
            for t in found["tensors"]
        )
        forecast, basis = found["forecast"], found["sensitivities"]
        kld, low, high = (float(forecast[word]) for word in ("kld", "low", "high"))
        credit = tuple(map(str, basis["credit"]))
        return FileDamage(str(found["name"]), tensors, kld, low, high, str(basis["source"]), credit)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ChartError(
            f"{printable(str(path))} is no answer of `ggplan optimize --json`: {printable(str(error))[:120]}",
            hint="`ggplan optimize MODEL --size 60G --json -q > ANSWER.json` writes one",
        ) from None


def _rated(name: str, recipe: str, opening: OpeningOptions, *, quiet: bool) -> FileDamage:
    """What the prior predicts of a model by a recipe or a mix."""
    from ggplan.allocation import OptimizeOptions
    from ggplan.allocation.improving import options_for, rated
    from ggplan.allocation.problem import prepare
    from ggplan.charts.damage import FileDamage, TensorDamage
    from ggplan.cli.options import recipe_or_mix_of_name

    model = opening.open_noted(name, quiet=quiet)
    chosen = recipe_or_mix_of_name(recipe, model.architecture, quiet=quiet)
    options, plan = options_for(model, chosen, OptimizeOptions())
    problem = prepare(model, options)
    found = rated(problem, plan, plan.assignment.name)
    tensors = tuple(
        TensorDamage(t.name, t.type.name, t.n_bytes, found.damages[t.name])
        for t in plan.tensors
        if t.name in found.damages
    )
    f, scales = found.forecast, problem.scales
    title = f"{model.path.name}, {found.name}"
    return FileDamage(title, tensors, f.kld, f.low, f.high, scales.source, scales.credit)


def measured_panels(records: Sequence[Record], text: str | None, n_ctx: int | None) -> list[Panel]:
    """The KL divergences of records, a panel for each text; [] without records."""
    from ggplan.charts.points import panels

    return panels(records, quality="kld", text=text, n_ctx=n_ctx) if records else []
