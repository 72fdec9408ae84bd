"""`ggplan reproduce`: is a file what its checkpoint and its recipe give?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from ggplan.model import Model
    from ggplan.verification.reproducing import Reproduction

_EPILOG = """\b
Examples:
  ggplan reproduce air-hq4_k.gguf GLM-4.5-Air
  ggplan reproduce air.gguf GLM-4.5-Air --imatrix air.imatrix.gguf -o again.gguf
"""
_SHOWN_FAULTS = 20


@click.command(
    "reproduce", epilog=_EPILOG, short_help="Make a file again from its checkpoint, and compare every byte."
)
@click.argument("file")
@click.argument("checkpoint")
@click.option("--imatrix", "imatrix_path", metavar="FILE", help="The importance matrix that was used.")
@click.option("-o", "--output", type=click.Path(), help="Write the new file here too.")
@click.option("--force", is_flag=True, help="Replace --output if it exists.")
@click.option(
    "--pre",
    metavar="NAME",
    help="The pre-tokenizer's name in llama.cpp [default: the recorded one, if not recognised].",
)
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads [default: one per CPU].")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar; no output for an equal file.")
def reproduce_command(
    file: str,
    checkpoint: str,
    imatrix_path: str | None,
    output: str | None,
    force: bool,
    pre: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make FILE again from CHECKPOINT, and compare every byte.

    FILE is an output of ggplan, or any file of a split set; it contains the recipe and the options it was
    made with, and the hashes of its inputs. Exits 0 if all bytes are equal, 1 if anything differs, and names
    it.
    """
    from pathlib import Path

    from ggplan.cli.progress import progress_bar
    from ggplan.errors import ConversionError, PlanError
    from ggplan.verification.reproducing import reproduce

    if output and Path(output).exists() and not force:
        raise ConversionError(f"{output!r} exists", hint="give --force to replace it")
    imatrix = None
    if imatrix_path:
        from ggplan.imatrix import load_imatrix

        imatrix = load_imatrix(imatrix_path)
    source = _open_checkpoint(checkpoint, file, pre)
    try:
        with progress_bar(file, None, quiet=quiet) as advance:
            found = reproduce(
                file,
                source,
                imatrix=imatrix,
                output=output,
                force=force,
                threads=threads,
                progress=advance,
            )
    except PlanError as error:
        raise click.UsageError(f"{error.message}: {error.hint}" if error.hint else error.message) from error
    if as_json:
        from ggplan.cli.output import print_json

        print_json(_as_json(found, source.path))
    else:
        _print(found, source.path, quiet)
    if not found.is_equal:
        sys.exit(1)


def _open_checkpoint(checkpoint: str, file: str, pre: str | None) -> Model:
    """The checkpoint; if its tokenizer is not recognised, with the pre-tokenizer that the file names.

    Only then: a fact that can be found without the file is never taken from it.
    """
    from pathlib import Path

    from ggplan.cli.options import print_notes
    from ggplan.errors import TokenizerError
    from ggplan.opening import open_model
    from ggplan.text import printable
    from ggplan.verification.exactness import text_of
    from ggplan.verification.renamed import open_files

    source = open_model(checkpoint, pre=pre)
    if isinstance(source.obstacle, TokenizerError):
        recorded = None if pre else text_of(open_files(Path(file)).model.metadata, "tokenizer.ggml.pre")
        if recorded is not None:
            source = open_model(checkpoint, pre=recorded)
            click.echo(f"note: the pre-tokenizer is the recorded one, {printable(recorded)}", err=True)
    if source.obstacle is not None:
        raise source.obstacle
    print_notes(source)
    return source


def _print(found: Reproduction, checkpoint: Path, quiet: bool) -> None:
    from ggplan.text import format_bytes, printable
    from ggplan.verification.reproducing import describe_input

    file = printable(found.files[0].name)
    for difference in found.inputs or ():
        click.echo(f"error: {file}: {describe_input(difference, checkpoint)}", err=True)
    for fault in found.faults[:_SHOWN_FAULTS]:
        place = f"{printable(fault.file)}: {printable(fault.where)}"
        click.echo(f"error: {place}: {printable(fault.message)}", err=True)
    if len(found.faults) > _SHOWN_FAULTS:
        click.echo(f"error: and {len(found.faults) - _SHOWN_FAULTS:,} more differences", err=True)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    if found.inputs is None:
        click.echo("note: the file does not record its inputs", err=True)
    if found.output is not None and not quiet:
        click.echo(f"wrote {printable(str(found.output))}")
    if found.is_equal and not quiet:
        click.echo(
            f"{printable(str(found.files[0]))}: {found.n_tensors:,} tensors, {format_bytes(found.n_bytes)}: "
            f"every byte is what {printable(str(checkpoint))} and the recorded recipe give"
        )


def _as_json(found: Reproduction, checkpoint: Path) -> dict[str, object]:
    from dataclasses import asdict

    recipe = found.plan.recipe
    return {
        "schema": "ggplan/reproduction@1",
        "files": [str(path) for path in found.files],
        "checkpoint": str(checkpoint),
        "equal": found.is_equal,
        "recipe": None if recipe is None else {"name": recipe.name, "sha256": recipe.sha256},
        "tensors": found.n_tensors,
        "bytes": found.n_bytes,
        "inputs": None if found.inputs is None else [asdict(difference) for difference in found.inputs],
        "notes": list(found.notes),
        "faults": [asdict(fault) for fault in found.faults],
        "output": None if found.output is None else str(found.output),
    }
