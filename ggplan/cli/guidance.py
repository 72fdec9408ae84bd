"""What is to be said of a plan that goes by a calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggplan.planning import Plan


def guidance_notes(plan: Plan) -> list[str]:
    """A line for each reason why tensors do not go by their own moments, and one for another model's."""
    from ggplan.conversion.guides import unguided
    from ggplan.text import names_in_words

    lines = []
    for why, names in unguided(plan).items():
        instead = "effort best and the calibration's imatrix"
        if "experts" in why:
            line = (
                f"{why}: these go by all tokens of the layer where experts share an input, else by {instead}"
            )
        else:
            line = f"{why}; {'they are' if len(names) > 1 else 'it is'} encoded with {instead}"
        lines.append(f"{names_in_words(names)}: {line}")
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
    return (
        list(differing(dict(calibration.weights), plan.model)) if isinstance(calibration, Calibration) else []
    )
