"""probe: measure the KL divergence of every group of a model at a low type, once, and keep it in a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.allocation.candidates import ENGINE_TYPES, choices_of
from ggplan.allocation.probes import ProbeGroup, probe_groups
from ggplan.errors import MeasureError, PlanError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.measure import (
    Engine,
    Measurement,
    MeasureOptions,
    Quantization,
    Record,
    TextFile,
    measure,
    merge,
    metrics_of,
    open_subjects,
)
from ggplan.measure.record import Text
from ggplan.measure.record_file import locked
from ggplan.measure.scores import TokenScores
from ggplan.measure.subjects import read_state
from ggplan.model import Model, require_model
from ggplan.planning.settling import settle
from ggplan.probing.files import ProbeFiles, errors_of_probes, plans_of, remove_left
from ggplan.probing.record import (
    ALL_TENSORS,
    ProbeConditions,
    ProbeEntry,
    ProbeRecord,
    identity_of,
    load_probes,
    save_probes,
)
from ggplan.text import printable

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How to probe.

    Attributes
    ----------
    n_ctx, n_chunks
        Tokens of a chunk, and how many chunks of each text at most.
    base
        The type of the model that probes are compared with; "" for the types of the model.
    work
        The folder of the files that are run; by default beside the record. It is removed when all is
        measured.
    threads
        For encoding; by default one for each CPU. An engine has its own.
    force
        Begin anew where the record is of another model or other conditions.
    """

    n_ctx: int = 512
    n_chunks: int = 16
    base: str = ""
    work: Path | None = None
    threads: int | None = None
    force: bool = False


class Watcher:
    """Is told of the progress; a subclass shows it."""

    def errors(self, done: int, total: int) -> None:
        """So many tensors of so many have their errors measured."""

    def writing(self, total: int) -> None:
        """So many bytes of files will be written."""

    def written(self, n_bytes: int) -> None:
        """More bytes are."""

    def runs(self, total: int) -> None:
        """So many runs of the engine are needed."""

    def running(self, name: str, done: int, of: int) -> None:
        """So many chunks of a run are done."""

    def kept(self, name: str) -> None:
        """The figures of a run are in the record."""


def probe(
    model: Model,
    texts: Sequence[str | Path],
    record: str | Path,
    engine: Engine,
    imatrix: Imatrix | None = None,
    options: ProbeOptions | None = None,
    *,
    watcher: Watcher | None = None,
) -> ProbeRecord:
    """Probe a model, or what of it a record lacks; nothing is measured twice.

    Parameters
    ----------
    texts
        The same tokens of them are run for all probes. Several kinds of text tell more than one.
    record
        The file that the figures are kept in, each as soon as it is there.
    imatrix
        For the encoders, and the weights of errors.

    Raises
    ------
    MeasureError
        If the record is of another model or other conditions, or an engine fails.
    PlanError
        If there are no weights, or nothing to probe.
    ConversionError, CheckpointError, ImatrixError
        As `ggplan.convert`.
    """
    require_model(model)
    options, watcher = options or ProbeOptions(), watcher or Watcher()
    path = Path(record)
    model = settle(model)
    if model.obstacle is not None:
        raise model.obstacle
    if model.kind == "inventory":
        raise PlanError(
            f"{printable(str(model.path))} has no weights to probe", hint="give the checkpoint or a GGUF file"
        )
    groups = probe_groups(model)
    if not groups:
        raise PlanError("nothing of the model can be probed: no tensor has more bits than the low type")
    with locked(path):
        return _Run(model, path, engine, imatrix, options, watcher, groups, _texts(texts)).done()


def _texts(paths: Sequence[str | Path]) -> dict[Path, Text]:
    """The texts with their digests."""
    if not paths:
        raise MeasureError("there is no text to probe on", hint="name one with --text")
    found = {Path(path): Text(Path(path).name, read_state(Path(path)).sha256) for path in paths}
    if len({t.sha256 for t in found.values()}) < len(paths):
        raise MeasureError("two of the texts are one and the same", hint="name each once")
    return found


@dataclass(slots=True)
class _Run:
    """A run of `probe`, with the record locked."""

    model: Model
    path: Path
    engine: Engine
    imatrix: Imatrix | None
    options: ProbeOptions
    watcher: Watcher
    groups: tuple[ProbeGroup, ...]
    texts: dict[Path, Text]

    def done(self) -> ProbeRecord:
        """The complete record."""
        identity = identity_of(self.model)
        conditions = ProbeConditions(
            " ".join((self.engine.name, *self.engine.options)), self.engine.build,
            self.options.n_ctx, self.options.n_chunks, self.options.base,
            tuple(self.texts.values()),
            "" if self.imatrix is None else read_state(self.imatrix.path).sha256,
        )  # fmt: skip
        found = self._known(ProbeRecord(identity, conditions, ()))
        pending = [p for p in found.probes if not found.is_complete(p)]
        key = {
            "tensors": identity.tensors, "weights": identity.weights, "imatrix": conditions.imatrix,
            "base": conditions.base, "groups": {g.name: list(g.tensors) for g in self.groups},
        }  # fmt: skip
        folder = self.options.work or self.path.with_suffix(".work")
        if found.probes and not pending:
            remove_left(folder, key)
            return found
        plans = plans_of(self.model, self.groups, self.imatrix, self.options.base)
        if not found.probes:
            errors, more = errors_of_probes(
                plans, self.imatrix, self._types(), threads=self.options.threads, progress=self.watcher.errors
            )
            found = replace(
                found, errors=more, probes=tuple(ProbeEntry(name, own) for name, own in errors.items())
            )
            save_probes(found, self.path)
        files = ProbeFiles(folder, plans, key, force=self.options.force)
        self.watcher.writing(files.missing)
        files.write(threads=self.options.threads, progress=self.watcher.written)
        found = self._measured(found, files)
        files.remove()
        return found

    def _known(self, new: ProbeRecord) -> ProbeRecord:
        """The record of an earlier run, if it is of this model under these conditions; else a new one."""
        if not self.path.exists():
            return new
        old = load_probes(self.path)
        differing = _difference(old, new)
        if not differing and {p.name: set(p.errors) for p in old.probes} != {
            **{g.name: set(g.tensors) for g in self.groups},
            ALL_TENSORS: {name for g in self.groups for name in g.tensors},
        }:
            differing = "other groups"
        if differing and not self.options.force:
            raise MeasureError(
                f"the probes in {printable(str(self.path))} are of {differing}",
                hint="name another record with --probes, or replace it with --force",
            )
        return new if differing else old

    def _types(self) -> Mapping[str, Sequence[GgmlType]]:
        """The types that llama.cpp has for each tensor."""
        allowed = [parse_type(name) for name in ENGINE_TYPES["llama.cpp"]]
        choices = choices_of(self.model, allowed, {}, {}, "llama.cpp")
        return {c.tensor.name: [x.type for x in c.candidates if x.type != c.tensor.type] for c in choices}

    def _measured(self, found: ProbeRecord, files: ProbeFiles) -> ProbeRecord:
        """Run the engine for what is missing, and keep each figure as soon as it is there."""
        pending = [p.name for p in found.probes if not found.is_complete(p)]
        paths = [files.probe(name) for name in pending]
        base, *subjects = open_subjects([files.base, *paths])
        names = {s.sha256: name for s, name in zip(subjects, pending, strict=True)}
        for sha256, name in names.items():
            found = found.with_digest(name, sha256)
        name = found.model.name

        def keep(record: Record, scores: Mapping[tuple[str, str], TokenScores]) -> None:
            nonlocal found
            own = tuple(
                replace(
                    q,
                    name=names.get(q.file.sha256, "base"),
                    parts=(),
                    measurements=tuple(_repeatable(q, m, scores) for m in q.measurements),
                )
                for q in record.quantizations
            )
            record = replace(record, quantizations=own)
            before = _figures(found.measured)
            measured = record if found.measured is None else merge(found.measured, record)
            found = replace(found, measured=measured)
            save_probes(found, self.path)
            for figure in sorted(_figures(measured) - before):
                self.watcher.kept(figure)

        missing = {
            text: [s for s in subjects if not _has(found, names[s.sha256], facts)]
            for text, facts in self.texts.items()
        }
        missing = {text: own for text, own in missing.items() if own}
        logits = {text: files.logits(self.texts[text].sha256) for text in missing}
        self.watcher.runs(
            sum(map(len, missing.values())) + sum(not logits[text].exists() for text in missing)
        )
        for text, own in missing.items():
            if not logits[text].exists():
                how = MeasureOptions(
                    n_ctx=self.options.n_ctx, n_chunks=self.options.n_chunks, model_name=name,
                    keep_logits=logits[text],
                )  # fmt: skip
                measure([], [TextFile(text)], base, self.engine, how, watcher=self._watch(names), keep=keep)
            how = MeasureOptions(model_name=name)
            measure(
                own, [TextFile(text)], logits[text], self.engine, how, into=found.measured,
                watcher=self._watch(names), keep=keep,
            )  # fmt: skip
        return found

    def _watch(self, names: Mapping[str, str]) -> Callable[..., None]:
        return lambda what, done, of: self.watcher.running(
            f"{names.get(what.sha256, 'base')} on {what.text}", done, of
        )


def _figures(record: Record | None) -> set[str]:
    """What was run on what, of a record."""
    quantizations = () if record is None else record.quantizations
    return {f"{q.name} on {m.text.name}" for q in quantizations for m in q.measurements}


def _repeatable(
    quantization: Quantization, measurement: Measurement, scores: Mapping[tuple[str, str], TokenScores]
) -> Measurement:
    """With the figures of the scores alone: llama-perplexity prints its own perplexity in some runs only."""
    own = scores[quantization.file.sha256, measurement.text.sha256]
    return replace(measurement, metrics=metrics_of(own))


def _has(record: ProbeRecord, name: str, text: Text) -> bool:
    entry = next(p for p in record.probes if p.name == name)
    return any(m.text.sha256 == text.sha256 for m in record.measurements(entry))


def _difference(old: ProbeRecord, new: ProbeRecord) -> str:
    """What of two records differs, in words; "" if nothing does."""
    if old.model.tensors != new.model.tensors:
        return f"another model, {printable(old.model.name)}"
    if old.model.weights != new.model.weights:
        return "other weights of this model"
    a, b = old.conditions, new.conditions
    if {t.sha256 for t in a.texts} != {t.sha256 for t in b.texts}:
        return "other texts: " + ", ".join(printable(t.name) for t in a.texts)
    if a.imatrix != b.imatrix:
        return "another imatrix" if a.imatrix else "no imatrix"
    if (a.n_ctx, a.n_chunks) != (b.n_ctx, b.n_chunks):
        return f"{a.n_chunks} chunks of {a.n_ctx} tokens"
    if a.base != b.base:
        return f"a base of {printable(a.base)}" if a.base else "an unquantized base"
    if (a.engine, a.build) != (b.engine, b.build):
        return printable(f"another engine, {a.engine} {a.build}".strip())
    return ""
