"""What is to be said of a plan that goes by a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggplan.calibration import Calibration, ReshapedCalibration
    from ggplan.model import Model
    from ggplan.planning import Plan


def guidance_notes(plan: Plan, *, other_weights: bool = False) -> list[str]:
    """A line for each reason why tensors do not go by their own moments, and one for another model's.

    Raises
    ------
    PlanError
        As `changed_note`.
    """
    from ggplan.calibration import Calibration, ReshapedCalibration
    from ggplan.conversion.guides import unguided, why_unguided
    from ggplan.quants.feedback import ACT_ORDER, goes_by_importance
    from ggplan.text import names_in_words

    lines = []
    reasons = {why_unguided(plan.feedback, t) for t in plan.tensors} if plan.feedback is not None else set()
    if reasons == {"not encoded"}:
        lines.append("the calibration has no effect: the plan encodes no tensor to a quantized type")
    entries = {} if plan.imatrix is None else plan.imatrix.entries
    for why, names in unguided(plan).items():
        for some, instead in (
            ([n for n in names if n in entries], "effort best and the calibration's imatrix"),
            ([n for n in names if n not in entries], "effort best, without importance"),
        ):
            if some and "experts" in why:
                line = f"{why}: these go by all tokens of the layer where experts share an input, else by"
                lines.append(f"{names_in_words(some)}: {line} {instead}")
            elif some:
                they = "they are" if len(some) > 1 else "it is"
                line = f"{names_in_words(some)}: {why}; {they} encoded with {instead}"
                if "output.weight" in some:
                    line += "; `ggplan calibrate --process-output` has output.weight too"
                lines.append(line)
    if plan.feedback is not None and plan.feedback.method == ACT_ORDER:
        guided = [t for t in plan.tensors if not why_unguided(plan.feedback, t)]
        if kept := [t.name for t in guided if not goes_by_importance(t.type, plan.feedback.method)]:
            lines.append(
                f"{names_in_words(kept)}: columns keep their order, as with gptq: iq2 and iq3 take "
                "neighbouring weights together"
            )
    # That of a folded model has weights of its own: it was compared before (see `ggplan.cli.planning`).
    calibration = plan.feedback and plan.feedback.calibration
    if isinstance(calibration, ReshapedCalibration):
        lines += calibration.notes
    if isinstance(calibration, Calibration | ReshapedCalibration):
        lines += changed_note(calibration, plan.model, other_weights=other_weights)
    return lines


def uncorrected_notes(uncorrected: Mapping[str, str]) -> list[str]:
    """A line for each reason why tensors of layers were not corrected."""
    from ggplan.text import names_in_words

    by_reason: dict[str, list[str]] = {}
    for name, why in uncorrected.items():
        by_reason.setdefault(why, []).append(name)
    return [f"{names_in_words(names)}: not corrected: {why}" for why, names in by_reason.items()]


def changed_note(
    calibration: Calibration | ReshapedCalibration, model: Model, *, other_weights: bool = False
) -> list[str]:
    """A line if a model has other weights than a calibration was made of.

    Parameters
    ----------
    other_weights
        Whether a model of which most matrices are others may be converted by it.

    Raises
    ------
    PlanError
        If it may not.
    """
    from ggplan.calibration.marks import METADATA, differing
    from ggplan.errors import PlanError
    from ggplan.text import names_in_words, printable

    known = dict(calibration.weights)
    changed = differing(known, model)
    lines = []
    if METADATA in changed:
        changed.remove(METADATA)
        lines.append(
            "the calibration was made of a model with other settings of the metadata's "
            f"{printable(model.architecture)}.*, on which its inputs may depend"
        )
    if not changed:
        return lines
    own = {t.type.name for t in model.tensors if t.type.is_quantized}
    for what, types in (("the calibration's model", _rounded_types(calibration)), ("this model", own)):
        if types:
            return [
                *lines,
                f"{what} is in {', '.join(sorted(types))}, so it cannot be told whether the calibration is "
                "of its weights; it is used",
            ]
    names = names_in_words(changed)
    if 2 * len(changed) > len(known.keys() & {t.name for t in model.tensors}) and not other_weights:
        raise PlanError(
            f"{printable(str(calibration.path))} is the calibration of a model with other weights: {names}",
            hint="calibrate this model; or give --other-weights, if little training made it of that one",
        )
    return [*lines, f"{names}: other weights than the calibration was made of"]


def _rounded_types(calibration: Calibration | ReshapedCalibration) -> set[str]:
    """The types with blocks that the calibration's model had."""
    from ggplan.ggml_types import parse_type

    made_of = calibration.provenance.get("model")
    types = made_of.get("types") if isinstance(made_of, dict) else None
    found = set()
    for name in types if isinstance(types, list) else ():
        try:
            if parse_type(str(name)).is_quantized:
                found.add(str(name))
        except ValueError:
            continue
    return found
