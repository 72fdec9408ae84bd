"""measure: how far quantizations are from their base, on one text or on two.

The base model runs once per text and its log-probabilities are kept while the others run beside them. With a
second, held-out text the same is done again: see `ggplan.measure.guard` for why.

Files and texts are known by their digests. All that can be refused is refused before an engine starts.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ggplan.errors import MeasureError
from ggplan.measure.base_logits import (
    LONGER_TEXT,
    MAX_ADDED_TOKENS,
    MIN_CHUNKS,
    BaseLogits,
    is_base_logits,
    not_logits,
    part_of_logits,
)
from ggplan.measure.engines import Engine, default_engine
from ggplan.measure.llama_perplexity import ChunkProgress, Run
from ggplan.measure.outputs import check_writable, find_same
from ggplan.measure.record import (
    Base,
    Measurement,
    Metric,
    ModelFacts,
    Quantization,
    Record,
    Text,
    Use,
    check_same_model,
)
from ggplan.measure.scores import TokenScores
from ggplan.measure.statistics import metrics_of
from ggplan.measure.subjects import (
    FileState,
    Subject,
    model_facts,
    open_subjects,
    quantization_of,
    read_state,
    with_names,
)
from ggplan.text import printable

DEFAULT_CONTEXT = 512


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text to measure on; of two, one is to choose by and one is held out."""

    path: Path
    use: Use = ""


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """How to measure, and the names for the record.

    Attributes
    ----------
    n_ctx, n_chunks
        Tokens of a chunk (None: 512), and how many chunks at most (None: the whole text). A base that is
        given by its log-probabilities has both fixed.
    model_name
        The model's name in the record; by default the one in the base.
    hardware
        For the record; by default the CPU's name.
    keep_logits
        Keep the base's log-probabilities in this file, for one text only; they are large: n_vocab * n_ctx
        bytes a chunk.
    """

    n_ctx: int | None = None
    n_chunks: int | None = None
    model_name: str | None = None
    hardware: str | None = None
    keep_logits: Path | None = None


@dataclass(frozen=True, slots=True)
class Watched:
    """A file on a text; names are for people, digests tell two apart."""

    name: str
    text: str
    sha256: str
    text_sha256: str

    def __str__(self) -> str:
        return f"{self.name} on {self.text}"


Keep = Callable[[Record, Mapping[tuple[str, str], TokenScores]], object]
"""Called with the figures of one file on one text, and its scores by the digests of file and text."""


class Watcher(Protocol):
    """Called with the progress of a measurement."""

    def __call__(self, what: Watched, done: int, of: int) -> None:
        """`done` of `of` chunks of a file on a text (`hq4_k on eval.txt`) are computed."""


@dataclass(frozen=True, slots=True)
class MeasureResult:
    """What `measure` found.

    Attributes
    ----------
    record
        All figures, ready to be kept.
    scores
        By the digests of file and text, every token's scores: for paired differences between any two.
    base
        What the others were compared with.
    notes
        Warnings about the figures, and faults of the engine that were worked around.
    """

    record: Record
    scores: Mapping[tuple[str, str], TokenScores]
    base: Base
    notes: tuple[str, ...]

    def scores_of(self, quantization: Quantization, measurement: Measurement) -> TokenScores | None:
        """The scores of one of the record's measurements."""
        return self.scores.get((quantization.file.sha256, measurement.text.sha256))


@dataclass(frozen=True, slots=True)
class _Text:
    """A text and its digest."""

    facts: Text
    use: Use
    state: FileState


@dataclass(frozen=True, slots=True)
class _KeptBase:
    """A base that is given by its log-probabilities on one text."""

    facts: Base
    state: FileState


def measure(
    files: Iterable[str | Path | Subject],
    texts: str | Path | TextFile | Sequence[TextFile],
    base: str | Path | Subject | None = None,
    engine: Engine | None = None,
    options: MeasureOptions | None = None,
    *,
    into: Record | None = None,
    watcher: Watcher | None = None,
    keep: Keep | None = None,
) -> MeasureResult:
    """Measure quantizations of one model against a base.

    Parameters
    ----------
    files
        GGUF files, of split sets any shard; the base may be among them.
    texts
        The file of a text, or one to choose by and one held out.
    base
        The GGUF of the unquantized model, or a file of its log-probabilities kept from an earlier run; by
        default the largest of the files.
    engine
        By default the llama-perplexity on the PATH, else llama.cpp inside llama-cpp-python.
    into
        The record that the result will be merged into: a file of another model is refused before an engine
        starts, and the base of a file of log-probabilities is looked up in it.
    watcher
        Called with progress.
    keep
        Called with the figures of each file on each text when they are there, so that they can be kept before
        a later file fails.

    Raises
    ------
    MeasureError
        If a file cannot be measured or is of another model, an engine fails, or a text is too short.
    CheckpointError
        If a file is no GGUF.
    """
    options = options or MeasureOptions()
    engine = engine or default_engine()
    if isinstance(texts, str | Path | TextFile):
        texts = [texts if isinstance(texts, TextFile) else TextFile(Path(texts))]
    if base is None:
        files = _as_subjects(files)
        base = largest(files)
    read_texts = _read_texts(texts)
    kept = _kept_base(base, into)
    _check_options(options, read_texts, kept)
    _check_lengths(read_texts, kept, options)
    opened = _opened(files, base if kept is None else None)
    subjects = with_names(opened)
    against = kept or subjects[0]
    _check_output(options.keep_logits, opened, read_texts)
    _check_architectures(subjects)
    _check_vocabularies(subjects, against)
    model = _model(subjects, against, options.model_name, into)
    described = {subject.sha256: quantization_of(subject) for subject in subjects}
    facts = _base_facts(against, None)
    found: dict[str, list[Measurement]] = {s.sha256: [] for s in subjects}
    scores: dict[tuple[str, str], TokenScores] = {}
    notes: list[str] = []
    for text in read_texts:
        with _base_run(against, text, engine, options, watcher) as (logits, base_run):
            facts = _base_facts(against, options.keep_logits)
            for subject in subjects:
                run = base_run if subject is against else None
                if run is None:
                    watch = _watch(watcher, subject, text)
                    run = engine.run_model(subject.path, text.state.path, logits, watch)
                subject.check_unchanged()
                text.state.check_unchanged()
                measurement = _measurement(run, text, logits, engine, facts, options)
                found[subject.sha256].append(measurement)
                scores[subject.sha256, text.facts.sha256] = run.scores
                notes.extend((*run.notes, *_nan_note(subject.name, measurement, run.scores)))
                if keep is not None:
                    done = replace(described[subject.sha256], measurements=(measurement,))
                    key = (subject.sha256, text.facts.sha256)
                    keep(Record(model, (done,)), {key: run.scores})
    quantizations = tuple(replace(q, measurements=tuple(found[key])) for key, q in described.items())
    return MeasureResult(Record(model, quantizations), scores, facts, tuple(dict.fromkeys(notes)))


def _as_subjects(files: Iterable[str | Path | Subject]) -> list[Subject]:
    """The files as subjects, those that are not opened yet opened together."""
    given = list(files)
    opened = iter(open_subjects(file for file in given if not isinstance(file, Subject)))
    return [file if isinstance(file, Subject) else next(opened) for file in given]


def largest(subjects: Sequence[Subject]) -> Subject:
    """The largest of the files, which is the base if none is named.

    Raises
    ------
    MeasureError
        If two are as large.
    """
    first, *rest = sorted(with_names(subjects), key=lambda s: -s.n_bytes)
    if rest and rest[0].n_bytes == first.n_bytes:
        raise MeasureError(
            f"{printable(first.name)} and {printable(rest[0].name)} are equally large,"
            " so it is not known which is the base",
            hint="name it with --base",
        )
    return first


def _measurement(
    run: Run, text: _Text, logits: BaseLogits, engine: Engine, base: Base, options: MeasureOptions
) -> Measurement:
    n_nan = int((~run.scores.finite).sum())
    metrics = metrics_of(run.scores)
    if run.ppl is not None and not n_nan:
        # The engine's own sum is more exact than the log-probabilities it writes.
        metrics["ppl"] = replace(metrics.get("ppl", Metric(run.ppl)), value=run.ppl)
    return Measurement(
        text=text.facts,
        n_ctx=logits.chunked.n_ctx,
        n_chunks=logits.chunked.n_chunks,
        n_tokens=run.scores.nll.size,
        engine=engine.name,
        metrics=metrics,
        base=base,
        build=engine.build,
        hardware=options.hardware or _cpu_name(),
        use=text.use,
        date=datetime.date.today().isoformat(),
        n_nan=n_nan,
    )


def _nan_note(name: str, measurement: Measurement, scores: TokenScores) -> Iterator[str]:
    own = int((~np.isfinite(scores.nll)).sum())
    whose = name if own == measurement.n_nan else f"{name} or its base" if own else f"{name}'s base"
    if measurement.n_nan:
        yield (
            f"{whose} gives no number for {measurement.n_nan:,} of {measurement.n_tokens:,} tokens of"
            f" {measurement.text.name} (NaN or infinite); no figure counts them"
        )


def _read_texts(texts: Sequence[TextFile]) -> list[_Text]:
    """Read the texts and their digests; two of one name get their folders' names or digests too."""
    if not texts:
        raise MeasureError("there is no text to measure on", hint="name one with --text")
    states = [read_state(text.path) for text in texts]
    digests = [state.sha256 for state in states]
    if len(set(digests)) < len(digests):
        raise MeasureError(
            "the texts are one and the same", hint="a held-out text must not be the one to choose by"
        )
    names = [text.path.name for text in texts]
    if len(set(names)) < len(names):
        folders = [f"{text.path.absolute().parent.name}/{text.path.name}" for text in texts]
        unique = len(set(folders)) == len(folders)
        digits = [f"{name} ({digest[:8]})" for name, digest in zip(names, digests, strict=True)]
        names = folders if unique else digits
    return [
        _Text(Text(name, state.sha256), text.use, state)
        for name, text, state in zip(names, texts, states, strict=True)
    ]


def _kept_base(base: str | Path | Subject, into: Record | None) -> _KeptBase | None:
    """The base, if it is a file of log-probabilities; with its model file, if the record knows that."""
    if isinstance(base, Subject) or not is_base_logits(Path(base)):
        return None
    state = read_state(Path(base))
    known = into.quantizations if into is not None else ()
    for m in (m for q in known for m in q.measurements):
        if m.base.logits == state.sha256:
            return _KeptBase(m.base, state)
    return _KeptBase(Base(Path(base).stem, state.sha256, state.sha256), state)


def _check_options(options: MeasureOptions, texts: Sequence[_Text], kept: _KeptBase | None) -> None:
    """Refuse options that would have no effect."""
    if options.keep_logits is not None and len(texts) > 1:
        raise MeasureError("the base's log-probabilities can be kept for one text, not for two")
    if kept is None:
        return
    shown = printable(str(kept.state.path))
    if len(texts) > 1:
        raise MeasureError(f"{shown} is of one text, and there are {len(texts)}")
    if options.keep_logits is not None:
        raise MeasureError(f"{shown} already keeps the base's log-probabilities")
    with BaseLogits(kept.state.path) as logits:
        chunked = logits.chunked
    if options.n_ctx not in (None, chunked.n_ctx) or options.n_chunks not in (None, chunked.n_chunks):
        raise MeasureError(
            f"{shown} is of {chunked.n_chunks} chunks of {chunked.n_ctx} tokens",
            hint="leave --ctx and --chunks out, or give the base model itself",
        )


def _check_lengths(texts: Sequence[_Text], kept: _KeptBase | None, options: MeasureOptions) -> None:
    """Refuse a text that has too few bytes; one that has enough may still have too few tokens."""
    n_ctx = options.n_ctx or DEFAULT_CONTEXT
    if kept is not None:
        with BaseLogits(kept.state.path) as logits:
            n_ctx = logits.chunked.n_ctx
    for text in texts:
        refuse_short(text.facts.name, text.state.n_bytes, n_ctx)


def refuse_short(name: str, n_bytes: int, n_ctx: int) -> None:
    """Raise MeasureError if a text has too few bytes for the least number of chunks of so many tokens."""
    if n_bytes + MAX_ADDED_TOKENS < MIN_CHUNKS * n_ctx:
        raise MeasureError(
            f"{printable(name)} is too short: it has {n_bytes:,} bytes, which are fewer than the tokens of"
            f" {MIN_CHUNKS} chunks of {n_ctx:,}",
            hint=LONGER_TEXT,
        )


def _check_output(keep: Path | None, opened: Sequence[Subject], texts: Sequence[_Text]) -> None:
    """Refuse to keep log-probabilities where that cannot be, or would overwrite what is read or another file.

    An engine writes beside the file before it has its name.
    """
    if keep is None:
        return
    inputs = [file.path for subject in opened for file in subject.files]
    inputs += [text.state.path for text in texts]
    for path in (keep, part_of_logits(keep)):
        if find_same(path, inputs) is not None:
            raise MeasureError(f"{printable(str(path))} is read here, so nothing can be kept in it")
    check_writable(keep)
    other = not_logits(keep)
    if other is not None:
        raise MeasureError(
            f"{printable(str(other))} is no file of log-probabilities, so it is not overwritten",
            hint="keep them in a file of another name",
        )


def _opened(files: Iterable[str | Path | Subject], base: str | Path | Subject | None) -> list[Subject]:
    """All files to measure, as they are given, the base first if it is one of them."""
    given = [*([] if base is None else [base]), *files]
    if not given:
        raise MeasureError("there is no file to measure")
    return _as_subjects(given)


def _model(
    subjects: Sequence[Subject], against: Subject | _KeptBase, name: str | None, into: Record | None
) -> ModelFacts:
    """The model that is measured, which must be that of the record.

    A name that is not given is taken from the base, or from the files if the base is log-probabilities.
    """
    facts = [model_facts(s) for s in ([against] if isinstance(against, Subject) else subjects)]
    if name is None and len({f.name for f in facts}) > 1:
        names = " and ".join(printable(n) for n in dict.fromkeys(f.name for f in facts))
        raise MeasureError(
            f"the files name their model differently: {names}",
            hint="if it is one model, --model-name gives it a name in the record",
        )
    model = replace(facts[0], name=name or facts[0].name)
    if into is not None:
        check_same_model(into.model, model)
    return model


def _check_architectures(subjects: Sequence[Subject]) -> None:
    """Refuse files of several architectures; an engine runs them if their vocabularies agree."""
    known = [(s.name, s.model.architecture) for s in subjects if s.model.architecture]
    for name, architecture in known[1:]:
        first, expected = known[0]
        if architecture != expected:
            raise MeasureError(
                f"{printable(name)} is of another model than {printable(first)}:"
                f" its architecture is {printable(architecture)}, not {printable(expected)}",
                hint="measure it against a base of its own model",
            )


def _check_vocabularies(subjects: Sequence[Subject], against: Subject | _KeptBase) -> None:
    """Refuse a model with another vocabulary than the base's; the engine would do so after the base's run."""
    if isinstance(against, Subject):
        expected, whose = against.n_vocab, against.name
    else:
        with BaseLogits(against.state.path) as logits:
            expected, whose = logits.chunked.n_vocab, str(against.state.path)
    for subject in subjects:
        if expected and subject.n_vocab and subject.n_vocab != expected:
            raise MeasureError(
                f"{printable(subject.name)} is of another model than {printable(whose)}:"
                f" its vocabulary has {subject.n_vocab:,} tokens, not {expected:,}"
            )


@contextlib.contextmanager
def _base_run(
    base: Subject | _KeptBase, text: _Text, engine: Engine, options: MeasureOptions, watcher: Watcher | None
) -> Iterator[tuple[BaseLogits, Run | None]]:
    """The base's log-probabilities of a text, and the run that made them, or None."""
    if isinstance(base, _KeptBase):
        with BaseLogits(base.state.path) as logits:
            yield logits, None
        return
    with tempfile.TemporaryDirectory(prefix="ggplan-") as folder:
        keep = options.keep_logits or Path(folder) / "base.logits"
        watch = _watch(watcher, base, text)
        n_ctx = options.n_ctx or DEFAULT_CONTEXT
        run = engine.run_base(base.path, text.state.path, keep, n_ctx, options.n_chunks, watch)
        with BaseLogits(keep) as logits:
            yield logits, run


def _base_facts(against: Subject | _KeptBase, keep: Path | None) -> Base:
    if isinstance(against, _KeptBase):
        return against.facts
    logits = "" if keep is None else read_state(keep).sha256
    return Base(against.name, against.sha256, logits)


def _watch(watcher: Watcher | None, subject: Subject, text: _Text) -> ChunkProgress | None:
    if watcher is None:
        return None
    what = Watched(subject.name, text.facts.name, subject.sha256, text.facts.sha256)
    return lambda done, of: watcher(what, done, of)


def _cpu_name() -> str:
    """The CPU's name, if the system gives it, else the processor family's."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} CPUs"
    return platform.processor() or platform.machine()
