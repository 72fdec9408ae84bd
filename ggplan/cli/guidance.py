"""What is to be said of a plan that goes by a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggplan.calibration import Calibration, ReshapedCalibration
    from ggplan.model import Model
    from ggplan.planning import Plan


def guidance_notes(plan: Plan) -> list[str]:
    """A line for each reason why tensors do not go by their own moments, and one for another model's."""
    from ggplan.calibration import Calibration, ReshapedCalibration
    from ggplan.conversion.guides import unguided
    from ggplan.text import names_in_words

    lines = []
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
                lines.append(f"{names_in_words(some)}: {why}; {they} encoded with {instead}")
    # That of a folded model has weights of its own: it was compared before (see `ggplan.cli.planning`).
    calibration = plan.feedback and plan.feedback.calibration
    if isinstance(calibration, ReshapedCalibration):
        lines += calibration.notes
    if isinstance(calibration, Calibration | ReshapedCalibration):
        lines += changed_note(calibration, plan.model)
    return lines


def uncorrected_notes(uncorrected: Mapping[str, str]) -> list[str]:
    """A line for each reason why tensors of layers were not corrected."""
    from ggplan.text import names_in_words

    by_reason: dict[str, list[str]] = {}
    for name, why in uncorrected.items():
        by_reason.setdefault(why, []).append(name)
    return [f"{names_in_words(names)}: not corrected: {why}" for why, names in by_reason.items()]


def changed_note(calibration: Calibration | ReshapedCalibration, model: Model) -> list[str]:
    """A line if a model has other weights than a calibration was made of."""
    from ggplan.calibration.marks import differing
    from ggplan.text import names_in_words

    if not (changed := differing(dict(calibration.weights), model)):
        return []
    return [
        f"{names_in_words(changed)}: other weights than the calibration was made of, which may not be of "
        "this model"
    ]
