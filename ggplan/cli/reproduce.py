"""`ggplan reproduce`: is a file what its checkpoint and its recipe give?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ggplan.cli.opening import converter_option, open_source_of, pre_option
from ggplan.cli.options import (
    calibration_option,
    force_option,
    imatrix_option,
    json_option,
    note,
    output_option,
    quiet_option,
    refuse_other_names,
    threads_option,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ggplan.verification.reproducing import Reproduction

_EPILOG = """\b
Examples:
  ggplan reproduce air-hq4_k.gguf GLM-4.5-Air
  ggplan reproduce air.gguf GLM-4.5-Air --imatrix air.imatrix.gguf -o again.gguf
  ggplan reproduce air.gguf GLM-4.5-Air --calibration air-calibration
"""
_SHOWN_FAULTS = 20


@click.command(
    "reproduce", epilog=_EPILOG, short_help="Make a file again from its checkpoint, and compare every byte."
)
@click.argument("file")
@click.argument("checkpoint")
@imatrix_option
@calibration_option
@pre_option
@converter_option
@threads_option
@output_option("Write the new file here too.")
@force_option("the file of -o")
@json_option("the result")
@quiet_option
def reproduce_command(
    file: str,
    checkpoint: str,
    imatrix_path: str | None,
    calibration_path: str | None,
    output: str | None,
    force: bool,
    pre: str | None,
    converter: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make FILE again from CHECKPOINT, and compare every byte.

    FILE is an output of ggplan, or any file of a split set; it contains the recipe and the options it was
    made with, and the hashes of its inputs. Where CHECKPOINT's tokenizer is not recognised, the recorded
    pre-tokenizer is taken.

    Exits 0 if all bytes are equal; 1 if anything differs, which is named, or cannot be read; 2 for wrong
    usage, or if FILE does not say how it was made.
    """
    from pathlib import Path

    from ggplan.cli.progress import progress_bar
    from ggplan.errors import ConversionError, PlanError
    from ggplan.text import printable
    from ggplan.verification.reproducing import reproduce

    if output and Path(output).exists() and not force:
        raise ConversionError(
            f"{printable(output)} exists", hint="name another file, or give --force to replace it"
        )
    imatrix = None
    if imatrix_path:
        from ggplan.imatrix import load_imatrix

        imatrix = load_imatrix(imatrix_path)
    calibration = None
    if calibration_path:
        from ggplan.calibration import open_calibration

        calibration = open_calibration(calibration_path)
    refuse_other_names(file)
    source = open_source_of(checkpoint, file, pre, converter, quiet)
    try:
        with progress_bar(file, None, quiet=quiet) as advance:
            found = reproduce(
                file,
                source,
                imatrix=imatrix,
                calibration=calibration,
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
    note(*found.notes)
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
