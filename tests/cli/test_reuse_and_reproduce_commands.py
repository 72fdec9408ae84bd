"""`--reuse` and `ggplan reproduce` as a user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from program import run

import ggplan

DEMO = Path(ggplan.__file__).parent / "demo_model"
RECIPE = "gate_exps = q4_K | q8_0\n@default q8_0\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ggplan convert` makes of the demo model."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "old.recipe").write_text(RECIPE)
    (folder / "new.recipe").write_text(RECIPE.replace("q4_K", "q5_K"))
    done = run("convert", DEMO, folder / "old.gguf", "-r", folder / "old.recipe", "--pre", "glm4", "-q")
    assert done.returncode == 0, done.stderr
    return folder


def test_what_is_reused_is_shown_before_and_after(made: Path, tmp_path: Path) -> None:
    common = (DEMO, "-r", made / "new.recipe", "--pre", "glm4", "--reuse", made / "old.gguf")
    planned = run("plan", *common)
    assert planned.returncode == 0, planned.stderr
    (line,) = [line for line in planned.stdout.splitlines() if "to be copied from old.gguf" in line]
    assert "once their weights and bytes are proven the same" in line
    assert "q4_K in the earlier file: blk." in planned.stdout
    found = json.loads(run("plan", *common, "--json").stdout)["reuse"]
    assert found["tensors"] == int(line.split()[0])
    assert found["bytes"] > found["of_bytes"] / 2
    done = run("convert", DEMO, tmp_path / "out.gguf", *common[1:])
    assert done.returncode == 0, done.stderr
    assert f"{found['tensors']} of {found['of_tensors']} tensors" in done.stdout
    assert run("convert", DEMO, tmp_path / "fresh.gguf", *common[1:-2], "-q").returncode == 0
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "fresh.gguf").read_bytes()
    done = run("convert", DEMO, tmp_path / "out.gguf", *common[1:], "--force", "--json")
    assert json.loads(done.stdout)["reuse"]["copied"] == found["copied"]


def test_a_missing_old_file_is_one_clean_line(made: Path, tmp_path: Path) -> None:
    done = run("convert", DEMO, tmp_path / "o.gguf", "--pre", "glm4", "--reuse", tmp_path / "no.gguf", "-q")
    assert done.returncode == 1
    assert "no.gguf" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_reproduce(made: Path, tmp_path: Path) -> None:
    old = made / "old.gguf"
    done = run("reproduce", old, DEMO, "-o", tmp_path / "again.gguf")
    assert done.returncode == 0, done.stderr
    assert "note: the pre-tokenizer is the recorded one, glm4" in done.stderr
    assert "every byte is what" in done.stdout
    assert (tmp_path / "again.gguf").read_bytes() == old.read_bytes()
    done = run("reproduce", old, DEMO, "--pre", "glm4", "--json")
    found = json.loads(done.stdout)
    assert (found["schema"], found["equal"], found["inputs"], found["faults"]) == (
        "ggplan/reproduction@1",
        True,
        [],
        [],
    )


def test_reproduce_names_what_differs(made: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(DEMO, tmp_path / "demo_model")
    config = json.loads((changed / "config.json").read_text())
    config["rope_theta"] = 12345.0
    (changed / "config.json").write_text(json.dumps(config))
    done = run("reproduce", made / "old.gguf", changed, "--pre", "glm4")
    assert done.returncode == 1
    assert "old.gguf: config.json is not what the file was made from" in done.stderr
    copy = shutil.copy(made / "old.gguf", tmp_path / "old.gguf")
    data = bytearray(Path(copy).read_bytes())
    data[-100] ^= 1
    Path(copy).write_bytes(data)
    done = run("reproduce", copy, DEMO, "--pre", "glm4", "--json")
    assert done.returncode == 1
    (fault,) = json.loads(done.stdout)["faults"]
    assert fault["where"] == ggplan.open_model(copy).tensors[-1].name


def test_reproduce_needs_a_file_that_says_how_it_was_made(made: Path, tmp_path: Path) -> None:
    data = (made / "old.gguf").read_bytes().replace(b"ggplan.version", b"gGplan.version")
    (tmp_path / "theirs.gguf").write_bytes(data)
    done = run("reproduce", tmp_path / "theirs.gguf", DEMO, "--pre", "glm4")
    assert done.returncode == 2
    assert "does not say how it was made" in done.stderr
    assert run("reproduce", made / "old.gguf").returncode == 2


def test_exactness_takes_the_recorded_pre_tokenizer_as_reproduce_does(made: Path) -> None:
    done = run("verify", made / "old.gguf", "--against", DEMO, "--exact")
    assert done.returncode == 0, done.stderr
    assert "every byte is what the plan encodes" in done.stdout
    assert "note: the pre-tokenizer is the recorded one, glm4" in done.stderr
