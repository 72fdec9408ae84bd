"""Printing: tables and JSON; the data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ggplan.planning import Plan, Share

# A pipe has no width; this one keeps the longest tensor names of today on one line.
_PIPE_WIDTH = 140


def console(stream: TextIO | None = None) -> Console:
    """A rich console for stdout (or `stream`): colours only on a terminal, NO_COLOR and COLUMNS honoured."""
    from rich.console import Console

    stream = stream or sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def print_json(value: object) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def print_table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """A plain table on stdout; `columns` are headings with "left" or "right"."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from ggplan.text import printable

    table = Table(title=Text(title, "bold") if title else None, title_justify="left", box=box.SIMPLE_HEAD)
    for heading, justify in columns:
        table.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console().print(table)


def print_plan(plan: Plan) -> None:
    """The summary of a plan: where the bytes are by class and by type, and the total."""
    from ggplan.planning import by_role, by_type
    from ggplan.text import format_bytes, printable

    model = plan.model
    recipe = f"the recipe {plan.recipe.name}" if plan.recipe else "no recipe: every tensor keeps its type"
    architecture = model.architecture or "unknown architecture"
    click.echo(f"{printable(str(model.path))} ({printable(architecture)}) with {printable(recipe)}")
    columns = [("", "left"), ("tensors", "right"), ("weights", "right"), ("size", "right")]
    columns += [("share", "right"), ("bpw", "right")]

    def row(share: Share) -> list[str]:
        part = share.n_bytes / plan.tensor_bytes if plan.tensor_bytes else 0
        return [
            share.label,
            f"{share.n_tensors:,}",
            format_count(share.n_weights),
            format_bytes(share.n_bytes),
            f"{part:.1%}",
            f"{share.bits_per_weight:.3f}",
        ]

    print_table([*columns, ("types", "left")], ([*row(s), " ".join(s.types)] for s in by_role(plan)))
    print_table(columns, (row(s) for s in by_type(plan)))
    size = "at least " if model.kind == "inventory" else ""
    click.echo(
        f"{len(plan.tensors):,} tensors, {format_count(plan.n_weights)} weights, "
        f"file {size}{format_bytes(plan.file_bytes)} ({plan.file_bytes:,} bytes), "
        f"{plan.bits_per_weight:.3f} bpw"
    )


def format_count(number: int) -> str:
    """A count with three digits and a unit: `4.74 M`, `107 G`."""
    value = float(number)
    for unit in ("", " K", " M", " G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} T"


def write_new(text: str, output: str | None, advice: str = "") -> None:
    """Print a text, or write it to a file that must not exist; `advice` says what to do with the file."""
    from ggplan.errors import RecipeError
    from ggplan.text import printable

    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with open(output, "x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{printable(output)} exists", hint="name another file, or delete it") from None
    click.echo(f"{printable(output)} written{advice}")
