"""`ggplan diff`: compare the types that two recipes, plans or files give the same tensors."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ggplan.cli.opening import OpeningOptions, opening_options
from ggplan.cli.options import (
    imatrix_option,
    json_option,
    model_option,
    note,
    quiet_option,
)

if TYPE_CHECKING:
    from ggplan.comparing import Differences, Side, SideTensor, Total
    from ggplan.imatrix import Imatrix
    from ggplan.model import Model
    from ggplan.naming import PlanDocument
    from ggplan.rules import Recipe
    from ggplan.stock import Mix

_EPILOG = """\b
Examples:
  ggplan diff old.recipe new.recipe -m GLM-4.5-Air       what the new rules change
  ggplan diff Q4_K_M glm4moe/hq4_k -m air.map            a stock mix and a shipped recipe
  ggplan diff published.gguf my.recipe                   a file, and what a recipe makes of it
  ggplan diff a.gguf b.gguf --all                        every tensor
  ggplan diff plan-monday.json plan-friday.json --json   two plans, for a program
"""


@click.command("diff", epilog=_EPILOG, short_help="Compare two recipes, plans or files.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@model_option
@imatrix_option
@opening_options(imatrix=True)
@click.option("--all", "every_tensor", is_flag=True, help="List every tensor, not sums of those that differ.")
@json_option("the comparison")
@quiet_option
def diff_command(
    first: str,
    second: str,
    model_name: str | None,
    imatrix_path: str | None,
    opening: OpeningOptions,
    every_tensor: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare what A and B give the same tensors: types, bytes, bits per weight, by class.

    A and B are recipes (files, shipped ones, or llama-quantize's mixes), plans (`ggplan plan -o`), GGUF
    files, Hugging Face folders or inventories (files, or shipped ones); `-` is standard input. A recipe needs
    a model: -m, or else the one on the other side. Some of llama-quantize's mixes choose other types with an
    imatrix. --mtp, --prune-layers, --keep-experts, --fuse and --split are done to the model of -m and to
    Hugging Face folders; where there are none, to all models.

    Exits 0 if no tensor differs, 1 if some do, 2 for wrong usage or if something went wrong, as diff(1) does.
    """
    from ggplan.cli.trouble import TroubleError
    from ggplan.comparing import compare, differences_json
    from ggplan.errors import Error

    try:
        sides = _sides((first, second), model_name, imatrix_path, opening, quiet)
    except (Error, OSError) as error:
        raise TroubleError(error) from None
    differences = compare(*sides)
    if as_json:
        from ggplan.cli.output import print_json

        print_json(differences_json(differences, every_tensor=every_tensor))
    else:
        _print(differences, every_tensor)
    if not differences.is_same:
        sys.exit(1)


def _sides(
    names: tuple[str, str], model_name: str | None, imatrix_path: str | None, opening: OpeningOptions,
    quiet: bool,
) -> tuple[Side, Side]:  # fmt: skip
    from ggplan.cli.opening import note_converter, note_model, with_scales_read
    from ggplan.model import Model
    from ggplan.naming import PlanDocument, anything_named, other_meaning

    imatrix = None
    if imatrix_path:
        from ggplan.imatrix import load_imatrix

        imatrix = load_imatrix(imatrix_path)
    of_model, *of_sides = opening.each([model_name or "", *names])
    model = None
    if model_name:
        model, imatrix = of_model.open(model_name, imatrix, quiet=quiet)
        model = with_scales_read(model, quiet=quiet)
    found = []
    for name, options in zip(names, of_sides, strict=True):
        note_converter(options.converter, quiet=quiet)
        side = anything_named(
            name, pre=options.pre, header_only=options.header_only, converter=options.converter
        )
        if meaning := other_meaning(name):
            note(f"{name} is a file here, which is read; the name is also {meaning}", quiet=quiet)
        if isinstance(side, Model):
            note_model(side, quiet=quiet)
        found.append(side)
    has_checkpoint = model is not None or any(isinstance(s, Model) and s.kind == "hf" for s in found)
    for at, side in enumerate(found):
        if isinstance(side, Model):
            # A file beside the checkpoint it was made from is as it is.
            if side.kind == "hf" or not has_checkpoint:
                side, shaped = opening.shaping.apply_noted(side, imatrix, quiet=quiet)
                imatrix = imatrix if model_name else shaped
            found[at] = with_scales_read(side, quiet=quiet)
    if model is None:
        model = next((side for side in found if isinstance(side, Model)), None)
        if model is None:
            opening.refuse_without(None)
    if model is None and not all(isinstance(side, PlanDocument) for side in found):
        raise click.UsageError("a recipe needs a model: give one with -m")
    sides = [_side(side, name, model, imatrix) for name, side in zip(names, found, strict=True)]
    return sides[0], sides[1]


def _side(
    named: Model | Recipe | Mix | PlanDocument, name: str, model: Model | None, imatrix: Imatrix | None
) -> Side:
    from ggplan.comparing import side_of_assignment, side_of_json, side_of_model
    from ggplan.model import Model
    from ggplan.naming import PlanDocument
    from ggplan.planning import assign

    if isinstance(named, PlanDocument):
        return side_of_json(named.content, name)
    if isinstance(named, Model):
        return side_of_model(named, name)
    assert model is not None
    return side_of_assignment(model, assign(model, named, has_imatrix=imatrix is not None), name)


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
