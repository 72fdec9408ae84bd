"""`ggplan inspect`: what is in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ggplan.cli.options import json_option, open_noted, pre_option, quiet_option

_EPILOG = """\b
Examples:
  ggplan inspect model.gguf                      types and sizes
  ggplan inspect GLM-4.5-Air --tensors           every tensor under its GGUF name
  ggplan inspect model.gguf --metadata           the key-value pairs
  ggplan inspect GLM-4.5-Air --json > air.json   an inventory that `ggplan plan` reads
"""
_SHOWN_ITEMS = 6
_SHOWN_CHARACTERS = 100


@click.command("inspect", epilog=_EPILOG, short_help="Show what is in a checkpoint.")
@click.argument("model")
@click.option("--tensors", "show_tensors", is_flag=True, help="List every tensor.")
@click.option("--metadata", "show_metadata", is_flag=True, help="List the key-value pairs.")
@pre_option
@json_option("an inventory")
@quiet_option
def inspect_command(
    model: str, show_tensors: bool, show_metadata: bool, pre: str | None, as_json: bool, quiet: bool
) -> None:
    """Show what is in MODEL: a Hugging Face folder, a GGUF file or an inventory (`-`: on standard input).

    Exits 0; 1 if it cannot be opened; 2 for wrong usage.
    """
    from ggplan.cli.output import format_count, print_json, print_table
    from ggplan.text import format_bytes, printable

    found = open_noted(model, pre=pre, quiet=quiet)
    if as_json:
        from ggplan.sources.inventory import inventory_json

        print_json(inventory_json(found))
        return
    n_weights = sum(t.n_weights for t in found.tensors)
    n_bytes = sum(t.n_bytes for t in found.tensors)
    kinds = {"hf": "Hugging Face checkpoint", "gguf": "GGUF", "inventory": "inventory without weights"}
    click.echo(f"{printable(str(found.path))} · {kinds[found.kind]}")
    click.echo(
        f"{printable(found.architecture or 'unknown architecture')}, {len(found.tensors):,} tensors, "
        f"{format_count(n_weights)} weights, {format_bytes(n_bytes)} as GGUF"
    )
    by_type: dict[str, list[int]] = {}
    for tensor in found.tensors:
        group = by_type.setdefault(tensor.type.name, [0, 0, 0])
        group[0] += 1
        group[1] += tensor.n_weights
        group[2] += tensor.n_bytes
    print_table(
        [("type", "left"), ("tensors", "right"), ("weights", "right"), ("size", "right")],
        (
            [name, f"{n:,}", format_count(weights), format_bytes(size)]
            for name, (n, weights, size) in sorted(by_type.items(), key=lambda item: -item[1][2])
        ),
        least=("weights", "tensors"),
    )
    if show_metadata:
        print_table(
            [("key", "left"), ("type", "left"), ("value", "left")],
            (
                [key, value.type.name.lower(), _shown(value.decode_items(_SHOWN_ITEMS), value.length)]
                if value.item_type is not None
                else [key, value.type.name.lower(), _shown([value.decode()], 1)]
                for key, value in found.metadata.items()
            ),
            least=("type",),
            wraps="value",
        )
    if show_tensors:
        print_table(
            [
                ("tensor", "left"),
                ("shape", "left"),
                ("stored as", "left"),
                ("type", "left"),
                ("size", "right"),
            ],
            (
                [
                    t.name,
                    " × ".join(str(n) for n in t.shape),
                    t.stored_as,
                    t.type.name,
                    format_bytes(t.n_bytes),
                ]
                for t in found.tensors
            ),
            least=("stored as", "size", "shape"),
        )


def _shown(items: Sequence[object], length: int) -> str:
    parts = [repr(item) if isinstance(item, str) else str(item) for item in items]
    text = ", ".join(
        part if len(part) <= _SHOWN_CHARACTERS else part[:_SHOWN_CHARACTERS] + "…" for part in parts
    )
    return f"{length:,} items: {text}, …" if length > len(items) else text
