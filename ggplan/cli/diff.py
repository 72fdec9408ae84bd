"""`ggplan diff`: compare the types that two recipes, plans or files give the same tensors."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggplan.cli.options import header_only_option, open_noted

if TYPE_CHECKING:
    from ggplan.comparing import Differences, Side, SideTensor, Total
    from ggplan.imatrix import Imatrix
    from ggplan.model import Model

_EPILOG = """\b
Examples:
  ggplan diff old.recipe new.recipe -m GLM-4.5-Air       what the new rules change
  ggplan diff Q4_K_M glm4moe/hq4_k -m air.map            a stock mix and a shipped recipe
  ggplan diff published.gguf my.recipe                   a file, and what a recipe makes of it
  ggplan diff a.gguf b.gguf --all                        every tensor
  ggplan diff plan-monday.json plan-friday.json --json   two plans, for a program
"""
_RECIPES = (".recipe", ".txt")


class _Trouble(click.ClickException):
    """An error, as opposed to a difference between the two sides."""

    exit_code = 2


@click.command("diff", epilog=_EPILOG, short_help="Compare two recipes, plans or files.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("-m", "--model", metavar="MODEL", help="The model or inventory that recipes are applied to.")
@click.option(
    "--imatrix",
    "imatrix_path",
    type=click.Path(),
    metavar="FILE",
    help="The importance matrix; some of llama-quantize's mixes choose other types with one.",
)
@click.option("--pre", metavar="NAME", help="The pre-tokenizer's name in llama.cpp, as for `ggplan plan`.")
@header_only_option
@click.option("--all", "every_tensor", is_flag=True, help="List every tensor, not sums of those that differ.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def diff_command(
    first: str,
    second: str,
    model: str | None,
    imatrix_path: str | None,
    pre: str | None,
    header_only: bool,
    every_tensor: bool,
    as_json: bool,
) -> None:
    """Compare what A and B give the same tensors: types, bytes, bits per weight, by class.

    A and B are recipes (files, shipped ones, or llama-quantize's mixes), plans (`ggplan plan -o`), GGUF
    files, Hugging Face folders or inventories. A recipe needs a model: -m, or else the one on the other side.

    Exits 0 if no tensor differs, 1 if some do, 2 if something went wrong.
    """
    from ggplan.comparing import compare, differences_json
    from ggplan.errors import Error

    try:
        sides = _sides((first, second), model, imatrix_path, _Opening(pre, header_only))
    except Error as error:
        raise _Trouble(error.message) from error
    except OSError as error:
        raise _Trouble(f"{error.strerror or error}: {error.filename}") from None
    differences = compare(*sides)
    if as_json:
        from ggplan.cli.output import print_json

        print_json(differences_json(differences, every_tensor=every_tensor))
    else:
        _print(differences, every_tensor)
    if not differences.is_same:
        sys.exit(1)


@dataclass(frozen=True, slots=True)
class _Opening:
    """How models are opened."""

    pre: str | None
    header_only: bool

    def open(self, name: str, *, shipped: bool = True) -> Model:
        return open_noted(name, pre=self.pre, header_only=self.header_only, shipped=shipped)


def _sides(
    names: tuple[str, str], model_path: str | None, imatrix_path: str | None, opening: _Opening
) -> tuple[Side, Side]:
    model = opening.open(model_path) if model_path else None
    imatrix = None
    if imatrix_path:
        from ggplan.imatrix import load_imatrix

        imatrix = load_imatrix(imatrix_path)
    found: list[Side | None] = [None if _is_recipe(name) else _stored(name, opening) for name in names]
    if model is None and None in found:
        other = next((n for n, side in zip(names, found, strict=True) if side and not _is_json(n)), None)
        if other is None:
            raise click.UsageError("a recipe needs a model: give one with -m")
        model = opening.open(other)
    sides = [
        side or _planned(name, model, imatrix)
        for name, side in zip(names, found, strict=True)
        if side or model
    ]
    return sides[0], sides[1]


def _is_recipe(name: str) -> bool:
    path = Path(name)
    return path.suffix in _RECIPES or not path.exists()


def _is_json(name: str) -> bool:
    return Path(name).suffix == ".json"


def _stored(name: str, opening: _Opening) -> Side:
    """A plan's JSON, or a model."""
    from ggplan.comparing import side_of_json, side_of_model
    from ggplan.planning.export import SCHEMA

    if _is_json(name):
        from ggplan.sources.files import read_whole
        from ggplan.sources.json_files import SIZE_LIMIT, parse_object

        document = parse_object(read_whole(Path(name), SIZE_LIMIT), name)
        if document.get("schema") == SCHEMA:
            return side_of_json(document, name)
    return side_of_model(opening.open(name, shipped=False), name)


def _planned(name: str, model: Model | None, imatrix: Imatrix | None) -> Side:
    from ggplan.comparing import side_of_assignment
    from ggplan.planning import assign

    assert model is not None
    assignment = assign(model, name, has_imatrix=imatrix is not None)
    return side_of_assignment(model, assignment, name)


def _print(differences: Differences, every_tensor: bool) -> None:
    from ggplan.cli.output import Table, print_tables
    from ggplan.comparing import transitions
    from ggplan.text import format_bytes, printable

    total = differences.total
    labels = [printable(side.label) for side in differences.sides]
    if differences.is_same and not every_tensor:
        click.echo(
            f"{labels[0]} and {labels[1]}: no difference in {total.n_tensors:,} tensors "
            f"({format_bytes(total.bytes[0])}, {total.bits_per_weight[0]:.3f} bpw)"
        )
        return
    click.echo(f"A  {labels[0]}\nB  {labels[1]}")
    if every_tensor:
        tensors = Table(
            [("tensor", "left"), ("A", "left"), ("B", "left"), ("change", "right"), ("", "left")],
            [
                [pair.name, _type(pair.before), _type(pair.after), _change(pair.bytes), pair.verdict]
                for pair in differences.pairs
            ],
            least=("change",),
        )
    else:
        tensors = Table(
            [("class", "left"), ("tensors", "right"), ("A", "left"), ("B", "left"), ("change", "right")],
            [
                [role, f"{part.n_tensors:,}", before or "missing", after or "missing", _change(part.bytes)]
                for role, before, after, part in transitions(differences.changes)
            ],
            least=("tensors",),
        )
    columns = [("", "left"), ("tensors", "right"), ("differ", "right"), ("A", "right"), ("B", "right")]
    columns += [("change", "right"), ("bpw A", "right"), ("bpw B", "right")]
    totals = [_total_row(part) for part in (*differences.by_role, total)]
    print_tables([tensors, Table(columns, totals, least=("tensors", "bpw A", "bpw B", "A", "B"))])


def _total_row(total: Total) -> list[str]:
    from ggplan.text import format_bytes

    before, after = total.bits_per_weight
    return [
        total.label, f"{total.n_tensors:,}", f"{total.n_different:,}", *map(format_bytes, total.bytes),
        _change(total.bytes), f"{before:.3f}", f"{after:.3f}",
    ]  # fmt: skip


def _type(entry: SideTensor | None) -> str:
    return entry.type if entry else "missing"


def _change(sizes: tuple[int, int]) -> str:
    """`+1.2 GiB`, `-90 B`, or nothing."""
    from ggplan.text import format_bytes

    difference = sizes[1] - sizes[0]
    return f"{'+' if difference > 0 else '-'}{format_bytes(abs(difference))}" if difference else ""
