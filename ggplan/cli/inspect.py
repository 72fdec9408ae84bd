"""`ggplan inspect`: what is in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ggplan.cli.opening import (
    OpeningOptions,
    note_converter,
    note_model,
    opening_options,
    with_scales_read,
)
from ggplan.cli.options import json_option, quiet_option

if TYPE_CHECKING:
    from pathlib import Path

    from ggplan.allocation import Figure
    from ggplan.errors import TruncatedError
    from ggplan.model import Model

_EPILOG = """\b
Examples:
  ggplan inspect model.gguf                      types and sizes
  ggplan inspect GLM-4.5-Air --tensors           every tensor under its GGUF name
  ggplan inspect model.gguf --metadata           the key-value pairs
  ggplan inspect GLM-4.5-Air --json > air.json   an inventory that `ggplan plan` reads
  ggplan inspect hf://zai-org/GLM-4.5-Air        a checkpoint on the hub, by its headers alone
  ggplan inspect model-00001-of-00047.safetensors   one file, under its own names
  head -c 20M model.gguf > part.gguf; ggplan inspect part.gguf --header-only   the header alone
  ggplan inspect kld_results.csv                 a table of sensitivities, by role and type
"""
_SHOWN_ITEMS = 6
_SHOWN_CHARACTERS = 100


@click.command("inspect", epilog=_EPILOG, short_help="Show what is in a checkpoint.")
@click.argument("model")
@click.option("--tensors", "show_tensors", is_flag=True, help="List every tensor.")
@click.option("--metadata", "show_metadata", is_flag=True, help="List the key-value pairs.")
@click.option(
    "--figure",
    type=click.Choice(["kld", "ppl", "dppl", "top_p"]),
    help="What a table of sensitivities holds [default: as its name or its comments say].",
)
@opening_options()
@json_option("an inventory")
@quiet_option
def inspect_command(
    model: str, show_tensors: bool, show_metadata: bool, opening: OpeningOptions,
    figure: Figure | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Show what is in MODEL: a Hugging Face folder, a GGUF file, an inventory (`-`: on standard input), one
    .safetensors file, the address of one of these (hf://org/name, https://host/model.gguf) or a table of
    sensitivities.

    Of a file that is cut short its header is shown all the same. That is an error (exit code 1) unless
    --header-only says that it is meant.

    Exits 0; 1 if it cannot be opened, or is cut short; 2 for wrong usage.
    """
    from ggplan.allocation import is_sensitivity_table

    if is_sensitivity_table(model):
        from ggplan.cli.sensitivities import show_sensitivities

        if show_metadata or opening.given:
            raise click.UsageError("a table of sensitivities has no metadata and no tokenizer")
        show_sensitivities(model, figure=figure, all_places=show_tensors, as_json=as_json, quiet=quiet)
        return
    if figure:
        raise click.UsageError("--figure is of tables of sensitivities, and MODEL is none")
    from ggplan.errors import TruncatedError
    from ggplan.naming import model_named

    if (file := _safetensors_file(model)) is not None:
        if others := [option for option in opening.given if option != "--header-only"]:
            raise click.UsageError(f"{', '.join(others)}: one file of a checkpoint is shown as it is")
        truncated = _inspect_safetensors(file, show_tensors, show_metadata, as_json)
    else:
        note_converter(opening.converter, quiet=quiet)
        opened = model_named(model, pre=opening.pre, header_only=True, converter=opening.converter)
        truncated = opened.obstacle if isinstance(opened.obstacle, TruncatedError) else None
        if truncated is None or opening.header_only:
            note_model(opened, quiet=quiet)
        opened = opening.shaping.apply_noted(opened, quiet=quiet)[0]
        opened = with_scales_read(opened, quiet=quiet)
        _inspect_model(opened, show_tensors, show_metadata, as_json)
    if truncated is not None and not opening.header_only:
        raise truncated


def _inspect_model(found: Model, show_tensors: bool, show_metadata: bool, as_json: bool) -> None:
    from ggplan.cli.output import format_count, print_json, print_table
    from ggplan.planning.outcomes import outcomes_in
    from ggplan.text import format_bytes, printable

    if as_json:
        from ggplan.sources.inventory import inventory_json

        print_json(inventory_json(found))
        return
    kinds = {"hf": "Hugging Face checkpoint", "gguf": "GGUF", "inventory": "inventory without weights"}
    click.echo(f"{printable(str(found.path))} · {kinds[found.kind]}")
    click.echo(
        f"{printable(found.architecture or 'unknown architecture')}, {len(found.tensors):,} tensors, "
        f"{format_count(found.n_weights)} weights, {format_bytes(found.n_bytes)} as GGUF"
    )
    print_table(
        [("type", "left"), ("tensors", "right"), ("weights", "right"), ("size", "right")],
        (
            [type_.name, f"{n:,}", format_count(weights), format_bytes(size)]
            for type_, (n, weights, size) in found.bytes_by_type().items()
        ),
        least=("weights", "tensors"),
    )
    for outcome in outcomes_in(found):
        click.echo(printable(outcome.told))
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
            wraps=("value",),
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
                for t in (*found.tensors, *found.companions)
            ),
            least=("stored as", "size", "shape"),
        )


def _safetensors_file(name: str) -> Path | None:
    """The path of one file of a checkpoint; None for anything else."""
    from pathlib import Path
    from urllib.parse import urlsplit

    from ggplan.sources.remote import is_address

    if is_address(name):
        from ggplan.sources.addresses import open_address

        return open_address(name) if urlsplit(name).path.endswith(".safetensors") else None
    path = Path(name)
    return path if path.suffix == ".safetensors" and path.exists() and not path.is_dir() else None


def _inspect_safetensors(
    path: Path, show_tensors: bool, show_metadata: bool, as_json: bool
) -> TruncatedError | None:
    """Show what the header of a safetensors file says, under its own names and types."""
    from ggplan.cli.output import format_count, print_json, print_table
    from ggplan.sources.safetensors import read_file, read_metadata
    from ggplan.text import format_bytes, printable

    tensors, truncated = read_file(path)
    metadata = read_metadata(path)
    if as_json:
        print_json(
            {
                "schema": "ggplan/safetensors@1",
                "metadata": metadata,
                "tensors": [
                    {"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "bytes": t.n_bytes}
                    for t in tensors.values()
                ],
            }
        )
        return truncated
    n_weights = sum(t.n_weights for t in tensors.values())
    n_bytes = sum(t.n_bytes for t in tensors.values())
    click.echo(f"{printable(str(path))} · one safetensors file, with the names and types of its checkpoint")
    click.echo(f"{len(tensors):,} tensors, {format_count(n_weights)} weights, {format_bytes(n_bytes)}")
    by_type: dict[str, tuple[int, int, int]] = {}
    for t in tensors.values():
        n, weights, size = by_type.get(t.dtype, (0, 0, 0))
        by_type[t.dtype] = (n + 1, weights + t.n_weights, size + t.n_bytes)
    print_table(
        [("type", "left"), ("tensors", "right"), ("weights", "right"), ("size", "right")],
        (
            [dtype, f"{n:,}", format_count(weights), format_bytes(size)]
            for dtype, (n, weights, size) in sorted(by_type.items(), key=lambda item: -item[1][2])
        ),
    )
    if show_metadata:
        print_table(
            [("key", "left"), ("value", "left")],
            ([key, _shown([value], 1)] for key, value in metadata.items()),
        )
    if show_tensors:
        print_table(
            [("tensor", "left"), ("shape", "left"), ("type", "left"), ("size", "right")],
            (
                [t.name, " × ".join(map(str, t.shape)), t.dtype, format_bytes(t.n_bytes)]
                for t in tensors.values()
            ),
        )
    return truncated


def _shown(items: Sequence[object], length: int) -> str:
    parts = [repr(item) if isinstance(item, str) else str(item) for item in items]
    text = ", ".join(
        part if len(part) <= _SHOWN_CHARACTERS else part[:_SHOWN_CHARACTERS] + "…" for part in parts
    )
    return f"{length:,} items: {text}, …" if length > len(items) else text
