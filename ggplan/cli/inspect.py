"""`ggplan inspect`: what is in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ggplan.allocation import Figure

_EPILOG = """\b
Examples:
  ggplan inspect model.gguf                      types and sizes
  ggplan inspect GLM-4.5-Air --tensors           every tensor under its GGUF name
  ggplan inspect model.gguf --metadata           the key-value pairs
  ggplan inspect GLM-4.5-Air --json > air.json   an inventory that `ggplan plan` reads
  ggplan inspect kld_results.csv                 a table of sensitivities, by role and type
"""
_SHOWN_ITEMS = 6
_SHOWN_CHARACTERS = 100


@click.command("inspect", epilog=_EPILOG, short_help="Show what is in a checkpoint.")
@click.argument("model")
@click.option("--tensors", "show_tensors", is_flag=True, help="List every tensor.")
@click.option("--metadata", "show_metadata", is_flag=True, help="List the key-value pairs.")
@click.option("--json", "as_json", is_flag=True, help="Print an inventory as JSON.")
@click.option(
    "--pre", metavar="NAME", help="The pre-tokenizer's name in llama.cpp, where it is not recognised."
)
@click.option(
    "--figure",
    type=click.Choice(["kld", "ppl", "top_p"]),
    help="What a table of sensitivities holds [default: as its name or its comments say].",
)
def inspect_command(
    model: str, show_tensors: bool, show_metadata: bool, as_json: bool, pre: str | None,
    figure: Figure | None,
) -> None:  # fmt: skip
    """Show what is in MODEL: a Hugging Face folder, a GGUF file, an inventory or a table of sensitivities."""
    from ggplan.allocation import is_sensitivity_table

    if is_sensitivity_table(model):
        from ggplan.cli.sensitivities import show_sensitivities

        if show_metadata or pre:
            raise click.UsageError("a table of sensitivities has no metadata and no tokenizer")
        show_sensitivities(model, figure=figure, all_places=show_tensors, as_json=as_json)
        return
    if figure:
        raise click.UsageError("--figure is of tables of sensitivities, and MODEL is none")
    from ggplan.cli.output import format_count, print_json, print_table
    from ggplan.opening import open_model
    from ggplan.text import format_bytes, printable

    opened = open_model(model, pre=pre)
    if as_json:
        from ggplan.sources.inventory import inventory_json

        print_json(inventory_json(opened))
        return
    n_weights = sum(t.n_weights for t in opened.tensors)
    n_bytes = sum(t.n_bytes for t in opened.tensors)
    kinds = {"hf": "Hugging Face checkpoint", "gguf": "GGUF", "inventory": "inventory without weights"}
    click.echo(f"{printable(str(opened.path))} · {kinds[opened.kind]}")
    click.echo(
        f"{printable(opened.architecture or 'unknown architecture')}, {len(opened.tensors):,} tensors, "
        f"{format_count(n_weights)} weights, {format_bytes(n_bytes)} as GGUF"
    )
    by_type: dict[str, list[int]] = {}
    for tensor in opened.tensors:
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
    )
    if show_metadata:
        print_table(
            [("key", "left"), ("type", "left"), ("value", "left")],
            (
                [key, value.type.name.lower(), _shown(value.decode_items(_SHOWN_ITEMS), value.length)]
                if value.item_type is not None
                else [key, value.type.name.lower(), _shown([value.decode()], 1)]
                for key, value in opened.metadata.items()
            ),
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
                for t in opened.tensors
            ),
        )


def _shown(items: Sequence[object], length: int) -> str:
    parts = [repr(item) if isinstance(item, str) else str(item) for item in items]
    text = ", ".join(
        part if len(part) <= _SHOWN_CHARACTERS else part[:_SHOWN_CHARACTERS] + "…" for part in parts
    )
    return f"{length:,} items: {text}, …" if length > len(items) else text
