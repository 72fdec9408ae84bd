"""`ggplan imatrix inspect`, `merge` and `check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ggplan.cli.opening import OpeningOptions, opening_options
from ggplan.cli.options import force_option, json_option, note, quiet_option
from ggplan.cli.sizes import TokenCount

if TYPE_CHECKING:
    from pathlib import Path

    from ggplan.imatrix import ImatrixSums
    from ggplan.imatrix.merging import Policy
    from ggplan.imatrix.writing import Form

SCHEMA = "ggplan.imatrix/1"
_INSPECT = """\b
Examples:
  ggplan imatrix inspect imatrix.gguf
  ggplan imatrix inspect air.calib --tensors     a calibration's, by tensor
  ggplan imatrix inspect imatrix.dat --json
"""
_MERGE = """\b
Examples:
  ggplan imatrix merge prose.gguf code.gguf -o both.gguf
  ggplan imatrix merge old.dat -o new.gguf         from .dat to GGUF
  ggplan imatrix merge a.gguf b.gguf --unseen mean -o both.gguf
"""
_CHECK = """\b
Examples:
  ggplan imatrix check imatrix.gguf GLM-4.5-Air
  ggplan imatrix check imatrix.gguf air-bf16.gguf --json
"""
_CHUNK = 512


_chunk_option = click.option(
    "--chunk-size", type=TokenCount(), default=_CHUNK, show_default=True, metavar="N",
    help="Tokens of a batch of a legacy file, which does not say.",
)  # fmt: skip


@click.command("inspect", epilog=_INSPECT, short_help="What an imatrix covers, and which columns dominate.")
@click.argument("file", type=click.Path())
@click.option("--tensors", "every", is_flag=True, help="A row for each tensor.")
@_chunk_option
@json_option("the coverage of every entry")
@quiet_option
def inspect_command(file: str, every: bool, chunk_size: int, as_json: bool, quiet: bool) -> None:
    """What an imatrix covers: the tokens of each expert, and the columns that dominate.

    `few` counts the matrices that saw too few tokens to rely on; `largest column` is the largest share of a
    matrix's energy that one column has. A legacy file (.dat) has one count for all experts of a tensor.

    Exits 0; 1 if the file cannot be read; 2 for wrong usage.
    """
    from ggplan.cli.coverage import coverage_json, dominating_lines, note_coverage, print_coverage
    from ggplan.cli.output import echo_wrapped, print_json
    from ggplan.imatrix.coverage import coverage_of
    from ggplan.text import plural, printable

    imatrix = _opened(file, chunk_size)
    entries = list(coverage_of(imatrix))
    if as_json:
        print_json(
            {
                "schema": SCHEMA,
                "datasets": list(imatrix.datasets),
                "chunks": imatrix.chunk_count,
                "chunk_size": imatrix.chunk_size,
                "unseen": list(imatrix.unseen),
                "entries": [coverage_json(entry) for entry in entries],
            }
        )
        return
    texts = ", ".join(map(printable, imatrix.datasets)) or "a text that it does not name"
    echo_wrapped(
        f"{printable(file)}: {len(entries):,} entries, {plural(imatrix.chunk_count, 'chunk')} of "
        f"{imatrix.chunk_size:,} tokens of {texts}"
    )
    print_coverage(entries, every=every, quiet=quiet)
    for line in dominating_lines(entries):
        echo_wrapped(line)
    if imatrix.unseen:
        note(f"experts without data got the {imatrix.unseen[0]} of their layer", quiet=quiet)
    note_coverage(entries, quiet=quiet)


@click.command("merge", epilog=_MERGE, short_help="Add imatrix files up, or write one in the other form.")
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="FILE", help="The file to write.")
@click.option(
    "--format", "form", type=click.Choice(["gguf", "dat"]),
    help="The form to write [default: dat if the name ends in .dat, else gguf].",
)  # fmt: skip
@click.option(
    "--unseen", type=click.Choice(["ones", "mean"]),
    help="What experts get that saw no token: ones in all columns, or the mean of their layer, for gate and"
    " up [default: as the files have it, else ones].",
)  # fmt: skip
@_chunk_option
@force_option()
@quiet_option
def merge_command(
    files: tuple[str, ...],
    output: str,
    form: Form | None,
    unseen: Policy | None,
    chunk_size: int,
    force: bool,
    quiet: bool,
) -> None:
    """Add imatrix files up by their counts, as `llama-imatrix --in-file` does; of one, write the other form.

    A file of ten times the tokens has ten times the weight. The legacy form has one count for all experts of
    a tensor, and ones for an expert without data.

    Exits 0; 1 if a file cannot be read, they do not fit together, or OUTPUT exists; 2 for wrong usage.
    """
    import os

    from ggplan.cli.coverage import note_coverage
    from ggplan.errors import ImatrixError
    from ggplan.imatrix import write_imatrix
    from ggplan.imatrix.coverage import coverage_of
    from ggplan.imatrix.merging import Source, counted_as_one, merged, policy_of, with_policy
    from ggplan.imatrix.writing import form_of_name
    from ggplan.text import names_in_words, plural, printable

    if os.path.lexists(output) and not force:
        raise ImatrixError(
            f"{printable(output)} exists", hint="name another file, or give --force to replace it"
        )
    _refuse_twice(files)
    sources = [Source(file, _opened(file, chunk_size)) for file in files]
    for source in sources:
        if source.sums.left_out:
            note(
                f"{source.name}: statistics for display are left out ({', '.join(source.sums.left_out)})",
                quiet=quiet,
            )
    sizes = {source.sums.chunk_size for source in sources}
    if len(sizes) > 1:
        note(
            f"chunks of {', '.join(map(str, sorted(sizes)))} tokens; the first file's size is kept",
            quiet=quiet,
        )
    result = with_policy(merged(sources), unseen or policy_of(sources))
    for source_name, names in counted_as_one(sources).items():
        note(
            f"{source_name}: {names_in_words(names)}: one count for all experts; each is taken to have "
            "seen so many tokens, whatever it saw",
            quiet=quiet,
        )
    entries = list(coverage_of(result))  # before one of the files is replaced
    form = form or form_of_name(output)
    write_imatrix(result, output, form)
    stacked = [entry.name for entry in entries if len(entry.counts) > 1]
    if stacked and form == "dat":
        note(
            f"{names_in_words(stacked)}: the legacy form has one count for all experts, that of the one "
            "that saw most; what each saw is lost there",
            quiet=quiet,
        )
    if result.unseen and form == "dat":
        note(
            "experts without data got the mean of their layer; the legacy form cannot say so, and a merge of "
            "this file will count it as measured",
            quiet=quiet,
        )
    if not quiet:
        click.echo(
            f"{printable(output)} written: {len(result.entries):,} entries of {plural(len(files), 'file')}",
            err=True,
        )
    note_coverage(entries, quiet=quiet)


@click.command("check", epilog=_CHECK, short_help="Does an imatrix fit a model?")
@click.argument("file", type=click.Path())
@click.argument("model")
@opening_options()
@_chunk_option
@json_option("what was found")
@quiet_option
def check_command(
    file: str, model: str, opening: OpeningOptions, chunk_size: int, as_json: bool, quiet: bool
) -> None:
    """Compare an imatrix with a model: matrices without an entry, entries without a tensor, wrong sizes.

    MODEL is whatever `ggplan plan` takes. Experts that saw no token, or few, are told and are no fault.

    Exits 0; 1 if an entry is missing, unknown or of the wrong size, or a file cannot be read; 2 for wrong
    usage.
    """
    from ggplan.cli.coverage import note_coverage
    from ggplan.cli.output import echo_wrapped, print_json
    from ggplan.planning.imatrix_fit import fit_imatrix
    from ggplan.text import names_in_words, printable

    imatrix = _opened(file, chunk_size)
    found, _ = opening.open(model, quiet=quiet)
    fit = fit_imatrix(imatrix, found)
    if as_json:
        print_json(
            {
                "schema": SCHEMA,
                "fits": fit.is_whole,
                "missing": list(fit.missing),
                "missing_nextn": list(fit.nextn),
                "unknown": list(fit.unknown),
                "wrong": list(fit.wrong),
                "without_data": {c.name: list(c.without_data) for c in fit.coverage if c.without_data},
                "with_few_tokens": {c.name: list(c.with_few()) for c in fit.coverage if c.with_few()},
            }
        )
    else:
        echo_wrapped(f"{printable(file)}: {fit.n_fitting:,} tensors of the model have their entry")
        told = {
            "without an entry, so without importance": fit.missing,
            "of nextn blocks without an entry, which no imatrix has": fit.nextn,
            "of the imatrix alone: the model has no such tensor": fit.unknown,
            "of another size than the model's": fit.wrong,
        }
        for what, names in told.items():
            if names:
                echo_wrapped(f"{what}: {names_in_words(names)}")
    note_coverage(fit.coverage, quiet=quiet)
    if not fit.is_whole:
        raise SystemExit(1)


def _opened(file: str, chunk_size: int) -> ImatrixSums:
    """An imatrix file; of a calibration's folder its imatrix."""
    from ggplan.imatrix import load_sums

    return load_sums(_file_of(file), chunk_size=chunk_size)


def _file_of(file: str) -> Path:
    """The file itself; of a calibration's folder its imatrix, once it is known to be the right one."""
    from pathlib import Path

    from ggplan.calibration import open_calibration

    return open_calibration(file).imatrix.path if Path(file).is_dir() else Path(file)


def _refuse_twice(files: tuple[str, ...]) -> None:
    """Refuse one imatrix under two names: its text would count twice."""
    from ggplan.calibration.folder import sha256_of_file
    from ggplan.errors import CheckpointError, ImatrixError
    from ggplan.text import printable

    seen: dict[str, str] = {}
    for file in files:
        try:
            digest = sha256_of_file(_file_of(file))
        except CheckpointError as error:
            raise ImatrixError(error.message, hint=error.hint) from error
        if digest in seen:
            raise ImatrixError(
                f"{printable(seen[digest])} and {printable(file)} are one imatrix", hint="name it once"
            )
        seen[digest] = file
