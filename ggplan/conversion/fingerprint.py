"""The fingerprint of a plan: everything the bytes of the output depend on.

Unfinished work may be finished only under the same fingerprint, and if it differs the message says what
differs. So it is not a single hash but a table of names and values. The header of the
output holds much of it (metadata, types, places, the recipe's text); the recipe has its own line, so that a
message can name it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ggplan.conversion.inputs import InputState
from ggplan.planning import Effort, Plan
from ggplan.quants.revisions import BEST_REVISION, FEEDBACK_REVISION
from ggplan.version import __version__

Fingerprint = dict[str, str]
_FILES, _HEADER = "the files of the output", "the header of "


def fingerprint(
    plan: Plan, files: Sequence[tuple[Path, Plan]], states: Mapping[Path, InputState]
) -> Fingerprint:
    """The table of a plan.

    Parameters
    ----------
    files
        The output's files, each with its own part of the plan.
    states
        The inputs, as they are now.
    """
    table = {
        "ggplan": __version__,
        "the recipe": "none" if plan.recipe is None else plan.recipe.sha256,
        _FILES: ", ".join(f"{path.name}: {part.file_bytes}" for path, part in files),
    }
    # Options are plain values of the plan, such as the fallback table.
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if isinstance(value, str | bool | int | float) and field.name != "data_bytes":
            table[f"the option {field.name.replace('_', '-')}"] = str(value)
    if plan.model.converter:
        table["llama.cpp's converter"] = plan.model.converter
    if (revision := best_revision(plan.effort)) is not None:
        table[f"the revision of the encoders of effort {plan.effort}"] = str(revision)
    if plan.feedback is not None:
        table["the calibration"] = plan.feedback.calibration.digest
        table["the option method"] = plan.feedback.method
        table["the option lam"] = repr(float(plan.feedback.lam))
        table["the option corrected"] = str(plan.feedback.corrected)
    for path, state in states.items():
        # The calibration's digest stands for its files: a folder that is made again has the same.
        if plan.feedback is None or path.parent != plan.feedback.calibration.path:
            table[_label(plan, path)] = str(state)
    for path, part in files:
        table[_HEADER + path.name] = hashlib.sha256(part.header).hexdigest()
    return table


def best_revision(effort: Effort) -> int | None:
    """The revision of the encoders' search; None with default effort, whose bytes never change."""
    return {"best": BEST_REVISION, "feedback": FEEDBACK_REVISION}.get(effort)


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of the values that differ between two plans, causes first."""
    if before.get("ggplan") != now.get("ggplan"):
        return [f"it was begun by ggplan {before.get('ggplan')}, this is {now.get('ggplan')}"]
    labels = [label for label in {**now, **before} if before.get(label) != now.get(label)]
    # Sizes and headers differ whenever a recipe does; they are named only if nothing else differs.
    causes = [label for label in labels if not label.startswith((_FILES, _HEADER))]
    return [_difference(label, before, now) for label in causes] or labels


def _difference(label: str, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    if label.startswith("the option "):
        return f"{label} was {before.get(label, 'not there')} and is {now.get(label, 'not there')}"
    if label not in now:
        return f"{label} was read and is not now"
    return label if label in before else f"{label} was not read and is now"


def _label(plan: Plan, path: Path) -> str:
    is_imatrix = plan.imatrix is not None and path == plan.imatrix.path
    return "the imatrix" if is_imatrix else f"the input {path.name}"
