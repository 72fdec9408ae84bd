"""hold_out: what a calibration gained on texts that it was not made of, and where it gained nothing.

The file that was written with a calibration is measured beside the file of the same types that
`--effort best` makes with the calibration's imatrix. Both have the same size and imatrix and run on the same
tokens, so what differs is how blocks were chosen. The domain of the texts decides more than the method, so
every text has a verdict of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ggplan.conversion import ConvertOptions, convert
from ggplan.errors import PlanError
from ggplan.measure import (
    Contender,
    Engine,
    Lead,
    Measurement,
    MeasureOptions,
    MeasureResult,
    Metric,
    Record,
    Subject,
    TextFile,
    lead,
    measure,
    open_subjects,
)
from ggplan.measure.measuring import DEFAULT_CONTEXT, Keep, Watcher, refuse_short
from ggplan.measure.subjects import read_state
from ggplan.planning import Plan, lay_out, make_plan
from ggplan.probing.verifying import Written
from ggplan.sources.remote import is_remote
from ggplan.text import printable

Verdict = Literal["gained", "lost", "no clear difference", "no number"]
_NOTE = "the types of {}, by --effort best with its calibration's imatrix"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Both files on one text.

    Attributes
    ----------
    text, sha256
        The text's file and digest.
    kld, best
        The mean KL divergence from the model, in nats, of the calibrated file and of the other; None where
        the engine gave no number.
    lead
        By how much the calibrated file loses more, paired by tokens; None without numbers.
    """

    text: Path
    sha256: str
    kld: Metric | None
    best: Metric | None
    lead: Lead | None

    @property
    def ratio(self) -> float | None:
        """The calibrated file's KL divergence in parts of the other's."""
        if self.kld is None or self.best is None or not self.best.value > 0:
            return None
        return self.kld.value / self.best.value

    @property
    def verdict(self) -> Verdict:
        """Whether it gained: beyond two standard errors of the difference, where that is known."""
        if self.lead is None or self.lead.metric != "kld":
            return "no number"
        if abs(self.lead.value) <= 2 * (self.lead.error or 0.0):
            return "no clear difference"
        return "gained" if self.lead.value < 0 else "lost"


def refuse_unfit(plan: Plan, texts: Sequence[Path], n_ctx: int = DEFAULT_CONTEXT) -> None:
    """Refuse texts that the calibration was made of, on which it gains in any case, and what is too short.

    Raises
    ------
    PlanError
        If one was used, two are one, or the plan goes by no calibration.
    MeasureError
        If one cannot be read, or is too short to be measured.
    """
    if plan.feedback is None:
        raise PlanError("the plan goes by no calibration, so there is nothing to hold out")
    made_of = plan.feedback.calibration.provenance.get("texts", ())
    used = {t.get("sha256"): t.get("name") for t in made_of if isinstance(t, Mapping)}
    seen: dict[str, Path] = {}
    for path in texts:
        state = read_state(path)
        digest = state.sha256
        refuse_short(path.name, state.n_bytes, n_ctx)
        if digest in used:
            raise PlanError(
                f"{printable(str(path))} cannot be held out: the calibration was made of it"
                f" ({printable(str(used[digest]))}, SHA-256 {digest[:16]}...)",
                hint="name a text that was not used; `default` is one of four domains that ships",
            )
        if digest in seen:
            raise PlanError(
                f"{printable(str(path))} and {printable(str(seen[digest]))} are one text", hint="name it once"
            )
        seen[digest] = path


def plan_by_best(plan: Plan) -> Plan:
    """The same types, encoded with `--effort best` and the same imatrix."""
    return lay_out(
        plan.model, plan.assignment, imatrix=plan.imatrix, fallback=plan.fallback,
        nonfinite=plan.nonfinite, effort="best",
    )  # fmt: skip


def hold_out(
    plan: Plan,
    path: Path,
    texts: Sequence[Path],
    engine: Engine,
    folder: Path,
    options: MeasureOptions,
    converting: ConvertOptions,
    *,
    into: Record | None = None,
    written: Written | None = None,
    watcher: Watcher | None = None,
    keep: Keep | None = None,
) -> tuple[tuple[HeldOut, ...], MeasureResult]:
    """Measure the file of a plan that goes by a calibration, beside what `--effort best` makes of it.

    Parameters
    ----------
    path
        The file that was written; of a split set any part.
    folder
        For the files that are made to be measured, in which nothing else may be; they stay.
    converting
        Threads and memory for them.
    written
        Called with the bytes of them that were written.
    into, watcher, keep
        As for `ggplan.measure.measure`.

    Returns
    -------
    An entry for each text in their order, and the figures of all files for a record.

    Raises
    ------
    PlanError, ConversionError, MeasureError, CheckpointError
        As `refuse_unfit`, `ggplan.convert` and `ggplan.measure.measure`.
    """
    refuse_unfit(plan, texts, options.n_ctx or DEFAULT_CONTEXT)
    how = ConvertOptions(threads=converting.threads, memory=converting.memory, allow_requantize=True)
    best = folder / f"{path.name.removesuffix('.gguf')}-best.gguf"
    base = _base(plan)
    if base is None:
        convert(make_plan(plan.model), folder / "base.gguf", how, progress=written)
        (base,) = open_subjects([folder / "base.gguf"])
    convert(plan_by_best(plan), best, how, progress=written)
    own, other = open_subjects([path, best])
    note = _NOTE.format(path.name)

    def noted(record: Record) -> Record:
        return replace(
            record,
            quantizations=tuple(
                replace(q, note=note) if q.file.sha256 == other.sha256 else q for q in record.quantizations
            ),
        )

    result = measure(
        [own, other], [TextFile(text) for text in texts], base, engine, options, into=into, watcher=watcher,
        keep=None if keep is None else lambda record, scores: keep(noted(record), scores),
    )  # fmt: skip
    result = replace(result, record=noted(result.record))
    by_digest = {q.file.sha256: q.measurements for q in result.record.quantizations}
    pairs = zip(texts, by_digest[own.sha256], by_digest[other.sha256], strict=True)
    return tuple(_held_out(text, result, own, x, other, y) for text, x, y in pairs), result


def bytes_to_write(plan: Plan) -> int:
    """What `hold_out` writes, the copy of the model included that a checkpoint needs."""
    base = make_plan(plan.model).tensor_bytes if _is_made(plan) else 0
    return base + plan.tensor_bytes


def _is_made(plan: Plan) -> bool:
    """Whether the engine needs a copy of the model: it is no GGUF here, or was changed when it was opened."""
    model = plan.model
    if model.kind != "gguf" or any(map(is_remote, model.files)):
        return True
    return not all(t.is_copied for t in make_plan(model).tensors)


def _base(plan: Plan) -> Subject | None:
    """The model's own files, where an engine can run them; None if a copy is to be written."""
    if _is_made(plan):
        return None
    (subject,) = open_subjects([plan.model.files[0]])
    there = {t.name: t.shape for t in subject.model.tensors}
    return subject if there == {t.name: t.shape for t in plan.model.tensors} else None


def _held_out(
    text: Path, result: MeasureResult, own: Subject, x: Measurement, other: Subject, y: Measurement
) -> HeldOut:
    digest = x.text.sha256
    contenders = [
        Contender(str(subject.path), m, result.scores.get((subject.sha256, digest)))
        for subject, m in ((own, x), (other, y))
    ]
    return HeldOut(text, digest, x.metrics.get("kld"), y.metrics.get("kld"), lead(*contenders))
