"""An error says what to do: with the options of the command line in its hint, with arguments as a text."""

from __future__ import annotations

import pytest

from ggplan.errors import CheckpointError, Error


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ("name it with --pre NAME, e.g. glm4", "name it with pre=NAME, e.g. glm4"),
        ("give --force to replace it", "give force=True to replace it"),
        ("leave out --no-resume to resume it", "leave out resume=False to resume it"),
        ("make such blocks zeros with --nonfinite zero", "make such blocks zeros with nonfinite='zero'"),
        ("give one with --imatrix, or more bits", "give one with imatrix=..., or more bits"),
        ("--model-name gives it a name", "model_name=... gives it a name"),
        ("`ggplan inspect --json MODEL` writes one", "`ggplan inspect --json MODEL` writes one"),
        ("use a-b -- or c", "use a-b -- or c"),
    ],
)
def test_a_hint_is_part_of_the_text_in_the_words_of_the_library(hint: str, said: str) -> None:
    error = CheckpointError("x.gguf: wrong", hint=hint)
    assert error.hint == hint
    assert str(error) == f"x.gguf: wrong (help: {said})"


def test_an_error_without_a_hint_is_its_message() -> None:
    assert str(Error("x.gguf: wrong")) == "x.gguf: wrong"
