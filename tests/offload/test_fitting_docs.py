"""The examples of docs/fitting.md: every command is run, and prints what stands below it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggplan.cli import cli
from ggplan.inventories import inventory
from ggplan.linting.case import make_case
from ggplan.linting.rules.gp301_promises import outcomes
from ggplan.rules import parse_recipe

FOLDER = Path(__file__).parents[2] / "docs"
PAGE = (FOLDER / "fitting.md").read_text(encoding="utf-8")
EXAMPLES = [
    (command, printed.strip("\n"))
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for command, printed in re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]


@pytest.mark.parametrize(("command", "printed"), EXAMPLES, ids=[command[:60] for command, _ in EXAMPLES])
def test_an_example_prints_what_the_page_says(
    command: str, printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"COLUMNS": "120", "NO_COLOR": "1", "XDG_CONFIG_HOME": "/nowhere"}
    found = CliRunner().invoke(cli, shlex.split(command)[1:], env=environment)
    fails = "does not fit" in printed.split("\n")[0] or " --check " in command
    assert found.exit_code == fails
    lines = [line.rstrip() for line in found.stdout.splitlines()]
    assert "\n".join(lines).strip("\n") == printed, "run tools/make_docs.py fitting"
    for drawn in tmp_path.iterdir():
        assert drawn.read_bytes() == (FOLDER / drawn.name).read_bytes(), "run tools/make_docs.py fitting"


def test_the_page_has_both_engines_and_both_machines() -> None:
    commands = "\n".join(command for command, _ in EXAMPLES)
    assert "--engine ik_llama.cpp" in commands
    assert "--cards 3090,3060" in commands
    assert any("a second GPU makes it slower" in printed for _, printed in EXAMPLES)
    assert "q8_0" in PAGE
    assert EXAMPLES[0][1].split("\n")[0].endswith(": fits")


def test_the_recipe_of_the_page_holds() -> None:
    (text,) = re.findall(r"```recipe\n(.*?)```", PAGE, re.DOTALL)
    case = make_case(inventory("GLM-4.5-Air"), parse_recipe(text))
    assert [outcome.finding for outcome in outcomes(case)] == [None, None]


def test_links_within_the_page_exist() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\(#([a-z0-9-]+)\)", PAGE)) <= headings
