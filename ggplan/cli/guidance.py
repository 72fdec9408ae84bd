"""What is to be said of a plan that goes by a calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggplan.planning import Plan


def guidance_notes(plan: Plan) -> list[str]:
    """A line for each reason why tensors are encoded with best effort and an imatrix instead, and a line if
    the model is not the one that was calibrated.
    """
    from ggplan.conversion.guides import unguided
    from ggplan.text import names_in_words

    lines = []
    for why, names in unguided(plan).items():
        only_some = "experts" in why
        which = "those are" if only_some else ("they are" if len(names) > 1 else "it is")
        lines.append(
            f"{names_in_words(names)}: {why}; {which} encoded with effort best and the calibration's imatrix"
        )
    if changed := _changed(plan):
        lines.append(
            f"{names_in_words(changed)}: other weights than the calibration was made of, which may not be of "
            "this model"
        )
    return lines


def _changed(plan: Plan) -> list[str]:
    from ggplan.calibration import Calibration
    from ggplan.calibration.marks import differing

    calibration = plan.feedback and plan.feedback.calibration
    return list(differing(calibration.weights, plan.model)) if isinstance(calibration, Calibration) else []
