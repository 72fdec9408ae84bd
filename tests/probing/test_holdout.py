"""`ggplan convert --holdout`: a calibrated file beside the same types by `--effort best`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from program import run
from weighing_engine import weighing_engine, write_model

import ggplan
from ggplan.calibration import Calibration
from ggplan.calibration.collecting import Activation, LayerCollector
from ggplan.calibration.run import begin
from ggplan.calibration.shipped import shipped_texts
from ggplan.cli.holdout import print_holdout
from ggplan.errors import MeasureError
from ggplan.measure import Lead, Metric, load_record, measure
from ggplan.measure.subjects import read_state
from ggplan.probing import HeldOut

N, TOKENS = 256, 120
Q, K = "blk.0.attn_q.weight", "blk.0.attn_k.weight"
RNG = np.random.default_rng(3)
WEIGHTS = {name: RNG.standard_normal((8, N), np.float32) for name in (Q, K)}
TYPES = "@default q3_K\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, its calibration on used.txt and the shipped prose, texts, and a small engine."""
    monkeypatch.chdir(tmp_path)
    write_model(Path("tiny.gguf"), WEIGHTS)
    Path("q3.recipe").write_text(TYPES)
    for seed, name in enumerate(("used.txt", "a.txt", "b.txt")):
        Path(name).write_bytes(bytes(np.random.default_rng(seed).integers(33, 90, 40 * 512, np.uint8)))
    texts = {"used.txt": Path("used.txt"), "default/prose": shipped_texts()["default/prose"]}
    made_of = [{"name": name, "sha256": read_state(path).sha256} for name, path in texts.items()]
    run_ = begin("c", {"texts": made_of, "tokens": TOKENS, "n_ctx": TOKENS})
    assert not isinstance(run_, Calibration)
    run_.write_tokens(np.zeros((1, TOKENS), np.int32))
    collector = LayerCollector(0, [Activation("attn_norm", N, (Q, K))], TOKENS)
    mixed = RNG.standard_normal((TOKENS, 16)) @ RNG.standard_normal((16, N))
    collector.add("attn_norm", mixed.astype(np.float32))
    collector.write(Path("c"), run_.digest)
    run_.finish(run_.finished([0]).values(), {})
    engine = weighing_engine(WEIGHTS, {Q: 0.5, K: 0.1}, [])
    monkeypatch.setattr("ggplan.cli.optimize_probes.engine_of", lambda program, arguments: engine)
    return tmp_path


def test_both_files_are_measured_on_each_text(here: Path) -> None:
    before = {p.name for p in here.iterdir()}
    asked = ["convert", "tiny.gguf", "out.gguf", "-r", "q3.recipe", "--calibration", "c", "--chunks", "9"]
    done = run(*asked, "--holdout", "a.txt", "--holdout", "b.txt", "--record", "r.json", "--json")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in here.iterdir()} - before == {"out.gguf", "out.gguf.sha256", "r.json", "r.scores"}
    told = json.loads(done.stdout)["holdout"]
    ggplan.convert(
        ggplan.make_plan(
            ggplan.open_model("tiny.gguf"), ggplan.parse_recipe(TYPES), effort="best",
            imatrix=ggplan.open_calibration("c").imatrix,
        ),
        "best.gguf",
    )  # fmt: skip
    engine = weighing_engine(WEIGHTS, {Q: 0.5, K: 0.1}, [])
    options = ggplan.measure.MeasureOptions(n_chunks=9)
    for one, text in zip(told, ("a.txt", "b.txt"), strict=True):
        found = measure(["out.gguf", "best.gguf"], text, "tiny.gguf", engine, options).record
        kld = {q.name: q.measurements[0].metrics["kld"].value for q in found.quantizations[1:]}
        own, best = (value for name, value in sorted(kld.items(), reverse=True))
        assert one["text"] == text
        assert (one["kld"], one["best_kld"]) == (pytest.approx(own), pytest.approx(best))
        assert one["ratio"] == pytest.approx(own / best)
        assert one["ratio"] != pytest.approx(1, abs=1e-3)
        assert one["verdict"] == ("gained" if own < best else "lost")
    record = load_record(here / "r.json")
    notes = [q.note for q in record.quantizations if q.note]
    assert notes == ["the types of out.gguf, by --effort best with its calibration's imatrix"]
    assert len(record.quantizations) == 3


def test_the_table_and_the_shipped_texts(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(
        "convert", "tiny.gguf", "out.gguf", "-r", "q3.recipe", "--calibration", "c", "--holdout", "default"
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if "holdout-" in line}
    assert list(rows) == [f"holdout-{part}.txt" for part in ("prose", "code", "markup", "languages")]
    assert all(any(verdict in row for verdict in ("gained", "lost", "no clear")) for row in rows.values())
    assert "wrote out.gguf" in done.stdout
    wide = [
        HeldOut(Path(f"{name}.txt"), "0" * 64, Metric(0.018976, 0.00071), Metric(0.030155, 0.0011), lead)
        for name, lead in (
            ("holdout-languages", Lead("kld", -0.03, 0.01, "paired")),
            ("eval", Lead("kld", 0.0, 0.01, "paired")),
        )
    ]
    monkeypatch.setenv("COLUMNS", "80")
    print_holdout(wide, quiet=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80, lines
    assert "holdout-languages.txt" in "".join(lines), "a name is not cut"


@pytest.mark.parametrize(
    ("asked", "code", "told"),
    [
        (["--calibration", "c", "--holdout", "used.txt"], 1, "used.txt cannot be held out"),
        (["--calibration", "c", "--holdout", "copy.txt"], 1, "the calibration was made of it (used.txt"),
        (["--calibration", "c", "--holdout", "a.txt", "--holdout", "a.txt"], 1, "are one text"),
        (["--calibration", "c", "--holdout", "none.txt"], 1, "none.txt"),
        (["--calibration", "c", "--holdout", "short.txt"], 1, "short.txt is too short: it has 12 bytes"),
        (["--calibration", "c", "--holdout", "latin1.txt"], 1, "latin1.txt is not UTF-8: byte 0xe9"),
        (["--calibration", "c", "--holdout", "a.txt", "--record", "a.txt"], 2, "--record would overwrite"),
        (["--holdout", "a.txt"], 2, "--holdout is for --calibration"),
        (["--calibration", "c", "--chunks", "3", "--record", "r"], 2, "--chunks, --record are for --holdout"),
    ],
)
def test_what_cannot_be_held_out_is_refused_before_work(
    here: Path, asked: list[str], code: int, told: str
) -> None:
    Path("copy.txt").write_bytes(Path("used.txt").read_bytes())
    Path("short.txt").write_text("twelve bytes")
    Path("latin1.txt").write_bytes("é".encode("latin1") * 2000)
    done = run("convert", "tiny.gguf", "out.gguf", "-r", "q3.recipe", *asked)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr
    assert not list(here.glob("out.gguf*"))


def test_the_file_stays_where_measuring_fails(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*arguments: object) -> NoReturn:
        raise MeasureError("the engine ended")

    engine = replace(weighing_engine(WEIGHTS, {}, []), run_base=ends)
    monkeypatch.setattr("ggplan.cli.optimize_probes.engine_of", lambda program, arguments: engine)
    asked = ["convert", "tiny.gguf", "out.gguf", "-r", "q3.recipe", "--calibration", "c"]
    done = run(*asked, "--holdout", "a.txt")
    assert (done.returncode, "out.gguf is whole" in done.stderr) == (1, True), done.stderr
    assert sorted(p.name for p in here.glob("*out*")) == ["out.gguf", "out.gguf.sha256"]


@pytest.mark.parametrize(
    ("lead", "verdict"),
    [
        (Lead("kld", -0.03, 0.01, "paired"), "gained"),
        (Lead("kld", 0.03, 0.01, "paired"), "lost"),
        (Lead("kld", -0.02, 0.01, "paired"), "no clear difference"),
        (Lead("kld", -0.02, None, "none"), "gained"),
        (Lead("ppl", -0.02, 0.001, "paired"), "no number"),
        (None, "no number"),
    ],
)
def test_verdicts(lead: Lead | None, verdict: str) -> None:
    one = HeldOut(Path("a.txt"), "0" * 64, Metric(0.01), Metric(0.04), lead)
    assert (one.verdict, one.ratio) == (verdict, pytest.approx(0.25))
