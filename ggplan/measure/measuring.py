"""measure: how far quantizations are from their base, on one text or on two.

The base model runs once per text and its log-probabilities are kept while the others run beside them. With a
second, held-out text the same is done again: see `ggplan.measure.guard` for why.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ggplan.errors import MeasureError
from ggplan.measure.base_logits import BaseLogits
from ggplan.measure.engines import Engine
from ggplan.measure.facts import describe_file
from ggplan.measure.llama_perplexity import Progress, Run
from ggplan.measure.record import Measurement, Metric, Record, Text, Use
from ggplan.measure.scores import TokenScores
from ggplan.measure.statistics import metrics_of
from ggplan.text import printable


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text to measure on; of two, one is to choose by and one is held out."""

    path: Path
    use: Use = ""


class Watcher(Protocol):
    """Told how far a measurement is."""

    def __call__(self, what: str, done: int, of: int) -> None:
        """`done` of `of` chunks of `what` (`hq4_k on eval.txt`) are computed."""


@dataclass(frozen=True, slots=True)
class Result:
    """What `measure` found.

    Attributes
    ----------
    record
        All figures, ready to be kept.
    scores
        Per quantization's name and text's name, every token's scores: for paired differences between any two.
    base_name
        Which of the record's quantizations is the base.
    notes
        What the engine had to be helped with.
    """

    record: Record
    scores: Mapping[tuple[str, str], TokenScores]
    base_name: str
    notes: tuple[str, ...]


def measure(
    files: Sequence[str | Path],
    texts: Sequence[TextFile],
    base: str | Path,
    engine: Engine,
    *,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    model_name: str | None = None,
    hardware: str | None = None,
    keep_logits: str | Path | None = None,
    watcher: Watcher | None = None,
) -> Result:
    """Measure quantizations of one model against a base.

    Parameters
    ----------
    files
        GGUF files; the base may be among them.
    texts
        One text, or one to choose by and one held out.
    base
        The GGUF of the unquantized model, or a file of its log-probabilities kept from an earlier run.
    n_ctx, n_chunks
        Tokens of a chunk, and how many chunks at most (None: the whole text).
    hardware
        For the record; by default the CPU's name.
    keep_logits
        Keep the base's log-probabilities in this file, for one text only; they are large: n_vocab * n_ctx
        bytes a chunk.
    watcher
        Told of progress.

    Raises
    ------
    MeasureError
        If a file cannot be measured or is another model's, an engine fails, or a text is too short.
    CheckpointError
        If a file is no GGUF.
    """
    if not texts:
        raise MeasureError("there is no text to measure on", hint="name one with --text")
    if keep_logits is not None and len(texts) > 1:
        raise MeasureError("the base's log-probabilities can be kept for one text, not for two")
    kept_base = _is_logits(Path(base))
    if kept_base and len(texts) > 1:
        raise MeasureError(f"{printable(str(base))} is of one text, and there are {len(texts)}")
    paths = _distinct([Path(base), *map(Path, files)] if not kept_base else [Path(f) for f in files])
    if not paths:
        raise MeasureError("there is no file to measure")
    described = [describe_file(path) for path in paths]
    names = _short_names([q.name for _, q in described])
    base_name = Path(base).stem if kept_base else names[0]
    measurements: dict[str, list[Measurement]] = {name: [] for name in names}
    scores: dict[tuple[str, str], TokenScores] = {}
    notes: list[str] = []
    for text in texts:
        facts = Text(text.path.name, _sha256(text.path))
        with _base_run(Path(base), text, engine, n_ctx, n_chunks, keep_logits, base_name, watcher) as begun:
            logits, base_run = begun
            for name, path in zip(names, paths, strict=True):
                if name == base_name and base_run is not None:
                    run = base_run
                else:
                    run = engine.run_model(path, text.path, logits, _watch(watcher, name, text))
                measurements[name].append(
                    Measurement(
                        text=facts,
                        n_ctx=logits.frame.n_ctx,
                        n_chunks=logits.frame.n_chunks,
                        n_tokens=run.scores.nll.size,
                        engine=engine.name,
                        metrics=_metrics(run),
                        base=base_name,
                        build=engine.build,
                        hardware=hardware or _cpu_name(),
                        use=text.use,
                        date=datetime.date.today().isoformat(),
                    )
                )
                scores[name, text.path.name] = run.scores
                notes.extend(run.notes)
    model = described[0][0]
    quantizations = tuple(
        replace(q, name=name, measurements=tuple(measurements[name]))
        for (_, q), name in zip(described, names, strict=True)
    )
    record = Record(replace(model, name=model_name or model.name), quantizations)
    return Result(record, scores, base_name, tuple(dict.fromkeys(notes)))


def _metrics(run: Run) -> dict[str, Metric]:
    metrics = metrics_of(run.scores)
    if run.ppl is not None:
        # The engine's own sum is finer than the log-probabilities it writes down.
        metrics["ppl"] = replace(metrics["ppl"], value=run.ppl)
    return metrics


@contextlib.contextmanager
def _base_run(
    base: Path,
    text: TextFile,
    engine: Engine,
    n_ctx: int,
    n_chunks: int | None,
    keep_logits: str | Path | None,
    base_name: str,
    watcher: Watcher | None,
) -> Iterator[tuple[BaseLogits, Run | None]]:
    """The base's log-probabilities of a text, and the run that made them, if there was one."""
    if _is_logits(base):
        with BaseLogits(base) as logits:
            yield logits, None
        return
    with tempfile.TemporaryDirectory(prefix="ggplan-") as folder:
        keep = Path(keep_logits) if keep_logits else Path(folder) / "base.logits"
        watch = _watch(watcher, base_name, text)
        run = engine.run_base(base, text.path, keep, n_ctx, n_chunks, watch)
        with BaseLogits(keep) as logits:
            yield logits, run


def _watch(watcher: Watcher | None, name: str, text: TextFile) -> Progress | None:
    if watcher is None:
        return None
    what = f"{name} on {text.path.name}"
    return lambda done, of: watcher(what, done, of)


def _is_logits(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8) == b"_logits_"
    except OSError as error:
        raise MeasureError(f"cannot read {printable(str(path))}: {error.strerror}") from error


def _distinct(paths: Sequence[Path]) -> list[Path]:
    """The paths without repetitions of a file, whatever it is called."""
    return list({os.path.realpath(path): path for path in reversed(paths)}.values())[::-1]


def _short_names(names: Sequence[str]) -> list[str]:
    """File names without what all begin with: `GLM-4.5-Air-Q4_K_M`, `GLM-4.5-Air-bf16` → `Q4_K_M`, `bf16`.

    Only whole words go, and all are kept if two would become one or one nothing.
    """
    words = [re.split(r"(?<=[-_.])", name) for name in names]
    n_shared = next((i for i, column in enumerate(zip(*words, strict=False)) if len(set(column)) > 1), 0)
    short = ["".join(w[n_shared:]) for w in words]
    return short if len(names) > 1 and all(short) and len(set(short)) == len(names) else list(names)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MeasureError(f"cannot read {printable(str(path))}: {error.strerror}") from error


def _cpu_name() -> str:
    """The CPU's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} CPUs"
    return platform.processor() or platform.machine()
