"""`ggplan rules list`: the recipes that ship with ggplan, and what they give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from ggplan.cli.opening import converter_option, note_converter
from ggplan.cli.options import json_option, note, quiet_option

if TYPE_CHECKING:
    from ggplan.offload.active import ActiveBytes
    from ggplan.offload.machine import Machine
    from ggplan.offload.speed import Rate
    from ggplan.rules.library import Figures, ShippedRecipe

SCHEMA = "ggplan/library@1"
_GIB = 1 << 30

_EPILOG = """\b
Examples:
  ggplan rules list                       all of them
  ggplan rules list GLM-4.5-Air           those for a model
  ggplan rules list ./my-model            those for the architecture of a checkpoint or a GGUF file
  ggplan rules list qwen3moe --json       those of a family
  ggplan plan GLM-4.5-Air -r glm4moe/hq4_k
"""


@click.command("list", epilog=_EPILOG, short_help="List the recipes that ship with ggplan.")
@click.argument("names", nargs=-1, metavar="[MODEL|FAMILY]...")
@converter_option
@json_option("the list")
@quiet_option
def list_command(names: tuple[str, ...], converter: str | None, as_json: bool, quiet: bool) -> None:
    """List the shipped recipes, by family: what each gives on the models it is for.

    All sizes are GiB. The first is of all tensors; "GPU" and "RAM" are where llama.cpp puts them with
    -ngl 99 --cpu-moe, without the block that only predicts further tokens. "per token" is what one token
    reads of the RAM. "tok/s" is what to expect then in an empty context, four times of five: on the machine
    of `ggplan machine --write`, else on an example, whose bandwidths are said below the list.

    MODEL is a shipped inventory's name, or the path or address of a model, of which the architecture counts.

    Exits 0, 1 if no recipe is for a name, 2 for wrong usage.
    """
    from ggplan.cli.output import echo_wrapped
    from ggplan.cli.usual import machine_json, stated, usual_notes
    from ggplan.offload.usual import usual_machine

    entries = _asked(tuple(_families(names, converter, quiet)))
    usual = usual_machine()
    note(*usual_notes(), quiet=quiet)
    speeds = _Speeds(usual.machine)
    if as_json:
        from ggplan.cli.output import print_json

        listed = [_json(entry, speeds) for entry in entries]
        print_json({"schema": SCHEMA, "speeds_at": machine_json(usual), "recipes": listed})
        return
    families = dict.fromkeys(entry.family for entry in entries)
    needed = [
        _print(family, [entry for entry in entries if entry.family == family], speeds) for family in families
    ]
    if wide := max(needed, default=0):
        note(f"columns are left out for lack of width; COLUMNS={wide} shows all", quiet=quiet)
    echo_wrapped(f"tok/s at {stated(usual)}")
    click.echo("`-r NAME` uses one, as in `ggplan plan MODEL -r glm4moe/hq4_k`")


@dataclass(slots=True)
class _Speeds:
    """Tokens per second of recipes on one machine; what a token of a model reads is reckoned once."""

    machine: Machine
    _reads: dict[str, ActiveBytes] = field(default_factory=dict)

    def of(self, figures: Figures) -> Rate:
        """By the bytes that a recipe says of itself."""
        from ggplan.inventories import inventory
        from ggplan.offload.header import header_of
        from ggplan.offload.usual import rate_of_sizes, usual_reads

        if figures.model not in self._reads:
            self._reads[figures.model] = usual_reads(header_of(inventory(figures.model)))
        ram, gpu = figures.ram_per_token or 0.0, figures.gpu
        return rate_of_sizes(self._reads[figures.model], ram * _GIB, gpu * _GIB, self.machine)


def _families(names: tuple[str, ...], converter: str | None, quiet: bool) -> Iterator[str]:
    """The names, and for the path or address of a model the family that its architecture is of."""
    import os
    from pathlib import Path

    from ggplan.errors import RecipeError
    from ggplan.inventories import names_of_inventories
    from ggplan.naming import model_named
    from ggplan.rules.library import library
    from ggplan.sources.remote import is_address
    from ggplan.text import printable

    known = {name.lower() for name in names_of_inventories()} | {entry.family.lower() for entry in library()}
    n_folders = 0
    for name in names:
        is_path = os.path.exists(name) and (name.lower() not in known or os.sep in name)
        if not is_path and not is_address(name):
            yield name
            continue
        is_folder = Path(name).is_dir()
        n_folders += is_folder
        note_converter(converter if is_folder else None, quiet=quiet)
        model = model_named(name, header_only=True, converter=converter if is_folder else None)
        family = model.architecture or "unknown"
        if family.lower() not in known:
            raise RecipeError(
                f"no shipped recipe is for {printable(name)}, whose architecture is {printable(family)}",
                hint=f"`ggplan rules new -m {printable(name)}` writes one to start from",
            )
        yield family
    if converter is not None and not n_folders:
        raise click.UsageError("--converter reads a Hugging Face folder, and none is named")


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


_HEADINGS = ("GiB", "bpw", "GPU", "RAM", "per token", "tok/s")
_LEAST = ("bpw", "per token", "GPU", "RAM")
_GAP = "   "


def _print(family: str, entries: list[ShippedRecipe], speeds: _Speeds) -> int:
    """The recipes of a family: name, sentence, and a line of figures for each model.

    Returns the width that would show every column, or 0 where all are shown.
    """
    import textwrap

    from ggplan.cli.output import console

    width = console().width
    title = family or "any mixture of experts"
    rows = [[(f.model, *_cells(f, speeds)) for f in entry.figures] for entry in entries]
    table = [(title, *_HEADINGS), *(row for group in rows for row in group)]
    widths = [max(len(row[i]) for row in table) for i in range(len(_HEADINGS) + 1)]
    widths[0] = max(len(row[0]) for row in table[1:])  # the title may stand over the next column
    shown = list(_HEADINGS)

    def needed(headings: list[str]) -> int:
        parts = (widths[1 + _HEADINGS.index(heading)] + len(_GAP) for heading in headings)
        return 2 + max(widths[0], len(title) - 2) + sum(parts)

    for heading in _LEAST:
        if needed(shown) > width:
            shown.remove(heading)
    columns = [i + 1 for i, heading in enumerate(_HEADINGS) if heading in shown]
    names = max(widths[0], len(title) - 2)

    def line(indent: str, first: str, row: tuple[str, ...]) -> str:
        cells = (f"{row[i]:>{widths[i]}}" for i in columns)
        return _GAP.join([f"{indent}{first:<{names + 2 - len(indent)}}", *cells]).rstrip()

    click.echo(line("", title, table[0]))
    for entry, group in zip(entries, rows, strict=True):
        click.echo(f"\n{entry.name}")
        click.echo(textwrap.indent(textwrap.fill(entry.summary, max(width - 2, 20)), "  "))
        for row in group:
            click.echo(line("  ", row[0], row))
    click.echo()
    return 0 if len(shown) == len(_HEADINGS) else needed(list(_HEADINGS))


def _cells(figures: Figures, speeds: _Speeds) -> tuple[str, ...]:
    from ggplan.cli.usual import figure

    size, bits = f"{figures.size:.2f}", f"{figures.bits_per_weight:.3f}"
    ram = "" if figures.ram is None else f"{figures.ram:.1f}"
    token = "" if figures.ram_per_token is None else f"{figures.ram_per_token:.2f}"
    rate = speeds.of(figures)
    return size, bits, f"{figures.gpu:.1f}", ram, token, f"{figure(rate.low)}-{figure(rate.high)}"


def _json(entry: ShippedRecipe, speeds: _Speeds) -> dict[str, object]:
    from ggplan.cli.usual import rate_json

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
                "tokens_per_second": rate_json(speeds.of(f)),
            }
            for f in entry.figures
        ],
    }
