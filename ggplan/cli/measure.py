"""`ggplan measure`: perplexity and KL divergence of quantizations, by a real llama.cpp."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ggplan.measure import Engine, Measurement, Metric, Quantization, Record, Result, TextFile

_EPILOG = """\b
Examples:
  ggplan measure air-hq4_k.gguf air-q4_K.gguf --base air-bf16.gguf --text wiki.test.raw
  ggplan measure *.gguf --base air-bf16.gguf --text choose.txt --held-out other.txt --record air.json
  ggplan measure air.gguf --base air-bf16.gguf --text wiki.test.raw --engine ~/ik/bin/llama-perplexity \\
      --engine-args "-ngl 99 -ot exps=CPU -t 16"
  ggplan measure --parse perplexity.log sweep-bench.txt --record air.json
"""


@click.command("measure", epilog=_EPILOG, short_help="Perplexity and KL divergence against a base.")
@click.argument("files", nargs=-1, type=click.Path(), metavar="FILE...")
@click.option("--text", type=click.Path(), help="The text to measure on, and to choose by.")
@click.option("--held-out", type=click.Path(), help="A second text that has no say in the choice.")
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
    default=512,
    show_default=True,
    help="Tokens of a chunk; the second half of each is scored.",
)
@click.option("--chunks", type=click.IntRange(min=1), help="Chunks at most [default: the whole text].")
@click.option(
    "--engine",
    metavar="PATH",
    help="A llama-perplexity, or `embedded` (llama-cpp-python) [default: one on the PATH, else embedded].",
)
@click.option("--engine-args", default="", metavar="ARGS", help="Passed on to llama-perplexity.")
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads of the engine.")
@click.option("-ngl", "--gpu-layers", type=click.IntRange(min=0), default=0, help="Layers on the GPU.")
@click.option("--keep-logits", type=click.Path(), metavar="FILE", help="Keep the base's log-probabilities.")
@click.option("--record", type=click.Path(), metavar="JSON", help="Add the results to this record.")
@click.option("--model-name", help="The model's name in the record [default: as the file says].")
@click.option("--hardware", help="The hardware's name in the record [default: the CPU].")
@click.option("--parse", is_flag=True, help="FILEs are logs and tables of earlier runs: read, do not run.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no notes.")
def measure_command(
    files: tuple[str, ...], text: str | None, held_out: str | None, base: str | None, ctx: int,
    chunks: int | None, engine: str | None, engine_args: str, threads: int | None, gpu_layers: int,
    keep_logits: str | None, record: str | None, model_name: str | None, hardware: str | None, parse: bool,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measure GGUF files against the unquantized model, on the same tokens.

    The errors behind ± are one standard error, of differences paired token by token and scattered over
    chunks: a difference of less than two of them may be chance.
    """
    from pathlib import Path

    from ggplan.measure import TextFile

    if not files:
        raise click.UsageError("name at least one FILE to measure")
    if parse:
        from ggplan.measure.parsing import parse_files

        for found in _one_model(
            parse_files([Path(f) for f in files], model_name=model_name), record, as_json
        ):
            _finish(found, record, as_json)
        return
    if text is None:
        raise click.UsageError("--text is missing: the text to measure on")
    texts = [TextFile(Path(text), "choose" if held_out else "")]
    if held_out:
        texts.append(TextFile(Path(held_out), "held out"))
    with _usage_errors():
        arguments = shlex.split(engine_args)
    chosen = _engine(engine, arguments, threads, gpu_layers)
    result = run_measurement(
        files,
        texts,
        base or _largest(files),
        chosen,
        n_ctx=ctx,
        n_chunks=chunks,
        model_name=model_name,
        hardware=hardware,
        keep_logits=keep_logits,
        quiet=quiet,
    )
    if not quiet:
        for note in result.notes:
            click.echo(f"note: {note}", err=True)
    _finish(result.record, record, as_json)
    if record:
        _keep_scores(result, Path(record))
    if not as_json:
        _print_guards(result, texts)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise click.UsageError(f"--engine-args: {error}") from error


def _one_model(records: list[Record], record: str | None, as_json: bool) -> list[Record]:
    """The records, which must be one where they are to become one file or one JSON object."""
    from ggplan.errors import MeasureError
    from ggplan.text import printable

    if len(records) > 1 and (record or as_json):
        names = ", ".join(printable(r.model.name) for r in records[:6])
        raise MeasureError(f"these are of several models ({names})", hint="choose one with --model-name")
    return records


def _largest(files: tuple[str, ...]) -> str:
    import os

    from ggplan.errors import MeasureError
    from ggplan.text import printable

    try:
        return max(files, key=os.path.getsize)
    except OSError as error:
        raise MeasureError(f"cannot read {printable(str(error.filename))}: {error.strerror}") from error


def _engine(path: str | None, arguments: list[str], threads: int | None, gpu_layers: int) -> Engine:
    from ggplan.measure import embedded_engine, external_engine
    from ggplan.measure.llama_perplexity import find_engine

    if path == "embedded" or (path is None and find_engine(None) is None):
        if arguments:
            raise click.UsageError("--engine-args are for a llama-perplexity; name it with --engine")
        return embedded_engine(threads=threads, n_gpu_layers=gpu_layers)
    own = ["-t", str(threads)] if threads else []
    own += ["-ngl", str(gpu_layers)] if gpu_layers else []
    return external_engine(path or "llama-perplexity", own + arguments)


def run_measurement(
    files: Sequence[str],
    texts: Sequence[TextFile],
    base: str,
    engine: Engine,
    *,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    model_name: str | None = None,
    hardware: str | None = None,
    keep_logits: str | None = None,
    quiet: bool = False,
) -> Result:
    """Measure, with a progress bar on stderr where that is a terminal."""
    from ggplan.cli.progress import chunks_bar
    from ggplan.measure import measure
    from ggplan.text import printable

    with chunks_bar(quiet=quiet) as bar:
        tasks: dict[str, TaskID] = {}

        def watch(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(printable(what), total=of)
            bar.update(tasks[what], completed=done)

        return measure(
            files,
            texts,
            base,
            engine,
            n_ctx=n_ctx,
            n_chunks=n_chunks,
            model_name=model_name,
            hardware=hardware,
            keep_logits=keep_logits,
            watcher=watch,
        )


def _finish(found: Record, record: str | None, as_json: bool) -> None:
    """Print what was found, and keep it."""
    from pathlib import Path

    from ggplan.cli.output import print_json
    from ggplan.measure import load_record, merge, record_to_csv, save_record
    from ggplan.measure.record import record_to_json
    from ggplan.text import printable

    if record:
        path = Path(record)
        merged = merge(load_record(path), found) if path.exists() else found
        save_record(merged, path)
        path.with_suffix(".csv").write_text(record_to_csv(merged), "utf-8")
    if as_json:
        print_json(record_to_json(found))
        return
    print_record(found)
    if record:
        click.echo(f"kept in {printable(record)}")


def print_record(record: Record) -> None:
    """A table for each text (and context, engine) that something was measured on, the largest file first."""
    from ggplan.cli.output import print_table
    from ggplan.measure.record import quantizations_by_size
    from ggplan.text import printable

    groups: dict[tuple[object, ...], list[tuple[Quantization, Measurement]]] = {}
    for quantization in quantizations_by_size(record.quantizations):
        for measurement in quantization.measurements:
            groups.setdefault(measurement.conditions, []).append((quantization, measurement))
    for rows in groups.values():
        first = rows[0][1]
        use = f" ({first.use})" if first.use else ""
        shape = (
            f"{first.n_chunks} × {first.n_ctx} tokens, {first.n_tokens:,} scored" if first.n_tokens else ""
        )
        facts = [f"{first.text.name}{use}", shape, " ".join((first.engine, first.build)).strip()]
        title = f"{record.model.name} on " + ", ".join(printable(fact) for fact in facts if fact)
        columns = [c for c in _COLUMNS if any(c[1](q, m) for q, m in rows)]
        print_table(
            [(heading, "left" if heading == "name" else "right") for heading, _ in columns],
            ([cell(q, m) for _, cell in columns] for q, m in rows),
            title,
        )


def _size(quantization: Quantization, _: Measurement) -> str:
    from ggplan.text import format_bytes

    return format_bytes(quantization.file.n_bytes) if quantization.file.n_bytes else ""


def _delta_percent(_: Quantization, measurement: Measurement) -> str:
    change = measurement.metrics.get("delta_ln_ppl")
    if change is None:
        return ""
    ratio = math.exp(change.value)
    value = f"{100 * (ratio - 1):+.2f}"
    return value if change.error is None else f"{value} ± {100 * ratio * change.error:.2f}"


def _metric(name: str, scale: float, digits: int) -> Callable[[Quantization, Measurement], str]:
    def cell(_: Quantization, measurement: Measurement) -> str:
        metric = measurement.metrics.get(name)
        return "" if metric is None else _with_error(metric, scale, digits)

    return cell


def _with_error(metric: Metric, scale: float, digits: int) -> str:
    value = f"{scale * metric.value:.{digits}f}"
    return value if metric.error is None else f"{value} ± {scale * metric.error:.{digits}f}"


_COLUMNS: tuple[tuple[str, Callable[[Quantization, Measurement], str]], ...] = (
    ("name", lambda q, _: q.name),
    ("size", _size),
    ("bpw", lambda q, _: f"{q.bpw:.3f}" if q.bpw else ""),
    ("PPL", _metric("ppl", 1, 4)),
    ("ΔPPL %", _delta_percent),
    ("KLD", _metric("kld_mean", 1, 5)),
    ("99 % KLD", _metric("kld_99", 1, 4)),
    ("RMS Δp %", _metric("delta_p_rms", 100, 2)),
    ("same top %", _metric("same_top", 100, 2)),
)


def _keep_scores(result: Result, record: object) -> None:
    from pathlib import Path

    folder = Path(str(record)).with_suffix(".scores")
    folder.mkdir(exist_ok=True)
    for (name, text), scores in result.scores.items():
        scores.save(folder / f"{_file_name(name)}.{_file_name(text)}.npz")


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


def _print_guards(result: Result, texts: list[TextFile]) -> None:
    """What must be said before anyone calls a mix the better one."""
    from ggplan.measure import disagreements, ties
    from ggplan.text import printable

    for text in texts:
        scores = {name: s for (name, of), s in result.scores.items() if of == text.path.name}
        ranked = sorted((n for n in scores if n != result.base_name), key=lambda n: scores[n].nll.mean())
        for a, b in ties(scores, ranked):
            click.echo(
                f"note: {printable(a)} and {printable(b)} are a tie on {printable(text.path.name)}:"
                " they differ by less than one standard error"
            )
    for found in disagreements(result.record.quantizations):
        how = "" if found.certain else ", though not by two standard errors"
        click.echo(
            f"warning: {printable(found.better_chosen)} wins on the text of choice, but"
            f" {printable(found.better_held_out)} on the held-out one{how}:"
            " the choice may be tuned to the text"
        )
