"""`ggplan optimize --probe`, `--probes`, `--errors` and `--verify` from the command line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from program import run
from test_probes import TRUE, WEIGHTS, weights_of
from weighing_engine import weighing_engine, write_model

from ggplan.measure import load_record


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The runs of the engine, which stands in for the one that is named."""
    runs: list[dict[str, str]] = []
    engine = weighing_engine(WEIGHTS, TRUE, runs)
    monkeypatch.setattr("ggplan.cli.optimize_probes.engine_of", lambda program, probing: engine)
    return runs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "tiny.gguf", WEIGHTS)
    for seed, name in enumerate(("a.txt", "b.txt")):
        text = np.random.default_rng(seed).integers(33, 90, 40 * 512, np.uint8)
        (tmp_path / name).write_bytes(bytes(text))
    return tmp_path


def test_probe_once_and_use_the_record_again(here: Path, log) -> None:
    asked = ("optimize", "tiny.gguf", "--bpw", "4", "--probe", "--text", "a.txt", "--text", "b.txt")
    done = run(*asked, "-o", "first.recipe")
    assert done.returncode == 0, done.stderr
    assert "kept in tiny.probes.json" in done.stderr
    text = (here / "first.recipe").read_text()
    assert "8 probes by weighing on a.txt, b.txt (tiny.probes.json)" in text
    assert "when the model was probed" in text
    assert len(log) == 2 * 10
    again = run("optimize", "tiny.gguf", "--bpw", "4", "--probes", "tiny.probes.json")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[1:] == [
        line.replace("first", "tiny-4bpw") for line in text.splitlines()[1:]
    ]
    assert len(log) == 2 * 10
    whole = run(*asked, "--force", "-o", "first.recipe")
    assert whole.returncode == 0
    assert len(log) == 2 * 10
    prior = run("optimize", "tiny.gguf", "--bpw", "4")
    assert "prior by role and depth" in prior.stdout
    rules = [line for line in prior.stdout.splitlines() if " = " in line]
    assert rules != [line for line in text.splitlines() if " = " in line]


def test_without_a_terminal_each_run_has_a_line_and_a_stop_says_what_is_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[dict[str, str]] = []

    def stop() -> bool:
        if len(runs) == 3:
            sys.exit(143)  # as at SIGTERM
        return False

    engine = weighing_engine(WEIGHTS, TRUE, runs, stop)
    monkeypatch.setattr("ggplan.cli.optimize_probes.engine_of", lambda program, probing: engine)
    asked = ("optimize", "tiny.gguf", "--bpw", "4", "--probe", "--text", "a.txt")
    done = run(*asked)
    assert done.returncode == 143
    told = [line for line in done.stderr.splitlines() if " of 10 runs: " in line]
    assert told[0] == "note: 1 of 10 runs: base on a.txt"
    assert len(told) == 3
    last = done.stderr.splitlines()[-1]
    assert last == (
        "interrupted: what was measured is in tiny.probes.json; the same command goes on from there"
    )
    runs.append({})
    again = run(*asked)
    assert again.returncode == 0, again.stderr
    assert "note: 7 of 7 runs: " in again.stderr
    assert " runs: " not in run(*asked, "-q", "--probes", "other.json").stderr


def test_probes_of_another_model_are_refused(here: Path, log) -> None:
    assert run("optimize", "tiny.gguf", "--bpw", "4", "--probe", "--text", "a.txt").returncode == 0
    done = run("optimize", "Qwen3-8B", "--bpw", "4", "--probes", "tiny.probes.json")
    assert done.returncode == 1
    assert "has the probes of another model, Tiny" in done.stderr


def test_probes_of_other_weights_are_used_and_noted(here: Path, log) -> None:
    assert run("optimize", "tiny.gguf", "--bpw", "4", "--probe", "--text", "a.txt").returncode == 0
    used = run("optimize", "tiny.gguf", "--bpw", "4", "--probes", "tiny.probes.json")
    assert "other weights" not in used.stderr
    write_model(here / "tuned.gguf", weights_of(7))
    other = run("optimize", "tuned.gguf", "--bpw", "4", "--probes", "tiny.probes.json")
    assert other.returncode == 0
    assert "the probes are of other weights, Tiny" in other.stderr


def test_verify_measures_the_result_beside_a_mix_and_a_type(here: Path, log) -> None:
    done = run(
        "optimize", "tiny.gguf", "--bpw", "4.6", "--verify", "--text", "a.txt", "--record", "r.json", "-o",
        "t.recipe",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stderr.splitlines()]
    assert any(row[:1] == ["optimized"] for row in rows)
    assert any(row[:2] == ["all", "q4_K"] for row in rows)
    record = load_record(here / "r.json")
    notes = {q.name: q.note for q in record.quantizations}
    assert len(record.quantizations) == 4
    assert notes["optimized"].startswith("KL divergence predicted by ggplan optimize: ")
    for quantization in record.quantizations:
        assert quantization.measurements
    assert sorted(p.name for p in here.iterdir()) == [
        "a.txt", "b.txt", "r.json", "r.scores", "t.recipe", "tiny.gguf",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--probe"], "--text is missing"),
        (["--text", "a.txt"], "--text is for --probe and --verify"),
        (["--engine", "/bin/llama"], "a program runs for --probe and --verify alone"),
        (["--engine", "llama.cpp", "--engine", "ik_llama.cpp"], "one engine's types and one program"),
        (["--record", "x.json"], "--record is for --verify"),
        (["--probe-base", "q8_0"], "--probe-base is for --probe"),
        (["--probe", "--text", "a.txt", "--table", "x.csv"], "not from both"),
        (["--probe", "--text", "a.txt", "--probes", "a.txt"], "--probes would overwrite a.txt"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, here: Path) -> None:
    done = run("optimize", "tiny.gguf", "--bpw", "4", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_errors_are_measured_where_that_is_asked_for(here: Path) -> None:
    table = run("optimize", "tiny.gguf", "--bpw", "4", "--json", "-q")
    measured = run("optimize", "tiny.gguf", "--bpw", "4", "--errors", "measured", "--json", "-q")
    assert measured.returncode == 0, measured.stderr
    assert "measured on 64 rows" in json.loads(measured.stdout)["recipe"]
    assert "no weight was read" in json.loads(table.stdout)["recipe"]
    none = run("optimize", "Qwen3-8B", "--bpw", "4", "--errors", "measured")
    assert none.returncode == 1
    assert "weights" in none.stderr
