"""`ggplan measure`: measuring by an engine, reading logs, keeping records, and saying what is missing."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner

import ggplan.cli.measure
from ggplan.cli import cli
from ggplan.cli.progress import chunks_bar
from ggplan.errors import ChartError, MeasureError
from ggplan.measure import OpenRecord, kept_scores, load_record

sys.path.insert(0, str(Path(__file__).parent.parent / "measure"))

from stub_engine import stub_engine, write_model, write_program, write_text

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
        (["x.gguf", "--text", "t", "--record", "x.csv"], "--record is a JSON file"),
        (["--parse", "x.log", "--record", "X.CSV"], "--record is a JSON file"),
        (["x.gguf", "--text", "t", "--csv", "no/x.csv"], "its folder does not exist"),
        (["x.gguf", "--text", "t", "--csv", "./x.gguf"], "--csv would overwrite x.gguf"),
        (["x.gguf", "--text", "t", "--record", "t"], "--record would overwrite t"),
        (["x.gguf", "--text", "t", "--base", "b", "--keep-logits", "b"], "--keep-logits would overwrite b"),
        (["x.gguf", "--text", "t", "--record", "r", "--csv", "r"], "--csv would overwrite r"),
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
    with pytest.raises(MeasureError, match="not a program"):
        measure(KLD, "--text", KLD, "--engine", tmp_path / "nothing")


def test_what_is_no_gguf_is_not_measured(tmp_path: Path) -> None:
    engine = tmp_path / "llama-perplexity"
    engine.write_text("#!/bin/sh\nexit 3\n")
    engine.chmod(0o755)
    for file in (KLD, tmp_path / "nowhere.gguf"):
        with pytest.raises(Exception, match=file.name):
            measure(file, "--text", KLD, "--engine", engine)


@pytest.fixture
def lab_with_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text, a base, two quantizations, and an engine on the PATH that logs its runs."""
    write_text(tmp_path / "eval.txt", 1)
    write_model(tmp_path / "demo-bf16.gguf", 0.0, n_columns=64)
    write_model(tmp_path / "demo-q8_0.gguf", 0.2)
    write_model(tmp_path / "demo-q4_K.gguf", 0.8, 2)
    program = write_program(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def lab(lab_with_program: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, but the engine's runs are calls in this process, which take no start of a program."""
    monkeypatch.setattr("ggplan.measure.external_engine", lambda path, options: stub_engine())
    return lab_with_program


def runs(lab: Path) -> list[str]:
    log = lab / "runs"
    return log.read_text().splitlines() if log.exists() else []


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def titles_of(path: Path) -> list[str]:
    return [t.text or "" for t in ET.parse(path).iter("{http://www.w3.org/2000/svg}title")]


def by_file(output: str) -> dict[str, dict]:
    """The measurement of each file of a JSON record, without the day."""
    return {
        q["file"]["name"]: q["measurements"][0] | {"date": ""} for q in json.loads(output)["quantizations"]
    }


def test_either_order_of_base_and_quantized_gives_the_same_figures(lab_with_program: Path) -> None:
    lab = lab_with_program
    options = ("--text", "eval.txt", "-c", 16, "--json")
    files = ["demo-q8_0.gguf", "demo-bf16.gguf"]
    found = [
        by_file(measure(*command, *options).output)
        for command in (files, files[::-1], [*files, "--base", files[1]])
    ]
    assert all(f == found[0] for f in found)
    base, quantized = found[0]["demo-bf16.gguf"], found[0]["demo-q8_0.gguf"]
    assert base["base"] == {"name": "bf16", "sha256": digest(lab / "demo-bf16.gguf")}
    assert "kld" not in base["metrics"]
    assert quantized["metrics"]["kld"]["value"] > 0
    assert base["metrics"]["ppl"]["value"] != quantized["metrics"]["ppl"]["value"]
    assert runs(lab) == ["demo-bf16.gguf", "demo-q8_0.gguf"] * 3


def test_figures_scores_and_table_are_kept_where_asked(lab_with_program: Path) -> None:
    lab = lab_with_program
    (lab / "demo.csv").write_text("mine")
    options = ("--text", "eval.txt", "-c", 16, "--record", "demo.json")
    done = measure("demo-q8_0.gguf", "demo-bf16.gguf", *options)
    assert done.exit_code == 0
    assert "kept in demo.json" in done.output
    assert (lab / "demo.csv").read_text() == "mine"
    measure("demo-q4_K.gguf", "--base", "demo-bf16.gguf", *options, "--csv", "table.csv")
    assert [q.name for q in load_record("demo.json").quantizations] == ["bf16", "q8_0", "q4_K"]
    assert len(list((lab / "demo.scores").iterdir())) == 3
    rows = (lab / "table.csv").read_text().splitlines()
    assert [sum(f",{name}," in row for row in rows) for name in ("bf16", "q8_0", "q4_K")] == [1, 12, 12]
    assert not (lab / "demo.json.lock").exists()


def test_a_record_that_does_not_fit_is_refused_before_the_engine(lab: Path) -> None:
    options = ("--text", "eval.txt", "-c", 16, "--record", "demo.json")
    measure("demo-bf16.gguf", *options, "--model-name", "Another")
    before, n_runs = (lab / "demo.json").read_bytes(), len(runs(lab))
    with pytest.raises(MeasureError, match="records of Another and of Tiny"):
        measure("demo-q8_0.gguf", "demo-bf16.gguf", *options)
    (lab / "broken.json").write_text("{}")
    with pytest.raises(MeasureError, match=r"broken\.json is not a record"):
        measure("demo-q8_0.gguf", "--text", "eval.txt", "--record", "broken.json")
    assert (lab / "demo.json").read_bytes() == before
    assert len(runs(lab)) == n_runs


def test_of_two_runs_at_once_the_second_is_refused_and_neither_is_lost(
    lab_with_program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = lab_with_program
    options = ["--text", "eval.txt", "-c", "16", "--record", "demo.json"]
    program = [sys.executable, "-m", "ggplan", "measure"]
    monkeypatch.setenv("STUB_WAIT", str(lab / "go"))
    other = [*program, "demo-q4_K.gguf", "--base", "demo-bf16.gguf", *options]
    with subprocess.Popen([*program, "demo-q8_0.gguf", "demo-bf16.gguf", *options]) as first:
        try:
            deadline = time.monotonic() + 60
            while not runs(lab) and time.monotonic() < deadline:
                time.sleep(0.02)
            second = subprocess.run(other, capture_output=True, text=True, check=False)
        finally:
            (lab / "go").touch()
    assert second.returncode == 1
    assert second.stderr.startswith("error: another run of ggplan is measuring into")
    assert first.returncode == 0
    assert runs(lab) == ["demo-bf16.gguf", "demo-q8_0.gguf"]
    assert subprocess.run(other, capture_output=True, check=False).returncode == 0
    assert [q.name for q in load_record("demo.json").quantizations] == ["bf16", "q8_0", "q4_K"]


def test_two_texts_of_one_name_have_a_table_each(lab: Path) -> None:
    for i, folder in enumerate("ab"):
        write_text(lab / folder / "eval.txt", i)
    texts = ("--text", "a/eval.txt", "--held-out", "b/eval.txt")
    done = measure("demo-q8_0.gguf", "demo-bf16.gguf", *texts, "-c", 16, "--record", "demo.json")
    assert "Tiny on a/eval.txt (choose)" in done.output
    assert "Tiny on b/eval.txt (held out)" in done.output
    assert len(list((lab / "demo.scores").iterdir())) == 4


def test_tokens_without_a_number_are_shown(lab_with_program: Path) -> None:
    lab = lab_with_program
    write_model(lab / "demo-q2_K.gguf", 0.5, nan=2)
    done = measure("demo-q2_K.gguf", "demo-bf16.gguf", "--text", "eval.txt", "-c", 16)
    assert "q2_K gives no number for 2 of 84 tokens of eval.txt" in done.output
    assert "NaN tokens" in done.output
    assert "nan" not in done.stdout.replace("NaN tokens", "")


def test_equally_large_files_need_a_base(lab: Path) -> None:
    with pytest.raises(MeasureError, match="equally large"):
        measure("demo-q8_0.gguf", "demo-q4_K.gguf", "--text", "eval.txt")
    assert runs(lab) == []


def test_charts_take_ties_from_the_kept_scores(lab: Path) -> None:
    write_text(lab / "long.txt", 3, 4000)
    for i, noise in enumerate((0.30, 0.31)):
        write_model(lab / f"demo-{noise}.gguf", noise, 5, n_columns=32 + 2 * i)
    options = ("--text", "long.txt", "-c", 16, "--record", "demo.json")
    done = measure("demo-0.3.gguf", "demo-0.31.gguf", "demo-bf16.gguf", *options)
    assert "tie" not in done.output

    def chart(record: str) -> tuple[str, str]:
        done = CliRunner().invoke(cli, ["chart", record, "-o", "x.html"], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output, (lab / "x.html").read_text()

    said, page = chart("demo.json")
    assert "note" not in said
    assert "a tie within one error." in page
    (lab / "bare.json").write_bytes((lab / "demo.json").read_bytes())
    assert "errors taken as independent" in chart("bare.json")[1]
    (lab / "demo.scores" / "q4_K.eval.txt.npz").write_bytes(b"")
    assert "q4_K.eval.txt.npz is not used" in chart("demo.json")[0]


def test_a_text_of_an_ambiguous_name_is_chosen_by_its_digest(lab: Path) -> None:
    more = ("-c", 16, "--record", "demo.json")
    for seed in (1, 2):
        write_text(lab / "eval.txt", seed)
        measure("demo-q8_0.gguf", "demo-bf16.gguf", "--text", "eval.txt", *more)

    def chart(*more: str):
        return CliRunner().invoke(cli, ["chart", "demo.json", "-o", "x.svg", *more], catch_exceptions=False)

    with pytest.raises(ChartError, match=r"under 2 conditions: text eval\.txt"):
        chart()
    with pytest.raises(ChartError, match=r"2 texts are called eval\.txt") as error:
        chart("--text", "eval.txt")
    assert "digest" in error.value.hint
    assert chart("--text", digest(lab / "eval.txt")[:8]).exit_code == 0
    (lab / "eval.txt").rename(lab / "renamed.txt")
    measure("demo-q4_K.gguf", "--base", "demo-bf16.gguf", "--text", "renamed.txt", *more)
    assert chart("--text", "renamed.txt").exit_code == 0
    assert {"q8_0", "q4_K"} <= {t.partition(":")[0] for t in titles_of(lab / "x.svg")}


def keeping(*more: str):
    """Measure with an option that must be refused."""
    command = ["measure", "demo-q8_0.gguf", "demo-bf16.gguf", "--text", "eval.txt", "-c", "16", *more]
    return CliRunner().invoke(cli, command)


@pytest.mark.parametrize(
    ("more", "message", "code"),
    [
        (["--record", "air.json"], "air.scores: File exists", 1),
        (["--record", "x.scores"], "the record and the folder of its scores", 1),
        (["--record", "a folder"], "a folder: it is a folder", 1),
        (["--csv", "a folder"], "--csv: cannot write a folder: it is a folder", 2),
        (["--csv", "n" * 250], "File name too long", 2),
        (["--keep-logits", "a folder"], "--keep-logits: cannot write a folder: it is a folder", 2),
        (["--keep-logits", "no/x"], "--keep-logits: cannot write no/x: its folder does not exist", 2),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_the_engine(
    lab: Path, more: list[str], message: str, code: int
) -> None:
    (lab / "a folder").mkdir()
    (lab / "air.scores").touch()
    before = sorted(lab.iterdir())
    done = keeping(*more)
    assert done.exit_code == code
    assert message in done.output + str(getattr(done.exception, "message", ""))
    assert runs(lab) == []
    assert sorted(lab.iterdir()) == before


def test_records_are_put_together_with_their_scores(lab: Path) -> None:
    options = ("--base", "demo-bf16.gguf", "--text", "eval.txt")
    measure("demo-q8_0.gguf", *options, "-c", 16, "--record", "a.json")
    measure("demo-q8_0.gguf", *options, "-c", 32, "--record", "a.json")
    measure("demo-q4_K.gguf", *options, "-c", 16, "--record", "b.json")
    before = {
        path.name: path.read_bytes() for folder in "ab" for path in (lab / f"{folder}.scores").iterdir()
    }
    assert len(before) == 5
    done = measure("--parse", "a.json", "b.json", "--record", "all.json")
    assert done.exit_code == 0
    assert "note" not in done.output
    find, kept = kept_scores("all.json"), load_record("all.json")
    assert sorted(path.name for path in (lab / "all.scores").iterdir()) == sorted(before)
    assert all(find(q, m) is not None for q in kept.quantizations for m in q.measurements)
    again = measure("--parse", "all.json", "b.json", "--record", "all.json")
    assert again.exit_code == 0
    assert "note" not in again.output
    assert sorted(path.name for path in (lab / "all.scores").iterdir()) == sorted(before)


def test_scores_that_cannot_be_carried_over_fail_after_the_figures(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--base", "demo-bf16.gguf", "--text", "eval.txt", "-c", 16)
    measure("demo-q8_0.gguf", *options, "--record", "a.json")
    add = OpenRecord.add
    monkeypatch.setattr(OpenRecord, "add", lambda kept, new: (lab / "all.scores").touch() or add(kept, new))
    done = CliRunner().invoke(cli, ["measure", "--parse", "a.json", "--record", "all.json"])
    assert isinstance(done.exception, MeasureError)
    assert "the figures are kept in" in done.exception.message
    assert "99 % KLD" in done.output
    assert len(load_record("all.json").quantizations) == 2


@pytest.mark.parametrize("fault", ["missing", "damaged", "of another file"])
def test_scores_that_are_not_carried_over_are_named(lab: Path, fault: str) -> None:
    options = ("--base", "demo-bf16.gguf", "--text", "eval.txt", "-c", 16)
    measure("demo-q8_0.gguf", *options, "--record", "a.json")
    measure("demo-q4_K.gguf", *options, "--record", "b.json")
    prefix = digest(lab / "demo-q4_K.gguf")[:12]
    (path,) = (lab / "b.scores").glob(f"{prefix}*")
    other = next(
        p for p in (lab / "a.scores").iterdir() if p.name[:12] == digest(lab / "demo-q8_0.gguf")[:12]
    )
    path.unlink() if fault == "missing" else path.write_bytes(
        b"" if fault == "damaged" else other.read_bytes()
    )
    done = measure("--parse", "a.json", "b.json", KLD, "--model-name", "Tiny", "--record", "all.json")
    assert done.exit_code == 0
    assert "no scores of tokens are kept of q4_K on eval.txt;" in done.output
    assert ("not carried over: " in done.output) == (fault != "missing")
    assert (path.name in done.output) == (fault != "missing")
    assert len(list((lab / "all.scores").iterdir())) == 2
    stray = path.rename(path.with_name("q4_K.eval.txt.npz")) if path.exists() else None
    if stray is not None:
        done = measure("--parse", "a.json", "b.json", "--record", "all.json")
        assert f"{stray.name} belong to no measurement" in done.output
    quiet = measure("--parse", "a.json", "b.json", "--record", "other.json", "-q")
    assert "note" not in quiet.output


@pytest.mark.parametrize("option", ["--csv", "--keep-logits"])
def test_only_a_file_of_its_own_kind_is_written_over(lab: Path, option: str) -> None:
    model = write_model(lab / "other.gguf", 0.3)
    (lab / "kept.part").write_bytes(model.read_bytes())
    before = {path: path.read_bytes() for path in lab.iterdir() if path.is_file()}
    refused = {"other.gguf": "other.gguf"} | ({"kept": "kept.part"} if option == "--keep-logits" else {})
    for name, there in refused.items():
        done = keeping(option, name)
        assert done.exit_code == 2
        assert f"{option} would overwrite {there}, which is no" in done.output
    assert {path: path.read_bytes() for path in lab.iterdir() if path.is_file()} == before
    assert runs(lab) == []
    (lab / "written").touch()  # an empty file loses nothing
    for text in ("eval.txt", "second.txt"):
        write_text(lab / text, len(text))
        done = measure("demo-bf16.gguf", "--text", text, "-c", 16, option, "written")
        assert done.exit_code == 0
        assert (lab / "written").stat().st_size > 0


def test_reading_logs_writes_over_no_other_file(lab: Path) -> None:
    (lab / "notes.csv").write_text("mine")
    done = CliRunner().invoke(cli, ["measure", "--parse", str(KLD), "--csv", "notes.csv"])
    assert done.exit_code == 2
    assert "--csv would overwrite notes.csv, which is no table" in done.output
    assert (lab / "notes.csv").read_text() == "mine"


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_no_output_overwrites_what_is_read_by_a_link(lab: Path, link: str) -> None:
    for name in ("table.csv", "demo.json.lock", "base.logits.part"):
        (lab / name).hardlink_to(lab / "eval.txt") if link == "hardlink" else (lab / name).symlink_to(
            "eval.txt"
        )
    before = {path: path.read_bytes() for path in lab.iterdir() if path.is_file()}
    outputs = (("--csv", "table.csv"), ("--record", "demo.json"), ("--keep-logits", "base.logits"))
    for option, name in outputs:
        done = keeping(option, name)
        assert done.exit_code == 2
        assert f"{option} would overwrite eval.txt, which is read" in done.output
    assert {path: path.read_bytes() for path in lab.iterdir() if path.is_file()} == before
    assert runs(lab) == []


@pytest.mark.parametrize("other", ["air.json", "air.json.lock", "air.scores"])
def test_no_output_overwrites_what_belongs_to_the_record(lab: Path, other: str) -> None:
    done = keeping("--record", "air.json", "--csv", other)
    assert done.exit_code == 2
    assert "--csv would overwrite" in done.output
    assert "which --record writes" in done.output
    assert runs(lab) == []


@pytest.mark.parametrize("option", ["--csv", "--keep-logits"])
@pytest.mark.parametrize("copied", [False, True])
def test_no_output_overwrites_a_shard_that_is_not_named(lab: Path, option: str, copied: bool) -> None:
    first = write_model(lab / "set" / "demo-q6_K.gguf", 0.4, 6, split=2)
    sets = [first]
    if copied:
        shutil.copytree(lab / "set", lab / "a longer copy")
        sets.append(lab / "a longer copy" / first.name)
    shard = sets[-1].with_name(first.name.replace("00001-of", "00002-of"))
    before = shard.read_bytes()
    base = ("--base", "demo-bf16.gguf")
    done = measure(*sets, *base, "--text", "eval.txt", "-c", 16, option, shard)
    assert done.exit_code == 2
    assert f"{option} would overwrite" in done.output
    assert shard.read_bytes() == before
    assert runs(lab) == []


@pytest.mark.parametrize("broken", ["record", "scores", "table"])
def test_figures_are_printed_and_kept_where_possible_if_one_output_fails(
    lab: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    target = {"record": "air.json", "scores": "air.scores", "table": "air.csv"}[broken]

    def breaking(*arguments: object, **more: object) -> object:
        path = lab / target
        path.touch() if broken == "scores" else path.mkdir()
        return run_measurement(*arguments, **more)

    run_measurement = ggplan.cli.measure.run_measurement
    monkeypatch.setattr(ggplan.cli.measure, "run_measurement", breaking)
    done = keeping("--record", "air.json", "--csv", "air.csv")
    assert isinstance(done.exception, MeasureError)
    assert target in done.exception.message
    assert "99 % KLD" in done.output
    assert "kept in" not in done.output
    assert (lab / "air.csv").is_file() == (broken != "table")
    assert (lab / "air.json").is_file() == (broken != "record")
    if broken == "scores":
        assert "the figures are kept in" in done.exception.message


def test_a_chart_has_a_file_whose_name_is_that_of_the_kept_base(lab: Path) -> None:
    (lab / "n").mkdir()
    options = ("--text", "eval.txt", "-c", 16)
    measure("demo-bf16.gguf", *options, "--keep-logits", "n/q8_0.logits")
    done = measure(
        "demo-q8_0.gguf",
        "demo-q4_K.gguf",
        "--base",
        "n/q8_0.logits",
        "--text",
        "eval.txt",
        "--record",
        "b.json",
    )
    assert done.exit_code == 0
    for metric in ("kld", "dppl"):
        command = ["chart", "b.json", "-o", "b.svg", "--metric", metric]
        assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 0
        assert {"q8_0", "q4_K"} <= {t.partition(":")[0] for t in titles_of(lab / "b.svg")}


def test_a_chart_does_not_overwrite_its_record(lab: Path) -> None:
    measure("demo-q8_0.gguf", "demo-bf16.gguf", "--text", "eval.txt", "-c", 16, "--record", "r.json")
    (lab / "r.svg").hardlink_to(lab / "r.json")
    done = CliRunner().invoke(cli, ["chart", "r.json", "-o", "r.svg"])
    assert done.exit_code == 2
    assert "-o would overwrite r.json" in done.output
    assert (lab / "r.svg").samefile(lab / "r.json")


def test_runs_of_one_name_have_a_progress_bar_each(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = chunks_bar(quiet=True)
    monkeypatch.setattr("ggplan.cli.progress.chunks_bar", lambda quiet: bar)
    for file, text in (("m.gguf", "b on c"), ("m on b.gguf", "c")):
        write_model(lab / file, 0.1, len(text))
        write_text(lab / text, len(text))
    files = ["m.gguf", "m on b.gguf", "demo-bf16.gguf"]
    texts = ("--text", "b on c", "--held-out", "c")
    assert measure(*files, *texts, "-c", 16).exit_code == 0
    told = [task.description for task in bar.tasks]
    assert len(told) == 6
    assert told.count("m on b on c") == 2
    assert all(task.finished for task in bar.tasks)


def test_figures_over_different_tokens_are_noted_where_they_are_shown(lab: Path) -> None:
    write_model(lab / "demo-q2_K.gguf", 0.5, nan=2)
    options = ("--base", "demo-bf16.gguf", "--text", "eval.txt", "-c", 16)
    said = "over different tokens"
    assert said not in measure("demo-q8_0.gguf", *options).output
    assert said in measure("demo-q2_K.gguf", *options, "--record", "r.json").output
    CliRunner().invoke(cli, ["chart", "r.json", "-o", "r.html"], catch_exceptions=False)
    assert said in (lab / "r.html").read_text()
