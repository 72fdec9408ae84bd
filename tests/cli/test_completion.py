"""`ggplan completion`: what shells offer, by the protocol and in a real bash."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from program import run

from ggplan.ggml_types import TYPES
from ggplan.inventories import names_of_inventories
from ggplan.linting import lint_rules
from ggplan.rules.loading import shipped_recipes
from ggplan.stock import MIXES

MIX_NAMES = [mix.name for mix in MIXES]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(line: str) -> list[str]:
    """What is offered for the last word of a line, each with its kind before it if that is not `plain`."""
    words = shlex.split(line) + [""] * line.endswith(" ")
    asked = {"COMP_WORDS": shlex.join(words), "COMP_CWORD": str(len(words) - 1)}
    done = run(_GGPLAN_COMPLETE="bash_complete", **asked)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.removeprefix("plain,") for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    "line",
    ["ggplan plan x -r ", "ggplan convert x y --recipe ", "ggplan rules check ", "ggplan rules explain t -r ",
     "ggplan rules fmt ", "ggplan rules export ", "ggplan chart x -r ", "ggplan verify x -r ",
     "ggplan diff "],
)  # fmt: skip
def test_recipes_are_offered(line: str) -> None:
    assert offered(line) == sorted([*shipped_recipes(), *MIX_NAMES])


@pytest.mark.parametrize(
    "line",
    ["ggplan plan ", "ggplan convert ", "ggplan inspect ", "ggplan diff a b -m ",
     "ggplan verify x --against ",
     "ggplan rules check -m ", "ggplan rules new --from ", "ggplan rules list ", "ggplan rules from ",
     "ggplan reproduce x ", "ggplan rules export r -m ", "ggplan rules import f -m "],
)  # fmt: skip
def test_models_are_offered(line: str) -> None:
    assert offered(line) == sorted(names_of_inventories())


def test_types_mixes_codes_and_choices_are_offered() -> None:
    types = [row.name for row in TYPES if row.name.startswith("iq4") and not row.internal]
    assert offered("ggplan types q4_K IQ4") == types
    assert offered("ggplan rules from x --mix ") == MIX_NAMES
    assert offered("ggplan rules check --explain ") == list(lint_rules())
    assert offered("ggplan convert x y --effort ") == ["default", "best", "feedback"]
    assert "convert" in offered("ggplan ")
    assert offered("ggplan rules ex") == ["explain", "export"]
    assert "--split-max-size" in offered("ggplan convert --s")


def test_names_are_found_in_any_case_and_files_stand_beside_them(folder: Path) -> None:
    assert offered("ggplan plan x -r q4_k") == ["Q4_K_M", "Q4_K_S"]
    assert offered("ggplan plan glm-4.5-a") == ["GLM-4.5-Air"]
    (folder / "GLM-4.5-mine").mkdir()
    (folder / "glm4moe.recipe").touch()
    (folder / ".hidden").touch()
    assert offered("ggplan plan GLM-4.5-") == ["GLM-4.5-Air", "GLM-4.5-mine"]
    assert "glm4moe.recipe" in offered("ggplan plan x -r glm4moe")
    assert ".hidden" not in offered("ggplan plan ")
    # What no name begins with is a file, which the shell completes itself.
    assert offered("ggplan plan ../model") == ["file,../model"]
    assert offered("ggplan verify ") == ["file,"]
    assert offered("ggplan measure x --text ") == ["file,"]


def test_what_nothing_begins_with_is_offered_nothing_and_no_message() -> None:
    assert offered("ggplan types no-such") == []
    assert offered("ggplan nonsense --no-such") == []
    assert offered("ggplan plan --no-such-option x --eff") == ["--effort"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_the_shells_own(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert f"_GGPLAN_COMPLETE={shell}_complete" in done.stdout
    # What no version of a shell but this one reads is no other's.
    assert {"bash": "COMPREPLY", "zsh": "#compdef ggplan", "fish": "commandline"}[shell] in done.stdout
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=done.stdout, text=True, check=True)


def test_another_shell_is_a_mistake() -> None:
    done = run("completion", "tcsh")
    assert done.returncode == 2
    assert "'bash', 'zsh', 'fish'" in done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_real_bash_completes(folder: Path) -> None:
    program = folder / "bin" / "ggplan"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ggplan "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(ggplan completion bash)"
        complete -p ggplan
        COMP_WORDS=(ggplan plan GLM-4.5-Air -r glm4moe/h) COMP_CWORD=4
        _ggplan_completion ggplan
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    source = Path(__file__).parents[2]
    environment = os.environ | {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(source),
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _ggplan_completion ggplan",
        "glm4moe/hq4_k",
    ]


@pytest.mark.parametrize(
    "line", ["ggplan rules check r --select ", "ggplan plan m --ignore ", "ggplan rules explain "]
)
def test_codes_are_offered_where_they_are_taken(line: str) -> None:
    assert offered(line) == list(lint_rules())
    assert offered("ggplan rules check r --select GP101,gp10") == [
        f"GP101,{code}" for code in lint_rules() if code.startswith("GP10")
    ]
    assert offered("ggplan rules explain GP10") == [code for code in lint_rules() if code.startswith("GP10")]


def test_pretokenizers_are_offered() -> None:
    assert {"glm4", "qwen2", "llama-bpe"} <= set(offered("ggplan convert a b --pre "))
    assert offered("ggplan plan a --pre glm") == ["glm4", "glm5"]
