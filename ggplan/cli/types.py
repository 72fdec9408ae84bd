"""`ggplan types`: the ggml types a recipe can name."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from ggplan.cli.options import json_option

if TYPE_CHECKING:
    from ggplan.ggml_types import GgmlType

_EPILOG = """\b
Examples:
  ggplan types
  ggplan types --json | jq '.types[] | select(.encodable) | .name'
"""


@click.command("types", epilog=_EPILOG, short_help="List the ggml types.")
@json_option("the table")
def types_command(as_json: bool) -> None:
    """List the ggml types: size, block, which engine knows them, what ggplan can do with them.

    After them come the names of llama-quantize's mixes, which `-r` takes like a recipe.

    Exits 0; 2 for wrong usage.
    """
    from ggplan.cli.output import console, print_json, print_table
    from ggplan.ggml_types import TYPES
    from ggplan.stock import MIXES

    types = [t for t in TYPES if not t.internal]
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
                    {"name": mix.name, "file_type": mix.file_type, "type": mix.type.name} for mix in MIXES
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
        wraps="ggplan",
    )  # fmt: skip
    width = min(console().width - 2, 96)
    names = textwrap.fill(" ".join(mix.name for mix in MIXES), width, break_on_hyphens=False)
    click.echo(f"mixes of types, for -r:\n{textwrap.indent(names, '  ')}")


def _abilities(type_: GgmlType) -> str:
    words = ["reads"] * type_.decodable + ["writes"] * type_.encodable
    words += ["with an imatrix only"] * (type_.encodable and type_.requires_imatrix)
    return " ".join(words) or "sizes, copies"
