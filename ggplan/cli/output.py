"""Printing: tables and JSON; the data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ggplan.planning import Plan, Share

# A pipe has no width; this one keeps the longest tensor names of today on one line.
_PIPE_WIDTH = 140
_WRAPPED = 24  # the characters that a wrapping column keeps, where it has so many


def console(stream: TextIO | None = None) -> Console:
    """A rich console for stdout (or `stream`): colours only on a terminal, NO_COLOR and COLUMNS honoured."""
    from rich.console import Console

    stream = stream or sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def print_json(value: object) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


@dataclass(frozen=True, slots=True)
class Table:
    """A plain table; names stay whole, and where the terminal is narrow, columns go.

    Attributes
    ----------
    columns
        Headings with "left" or "right".
    least
        The headings of columns that may go, the least important first.
    wraps
        The headings of the columns whose text may wrap where it is long; no other does.
    """

    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]
    title: str = ""
    least: Sequence[str] = ()
    wraps: Sequence[str] = ()

    def filled(self) -> list[str]:
        """The headings of all columns but those that say nothing: no heading and no text."""
        return [h for i, (h, _) in enumerate(self.columns) if h or any(row[i] for row in self.rows)]

    def width(self, shown: Sequence[str], *, least: bool = False) -> int:
        """Characters that these columns take; with `least`, where those that wrap are at their narrowest."""
        from rich.cells import cell_len

        def width_of(text: str) -> int:
            if not least:
                return min(cell_len(text), _WRAPPED)
            return min(max(map(cell_len, text.split() or [""])), _WRAPPED // 2)

        total = 1
        for i, (heading, _) in enumerate(self.columns):
            if heading in shown:
                measured = width_of if heading in self.wraps else cell_len
                total += 2 + max(map(measured, (heading, *(row[i] for row in self.rows)))) + 1
        return total


def echo_wrapped(text: str, *, then: str = "", err: bool = False) -> None:
    """A sentence, at most as wide as the terminal, on stdout; `then` begins its further lines."""
    import textwrap

    width = console().width
    for line in textwrap.wrap(text, width, subsequent_indent=then, break_on_hyphens=False) or [""]:
        click.echo(line, err=err)


def print_table(
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[str]],
    title: str = "",
    *,
    least: Sequence[str] = (),
    wraps: Sequence[str] = (),
    quiet: bool = False,
) -> None:
    """A plain table on stdout, as `Table` describes it."""
    print_tables([Table(columns, list(rows), title, least, wraps)], quiet=quiet)


def print_tables(tables: Iterable[Table], *, quiet: bool = False) -> None:
    """Plain tables on stdout; what was left out for lack of width is told on stderr, once."""
    gone: dict[str, None] = {}
    needed = 0
    for table in tables:
        shown = _fitting(table, console().width)
        left_out = [heading for heading in table.filled() if heading not in shown]
        if left_out:
            needed = max(needed, table.width(table.filled()))
            gone |= dict.fromkeys(left_out)
        _print_columns(table, shown)
    if gone and not quiet:
        click.echo(
            f"note: left out for lack of width: {', '.join(gone)}; COLUMNS={needed} shows all", err=True
        )


def _fitting(table: Table, width: int) -> list[str]:
    """The headings that are shown at this width."""
    shown = table.filled()
    gone = []
    for heading in (h for h in table.least if h in table.filled()):
        if table.width(shown) <= width:
            break
        shown.remove(heading)
        gone.append(heading)
    for heading in reversed(gone[:-1]):  # a wide column that went later may have made room for it
        if table.width([*shown, heading]) <= width:
            shown.append(heading)
    return shown


def _print_columns(table: Table, shown: Sequence[str]) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    from ggplan.text import printable

    drawn = RichTable(
        title=Text(table.title, "bold") if table.title else None, title_justify="left", box=box.SIMPLE_HEAD
    )
    indices = [i for i, (heading, _) in enumerate(table.columns) if heading in shown]
    for heading, justify in (table.columns[i] for i in indices):
        drawn.add_column(
            heading,
            justify="right" if justify == "right" else "left",
            overflow="fold",
            no_wrap=heading not in table.wraps,
        )
    for row in table.rows:
        drawn.add_row(*(Text(printable(row[i])) for i in indices))
    # A name that is longer than the terminal is wide stays on its line, too.
    out = console()
    out.width = max(out.width, table.width(shown, least=True))
    out.print(drawn)


def print_plan(plan: Plan, *, every_tensor: bool = False) -> None:
    """The summary of a plan: where the bytes are by class, by type and by memory, and the total."""
    from ggplan.cli.usual import usual_lines
    from ggplan.planning import by_role, by_type
    from ggplan.planning.outcomes import outcomes
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

    least = ("share", "weights", "tensors", "bpw")
    roles = [[*row(s), " ".join(s.types)] for s in by_role(plan)]
    print_tables(
        [
            *([_tensors_of(plan)] if every_tensor else []),
            Table([*columns, ("types", "left")], roles, least=least, wraps=("types",)),
            Table(columns, [row(s) for s in by_type(plan)], least=least),
        ]
    )
    for outcome in outcomes(plan.tensors):
        click.echo(printable(outcome.told))
    for line in usual_lines(plan):
        echo_wrapped(line, then="    ")
    size = "at least " if model.kind == "inventory" or model.obstacle is not None else ""
    click.echo(
        f"{len(plan.tensors):,} tensors, {format_count(plan.n_weights)} weights, "
        f"file {size}{format_bytes(plan.file_bytes)} ({plan.file_bytes:,} bytes), "
        f"{plan.bits_per_weight:.3f} bpw"
    )


def _tensors_of(plan: Plan) -> Table:
    """Every tensor, its types and what chose the one it gets."""
    from ggplan.planning.outcomes import outcome_of
    from ggplan.text import format_bytes

    columns = [("tensor", "left"), ("shape", "left"), ("from", "left"), ("to", "left"), ("size", "right")]
    rows = [
        [
            t.name,
            " × ".join(str(n) for n in t.tensor.shape),
            t.tensor.stored_as,
            t.type.name,
            format_bytes(t.n_bytes),
            t.chosen_by,
            f"fallback from {t.asked.name}" if t.asked else outcome_of(t),
        ]
        for t in plan.tensors
    ]
    least = ("from", "shape", "size", "chosen by")
    return Table([*columns, ("chosen by", "left"), ("", "left")], rows, least=least)


def format_count(number: int) -> str:
    """A count with three digits and a unit: `4.74 M`, `107 G`."""
    value = float(number)
    for unit in ("", " K", " M", " G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} T"


def write_new(
    text: str, output: str | None, advice: str = "", *, force: bool = False, quiet: bool = False
) -> None:
    """Print a text, or write it to a file, whole or not at all; `advice` says what to do with the file.

    Raises
    ------
    Error
        If the file exists and is not to be replaced.
    """
    import contextlib
    import tempfile
    from pathlib import Path

    from ggplan.errors import Error
    from ggplan.text import printable

    if output is None:
        click.echo(text, nl=False)
        return
    path = Path(output)
    if path.exists() and not force:
        raise Error(f"{printable(output)} exists", hint="name another file, or give --force to replace it")
    if path.exists() and not path.is_file():
        raise Error(f"{printable(output)} is not a file", hint="name another one")
    require_folder(output)
    handle, temporary = tempfile.mkstemp(prefix=".ggplan-", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if not quiet:
        click.echo(f"{printable(output)} written{advice}", err=True)


def require_folder(output: str) -> None:
    """Refuse a file whose folder is not there.

    Raises
    ------
    Error
        If there is none.
    """
    from pathlib import Path

    from ggplan.errors import Error
    from ggplan.text import printable

    folder = Path(output).parent
    if not folder.is_dir():
        raise Error(
            f"{printable(output)}: there is no folder {printable(str(folder))}",
            hint="make it first, or name a file elsewhere",
        )


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
