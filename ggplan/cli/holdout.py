"""`ggplan convert --holdout`: the calibrated file measured on texts that the calibration was not made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.options import as_one, note

if TYPE_CHECKING:
    from pathlib import Path

    from ggplan.conversion import ConversionResult, ConvertOptions
    from ggplan.measure import Engine, Metric
    from ggplan.planning import Plan
    from ggplan.probing import HeldOut

_CHUNKS = 16
_TOLD = {"no clear difference": "no clear gain or loss"}  # shorter words, where there are 80 columns


@dataclass(frozen=True, slots=True)
class HoldoutOptions:
    """The values of `holdout_options`."""

    holdouts: tuple[str, ...]
    engine: str | None
    engine_args: str
    chunks: int | None
    record: str | None

    def check(self, calibration: str | None) -> None:
        """Refuse what would have no effect."""
        if not self.holdouts:
            given = {
                "--engine": self.engine, "--engine-args": self.engine_args, "--chunks": self.chunks,
                "--record": self.record,
            }  # fmt: skip
            if idle := [option for option, value in given.items() if value]:
                verb = "is" if len(idle) == 1 else "are"
                raise click.UsageError(f"{', '.join(idle)} {verb} for --holdout, which measures the file")
        elif calibration is None:
            raise click.UsageError(
                "--holdout is for --calibration: it measures what the calibration gained; `ggplan measure` "
                "measures any file"
            )


def holdout_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options as the argument `holdout: HoldoutOptions`."""
    command = as_one("holdout", HoldoutOptions)(command)
    for option in reversed(
        (
            click.option(
                "--holdout", "holdouts", multiple=True, type=click.Path(), metavar="FILE",
                help="With --calibration: measure on a text that it was not made of what it gained over "
                "--effort best; `default` is four texts that ship. Can be repeated.",
            ),
            click.option(
                "--engine", metavar="ENGINE",
                help="What runs for --holdout: a llama-perplexity, or `embedded` [default: llama-perplexity "
                "on the PATH, else llama-cpp-python].",
            ),
            click.option("--engine-args", default="", metavar="ARGS", help="Passed on to llama-perplexity."),
            click.option(
                "--chunks", type=click.IntRange(min=1), metavar="N",
                help=f"Chunks of 512 tokens of each --holdout at most [default: {_CHUNKS}].",
            ),
            click.option(
                "--record", type=click.Path(), metavar="JSON",
                help="Keep what --holdout measures in this record of `ggplan measure`.",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is measured once the file is written; all that can be refused before has been."""

    texts: tuple[Path, ...]
    engine: Engine
    n_chunks: int
    record: str | None


def prepared(plan: Plan, output: str, asked: HoldoutOptions) -> Prepared | None:
    """Find texts and engine, before hours of converting; None if nothing is held out.

    Raises
    ------
    PlanError
        If the calibration was made of a text.
    CalibrationError, MeasureError
        If a text or record cannot be read, a text is not UTF-8 or too short, or there is no engine.
    """
    if not asked.holdouts:
        return None
    from pathlib import Path

    from ggplan.calibration.given_texts import read_text
    from ggplan.calibration.shipped import DEFAULT, shipped_holdouts
    from ggplan.cli.optimize_probes import engine_of
    from ggplan.measure import open_record
    from ggplan.measure.outputs import find_same
    from ggplan.probing.holdout import refuse_unfit
    from ggplan.text import printable

    texts: list[Path] = []
    for name in asked.holdouts:
        texts.extend(shipped_holdouts().values() if name == DEFAULT else [Path(name)])
    if asked.record is not None:
        there = find_same(Path(asked.record), [*texts, *map(Path, plan.model.files), Path(output)])
        if there is not None:
            raise click.UsageError(f"--record would overwrite {printable(str(there))}")
    for text in texts:
        read_text(text)
    refuse_unfit(plan, texts)
    engine = engine_of(asked.engine, asked.engine_args)
    if asked.record is not None:
        with open_record(asked.record):  # can it be added to?
            pass
    return Prepared(tuple(texts), engine, asked.chunks or _CHUNKS, asked.record)


def run_holdout(
    plan: Plan, result: ConversionResult, wanted: Prepared, converting: ConvertOptions, *, quiet: bool
) -> tuple[HeldOut, ...]:
    """Measure the file that was written; what is made for that lies beside it, and is removed."""
    import tempfile
    from pathlib import Path

    from ggplan.cli.progress import files_watched, steps_bar
    from ggplan.cli.signals import orderly_stop
    from ggplan.measure import MeasureOptions, open_record
    from ggplan.probing.holdout import bytes_to_write, hold_out
    from ggplan.text import printable

    with contextlib.ExitStack() as stack:
        stack.push(_tell_of_output(str(result.path), quiet))
        stack.enter_context(orderly_stop())
        kept = stack.enter_context(open_record(wanted.record)) if wanted.record else None
        beside = Path(result.paths[0]).absolute().parent
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ggplan-holdout-", dir=beside))
        bar = stack.enter_context(steps_bar(quiet=quiet))
        task = bar.add_task("writing files to compare with", total=bytes_to_write(plan))
        found, measured = hold_out(
            plan, Path(result.paths[0]), wanted.texts, wanted.engine, Path(folder),
            MeasureOptions(n_chunks=wanted.n_chunks), converting,
            into=None if kept is None else kept.record, written=lambda n: bar.advance(task, n),
            watcher=files_watched(bar), keep=None if kept is None else kept.add,
        )  # fmt: skip
        if kept is not None:
            kept.add(measured.record, measured.scores)
    note(*measured.notes, quiet=quiet)
    if wanted.record and not quiet:
        click.echo(f"kept in {printable(wanted.record)}", err=True)
    return found


def _tell_of_output(path: str, quiet: bool) -> Callable[..., None]:
    """An exit that says, where measuring fails, that the file itself is there."""
    from ggplan.text import printable

    def leave(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            note(
                f"{printable(path)} is whole, and only what --holdout measures is missing; `ggplan measure` "
                "measures files that are there",
                quiet=quiet,
            )

    return leave


def print_holdout(found: Sequence[HeldOut], *, quiet: bool) -> None:
    """The table by text."""
    from ggplan.cli.output import print_table
    from ggplan.text import printable

    columns = [("held-out text", "left"), ("KLD", "right"), ("KLD of best", "right"), ("ratio", "right")]
    rows = [
        [
            printable(one.text.name),
            _shown(one.kld),
            _shown(one.best),
            "" if one.ratio is None else f"{one.ratio:.2f}",
            _TOLD.get(one.verdict, one.verdict),
        ]
        for one in found
    ]
    print_table([*columns, ("here", "left")], rows, wraps=("here",), quiet=quiet)


def _shown(metric: Metric | None) -> str:
    if metric is None:
        return "no number"
    return f"{metric.value:.4g}" + ("" if metric.error is None else f" ± {metric.error:.1g}")


def holdout_json(found: Sequence[HeldOut]) -> list[dict[str, Any]]:
    """As JSON values."""
    return [
        {
            "text": str(one.text),
            "sha256": one.sha256,
            "kld": None if one.kld is None else one.kld.value,
            "kld_error": None if one.kld is None else one.kld.error,
            "best_kld": None if one.best is None else one.best.value,
            "best_kld_error": None if one.best is None else one.best.error,
            "ratio": one.ratio,
            "verdict": one.verdict,
        }
        for one in found
    ]
