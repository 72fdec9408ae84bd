"""calibrate: texts are run through a model, and what its matrices were given is kept in a folder.

The engine llama.cpp runs a GGUF. A checkpoint is converted to bf16 for it, beside the output, and the file is
removed when the work is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ggplan.errors import CalibrationError, CheckpointError, Error
from ggplan.model import Model
from ggplan.opening import open_model
from ggplan.planning.guidance import CALIBRATED_MEMORY
from ggplan.sources.files import exists, shown
from ggplan.sources.remote import is_remote
from ggplan.text import format_bytes
from ggplan.version import __version__

if TYPE_CHECKING:
    from ggplan.calibration import Calibration
    from ggplan.calibration.collecting import Taken
    from ggplan.calibration.engines import Engine, Progress
    from ggplan.calibration.given_texts import Amount, Text
    from ggplan.imatrix.writing import Form

EngineName = Literal["llama.cpp", "torch"]


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """How texts are run through a model.

    Attributes
    ----------
    engine
        "llama.cpp", through llama-cpp-python; or "torch", transformers' modules layer by layer.
    n_ctx
        Tokens of a chunk: each is run by itself.
    n_tokens, n_chunks
        At most so many tokens or chunks of all texts together, and at least a chunk of each text; of several
        texts equally many of each, where they have them. Tokens are taken in whole chunks that lie all over a
        text, chunks are its first. By default whole texts. At most one of the two.
    memory
        Bytes that what is collected may take at a time; if it does not hold all layers, the texts are run
        several times.
    threads
        Threads; by default the engine's own choice.
    process_output
        Collect the input of output.weight too, as llama-imatrix does with --process-output; nothing where the
        model has none.
    force
        Replace what is in the folder (or file) of another run.
    """

    engine: EngineName = "llama.cpp"
    n_ctx: int = 512
    n_tokens: int | None = None
    n_chunks: int | None = None
    memory: int = CALIBRATED_MEMORY
    threads: int | None = None
    process_output: bool = False
    force: bool = False


_DEFAULTS = CalibrateOptions()
Converting = Callable[[int], contextlib.AbstractContextManager[Callable[[int], None]]]


class Share(NamedTuple):
    """Of a text, by its name, how many chunks are run, and how many it has."""

    name: str
    run: int
    there: int


@dataclass(frozen=True, slots=True)
class Watch:
    """What is told of work that takes long.

    Attributes
    ----------
    chunks
        Called with the chunks that were run, and of how many.
    converting
        Entered with the bytes that a conversion for the engine will read; gives what is told of bytes done.
    shares
        Called, before the texts are run, with a `Share` for each of them.
    """

    chunks: Progress = lambda done, total: None
    converting: Converting = lambda total: contextlib.nullcontext(lambda n: None)
    shares: Callable[[Sequence[Share]], None] = lambda shares: None


_UNWATCHED = Watch()


def calibrate(
    model: Model | str | Path,
    texts: Sequence[str | Path],
    output: str | Path,
    options: CalibrateOptions = _DEFAULTS,
    *,
    watch: Watch = _UNWATCHED,
) -> Calibration:
    """Run texts through a model and keep what its matrices were given.

    If it is stopped at any moment, the same call goes on there and fills the folder with the same files. A
    folder of the same run that is whole is opened and not made again.

    Parameters
    ----------
    model
        A model, or what `open_model` takes: a GGUF in bf16, f16, f32 or q8_0, or a checkpoint.
    texts
        Files of text; "default" is the text that ships: prose, code, markup and languages, in four parts.
    output
        The folder.

    Raises
    ------
    CalibrationError
        If a text is too short, the folder has something else, or memory does not suffice.
    CheckpointError, MeasureError, ConversionError
        If the model cannot be read, run or converted.
    """
    from ggplan.calibration.run import locked, remove_working

    model = _opened(model)
    known, options = _texts(texts, options), _fitting(options, model)
    folder = Path(output)
    with locked(folder):
        calibration = _calibrated(model, known, folder, options, watch)
        remove_working(folder)
    return calibration


def _calibrated(
    model: Model, known: list[Text], folder: Path, options: CalibrateOptions, watch: Watch
) -> Calibration:
    """The calibration in a folder that no other run has, made or opened."""
    from ggplan.calibration.folder import Calibration
    from ggplan.calibration.index import INDEX
    from ggplan.calibration.marks import marks_of
    from ggplan.calibration.run import WORKING_MODEL, begin, require_free, settings_there, telling_kept

    weights = marks_of(model)
    settings = _settings(model, weights, known, options)
    before = settings_there(folder)
    comparable = before and _as_known(before, settings)
    if before is not None and exists(folder / INDEX) and comparable == settings:
        found = begin(folder, before)
        if isinstance(found, Calibration):
            return found
    require_free(folder, comparable, settings, force=options.force)
    with _engine(model, known, options, folder / WORKING_MODEL, watch) as engine:
        surveyed = engine.survey()
        taken = _taken(surveyed.tokens, known, options, watch)
        run = begin(
            folder, settings | _measured(engine, surveyed.tokens, taken, known, options), force=options.force
        )
        if isinstance(run, Calibration):
            return run
        with telling_kept(run, surveyed.layers):
            there = run.finished(surveyed.layers)
            missing = [layer for layer in surveyed.layers if layer not in there]
            if missing or not run.has_tokens():
                engine.collect(taken, missing, run, watch.chunks)
            files = run.finished(surveyed.layers)
            for layer in surveyed.layers:
                if layer not in files:
                    raise CalibrationError(f"the engine did not write the inputs of layer {layer}")
            return run.finish(files.values(), weights)


def calibrate_imatrix(
    model: Model | str | Path,
    texts: Sequence[str | Path],
    output: str | Path,
    options: CalibrateOptions = _DEFAULTS,
    *,
    form: Form | None = None,
    watch: Watch = _UNWATCHED,
) -> Path:
    """Run texts through a model and write an imatrix alone, that of llama-imatrix on the same texts.

    Parameters
    ----------
    form
        "gguf" or the legacy "dat"; by default as the name's extension says.

    Raises
    ------
    As `calibrate`.
    """
    from ggplan.calibration.run import WORKING_MODEL
    from ggplan.imatrix.writing import form_of_name

    model = _opened(model)
    known, options = _texts(texts, options), _fitting(options, model)
    path = Path(output)
    if path.is_dir():
        raise CalibrationError(f"{shown(path)} is a folder", hint="name a file")
    if exists(path) and not options.force:
        raise CalibrationError(
            f"{shown(path)} exists", hint="name another file, or give --force to replace it"
        )
    work = path.with_name(f"{path.name}.{WORKING_MODEL}")
    with _engine(model, known, options, work, watch) as engine:
        surveyed = engine.survey()
        taken = _taken(surveyed.tokens, known, options, watch)
        engine.imatrix(taken, path, form or form_of_name(path), watch.chunks)
    return path


def _texts(texts: Sequence[str | Path], options: CalibrateOptions) -> list[Text]:
    from ggplan.calibration.given_texts import read_texts

    if options.engine not in ENGINES:
        raise CalibrationError(
            f"there is no engine {shown(options.engine)}", hint=f"one of {', '.join(ENGINES)}"
        )
    return read_texts(texts, _amount(options))


def _fitting(options: CalibrateOptions, model: Model) -> CalibrateOptions:
    """The options without what is not there in a model."""
    return replace(options, process_output=options.process_output and "output.weight" in model)


def _amount(options: CalibrateOptions) -> Amount:
    from ggplan.calibration.given_texts import Amount

    return Amount(options.n_ctx, options.n_tokens, options.n_chunks)


def _opened(model: Model | str | Path) -> Model:
    found = model if isinstance(model, Model) else open_model(model, weights=True)
    if found.kind == "inventory":
        raise CheckpointError(f"{shown(found.path)} has no weights", hint="give a GGUF file or a checkpoint")
    return found


def _settings(
    model: Model, weights: dict[str, str], texts: Sequence[Text], options: CalibrateOptions
) -> dict[str, Any]:
    """What is known of a run before an engine is started; all of it is what the files depend on."""
    from ggplan.calibration.index import sha256_of_json

    shapes = sorted((t.name, list(t.shape)) for t in model.tensors)
    return {
        "ggplan": __version__,
        "model": {
            "name": model.path.name,
            "architecture": model.architecture,
            "pretokenizer": model.pretokenizer,
            "types": sorted({t.stored_as for t in model.tensors}),
            "identity": sha256_of_json([shapes, weights]),
        },
        "texts": [{"name": t.name, "sha256": t.sha256, "n_bytes": t.n_bytes} for t in texts],
        "n_ctx": options.n_ctx,
        "limit": {"tokens": options.n_tokens, "chunks": options.n_chunks},
        "process_output": options.process_output,
        "engine": {"name": options.engine},
    }


def _measured(
    engine: Engine,
    tokens: Sequence[int],
    taken: Taken,
    texts: Sequence[Text],
    options: CalibrateOptions,
) -> dict[str, Any]:
    """What the engine adds to the settings."""
    return {
        "engine": {"name": engine.name, "build": engine.build},
        "texts": [
            {"name": t.name, "sha256": t.sha256, "n_bytes": t.n_bytes, "tokens": n, "chunks": len(used)}
            for t, n, used in zip(texts, tokens, taken, strict=True)
        ],
        "chunks": sum(map(len, taken)),
        "tokens": sum(map(len, taken)) * options.n_ctx,
    }


def _taken(
    tokens: Sequence[int], texts: Sequence[Text], options: CalibrateOptions, watch: Watch
) -> list[list[int]]:
    """The numbers of the chunks of each text that are run; tells how many there are."""
    from ggplan.calibration.given_texts import taken_chunks

    taken = taken_chunks(tokens, texts, _amount(options))
    watch.shares(
        [
            Share(text.name, len(used), n // options.n_ctx)
            for text, n, used in zip(texts, tokens, taken, strict=True)
        ]
    )
    return taken


def _as_known(before: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Of the settings of a run those that are known before an engine is started."""
    known: dict[str, Any] = {}
    with contextlib.suppress(KeyError, TypeError):
        known = {name: before[name] for name in settings}
        known["engine"] = {"name": before["engine"]["name"]}
        known["texts"] = [{name: t[name] for name in ("name", "sha256", "n_bytes")} for t in before["texts"]]
    return known


def _engine(
    model: Model, texts: Sequence[Text], options: CalibrateOptions, work: Path, watch: Watch
) -> contextlib.AbstractContextManager[Engine]:
    """The engine; what was made for it is removed when the work is done, or if it cannot be done."""
    return ENGINES[options.engine](model, [text.path for text in texts], options, work, watch)


@contextlib.contextmanager
def _llama_cpp(
    model: Model, texts: Sequence[Path], options: CalibrateOptions, work: Path, watch: Watch
) -> Iterator[Engine]:
    from ggplan.calibration.engines import LlamaCpp, LlamaCppOptions

    how = LlamaCppOptions(
        texts=tuple(texts),
        datasets=tuple(map(str, texts)),
        n_ctx=options.n_ctx,
        memory=options.memory,
        threads=options.threads,
        process_output=options.process_output,
    )
    if model.kind == "gguf" and not is_remote(model.path) and not _is_changed(model):
        yield LlamaCpp(min(model.files, default=model.path), how)  # the first of a split set
        return
    LlamaCpp(work, how)  # before hours of converting: is the engine there?
    _convert(model, work, watch)
    own = (work, work.with_name(f"{work.name}.sha256"))
    try:
        yield LlamaCpp(work, how)
    except CalibrationError:  # which the same call would raise again
        for path in own:
            path.unlink(missing_ok=True)
        raise
    except BaseException as error:
        n_bytes = format_bytes(work.stat().st_size)
        note = f"the model in bf16, {n_bytes}, is kept in {shown(work)} for the same call; else delete it"
        error.add_note(note)
        if isinstance(error, Error):
            error.hint = f"{error.hint}; {note}" if error.hint else note
        raise
    for path in own:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _torch(
    model: Model, texts: Sequence[Path], options: CalibrateOptions, work: Path, watch: Watch
) -> Iterator[Engine]:
    from ggplan.calibration.torch_engine import TorchEngine, TorchOptions
    from ggplan.conversion.streaming import available_cpus

    how = TorchOptions(
        threads=options.threads or available_cpus(),
        memory=options.memory,
        process_output=options.process_output,
    )
    yield TorchEngine(model, texts, tuple(map(str, texts)), options.n_ctx, how)


ENGINES: dict[str, Callable[..., contextlib.AbstractContextManager[Engine]]] = {
    "llama.cpp": _llama_cpp,
    "torch": _torch,
}
"""By name: (model, texts, options, a file it may make to work with, watch) -> the engine."""


def _is_changed(model: Model) -> bool:
    """Whether a model that was opened from a GGUF is not what the file has: it is pruned, or cut."""
    as_it_is = open_model(model.path)
    return [(t.name, t.shape) for t in as_it_is.tensors] != [(t.name, t.shape) for t in model.tensors]


def _convert(model: Model, work: Path, watch: Watch) -> None:
    """The model in bf16 for llama.cpp, unless an earlier run has left it."""
    from ggplan.calibration.marks import marks_of
    from ggplan.conversion import ConvertOptions, convert
    from ggplan.planning import make_plan
    from ggplan.stock import find_mix

    if model.obstacle is not None:
        raise model.obstacle
    if exists(work):
        with contextlib.suppress(CheckpointError):
            if marks_of(open_model(work)) == marks_of(model):
                return
    try:
        work.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise CalibrationError(f"cannot write {shown(work.parent)}: {error.strerror or error}") from error
    plan = make_plan(model, find_mix("BF16"))
    with watch.converting(plan.tensor_bytes) as progress:
        convert(plan, work, ConvertOptions(force=True), progress=progress, resumed=progress)
