"""`ggplan calibrate`: run texts through a model and keep what its matrices were given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.opening import OpeningOptions, opening_options
from ggplan.cli.options import as_one, force_option, json_option, note, quiet_option, threads_option
from ggplan.cli.sizes import ByteCount, TokenCount

if TYPE_CHECKING:
    from pathlib import Path

    from ggplan.calibrating import CalibrateOptions, EngineName, Share, Watch
    from ggplan.calibration import Calibration
    from ggplan.imatrix.writing import Form
    from ggplan.model import Model

SCHEMA = "ggplan.calibrate/1"
_RUNNING = "running the texts"

_EPILOG = """\b
Examples:
  ggplan calibrate air-bf16.gguf --text default --tokens 64k -o air.calib
  ggplan calibrate air-bf16.gguf --text prose.txt --text code.txt -o air.calib
  ggplan calibrate ./GLM-4.5-Air --text mix.txt --memory 32G -o air.calib
  ggplan calibrate air-bf16.gguf --text mix.txt --imatrix-only -o imatrix.gguf
  ggplan calibrate air.calib --outliers     columns far larger than the others
"""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What to run, and how: the options of a run, which `--outliers` does not make."""

    texts: tuple[str, ...]
    output: str | None
    imatrix_only: bool
    form: Form | None
    engine: EngineName
    ctx: int
    n_tokens: int | None
    n_chunks: int | None
    memory: int
    process_output: bool
    threads: int | None

    def require_output(self) -> str:
        """The output of a run; refuses options that are missing or do not go together."""
        if self.output is None:
            raise click.UsageError(
                "-o is missing: the folder to fill, or with --imatrix-only the file to write"
            )
        if not self.texts:
            raise click.UsageError(
                "--text is missing: a text to run through the model; --text default has one that ships"
            )
        if self.n_tokens is not None and self.n_chunks is not None:
            raise click.UsageError("give --tokens or --chunks, not both")
        if self.form is not None and not self.imatrix_only:
            raise click.UsageError("--format is for --imatrix-only")
        return self.output

    def options(self, *, force: bool) -> CalibrateOptions:
        """As the library takes them."""
        from ggplan.calibrating import CalibrateOptions

        return CalibrateOptions(
            engine=self.engine,
            n_ctx=self.ctx,
            n_tokens=self.n_tokens,
            n_chunks=self.n_chunks,
            memory=self.memory,
            threads=self.threads,
            process_output=self.process_output,
            force=force,
        )


@click.command("calibrate", epilog=_EPILOG, short_help="Run texts, to choose weights by.")
@click.argument("model")
@click.option(
    "--text", "texts", multiple=True, type=click.Path(), metavar="FILE",
    help="A text to run through the model, or `default`: the text that ships, of prose, code, markup and"
    " languages. Can be repeated: one for each kind of use.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(), metavar="CALIB",
    help="The folder to fill; with --imatrix-only the file to write.",
)  # fmt: skip
@click.option(
    "--imatrix-only", is_flag=True,
    help="Write an imatrix alone, that of llama-imatrix on the same text.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(["gguf", "dat"]),
    help="The form of the imatrix [default: dat if the name ends in .dat, else gguf].",
)  # fmt: skip
@click.option(
    "--engine", type=click.Choice(["llama.cpp", "torch"]), default="llama.cpp", show_default=True,
    help="What runs the model: llama-cpp-python, or transformers layer by layer.",
)  # fmt: skip
@click.option(
    "-c", "--ctx", type=click.IntRange(32, 1 << 20), default=512, show_default=True, metavar="N",
    help="Tokens of a chunk; each chunk is run by itself.",
)  # fmt: skip
@click.option(
    "--tokens", "n_tokens", type=TokenCount(), metavar="N",
    help="At most so many tokens, in whole chunks, an equal share of each text, taken from all over it; at "
    "least a chunk of each [default: whole texts].",
)  # fmt: skip
@click.option(
    "--chunks", "n_chunks", type=click.IntRange(min=1), metavar="N",
    help="At most so many chunks, the first of each text, as llama-imatrix takes them; at least one of each.",
)  # fmt: skip
@click.option(
    "--memory", type=ByteCount(1024), default="8G", show_default=True, metavar="SIZE",
    help="Memory for what is collected, besides the model's own; with --engine torch a layer's weights count "
    "too. If it does not hold all layers, llama.cpp runs the texts several times.",
)  # fmt: skip
@click.option("--process-output", is_flag=True, help="Collect the input of output.weight too.")
@click.option(
    "--outliers", is_flag=True,
    help="MODEL is a CALIB: list its outlier columns and their share of the energy, and rules for a recipe. "
    "Nothing is run.",
)  # fmt: skip
@click.option(
    "--tau", type=click.FloatRange(min=1, min_open=True, max=1e6), default=6.0, show_default=True,
    metavar="X", help="With --outliers: a column is one if its root mean square is over X times the median.",
)  # fmt: skip
@threads_option
@opening_options(header_only=False)
@force_option("what CALIB holds of another run")
@json_option("what was run and the coverage of every tensor, or the outliers,")
@quiet_option
@as_one("asked", RunOptions)
@click.pass_context
def calibrate_command(
    context: click.Context,
    model: str,
    outliers: bool,
    tau: float,
    asked: RunOptions,
    opening: OpeningOptions,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run texts through MODEL, and keep in the folder CALIB what its matrices were given.

    `ggplan convert --calibration CALIB` then chooses weights by it. The folder has an ordinary imatrix too,
    imatrix.gguf. MODEL is a GGUF in bf16, f16, f32 or q8_0, or a checkpoint; for llama.cpp a checkpoint is
    converted to bf16 in CALIB, and that file is removed at the end. If a run is stopped, the same command
    continues it and fills the folder with the same files.

    What the texts lack may get worse: give texts of every kind of use.

    With --outliers MODEL is a CALIB that is there, and nothing is run.

    Exits 0; 1 if the model or a text cannot be read or run, or CALIB holds something else; 2 for wrong usage.
    """
    from ggplan.calibrating import calibrate, calibrate_imatrix
    from ggplan.cli.outliers import print_outliers
    from ggplan.cli.signals import orderly_stop

    if outliers:
        _refuse_for_outliers(context)
        print_outliers(model, tau, as_json=as_json, quiet=quiet)
        return
    if _is_given(context, "tau"):
        raise click.UsageError("--tau is for --outliers")
    output, options = asked.require_output(), asked.options(force=force)
    found, _ = opening.open(model, weights=True, quiet=quiet)
    _note_model(found, quiet=quiet)
    _note_context(found, asked.ctx, quiet=quiet)
    _note_texts(asked.texts, quiet=quiet)
    if asked.process_output and "output.weight" not in found:
        note(
            "--process-output: the model has no output.weight, its embedding is that too, and has no entry",
            quiet=quiet,
        )
    shares: list[Share] = []
    with orderly_stop(), _watch(quiet, shares) as watch:
        if asked.imatrix_only:
            path = calibrate_imatrix(found, asked.texts, output, options, form=asked.form, watch=watch)
        else:
            calibration = calibrate(found, asked.texts, output, options, watch=watch)
    if asked.imatrix_only:
        _tell_imatrix(path, sum(share.run for share in shares), as_json=as_json, quiet=quiet)
    else:
        _tell(calibration, as_json=as_json, quiet=quiet)


def _is_given(context: click.Context, parameter: str) -> bool:
    return context.get_parameter_source(parameter) not in (None, click.core.ParameterSource.DEFAULT)


def _refuse_for_outliers(context: click.Context) -> None:
    """Refuse options of a run, which `--outliers` does not make."""
    used = {"model", "outliers", "tau", "as_json", "quiet"}
    given = [
        p.opts[-1]
        for p in context.command.params
        if p.name not in used and p.name and _is_given(context, p.name)
    ]
    if given:
        verb = "is" if len(given) == 1 else "are"
        raise click.UsageError(f"{', '.join(given)} {verb} for a run; --outliers looks at one that is done")


def _note_model(model: Model, *, quiet: bool) -> None:
    """Tell of weights that were rounded before."""
    types = {t.type.name for t in model.tensors if t.type.is_quantized and t.codes is None}
    rounded = sorted(types - {"q8_0"})
    if model.kind == "gguf" and rounded:
        note(
            f"the model is quantized ({', '.join(rounded)}): what is kept is what these weights do; a bf16 "
            "or q8_0 GGUF says more",
            quiet=quiet,
        )


def _note_texts(texts: tuple[str, ...], *, quiet: bool) -> None:
    """Tell of a single text."""
    from ggplan.calibration.shipped import DEFAULT

    if len(texts) == 1 and texts[0] != DEFAULT:
        note(
            "one text: uses of the model that it does not show may get worse; give several --text",
            quiet=quiet,
        )


def _note_shares(shares: Sequence[Share], *, quiet: bool) -> None:
    """Tell of texts that are too short for an equal share of what is run."""
    from ggplan.text import plural, printable

    most = max((share.run for share in shares if share.run < share.there), default=0)
    for share in shares:
        if share.run == share.there and share.run < most - 1:
            note(
                f"{printable(share.name)} has {plural(share.there, 'chunk')} and no more, and {most:,} of "
                "another text are run: what it stands for counts for less",
                quiet=quiet,
            )


def _note_context(model: Model, n_ctx: int, *, quiet: bool) -> None:
    """Tell of chunks that are longer than what the model was trained on."""
    known = model.metadata.get(f"{model.architecture}.context_length")
    trained = None if known is None else known.decode()
    if isinstance(trained, int) and 0 < trained < n_ctx:
        note(f"the model was trained on {trained:,} tokens, and a chunk has {n_ctx:,} (--ctx)", quiet=quiet)


@contextmanager
def _watch(quiet: bool, shares: list[Share]) -> Iterator[Watch]:
    """Bars of what takes long, which are gone in the end, however it ends; without a terminal, lines.

    `shares` gets what is run of each text.
    """
    from ggplan.calibrating import Watch
    from ggplan.cli.progress import ChunkLines, chunks_bar, is_shown, progress_bar

    @contextmanager
    def converting(total: int) -> Iterator[Callable[[int], None]]:
        with progress_bar("converting to bf16", total, quiet=quiet) as progress:
            yield progress

    def note_shares(found: Sequence[Share]) -> None:
        shares.extend(found)
        _note_shares(found, quiet=quiet)

    if not quiet and not is_shown(quiet):
        yield Watch(ChunkLines(_RUNNING), converting, note_shares)
        return
    bar = _Bar(chunks_bar(quiet=quiet))
    try:
        yield Watch(bar, converting, note_shares)
    finally:
        bar.stop()


class _Bar:
    """A bar of chunks that appears with the first of them: before it there may be another bar."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(_RUNNING, total=total)
        self._bar.update(self._task, completed=done, total=total)

    def stop(self) -> None:
        """Let it go."""
        if self._task is not None:
            self._bar.stop()


def _tell(calibration: Calibration, *, as_json: bool, quiet: bool) -> None:
    from ggplan.calibration.run import sums_of
    from ggplan.cli.coverage import coverage_json, note_coverage, print_coverage
    from ggplan.cli.output import echo_wrapped, print_json
    from ggplan.imatrix.coverage import coverage_of
    from ggplan.text import format_bytes, plural, printable

    entries = list(coverage_of(sums_of(calibration)))
    n_bytes = sum((calibration.path / file.name).stat().st_size for file in calibration.layers)
    if as_json:
        print_json(
            {
                "schema": SCHEMA,
                "path": str(calibration.path),
                "digest": calibration.digest,
                "run": dict(calibration.provenance),
                "bytes": n_bytes,
                "coverage": [coverage_json(entry) for entry in entries],
            }
        )
    elif not quiet:
        print_coverage(entries)
        run = calibration.provenance
        echo_wrapped(
            f"{printable(str(calibration.path))}: {plural(len(calibration.layers), 'layer')}, "
            f"{plural(len(entries), 'tensor')}, {run['tokens']:,} tokens in "
            f"{plural(run['tokens'] // run['n_ctx'], 'chunk')} of {run['n_ctx']:,}, {format_bytes(n_bytes)}"
        )
    note_coverage(entries, quiet=quiet)


def _tell_imatrix(path: Path, n_run: int, *, as_json: bool, quiet: bool) -> None:
    from ggplan.cli.coverage import coverage_json, note_coverage, print_coverage
    from ggplan.cli.output import echo_wrapped, print_json
    from ggplan.imatrix import load_sums
    from ggplan.imatrix.coverage import coverage_of
    from ggplan.text import plural, printable

    sums = load_sums(path)
    entries, chunks, name = list(coverage_of(sums)), sums.chunk_count, str(path)
    if as_json:
        coverage = [coverage_json(entry) for entry in entries]
        print_json({"schema": SCHEMA, "path": name, "chunks": chunks, "coverage": coverage})
    elif not quiet:
        print_coverage(entries)
        echo_wrapped(f"{printable(name)}: {plural(len(entries), 'tensor')}, {plural(chunks, 'chunk')}")
    if chunks != n_run:
        note(
            f"{plural(n_run, 'chunk')} of the texts were run; inputs of fewer than 16 tokens at the end of a "
            "batch are left out, as llama-imatrix does, and the file counts whole chunks",
            quiet=quiet,
        )
    note_coverage(entries, quiet=quiet)
