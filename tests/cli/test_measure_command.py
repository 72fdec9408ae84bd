"""`ggplan measure`: reading logs, keeping records, and saying what is missing."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggplan.cli import cli
from ggplan.errors import MeasureError
from ggplan.measure import load_record

LOGS = Path(__file__).parent.parent / "data" / "logs"
KLD, PLAIN = LOGS / "kld.glm4moe-tiny.Q4_K_M.txt", LOGS / "perplexity.glm4moe-tiny.bf16.txt"


def measure(*arguments: str | Path):
    return CliRunner().invoke(cli, ["measure", *map(str, arguments)], catch_exceptions=False)


def test_logs_become_a_table_and_a_record(tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    done = measure("--parse", KLD, "--model-name", "tiny", "--record", path)
    assert done.exit_code == 0
    assert "20.7289 ± 0.5986" in done.output
    assert "+0.25 ± 0.13" in done.output
    table = tmp_path / "tiny.csv"
    assert not table.exists()
    measure("--parse", PLAIN, "--model-name", "tiny", "--record", path, "--csv", table)
    kept = load_record(path)
    assert [q.name for q in kept.quantizations] == ["glm4moe-tiny.Q4_K_M", "glm4moe-tiny.bf16"]
    assert len(table.read_text().splitlines()) == 1 + 12 + 1


def test_json_is_the_record() -> None:
    done = measure("--parse", KLD, "--json")
    assert json.loads(done.output)["schema"] == "ggplan.record/3"


def test_a_file_of_several_models_needs_a_name(tmp_path: Path) -> None:
    database = tmp_path / "others.psv"
    database.write_text("A|x|Q4|4.5|3.3|\nB|x|Q4|4.5|3.3|\n")
    assert measure("--parse", database).exit_code == 0
    with pytest.raises(MeasureError, match="several models"):
        measure("--parse", database, "--json")
    assert measure("--parse", database, "--json", "--model-name", "B").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "FILE"),
        (["x.gguf"], "--text"),
        (["x.gguf", "--text", "t", "--engine-args", "'"], "--engine-args"),
        (["x.gguf", "--text", "t", "--engine", "embedded", "--engine-args", "-ngl 9"], "--engine-args"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["measure", *arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_without_an_engine_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MeasureError, match="llama-cpp-python") as error:
        measure(KLD, "--text", KLD)
    assert "ggplan[measure]" in error.value.hint
    with pytest.raises(MeasureError, match="no program"):
        measure(KLD, "--text", KLD, "--engine", tmp_path / "nothing")


def test_what_is_no_gguf_is_not_measured(tmp_path: Path) -> None:
    engine = tmp_path / "llama-perplexity"
    engine.write_text("#!/bin/sh\nexit 3\n")
    engine.chmod(0o755)
    for file in (KLD, tmp_path / "nowhere.gguf"):
        with pytest.raises(Exception, match=file.name):
            measure(file, "--text", KLD, "--engine", engine)
