"""`ggplan verify`: is a file whole and sound, and how far is it from its source?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ggplan.cli.opening import OpeningOptions, open_source_of, opening_options
from ggplan.cli.options import (
    calibration_option,
    fallback_option,
    imatrix_option,
    json_option,
    quiet_option,
    recipe_of_name,
    refuse_other_names,
    threads_option,
)

if TYPE_CHECKING:
    from ggplan.planning import FallbackTable
    from ggplan.verification import Verification
    from ggplan.verification.source_errors import TensorError

_EPILOG = """\b
Examples:
  ggplan verify air-hq4_k.gguf                              structure, scales, checksums
  ggplan verify air-hq4_k.gguf --against GLM-4.5-Air        and each tensor's error, worst first
  ggplan verify air-hq4_k.gguf --against GLM-4.5-Air --exact   and every byte as the recipe makes it
"""
_SHOWN_FAULTS = 20
_SHOWN_ERRORS = 40


@click.command("verify", epilog=_EPILOG, short_help="Check a GGUF file, alone or against its source.")
@click.argument("file")
@click.option("--against", metavar="CHECKPOINT", help="Measure each tensor's error against this checkpoint.")
@click.option("--exact", is_flag=True, help="Plan and encode again, from --against, and compare every byte.")
@click.option(
    "--manifest",
    metavar="FILE",
    help="Checksums of the tensors.  [default: FILE.sha256, or the .sha256 file beside it that lists it]",
)
@click.option(
    "-r",
    "--recipe",
    "recipe_name",
    metavar="RECIPE",
    help="For --exact: use this instead of the recorded recipe.",
)
@imatrix_option
@calibration_option
@fallback_option
@opening_options(header_only=False, imatrix=True)
@threads_option
@json_option("the result")
@quiet_option
def verify_command(
    file: str,
    against: str | None,
    exact: bool,
    manifest: str | None,
    recipe_name: str | None,
    imatrix_path: str | None,
    calibration_path: str | None,
    fallback: FallbackTable | None,
    opening: OpeningOptions,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Verify FILE, a GGUF file or any file of a split set.

    Checked are the header, the padding, every block's scale and every float, and the checksums of the
    manifest that `ggplan convert` writes, or of a file by `llama-gguf-hash --sha256` or `sha256sum`. FILE may
    have been renamed since. --recipe, --imatrix, --calibration and --fallback are for --exact, and the
    options about what of a model is taken are for --against: without them, what FILE says was done to its
    model is done again.

    Exits 0 for a sound file; 1 for a fault, or if a file cannot be opened; 2 for wrong usage.
    """
    if exact and against is None:
        raise click.UsageError("--exact needs --against: the checkpoint that the file was made from")
    counts = imatrix_path if opening.shaping.keep_experts else None
    if (recipe_name or (imatrix_path and not counts) or fallback or calibration_path) and not exact:
        raise click.UsageError("--recipe, --imatrix, --calibration and --fallback are for --exact")
    opening.refuse_without(against, "--against")
    from ggplan.cli.output import print_json
    from ggplan.verification import plan_again

    refuse_other_names(file)
    imatrix = None
    if imatrix_path:
        from ggplan.imatrix import load_imatrix

        imatrix = load_imatrix(imatrix_path)
    calibration = None
    if calibration_path:
        from ggplan.calibration import open_calibration

        calibration = open_calibration(calibration_path)
        imatrix = imatrix or calibration.imatrix
    source = None
    if against and exact:
        source = open_source_of(against, file, opening.pre, opening.converter, quiet)
        source, imatrix = opening.shaping.apply_noted(source, imatrix, quiet=quiet)
    elif against:
        source = opening.open_noted(against, imatrix, weights=True, quiet=quiet)
    plan = None
    if exact and source is not None:
        from pathlib import Path

        from ggplan.verification.renamed import open_files

        plan = plan_again(
            open_files(Path(file)).model,
            source,
            recipe=recipe_of_name(recipe_name, quiet=quiet) if recipe_name else None,
            imatrix=imatrix,
            fallback=fallback,
            calibration=calibration,
        )
    from ggplan.cli.progress import progress_bar
    from ggplan.verification import verify

    with progress_bar(file, None, quiet=quiet) as advance:
        found = verify(file, against=source, plan=plan, manifest=manifest, threads=threads, progress=advance)
    if as_json:
        print_json(_as_json(found))
    else:
        _print(found, quiet)
    if not found.is_sound:
        sys.exit(1)


def _print(found: Verification, quiet: bool) -> None:
    from ggplan.cli.output import print_table
    from ggplan.cli.trouble import hint_for
    from ggplan.text import format_bytes, printable

    if found.errors:
        print_table(
            [("tensor", "left"), ("from", "left"), ("to", "left"), ("rmse", "right"), ("relative", "right"),
             ("cosine", "right"), ("worst row", "right"), ("its relative", "right")],
            (_row(error) for error in found.errors[:_SHOWN_ERRORS]),
            least=("worst row", "its relative", "from", "rmse", "cosine"),
        )  # fmt: skip
        if len(found.errors) > _SHOWN_ERRORS:
            click.echo(f"and {len(found.errors) - _SHOWN_ERRORS:,} more with smaller errors (--json has all)")
    if found.not_compared:
        names = ", ".join(printable(name) for name in found.not_compared[:3])
        click.echo(
            f"not compared, since ggplan cannot read their types: {len(found.not_compared):,} ({names})"
        )
    for fault in found.faults[:_SHOWN_FAULTS]:
        click.echo(
            f"error: {printable(fault.file)}: {printable(fault.where)}: {printable(fault.message)}", err=True
        )
        if fault.hint:
            click.echo(f"help: {hint_for(verify_command, printable(fault.hint))}", err=True)
    if len(found.faults) > _SHOWN_FAULTS:
        click.echo(f"error: and {len(found.faults) - _SHOWN_FAULTS:,} more faults", err=True)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    if found.faults or quiet:
        return
    files = f"{len(found.files)} files, " if len(found.files) > 1 else ""
    checks = ["structure, padding and scales are sound"]
    if found.manifest:
        checks.append("checksums agree")
    if found.proven:
        checks.append("every byte is what the plan encodes")
    click.echo(
        f"{printable(str(found.files[0]))}: {files}{found.n_tensors:,} tensors, "
        f"{format_bytes(found.n_bytes)}: {'; '.join(checks)}"
    )
    if not found.manifest:
        click.echo(
            "note: there is no manifest (.sha256), so flipped bits in weights cannot be found", err=True
        )


def _row(error: TensorError) -> list[str]:
    return [
        error.name,
        error.source_type,
        error.type,
        f"{error.rmse:.3g}",
        f"{error.relative:.3%}",
        f"{error.cosine:.6f}",
        f"{error.worst_row:,}",
        f"{error.worst_row_relative:.3%}",
    ]


def _as_json(found: Verification) -> dict[str, object]:
    from dataclasses import asdict
    from math import isfinite

    def plain(error: TensorError) -> dict[str, object]:
        # JSON has no infinity: the relative error of what should be zeros is null.
        return {
            key: None if isinstance(value, float) and not isfinite(value) else value
            for key, value in asdict(error).items()
        }

    return {
        "schema": "ggplan/verification@1",
        "files": [str(path) for path in found.files],
        "sound": found.is_sound,
        "tensors": found.n_tensors,
        "bytes": found.n_bytes,
        "manifest": None if found.manifest is None else str(found.manifest),
        "listed_as": {} if found.listing is None else found.listing.renamed,
        "notes": list(found.notes),
        "faults": [asdict(fault) for fault in found.faults],
        "errors": [plain(error) for error in found.errors],
        "not_compared": list(found.not_compared),
        "proven": found.proven,
    }
