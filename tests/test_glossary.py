"""The glossary's words are unique, and the places it names exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "glossary.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| word |", "| --- |"))
]
PLACES = sorted({place for row in ROWS for place in re.findall(r"`(ggplan\.[\w.]+)`", row[2])})


def test_every_word_is_explained_once() -> None:
    words = [row[0] for row in ROWS]
    assert len(words) > 60
    assert len(words) == len(set(words))
    assert all(len(row) == 4 and row[1] for row in ROWS)


def test_no_word_is_its_own_wrong_name() -> None:
    assert not [row[0] for row in ROWS if row[0] in row[3].split(", ")]


@pytest.mark.parametrize("place", PLACES)
def test_places_exist(place: str) -> None:
    module, names = place, []
    while True:
        try:
            found: object = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            names.insert(0, name)
    for name in names:
        found = getattr(found, name)
