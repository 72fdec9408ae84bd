"""`ggplan inspect`: what is in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ggplan.cli.options import header_only_option, print_notes

if TYPE_CHECKING:
    from ggplan.errors import TruncatedError
    from ggplan.model import Model

_EPILOG = """\b
Examples:
  ggplan inspect model.gguf                      types and sizes
  ggplan inspect GLM-4.5-Air --tensors           every tensor under its GGUF name
  ggplan inspect model.gguf --metadata           the key-value pairs
  ggplan inspect GLM-4.5-Air --json > air.json   an inventory that `ggplan plan` reads
  ggplan inspect model-00001-of-00047.safetensors   one file, under its own names
  head -c 20M model.gguf > part.gguf; ggplan inspect part.gguf --header-only   the header alone
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
@header_only_option
def inspect_command(
    model: str,
    show_tensors: bool,
    show_metadata: bool,
    as_json: bool,
    pre: str | None,
    header_only: bool,
) -> None:
    """Show what is in MODEL: a Hugging Face folder, a GGUF file, an inventory, or one .safetensors file.

    Of a file that is cut short its header is shown all the same. That is an error (exit code 1) unless
    --header-only says that it is meant.
    """
    from ggplan.errors import TruncatedError
    from ggplan.opening import open_model

    if _is_safetensors_file(model):
        truncated = _inspect_safetensors(model, show_tensors, show_metadata, as_json)
    else:
        opened = open_model(model, pre=pre, header_only=True)
        truncated = opened.obstacle if isinstance(opened.obstacle, TruncatedError) else None
        if truncated is None or header_only:
            print_notes(opened)
        _inspect_model(opened, show_tensors, show_metadata, as_json)
    if truncated is not None and not header_only:
        raise truncated


def _inspect_model(opened: Model, show_tensors: bool, show_metadata: bool, as_json: bool) -> None:
    from ggplan.cli.output import format_count, print_json, print_table
    from ggplan.text import format_bytes, printable

    if as_json:
        from ggplan.sources.inventory import inventory_json

        print_json(inventory_json(opened))
        return
    kinds = {"hf": "Hugging Face checkpoint", "gguf": "GGUF", "inventory": "inventory without weights"}
    click.echo(f"{printable(str(opened.path))} · {kinds[opened.kind]}")
    click.echo(
        f"{printable(opened.architecture or 'unknown architecture')}, {len(opened.tensors):,} tensors, "
        f"{format_count(opened.n_weights)} weights, {format_bytes(opened.n_bytes)} as GGUF"
    )
    print_table(
        [("type", "left"), ("tensors", "right"), ("weights", "right"), ("size", "right")],
        (
            [type_.name, f"{n:,}", format_count(weights), format_bytes(size)]
            for type_, (n, weights, size) in opened.bytes_by_type().items()
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


def _is_safetensors_file(name: str) -> bool:
    """Whether it is one file of a checkpoint, not a folder."""
    from pathlib import Path

    path = Path(name)
    return path.suffix == ".safetensors" and path.exists() and not path.is_dir()


def _inspect_safetensors(
    name: str, show_tensors: bool, show_metadata: bool, as_json: bool
) -> TruncatedError | None:
    """Show what the header of a safetensors file says, under its own names and types."""
    from pathlib import Path

    from ggplan.cli.output import format_count, print_json, print_table
    from ggplan.sources.safetensors import read_file, read_metadata
    from ggplan.text import format_bytes, printable

    tensors, truncated = read_file(Path(name))
    metadata = read_metadata(Path(name))
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
    click.echo(f"{printable(name)} · one safetensors file, with the names and types of its checkpoint")
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
