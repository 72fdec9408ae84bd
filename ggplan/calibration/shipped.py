"""The text that ships: four parts, one for each kind of use, and as many that are kept apart to judge by.

They are made by `tools/make_texts.py`; `texts/LICENCES.md` says from what, and under which licences.
"""

from __future__ import annotations

from pathlib import Path

DEFAULT = "default"  # what stands for the parts where texts are named
PARTS = ("prose", "code", "markup", "languages")

_FOLDER = Path(__file__).parent / "texts"


def shipped_texts() -> dict[str, Path]:
    """The parts to calibrate with, by their names (`default/prose`)."""
    return {f"{DEFAULT}/{part}": _FOLDER / f"{part}.txt" for part in PARTS}


def shipped_holdouts() -> dict[str, Path]:
    """The parts that are kept apart, by their names (`default/holdout-prose`)."""
    return {f"{DEFAULT}/holdout-{part}": _FOLDER / f"holdout-{part}.txt" for part in PARTS}
