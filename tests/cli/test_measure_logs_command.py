"""`ggplan measure --parse` and what it says of what it reads; no failure loses what was measured before."""

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggplan.cli import cli
from ggplan.errors import MeasureError
from ggplan.measure import kept_scores, load_record

sys.path.insert(0, str(Path(__file__).parent.parent / "measure"))

from stub_engine import write_model, write_program, write_text

DATA = Path(__file__).parent.parent / "data"
CASES = DATA / "cases"
PLAIN = DATA / "logs" / "perplexity.glm4moe-tiny.bf16.txt"
KLD = DATA / "logs" / "kld.glm4moe-tiny.Q4_K_M.txt"


def measure(*arguments: str | Path):
    return CliRunner().invoke(cli, ["measure", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text, a base, a quantization, and an engine on the PATH."""
    write_text(tmp_path / "eval.txt", 1)
    write_model(tmp_path / "demo-bf16.gguf", 0.0, n_columns=64)
    write_model(tmp_path / "demo-q8_0.gguf", 0.2)
    program = write_program(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_case_has_its_entries() -> None:
    done = measure("--parse", CASES / "three-perplexity-runs.log", "--json")
    found = json.loads(done.stdout)["quantizations"]
    assert [q["measurements"][0]["metrics"].get("kld999", {}).get("value") for q in found] == [
        None, 0.692257, 0.081273,
    ]  # fmt: skip
    assert "3 runs name no file (lines 9, 19, 99)" in done.stderr
    done = measure("--parse", CASES / "two-sweeps.log")
    assert "model-A" in done.stdout
    assert "10.00" in done.stdout
    assert "40.00" in done.stdout
    done = measure("--parse", CASES / "card-of-several.md")
    assert "M-27B-BF16" in done.stdout
    assert "8.1890 ± 0.0637" in done.stdout
    done = measure("--parse", CASES / "empty-cell.csv")
    assert "4.7100" in done.stdout
    assert "empty-cell.csv: line 2: iq1_m has no ppl" in done.stderr
    assert "note" not in measure("--parse", CASES / "empty-cell.csv", "-q").output
    assert "20.6764" in measure("--parse", CASES / "utf16.log").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parse", "x.log", "--base", "b.gguf", "--ctx", "512"], "leave out --base, --ctx"),
        (["--parse", "x.log", "--held-out", "t"], "--held-out"),
        (["--parse", "x.log", "-t", "4", "--engine", "x"], "--engine, --threads"),
        (["x.gguf", "--text", "t", "--size", "a=5MiB"], "--size belongs to --parse"),
        (["x.gguf", "--text", "t", "--gguf", "a.gguf"], "--gguf belongs to --parse"),
        (["--parse", "x.log", "--size", "5MiB"], "'5MiB' is not NAME=SIZE"),
        (["--parse", "x.log", "--size", "a=big"], "'big' is not a size"),
        (["--parse", "x.log", "--gguf", "a.gguf", "--csv", "a.gguf"], "--csv would overwrite a.gguf"),
    ],
)
def test_options_without_an_effect_are_refused(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["measure", *arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_a_log_gets_its_text_and_its_file(lab: Path) -> None:
    log = lab / "demo-q8_0.log"
    log.write_bytes(PLAIN.read_bytes())
    done = measure("--parse", log, "--text", "eval.txt", "--gguf", "demo-q8_0.gguf", "--record", "r.json")
    assert done.exit_code == 0, done.output
    record = load_record("r.json")
    (quantization,) = record.quantizations
    measure(
        "demo-q8_0.gguf", "--base", "demo-bf16.gguf", "--text", "eval.txt", "-c", 16, "--record", "s.json"
    )
    own = load_record("s.json").quantizations[1]
    assert quantization.file == own.file
    assert quantization.measurements[0].text == own.measurements[0].text
    assert record.model.name == "Tiny"
    sized = measure("--parse", log, "--size", "demo-q8_0=24.6MiB", "--json")
    assert json.loads(sized.stdout)["quantizations"][0]["file"]["n_bytes"] == int(24.6 * 2**20)


def test_a_record_of_an_unnamed_model_gets_its_name(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    measure("--parse", PLAIN, "--record", path)
    with pytest.raises(MeasureError, match="unnamed model") as error:
        measure("--parse", CASES / "sweep-bench.GLM-4.5-Air_1024_1024.txt", "--record", path)
    assert "--model-name" in error.value.hint
    done = measure("--parse", KLD, "--record", path, "--model-name", "tiny")
    assert done.exit_code == 0, done.output
    record = load_record(path)
    assert (record.model.name, len(record.quantizations)) == ("tiny", 2)


def test_what_was_measured_before_a_failure_is_kept_and_shown(lab: Path) -> None:
    bad = write_model(lab / "demo-q2_K.gguf", 0.5, 7)
    bad.write_bytes(bad.read_bytes().replace(b"noise=", b"nowhr="))
    done = CliRunner().invoke(
        cli,
        ["measure", "demo-q8_0.gguf", bad.name, "--base", "demo-bf16.gguf", "--text", "eval.txt", "-c", "16",
         "--record", "r.json"],
    )  # fmt: skip
    assert isinstance(done.exception, MeasureError)
    assert "q8_0" in done.stdout
    assert "these are kept in r.json" in done.stdout
    record = load_record("r.json")
    assert [q.name for q in record.quantizations] == ["bf16", "q8_0"]
    find = kept_scores("r.json")
    assert all(find(q, q.measurements[0]) is not None for q in record.quantizations)


def test_a_file_of_the_lock_s_name_stays(lab: Path) -> None:
    (lab / "r.json.lock").write_text("mine\n")
    options = ("--base", "demo-bf16.gguf", "--text", "eval.txt", "-c", 16)
    assert measure("demo-q8_0.gguf", *options, "--record", "r.json").exit_code == 0
    assert (lab / "r.json.lock").read_text() == "mine\n"
    assert measure("demo-q8_0.gguf", *options, "--record", "s.json").exit_code == 0
    assert not (lab / "s.json.lock").exists()


def test_an_engine_that_does_not_load_says_why(
    tmp_path: Path, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "raise RuntimeError(\"Failed to load shared library 'libllama.so':\\n no such file\")\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.setenv("PATH", os.defpath)
    with pytest.raises(
        MeasureError, match="is installed, but does not load: Failed to load shared library"
    ) as e:
        measure("demo-q8_0.gguf", "demo-bf16.gguf", "--text", "eval.txt")
    assert "--no-cache-dir" in e.value.hint


def test_the_example_of_the_package(lab: Path) -> None:
    import doctest

    import ggplan.measure

    write_model(lab / "tiny-bf16.gguf", 0.0, n_columns=64)
    write_model(lab / "tiny-q4_K.gguf", 0.8, 2)
    write_text(lab / "eval.txt", 1, 4000)
    found = doctest.testmod(ggplan.measure)
    assert found.attempted == 5
    assert found.failed == 0


def test_a_log_on_standard_input() -> None:
    by_name = json.loads(measure("--parse", PLAIN, "--json").stdout)
    done = CliRunner().invoke(cli, ["measure", "--parse", "-", "--json"], input=PLAIN.read_bytes())
    (q,) = json.loads(done.stdout)["quantizations"]
    assert q["name"] == "stdin"
    assert q["measurements"] == by_name["quantizations"][0]["measurements"]
    with pytest.raises(MeasureError, match="standard input is empty"):
        CliRunner().invoke(cli, ["measure", "--parse", "-"], catch_exceptions=False)
    with pytest.raises(MeasureError, match="<stdin>: is no log or table"):
        CliRunner().invoke(cli, ["measure", "--parse", "-"], input="hello\n", catch_exceptions=False)
