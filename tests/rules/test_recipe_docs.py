"""The examples of docs/recipes.md."""

import re
from pathlib import Path

import pytest

from ggplan.rules import parse_recipe

DOCS = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_recipes_in_the_documentation_parse() -> None:
    blocks = re.findall(r"```recipe\n(.*?)```", DOCS, re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        recipe = parse_recipe(block)
        assert recipe.rules or recipe.tests


def test_the_program_in_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    last = program.strip().splitlines()[-1]
    scope: dict[str, object] = {}
    exec(program, scope)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert first_line in program
    call, _, result = last.partition("#")
    assert repr(eval(call, scope)) == result.partition(":")[0].strip()
