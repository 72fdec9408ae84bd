"""`ggplan types`: the ggml types a recipe can name."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from ggplan.cli.options import json_option, quiet_option

if TYPE_CHECKING:
    from ggplan.ggml_types import GgmlType

_EPILOG = """\b
Examples:
  ggplan types
  ggplan types q4_K iq4_xs                     only these
  ggplan types --json | jq '.types[] | select(.encodable) | .name'
"""


@click.command("types", epilog=_EPILOG, short_help="List the ggml types.")
@click.argument("names", metavar="[TYPE]...", nargs=-1)
@json_option("the table")
@quiet_option
def types_command(names: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """List the ggml types: size, block, which engine knows them, what ggplan can do with them.

    With names, only these types. After all types come the names of llama-quantize's mixes, which `-r` takes
    like a recipe.

    Exits 0; 1 if there is no such type; 2 for wrong usage.
    """
    from ggplan.cli.output import console, print_json, print_table
    from ggplan.ggml_types import TYPES, parse_type
    from ggplan.stock import MIXES

    types = [parse_type(name) for name in names] or [t for t in TYPES if not t.internal]
    mixes = () if names else MIXES
    if as_json:
        fields = ("name", "id", "block_size", "block_bytes", "row_extra_bytes", "row_group")
        print_json(
            {
                "schema": "ggplan/types@1",
                "types": [
                    {name: getattr(t, name) for name in fields}
                    | {
                        "bits_per_weight": t.bits_per_weight,
                        "kind": t.kind,
                        "engine": t.engine,
                        "encodable": t.encodable,
                        "decodable": t.decodable,
                        "requires_imatrix": t.requires_imatrix,
                    }
                    for t in types
                ],
                "mixes": [
                    {"name": mix.name, "file_type": mix.file_type, "type": mix.type.name} for mix in mixes
                ],
            }
        )
        return
    print_table(
        [("type", "left"), ("bpw", "right"), ("block", "right"), ("bytes", "right"), ("id", "right"),
         ("engine", "left"), ("ggplan", "left")],
        (
            [
                t.name,
                f"{t.bits_per_weight:g}",
                str(t.block_size),
                f"{t.block_bytes}" + (f" + {t.row_extra_bytes}/row" if t.row_extra_bytes else ""),
                str(t.id),
                t.engine,
                _abilities(t),
            ]
            for t in types
        ),
        least=("id", "block", "bytes", "engine"),
        wraps=("ggplan",),
        quiet=quiet,
    )  # fmt: skip
    if mixes:
        width = min(console().width - 2, 96)
        listed = textwrap.fill(" ".join(mix.name for mix in mixes), width, break_on_hyphens=False)
        click.echo(f"mixes of types, for -r:\n{textwrap.indent(listed, '  ')}")


def _abilities(type_: GgmlType) -> str:
    words = ["reads"] * type_.decodable + ["writes"] * type_.encodable
    words += ["with an imatrix only"] * (type_.encodable and type_.requires_imatrix)
    return " ".join(words) or "sizes, copies"
