"""What `ggplan optimize` measures: errors of types, probes, and the recipe's own file (--verify)."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.options import as_one, note

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import TaskID

    from ggplan.allocation.problem import Problem
    from ggplan.allocation.scales import Scales
    from ggplan.allocation.type_errors import Errors
    from ggplan.imatrix import Imatrix
    from ggplan.measure import Engine
    from ggplan.model import Model
    from ggplan.probing import ProbeRecord, Verified, Watcher
    from ggplan.rules import Recipe

TYPE_ENGINES = ("llama.cpp", "ik_llama.cpp")
_CHUNKS = 16
# Two of these and more are used only where an engine runs.
_OF_RUNS = ("--text", "--chunks", "--engine-args", "--work")


@dataclass(frozen=True, slots=True)
class ProbingOptions:
    """The values of `probing_options`."""

    errors_from: str | None
    probe: bool
    probes: str | None
    probe_base: str | None
    verify: bool
    record: str | None
    texts: tuple[str, ...]
    chunks: int | None
    engine_args: str
    work: str | None

    @property
    def runs(self) -> bool:
        """Whether an engine runs."""
        return self.probe or self.verify

    @property
    def needs_weights(self) -> bool:
        """Whether a model without weights is refused."""
        return self.runs or self.errors_from == "measured"

    def check(self, table: str | None, program: str | None, imatrix: str | None) -> None:
        """Refuse what would have no effect, or overwrite what is read."""
        given = dict(zip(_OF_RUNS, (self.texts, self.chunks, self.engine_args, self.work), strict=True)) | {
            "--engine PROGRAM": program
        }
        idle = [option for option, value in given.items() if value]
        if idle and not self.runs:
            verb = "is" if len(idle) == 1 else "are"
            if idle == ["--engine PROGRAM"]:
                from ggplan.text import printable

                raise click.UsageError(
                    f"--engine {printable(str(program))}: types are of {' or '.join(TYPE_ENGINES)}; a program"
                    " runs for --probe and --verify alone"
                )
            raise click.UsageError(f"{', '.join(idle)} {verb} for --probe and --verify")
        if self.runs and not self.texts:
            raise click.UsageError("--text is missing: the text to run the model on")
        for option, value, needed, by in (
            ("--probe-base", self.probe_base, self.probe, "--probe"),
            ("--record", self.record, self.verify, "--verify"),
        ):
            if value and not needed:
                raise click.UsageError(f"{option} is for {by}")
        if table and (self.probe or self.probes):
            raise click.UsageError("sensitivities are from --table or from probes, not from both")
        _refuse_overwriting(self, imatrix)


def probing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options as the argument `probing: ProbingOptions`."""
    command = as_one("probing", ProbingOptions)(command)
    for option in reversed(
        (
            click.option(
                "--errors", "errors_from", type=click.Choice(["measured", "table"]),
                help="How large a type's error is: measured on 64 rows of each tensor, or a table by type"
                " [default: measured with --imatrix or --probe, else the table].",
            ),
            click.option(
                "--probe", is_flag=True,
                help="Measure how much each group of tensors matters: run the model with one at a low type.",
            ),
            click.option(
                "--probes", type=click.Path(), metavar="JSON",
                help="The record of probes: used, and with --probe added to [default: MODEL.probes.json].",
            ),
            click.option(
                "--probe-base", metavar="TYPE",
                help="What probes are compared with, such as q8_0 [default: the model's own types].",
            ),
            click.option(
                "--verify", is_flag=True,
                help="Convert and measure the result, and the mix and the single type nearest in size.",
            ),
            click.option(
                "--record", type=click.Path(), metavar="JSON",
                help="Keep what --verify measures in this record of `ggplan measure`.",
            ),
            click.option(
                "--text", "texts", multiple=True, type=click.Path(), metavar="FILE",
                help="A text to run the model on; several kinds tell more than one. Can be repeated.",
            ),
            click.option(
                "--chunks", type=click.IntRange(min=1), metavar="N",
                help=f"Chunks of 512 tokens of each text at most [default: {_CHUNKS}].",
            ),
            click.option("--engine-args", default="", metavar="ARGS", help="Passed on to llama-perplexity."),
            click.option(
                "--work", type=click.Path(), metavar="DIR",
                help="The folder of the files that are run; removed at the end [default: beside the record].",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def split_engines(given: tuple[str, ...]) -> tuple[str, str | None]:
    """Whose types, and which program runs, of the values of `--engine`."""
    types = [name for name in given if name in TYPE_ENGINES]
    programs = [name for name in given if name not in TYPE_ENGINES]
    if len(types) > 1 or len(programs) > 1:
        raise click.UsageError("--engine names one engine's types and one program at most")
    return types[0] if types else TYPE_ENGINES[0], programs[0] if programs else None


def basis(
    model: Model,
    problem: Callable[[], Problem],
    imatrix: Imatrix | None,
    probing: ProbingOptions,
    program: str | None,
    *,
    force: bool,
    quiet: bool,
) -> tuple[Scales | None, Errors | None]:
    """The sensitivities and errors that the options ask for; None for the default ones."""
    from ggplan.allocation.probes import scales_by_probes
    from ggplan.allocation.type_errors import Errors
    from ggplan.planning.settling import settle

    record = _probes(model, imatrix, probing, program, force=force, quiet=quiet)
    errors = None
    wanted = probing.errors_from or ("measured" if imatrix is not None and _has_weights(model) else "table")
    if record is not None and probing.errors_from is None and _are_of(record, imatrix, quiet=quiet):
        errors = Errors(
            f"measured on {len(record.errors):,} tensors when the model was probed", record.errors
        )
    elif wanted == "measured":
        errors = _measured(model, problem(), imatrix, quiet=quiet)
    if record is None:
        return None, errors
    return scales_by_probes(settle(model), record.as_probes(_record_path(model, probing).name)), errors


def _are_of(record: ProbeRecord, imatrix: Imatrix | None, *, quiet: bool) -> bool:
    """Whether the errors in a record are those that an imatrix, if one is given, leaves."""
    from ggplan.measure.subjects import read_state

    if imatrix is None or read_state(imatrix.path).sha256 == record.conditions.imatrix:
        return bool(record.errors)
    note("the model was probed with another imatrix; errors are measured with this one", quiet=quiet)
    return False


def _measured(model: Model, problem: Problem, imatrix: Imatrix | None, *, quiet: bool) -> Errors:
    from ggplan.allocation.measured_errors import measured_errors
    from ggplan.cli.progress import tensors_bar
    from ggplan.errors import PlanError
    from ggplan.text import printable

    if not _has_weights(model):
        raise PlanError(
            f"{printable(str(model.path))} has no weights to measure errors on",
            hint="leave `--errors measured` out: a table by type stands in",
        )
    with tensors_bar("errors of types", quiet=quiet) as bar:
        return measured_errors(problem.choices, imatrix, progress=bar)


def _has_weights(model: Model) -> bool:
    from ggplan.sources.remote import is_remote

    return any(t.rows is not None for t in model.tensors) and not any(map(is_remote, model.files))


def _record_path(model: Model, probing: ProbingOptions) -> Path:
    from pathlib import Path

    return Path(probing.probes or f"{model.path.name.removesuffix('.gguf')}.probes.json")


def _probes(
    model: Model,
    imatrix: Imatrix | None,
    probing: ProbingOptions,
    program: str | None,
    *,
    force: bool,
    quiet: bool,
) -> ProbeRecord | None:
    """The record of probes, measured first if that is asked for; None if it is not used."""
    from pathlib import Path

    from ggplan.errors import MeasureError
    from ggplan.planning.settling import settle
    from ggplan.probing import ProbeOptions, load_probes, probe
    from ggplan.probing.record import identity_of, tensors_digest
    from ggplan.text import printable

    if probing.probe:
        path = _record_path(model, probing)
        options = ProbeOptions(
            n_chunks=probing.chunks or _CHUNKS,
            base=_base_type(probing.probe_base),
            work=Path(probing.work) if probing.work else None,
            force=force,
        )
        note(
            f"each figure is kept in {printable(str(path))} when it is there; the same command goes on"
            " from there",
            quiet=quiet,
        )
        with _stop_told(path), _watching(quiet=quiet) as watcher:
            found = probe(
                model,
                probing.texts,
                path,
                engine_of(program, probing.engine_args),
                imatrix,
                options,
                watcher=watcher,
            )
        note(f"the probes are kept in {path}; `--probes {path}` makes recipes of them", quiet=quiet)
        return found
    if probing.probes is None:
        return None
    found = load_probes(probing.probes)
    if found.model.tensors != tensors_digest(settle(model)):
        raise MeasureError(
            f"{printable(probing.probes)} has the probes of another model, {printable(found.model.name)}",
            hint="give the record that was made of this model; an exact copy in other types will do",
        )
    if _has_weights(model) and found.model.weights not in ("", identity_of(settle(model)).weights):
        note(
            f"the probes are of other weights, {printable(found.model.name)}: another quantization of it,"
            " or another model of its shapes",
            quiet=quiet,
        )
    missing = [p.name for p in found.probes if not found.is_complete(p)]
    if missing:
        note(
            f"{len(missing)} of {len(found.probes)} probes are not measured yet: --probe adds them",
            quiet=quiet,
        )
    return found


def _base_type(name: str | None) -> str:
    from ggplan.ggml_types import parse_type

    return "" if name is None else parse_type(name).name


def engine_of(program: str | None, engine_args: str) -> Engine:
    """The engine that is asked for, as `ggplan measure` takes it."""
    from ggplan.measure import embedded_engine, external_engine
    from ggplan.measure.llama_perplexity import find_engine

    try:
        arguments = shlex.split(engine_args)
    except ValueError as error:
        raise click.UsageError(f"--engine-args: {error}") from error
    if program == "embedded" or (program is None and find_engine(None) is None):
        if arguments:
            raise click.UsageError("--engine-args are for a llama-perplexity; name it with --engine")
        return embedded_engine()
    return external_engine(program or "llama-perplexity", arguments)


@contextlib.contextmanager
def _stop_told(path: Path) -> Iterator[None]:
    """Say, where the run is stopped by Ctrl-C or SIGTERM, what is kept."""
    from ggplan.text import printable

    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stopped:
        code = 130 if isinstance(stopped, KeyboardInterrupt) else stopped.code
        kept = "nothing was measured yet"
        if path.exists():
            kept = f"what was measured is in {printable(str(path))}; the same command goes on from there"
        click.echo(f"interrupted: {kept}", err=True)
        raise SystemExit(code) from None


@contextlib.contextmanager
def _watching(*, quiet: bool) -> Iterator[Watcher]:
    """Bars of a probing run, with the time that is left; without a terminal a line for each run."""
    from ggplan.cli.progress import is_shown, steps_bar
    from ggplan.probing import Watcher
    from ggplan.text import printable

    with steps_bar(quiet=quiet) as bar:

        class Shown(Watcher):
            errors_task: TaskID | None = None
            bytes_task: TaskID | None = None
            runs_task: TaskID | None = None
            n_runs: int = 0
            n_kept: int = 0

            def errors(self, done: int, total: int) -> None:
                if self.errors_task is None:
                    self.errors_task = bar.add_task("errors of types", total=total)
                bar.update(self.errors_task, completed=done)

            def writing(self, total: int) -> None:
                if total:
                    self.bytes_task = bar.add_task("writing files", total=total)

            def written(self, n_bytes: int) -> None:
                if self.bytes_task is not None:
                    bar.advance(self.bytes_task, n_bytes)

            def runs(self, total: int) -> None:
                self.runs_task = bar.add_task("probes", total=total)
                self.n_runs = total

            def running(self, name: str, done: int, of: int) -> None:
                if self.runs_task is None:
                    return
                completed = self.n_kept + done / max(of, 1)
                bar.update(self.runs_task, description=f"probes: {printable(name)}", completed=completed)

            def kept(self, name: str) -> None:
                self.n_kept += 1
                if not is_shown(quiet):
                    note(f"{self.n_kept} of {self.n_runs} runs: {name}", quiet=quiet)

        yield Shown()


def verify(
    problem: Problem,
    recipe: Recipe,
    imatrix: Imatrix | None,
    probing: ProbingOptions,
    program: str | None,
    *,
    quiet: bool,
) -> list[Verified]:
    """Convert and measure the recipe's file and its rivals, print the table, and keep the figures."""
    import tempfile
    from pathlib import Path

    from ggplan.cli.progress import files_watched, steps_bar
    from ggplan.measure import MeasureOptions, open_record
    from ggplan.probing import contenders, verify_allocation
    from ggplan.probing.verifying import bytes_to_write
    from ggplan.text import printable

    engine = engine_of(program, probing.engine_args)
    found = contenders(problem, recipe, imatrix)
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(open_record(probing.record)) if probing.record else None
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ggplan-verify-", dir=probing.work))
        bar = stack.enter_context(steps_bar(quiet=quiet))
        task = bar.add_task("writing files", total=bytes_to_write(found))
        verified, result = verify_allocation(
            found, [Path(text) for text in probing.texts], engine, Path(folder),
            MeasureOptions(n_chunks=probing.chunks or _CHUNKS),
            into=None if kept is None else kept.record, written=lambda n: bar.advance(task, n),
            watcher=files_watched(bar), keep=None if kept is None else kept.add,
        )  # fmt: skip
        if kept is not None:
            kept.add(result.record, result.scores)
    note(*result.notes, quiet=quiet)
    if probing.record and not quiet:
        click.echo(f"kept in {printable(probing.record)}", err=True)
    return list(verified)


def print_verified(verified: list[Verified], texts: tuple[str, ...]) -> None:
    """The table of `--verify`, on stderr where the recipe is on stdout."""
    from pathlib import Path

    from ggplan.text import format_bytes, printable

    names = [printable(Path(text).name) for text in texts]
    rows = [["", "size", "bpw", "predicted", *(f"KLD {name}" for name in names)]]
    for v in verified:
        plan = v.contender.plan
        measured = [
            "no number" if m is None else f"{m.value:.4g}" + ("" if m.error is None else f" ± {m.error:.2g}")
            for m in v.kld
        ]
        forecast = f"{v.contender.forecast.kld:.3g}"
        rows.append(
            [
                v.contender.name,
                format_bytes(plan.file_bytes),
                f"{plan.bits_per_weight:.3f}",
                forecast,
                *measured,
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip(), err=True)


def _refuse_overwriting(probing: ProbingOptions, imatrix: str | None) -> None:
    """Refuse a record that is one of the files that are read."""
    from pathlib import Path

    from ggplan.measure.outputs import find_same
    from ggplan.text import printable

    read = [Path(path) for path in (*probing.texts, imatrix) if path]
    written = [("--probes", probing.probes if probing.probe else None), ("--record", probing.record)]
    for option, path in written:
        if path and (there := find_same(Path(path), read)) is not None:
            raise click.UsageError(f"{option} would overwrite {printable(str(there))}, which is read")
