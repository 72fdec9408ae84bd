"""An error says what to do: with the options of the command line in its hint, with arguments as a text."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import ggplan
from ggplan import errors
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
        ("choose one: --block N, N from 1 to 2", "choose one: block=N, N from 1 to 2"),
        ("--kind types or --kind parts draws it", "kind='types' or kind='parts' draws it"),
        # Options of other programs, and what only looks like an option.
        ("the nearest is --output-tensor-type", "the nearest is --output-tensor-type"),
        ("pip install --force-reinstall --no-deps x", "pip install --force-reinstall --no-deps x"),
        ("look in /models--zai-org--GLM", "look in /models--zai-org--GLM"),
        ("look in a--force/b--pre and --force/x", "look in a--force/b--pre and --force/x"),
    ],
)
def test_a_hint_is_part_of_the_text_in_the_words_of_the_library(hint: str, said: str) -> None:
    error = CheckpointError("x.gguf: wrong", hint=hint)
    assert error.hint == hint
    assert str(error) == f"x.gguf: wrong (help: {said})"


def test_an_error_without_a_hint_is_its_message() -> None:
    assert str(Error("x.gguf: wrong")) == "x.gguf: wrong"


def test_the_options_that_hints_name_are_options_of_the_program() -> None:
    """And every option in a hint of the source is known, but for those of other programs."""
    known = set()
    for module in Path(ggplan.__file__).parent.joinpath("cli").glob("*.py"):
        known |= set(re.findall(r'"--([a-z]+(?:-[a-z]+)*)"', module.read_text("utf-8")))
    assert known >= errors._OPTIONS, errors._OPTIONS - known
    for module in Path(ggplan.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if not (isinstance(node, ast.keyword) and node.arg == "hint") or module.parent.name == "cli":
                continue
            inside = {part for f in ast.walk(node.value) if isinstance(f, ast.JoinedStr) for part in f.values}
            texts = [f.values for f in ast.walk(node.value) if isinstance(f, ast.JoinedStr)]
            texts += [[c] for c in ast.walk(node.value) if isinstance(c, ast.Constant) and c not in inside]
            for parts in texts:
                text = "".join(str(p.value) if isinstance(p, ast.Constant) else "X" for p in parts)
                plain = re.sub(r"`[^`]*`|pip install [^,]*", "", text)
                named = set(re.findall(r"(?<!\S)--([a-z]+(?:-[a-z]+)*)", plain)) & known
                assert named <= errors._OPTIONS, f"{module}: {named}"
