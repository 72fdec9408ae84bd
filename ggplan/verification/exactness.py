"""Prove that a file holds exactly what its plan encodes: plan again, encode again, compare every byte.

A file written by ggplan contains its recipe, so only the checkpoint (and the imatrix, if one was used) is
needed to make its plan again. If types, metadata and bytes are equal, the file was made from this checkpoint
and this recipe and nothing else: no weight was changed, by accident or on purpose.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from ggplan.calibration import Calibration
from ggplan.conversion.chunks import Chunk, chunks_of
from ggplan.conversion.encoding import encode_chunk
from ggplan.conversion.input_hashes import with_input_hashes
from ggplan.conversion.pace import choose_pace, enough_memory
from ggplan.conversion.streaming import available_cpus, guides_of
from ggplan.errors import CheckpointError, PlanError
from ggplan.folding import FOLD, fold, parse_fold
from ggplan.metadata import Metadata
from ggplan.model import Model, RowSource, TensorInfo
from ggplan.planning import Effort, FallbackTable, Nonfinite, Plan, make_plan
from ggplan.planning.guidance import Feedback, SecondMoments, feedback_as_recorded
from ggplan.planning.layout import written_shape
from ggplan.planning.provenance import CODES, INPUTS, PLAN, VERSION
from ggplan.reshaping import recorded_reshaping, reshape
from ggplan.rules import Recipe, parse_recipe
from ggplan.rules.loading import follow_recorded
from ggplan.text import printable
from ggplan.verification.faults import HEADER, Fault
from ggplan.verification.workers import Progress, each

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

_TEXT, _HASH, _NAME = "ggplan.recipe.text", "ggplan.recipe.sha256", "ggplan.recipe.name"
_PARTS = "ggplan.recipe.parts"
_IMATRIX = "quantize.imatrix.file"
_FOLD = f"ggplan.{FOLD}"


def plan_again(
    written: Model,
    source: Model,
    *,
    recipe: Recipe | None = None,
    imatrix: Imatrix | None = None,
    fallback: FallbackTable | None = None,
    calibration: SecondMoments | None = None,
) -> Plan:
    """The plan of a file that ggplan wrote, by the recipe and choices that its metadata records.

    Parameters
    ----------
    written, source
        The file and the checkpoint it was made from.
    recipe, imatrix, fallback
        Used instead of the recorded ones. For an imatrix only the name is recorded, never the values.
    calibration
        The one that the file was made with. Its imatrix is used.

    Raises
    ------
    PlanError
        If the file does not say how it was made, was made with an imatrix or a calibration and it is not
        given, or scales that were folded into it do not fit this checkpoint.
    RecipeError
        If the recorded recipe is damaged.
    """
    shown = printable(str(written.path))
    if VERSION not in written.metadata and recipe is None:
        raise PlanError(
            f"{shown} does not say how it was made: ggplan did not write it",
            hint="`ggplan verify FILE --against CHECKPOINT --exact --recipe RECIPE` takes one",
        )
    feedback = feedback_as_recorded(written.metadata, calibration, shown)
    if feedback is not None and imatrix is None:
        imatrix = feedback.calibration.imatrix
    if imatrix is None and (name := text_of(written.metadata, _IMATRIX)):
        raise PlanError(
            f"{shown} was made with the imatrix {printable(name)}",
            hint="give it with --imatrix",
        )
    source, imatrix = reshaped_as(written, source, imatrix)
    found = recipe or _recorded_recipe(written, shown)

    def planned(model: Model, imatrix: Imatrix | None, feedback: Feedback | None) -> Plan:
        return make_plan(
            model,
            found,
            imatrix=imatrix,
            fallback=fallback or _recorded(written.metadata, "ggplan.fallback", FallbackTable, "llama.cpp"),
            nonfinite=_recorded(written.metadata, "ggplan.nonfinite", Nonfinite, "refuse"),
            effort=_recorded(written.metadata, "ggplan.effort", Effort, "default"),
            feedback=feedback,
        )

    plan = planned(source, imatrix, feedback)
    if (wish := text_of(written.metadata, _FOLD)) is not None:
        if feedback is None:
            raise PlanError(f"{shown} was made with --fold {printable(wish)}, and names no calibration")
        model, feedback = _folded_again(plan, wish, feedback)
        plan = planned(model, feedback.calibration.imatrix, feedback)
    plan = with_input_hashes(plan)
    return dataclasses.replace(plan, metadata=_as_recorded(plan.metadata, written.metadata))


def reshaped_as(
    written: Model, source: Model, imatrix: Imatrix | None = None
) -> tuple[Model, Imatrix | None]:
    """The checkpoint of a file, with what the file says was done to it; as it is where that was done before.

    Scales that were folded are not folded again: that needs the plan (see `plan_again`).

    Raises
    ------
    PlanError
        If what the file records is damaged, or cannot be done to this checkpoint.
    """
    if source.reshaped:
        return source, imatrix
    return reshape(source, recorded_reshaping(written.metadata), imatrix)


def refuse_folded(written: Model, source: Model) -> None:
    """Refuse to compare a file whose weights were scaled with a model whose weights are not.

    Raises
    ------
    PlanError
        If the file has folded scales and the model has none.
    """
    wish = text_of(written.metadata, _FOLD)
    if wish is not None and FOLD not in source.reshaped:
        raise PlanError(
            f"{printable(str(written.path))} was made with --fold {printable(wish)}: its weights are scaled, "
            f"and those of {printable(str(source.path))} are not",
            hint="with --exact and --calibration they are scaled again, and compared",
        )


def _folded_again(plan: Plan, wish: str, feedback: Feedback) -> tuple[Model, Feedback]:
    """The model of a plan with its scales, and the calibration that fits it."""
    calibration = feedback.calibration
    if not isinstance(calibration, Calibration):
        raise PlanError(f"{printable(str(calibration.path))} is not the calibration of a model as it is")
    types = {planned.name: planned.type for planned in plan.tensors}
    model, fitting = fold(plan.model, parse_fold(wish), calibration, types, feedback.lam)
    return model, dataclasses.replace(feedback, calibration=fitting)


def _as_recorded(planned: Metadata, written: Metadata) -> Metadata:
    """The keys that the ggplan which wrote the file knew, and the number of that version."""
    newer = (INPUTS, PLAN, CODES)
    keys = {key: value for key, value in planned.items() if key in written or key not in newer}
    return {**keys, VERSION: written[VERSION]} if VERSION in written else keys


def prove(
    written: Model, plan: Plan, threads: int | None = None, progress: Progress | None = None
) -> list[Fault]:
    """Where a file differs from its plan: metadata, types, bytes; empty if nothing differs."""
    file = written.path.name
    plan = with_input_hashes(plan)
    found = {tensor.name: tensor for tensor in written.tensors}
    faults = _metadata_faults(written.metadata, plan.metadata, file)
    equal: set[str] = set()
    for planned in plan.tensors:
        tensor = found.pop(planned.name, None)
        if tensor is None:
            faults.append(Fault(planned.name, "missing", "the plan has it, the file does not", file))
        elif tensor.type != planned.type:
            types = f"it is {tensor.type} here and {planned.type} by the plan"
            faults.append(Fault(planned.name, "bytes", types, tensor.origin))
        elif written_shape(tensor.shape) != written_shape(planned.tensor.shape):
            shapes = f"its shape is {list(tensor.shape)} here and {list(planned.tensor.shape)} by the plan"
            faults.append(Fault(planned.name, "shape", shapes, tensor.origin))
        else:
            equal.add(planned.name)
    faults += [Fault(name, "missing", "the file has it, the plan does not", file) for name in found]
    tensors = {tensor.name: tensor for tensor in written.tensors}
    seen: set[str] = set()
    pace = choose_pace(plan, threads or available_cpus(), enough_memory(plan))
    with _corrected_again(plan, pace.n_threads) as corrected:
        chunks = (
            dataclasses.replace(chunk, reused=corrected.get(chunk.planned.name))
            for chunk in chunks_of(plan, pace.chunk_weights, guides_of(plan, pace))
            if chunk.planned.name in equal
        )
        for fault in each(
            chunks, lambda chunk: _differs(chunk, tensors[chunk.planned.name], progress), pace.n_threads
        ):
            if fault is not None and fault.where not in seen:
                seen.add(fault.where)
                faults.append(fault)
    return faults


@contextlib.contextmanager
def _corrected_again(plan: Plan, threads: int) -> Iterator[Mapping[str, RowSource]]:
    """The blocks of a plan's corrected layers, made again; empty for other plans.

    A layer takes what it needs: there is nothing to choose but threads.
    """
    from ggplan.conversion.correction import correct_plan, is_corrected

    if not is_corrected(plan):
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="ggplan-") as folder:
        made = correct_plan(plan, Path(folder) / "layers", threads=threads, memory=None)
        yield made.blocks


def _differs(chunk: Chunk, tensor: TensorInfo, progress: Progress | None) -> Fault | None:
    assert tensor.stored is not None
    try:
        there = tensor.stored.read_bytes(chunk.start, chunk.stop)
    except CheckpointError as error:
        return Fault(tensor.name, "unreadable", error.message, tensor.origin)
    due = encode_chunk(chunk)
    if progress is not None:
        progress(len(there))
    if due == there:
        return None
    at = int((np.frombuffer(there, np.uint8) != np.frombuffer(due, np.uint8)).argmax())
    row = chunk.start + at // tensor.type.row_bytes(tensor.n_columns)
    return Fault(tensor.name, "bytes", f"row {row:,} is not what the plan encodes", tensor.origin)


def _metadata_faults(written: Metadata, planned: Metadata, file: str) -> list[Fault]:
    """The keys that differ, except those of splits and alignment, which the plan does not hold."""
    layout = ("split.", "general.alignment")
    faults = []
    for key in sorted(written.keys() | planned.keys()):
        if not key.startswith(layout) and written.get(key) != planned.get(key):
            both = key in written and key in planned
            only = "file" if key in written else "plan"
            said = "differs from the plan's" if both else f"is only in the {only}"
            differing = key if both else ""
            faults.append(Fault(HEADER, "bytes", f"the key {printable(key)} {said}", file, differing))
    return faults


def _recorded_recipe(written: Model, shown: str) -> Recipe | None:
    text = text_of(written.metadata, _TEXT)
    if text is None:
        return None
    parts = text_of(written.metadata, _PARTS) or ""
    recorded = text_of(written.metadata, _HASH)
    intact = parts or hashlib.sha256(text.encode()).hexdigest() == recorded
    try:
        follow = follow_recorded(parts)
        recipe = (
            parse_recipe(text, text_of(written.metadata, _NAME) or "recipe", follow=follow)
            if intact
            else None
        )
    except (ValueError, RecursionError):
        recipe = None
    if recipe is None or recipe.sha256 != recorded:
        raise PlanError(
            f"{shown}: the recorded recipe does not have its recorded hash",
            hint="`ggplan verify FILE --against CHECKPOINT --exact --recipe RECIPE` takes one",
        )
    return recipe


def _recorded(metadata: Metadata, key: str, choices: Any, default: str) -> Any:
    """The value recorded under a key, if it is one of the choices of a `Literal`."""
    found = text_of(metadata, key)
    return found if found in get_args(choices) else default


def text_of(metadata: Metadata, key: str) -> str | None:
    """The string under a key, or None if there is none."""
    value = metadata.get(key)
    decoded = value.decode() if value is not None and value.item_type is None else None
    return decoded if isinstance(decoded, str) else None
