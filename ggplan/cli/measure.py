"""`ggplan measure`: perplexity and KL divergence of quantizations, by a real llama.cpp."""

from __future__ import annotations

import contextlib
import functools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.figures import print_guards, print_record
from ggplan.cli.options import json_option, quiet_option, refuse_other_names, threads_option
from ggplan.cli.sizes import measured_file_options
from ggplan.errors import MeasureError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import TaskID

    from ggplan.measure import (
        Engine,
        MeasureOptions,
        MeasureResult,
        Record,
        Subject,
        TextFile,
        TokenScores,
        Watched,
    )
    from ggplan.measure.measuring import Keep
    from ggplan.measure.record import Text
    from ggplan.measure.record_file import OpenRecord

_EPILOG = """\b
Examples:
  ggplan measure air-hq4_k.gguf air-q4_K.gguf --base air-bf16.gguf --text wiki.test.raw
  ggplan measure *.gguf --base air-bf16.gguf --text choose.txt --held-out other.txt --record air.json
  ggplan measure air.gguf --base air-bf16.gguf --text wiki.test.raw --engine ~/ik/bin/llama-perplexity \\
      --engine-args "-ngl 99 -ot exps=CPU -t 16"
  ggplan measure --parse perplexity.log sweep-bench.txt --record air.json
  ssh box cat q4.log | ggplan measure --parse -       `-` is standard input
  ggplan measure --parse q4.log --text wiki.test.raw --gguf air-Q4_K_M.gguf --record air.json
"""


@click.command("measure", epilog=_EPILOG, short_help="Perplexity and KL divergence against a base.")
@click.argument("files", nargs=-1, type=click.Path(), metavar="FILE...")
@click.option(
    "--text",
    type=click.Path(),
    help="The text to measure on, and to choose by; with --parse, that of the logs.",
)
@click.option("--held-out", type=click.Path(), help="A second text, not used to choose a mix.")
@click.option(
    "--base",
    type=click.Path(),
    metavar="GGUF",
    help="The unquantized model, or its kept log-probabilities [default: the largest FILE].",
)
@click.option(
    "-c",
    "--ctx",
    type=click.IntRange(8, 1 << 20),
    help="Tokens of a chunk; the second half of each is scored [default: 512].",
)
@click.option("--chunks", type=click.IntRange(min=1), help="Chunks at most [default: the whole text].")
@click.option(
    "--engine",
    metavar="PATH",
    help="A llama-perplexity, or `embedded` (llama-cpp-python) [default: one on the PATH, else embedded].",
)
@click.option("--engine-args", default="", metavar="ARGS", help="Passed on to llama-perplexity.")
@threads_option
@click.option("-ngl", "--gpu-layers", type=click.IntRange(min=0), default=0, help="Layers on the GPU.")
@click.option("--keep-logits", type=click.Path(), metavar="FILE", help="Keep the base's log-probabilities.")
@click.option("--record", type=click.Path(), metavar="JSON", help="Add the results to this record.")
@click.option("--csv", "table", type=click.Path(), metavar="FILE", help="Write the figures as a CSV table.")
@click.option("--model-name", help="The model's name in the record [default: as the file says].")
@click.option("--hardware", help="The hardware's name in the record [default: the CPU].")
@click.option(
    "--parse", is_flag=True, help="FILEs are logs and tables of earlier runs: read them, run nothing."
)
@measured_file_options
@json_option("the record")
@quiet_option
def measure_command(**given: Any) -> None:
    """Measure GGUF files against the unquantized model, on the same tokens.

    The number after ± is one standard error, computed from differences on the same tokens and their scatter
    over chunks: a difference of less than two of them may be chance.

    Exits 0; 1 if a file, text or log cannot be read, measured or kept; 2 for wrong usage.
    """
    from pathlib import Path

    from ggplan.measure import MeasureOptions, TextFile, merge

    asked = _Asked(**given)
    _check_usage(asked)
    if asked.parse:
        _parse(asked)
        return
    if asked.text is None:
        raise click.UsageError("--text is missing: the text to measure on")
    _check_names(asked)
    texts = [TextFile(Path(asked.text), "choose" if asked.held_out else "")]
    if asked.held_out:
        texts.append(TextFile(Path(asked.held_out), "held out"))
    engine = _engine(asked)
    options = MeasureOptions(
        n_ctx=asked.ctx,
        n_chunks=asked.chunks,
        model_name=asked.model_name,
        hardware=asked.hardware,
        keep_logits=Path(asked.keep_logits) if asked.keep_logits else None,
    )
    with _opened(asked) as kept:
        files, base = _subjects(asked)
        _check_files(asked, files, base)
        into = kept.record if kept is not None else None
        done: list[Record] = []
        keep = functools.partial(_keep, kept, done)
        try:
            result = run_measurement(
                files, texts, base, engine, options, into=into, quiet=asked.quiet, keep=keep
            )
        except BaseException:
            _show_kept(done, asked)
            raise
        if not asked.quiet:
            for note in result.notes:
                click.echo(f"note: {note}", err=True)
        merged = merge(into, result.record) if into is not None else result.record
        failed = []
        if kept is not None:
            try:
                merged = kept.add(result.record, result.scores)
            except MeasureError as error:
                failed.append(error)
    # The figures took hours: they are printed even if they cannot be kept.
    _finish(result.record, merged, asked, failed)
    if not asked.as_json:
        print_guards(result)
    if failed:
        raise MeasureError("; ".join(error.message for error in failed), hint=failed[0].hint)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The values of the command line."""

    files: tuple[str, ...]
    text: str | None
    held_out: str | None
    base: str | None
    ctx: int | None
    chunks: int | None
    engine: str | None
    engine_args: str
    threads: int | None
    gpu_layers: int
    keep_logits: str | None
    record: str | None
    table: str | None
    model_name: str | None
    hardware: str | None
    parse: bool
    sizes: tuple[tuple[str, int], ...]
    ggufs: tuple[tuple[str, str], ...]
    as_json: bool
    quiet: bool


def _check_usage(asked: _Asked) -> None:
    """Refuse options that would overwrite a file that is read, written by another, or of another kind."""
    from pathlib import Path

    from ggplan.measure.outputs import check_writable

    if not asked.files:
        raise click.UsageError("name at least one FILE to measure")
    _check_parse(asked)
    if asked.record and asked.record.lower().endswith(".csv"):
        raise click.UsageError("--record is a JSON file; --csv FILE writes a table")
    read = [f for f in (asked.text, asked.held_out, asked.base, *asked.files) if f]
    read += [path for _, path in asked.ggufs]
    _check_outputs(asked, [Path(f) for f in read])
    for option, path in (("--csv", asked.table), ("--keep-logits", asked.keep_logits)):
        if path:
            try:
                check_writable(Path(path))
            except MeasureError as error:
                raise click.UsageError(f"{option}: {error.message}") from error
    _check_kinds(asked)


def _check_parse(asked: _Asked) -> None:
    """Refuse options that would have no effect, with --parse or without it."""
    measuring = {
        "--held-out": asked.held_out,
        "--base": asked.base,
        "--ctx": asked.ctx,
        "--chunks": asked.chunks,
        "--engine": asked.engine,
        "--engine-args": asked.engine_args,
        "--threads": asked.threads,
        "--gpu-layers": asked.gpu_layers,
        "--keep-logits": asked.keep_logits,
        "--hardware": asked.hardware,
    }
    parsing = {"--size": asked.sizes, "--gguf": asked.ggufs}
    useless = [option for option, value in (measuring if asked.parse else parsing).items() if value]
    if useless and asked.parse:
        raise click.UsageError(f"--parse only reads what was measured before: leave out {', '.join(useless)}")
    if useless:
        raise click.UsageError(f"{useless[0]} belongs to --parse; a FILE that is measured has its own size")


def _check_names(asked: _Asked) -> None:
    """Refuse names of recipes and inventories, before an engine is looked for."""
    for name in (*asked.files, *([asked.base] if asked.base else [])):
        refuse_other_names(name)


def _check_kinds(asked: _Asked) -> None:
    """Refuse to overwrite a file that an earlier run did not write as the same output."""
    from pathlib import Path

    from ggplan.measure.base_logits import not_logits
    from ggplan.measure.outputs import is_of_another_kind
    from ggplan.measure.record import CSV_HEADER
    from ggplan.text import printable

    if asked.table and is_of_another_kind(Path(asked.table), CSV_HEADER.encode("ascii")):
        raise click.UsageError(
            f"--csv would overwrite {printable(asked.table)}, which is no table of `ggplan measure`"
        )
    other = not_logits(Path(asked.keep_logits)) if asked.keep_logits else None
    if other is not None:
        raise click.UsageError(
            f"--keep-logits would overwrite {printable(str(other))}, which is no file of log-probabilities"
        )


def _check_files(asked: _Asked, files: Sequence[Subject], base: Subject | str) -> None:
    """Refuse outputs that would overwrite a shard of a set, which the command line need not name."""
    subjects = [*files, *([] if isinstance(base, str) else [base])]
    _check_outputs(asked, [file.path for subject in subjects for file in subject.files])


def _check_outputs(asked: _Asked, read: Sequence[Path]) -> None:
    """Refuse an output that is one of the files that are read, or another output, by whatever links."""
    from pathlib import Path

    from ggplan.measure.base_logits import part_of_logits
    from ggplan.measure.outputs import find_same
    from ggplan.measure.record_file import written_beside
    from ggplan.text import printable

    written: list[tuple[str, Path]] = []
    if asked.record:
        record = Path(asked.record)
        # A record may be among the FILEs of --parse: then the others are added to it.
        inputs = [path for path in read if not asked.parse or find_same(record, [path]) is None]
        written += [("--record", path) for path in (record, *written_beside(record))]
    else:
        inputs = list(read)
    if asked.table:
        written.append(("--csv", Path(asked.table)))
    if asked.keep_logits:
        keep = Path(asked.keep_logits)
        written += [("--keep-logits", path) for path in (keep, part_of_logits(keep))]
    for number, (option, path) in enumerate(written):
        there = find_same(path, inputs if option == "--record" else read)
        if there is not None:
            raise click.UsageError(f"{option} would overwrite {printable(str(there))}, which is read")
        for other, earlier in written[:number]:
            if other != option and find_same(path, [earlier]) is not None:
                raise click.UsageError(
                    f"{option} would overwrite {printable(str(earlier))}, which {other} writes"
                )


@contextlib.contextmanager
def _opened(asked: _Asked) -> Iterator[OpenRecord | None]:
    """The record, locked until the block ends, or None without --record."""
    from ggplan.measure import open_record

    if not asked.record:
        yield None
        return
    with open_record(asked.record, model_name=asked.model_name) as kept:
        yield kept


def _parse(asked: _Asked) -> None:
    """Read logs and tables of earlier runs."""
    from ggplan.cli.progress import reading_bar
    from ggplan.measure import open_subjects
    from ggplan.measure.parsing import parse_files
    from ggplan.measure.sizes import with_sizes
    from ggplan.measure.table_rows import UNKNOWN_TEXT
    from ggplan.text import printable

    with _opened(asked) as kept:
        with reading_bar(quiet=asked.quiet) as reading:
            subjects = open_subjects([path for _, path in asked.ggufs], reading)
        records = parse_files(
            asked.files,
            model_name=asked.model_name,
            text=_text_of_logs(asked) or UNKNOWN_TEXT,
            note=None if asked.quiet else _note,
        )
        files = [(name, subject) for (name, _), subject in zip(asked.ggufs, subjects, strict=True)]
        records = with_sizes(records, dict(asked.sizes), files)
        if len(records) > 1 and (asked.record or asked.table or asked.as_json):
            names = ", ".join(printable(r.model.name) for r in records[:6])
            raise MeasureError(
                f"these are of several models ({names})",
                hint="--model-name takes one of them, or gives all the same name",
            )
        for found in records:
            failed: list[MeasureError] = []
            merged = found
            if kept is not None:
                merged = kept.add(found)
                _carry_scores(kept, found, asked, failed)
            _finish(found, merged, asked, failed)
            if failed:
                raise failed[0]


def _text_of_logs(asked: _Asked) -> Text | None:
    """The text that logs are of, by its digest, or None without --text."""
    from pathlib import Path

    from ggplan.measure.record import Text
    from ggplan.measure.subjects import read_state

    if asked.text is None:
        return None
    path = Path(asked.text)
    return Text(path.name, read_state(path).sha256)


def _note(said: str) -> None:
    click.echo(f"note: {said}", err=True)


def _carry_scores(kept: OpenRecord, found: Record, asked: _Asked, failed: list[MeasureError]) -> None:
    """Copy the scores beside the records that were read, and say which there are not.

    `failed` gets an error of writing them.
    """
    from ggplan.measure.record_file import carry_scores
    from ggplan.text import printable

    try:
        carried = carry_scores(asked.files, kept, found)
    except MeasureError as error:
        failed.append(error)
        return
    if asked.quiet:
        return
    notes = [f"not carried over: {why}" for why in carried.unused]
    if carried.missing:
        named = ", ".join(printable(name) for name in carried.missing[:6])
        more = f" and {len(carried.missing) - 6:,} more" if len(carried.missing) > 6 else ""
        notes.append(
            f"no scores of tokens are kept of {named}{more}; differences from others have larger errors"
        )
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _subjects(asked: _Asked) -> tuple[list[Subject], Subject | str]:
    """The files and the base: the one that is named, else the largest of the files."""
    from pathlib import Path

    from ggplan.cli.progress import reading_bar
    from ggplan.measure import largest, open_subjects
    from ggplan.measure.base_logits import is_base_logits

    with reading_bar(quiet=asked.quiet) as reading:
        if asked.base is None:
            subjects = list(open_subjects(asked.files, reading))
            return subjects, largest(subjects)
        if is_base_logits(Path(asked.base)):
            return list(open_subjects(asked.files, reading)), asked.base
        base, *others = open_subjects([asked.base, *asked.files], reading)
        return others, base


def _engine(asked: _Asked) -> Engine:
    from ggplan.measure import embedded_engine, external_engine
    from ggplan.measure.llama_perplexity import find_engine

    try:
        arguments = shlex.split(asked.engine_args)
    except ValueError as error:
        raise click.UsageError(f"--engine-args: {error}") from error
    path, threads, gpu_layers = asked.engine, asked.threads, asked.gpu_layers
    if path == "embedded" or (path is None and find_engine(None) is None):
        if arguments:
            raise click.UsageError("--engine-args are for a llama-perplexity; name it with --engine")
        return embedded_engine(threads=threads, n_gpu_layers=gpu_layers)
    own = ["-t", str(threads)] if threads else []
    own += ["-ngl", str(gpu_layers)] if gpu_layers else []
    return external_engine(path or "llama-perplexity", own + arguments)


def _keep(
    kept: OpenRecord | None,
    done: list[Record],
    figures: Record,
    scores: Mapping[tuple[str, str], TokenScores],
) -> None:
    """Keep the figures of a file as soon as they are there.

    What cannot be written now is written with the rest at the end, which says why if it fails.
    """
    done.append(figures)
    if kept is not None:
        with contextlib.suppress(MeasureError):
            kept.add(figures, scores)


def _show_kept(done: Sequence[Record], asked: _Asked) -> None:
    """Print the figures of the files that were measured before another one failed."""
    from ggplan.measure import merge
    from ggplan.text import printable

    if not done or asked.as_json:
        return
    print_record(functools.reduce(merge, done))
    if asked.record:
        click.echo(f"these are kept in {printable(asked.record)}")


def run_measurement(
    files: Sequence[str | Path | Subject],
    texts: Sequence[TextFile],
    base: str | Path | Subject,
    engine: Engine,
    options: MeasureOptions,
    *,
    into: Record | None = None,
    quiet: bool = False,
    keep: Keep | None = None,
) -> MeasureResult:
    """Measure, with a progress bar on stderr where that is a terminal."""
    from ggplan.cli.progress import chunks_bar
    from ggplan.measure import measure
    from ggplan.text import printable

    with chunks_bar(quiet=quiet) as bar:
        tasks: dict[Watched, TaskID] = {}

        def watch(what: Watched, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(printable(str(what)), total=of)
            bar.update(tasks[what], completed=done)

        return measure(files, texts, base, engine, options, into=into, watcher=watch, keep=keep)


def _finish(found: Record, merged: Record, asked: _Asked, failed: list[MeasureError]) -> None:
    """Write the CSV table of all figures that are known, and print the new ones.

    `failed` holds what could not be written, and gets an error of the table.
    """
    from pathlib import Path

    from ggplan.cli.output import print_json
    from ggplan.measure import record_to_csv
    from ggplan.measure.outputs import write_whole
    from ggplan.measure.record_json import record_to_json
    from ggplan.text import printable

    if asked.table:
        try:
            write_whole(Path(asked.table), record_to_csv(merged).encode("utf-8", "backslashreplace"))
        except MeasureError as error:
            failed.append(error)
    if asked.as_json:
        print_json(record_to_json(found))
        return
    print_record(found)
    if asked.record and not failed:
        click.echo(f"kept in {printable(asked.record)}")
