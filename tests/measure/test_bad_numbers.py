"""Texts with numbers that cannot be, cells longer than any, tables that are joined, and very long ones."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggplan.allocation.sensitivity_tables import read_sensitivities
from ggplan.charts import draw_context
from ggplan.cli import cli
from ggplan.errors import MeasureError
from ggplan.measure import Record, load_record, save_record
from ggplan.measure.parsing import parse_files
from ggplan.measure.record import CSV_HEADER, ModelFacts, Quantization, Speed

TEST = {"model_filename": "m.gguf", "model_size": 5, "n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 5.0}
CSV_HEAD = "build_commit,model_filename,model_size,n_prompt,n_gen,n_depth,avg_ts"
LONG = "x" * 140_000


def parsed(tmp_path: Path, text: str, name: str = "x.txt") -> tuple[list[Record], list[str]]:
    path, notes = tmp_path / name, []
    path.write_text(text, encoding="utf-8")
    return parse_files([path], note=notes.append), notes


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"avg_ts": float("nan")}, {"avg_ts": float("inf")}, {"avg_ts": -1.0}, {"n_depth": -4096},
        {"n_prompt": -1}, {"model_size": int("9" * 400)}, {"n_depth": 1 << 63},
    ],
)  # fmt: skip
def test_tests_of_llama_bench_that_cannot_be(tmp_path: Path, form: str, wrong: dict[str, float]) -> None:
    test = TEST | wrong
    text = {
        "json": json.dumps([test]),
        "jsonl": json.dumps(test),
        "csv": f"{CSV_HEAD}\nabc,{','.join(map(str, test.values()))}\n",
    }[form]
    with pytest.raises(MeasureError, match="a test of the benchmark is not numbers") as error:
        parsed(tmp_path, text)
    assert form == "json" or f"line {2 if form == 'csv' else 1}" in error.value.message
    path = tmp_path / "x.txt"
    result = CliRunner().invoke(cli, ["measure", "--parse", str(path), "--record", str(tmp_path / "r.json")])
    assert (result.exit_code, type(result.exception)) == (1, MeasureError)
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("row", [{"n_kv": int("9" * 4000)}, {"speed_pp": float("inf")}, {"pp": 1 << 70}])
def test_rows_of_a_sweep_that_cannot_be(tmp_path: Path, row: dict[str, float]) -> None:
    first = {"n_kv": 0, "pp": 512, "tg": 128, "speed_pp": 3.0, "speed_tg": 5.0}
    lines = [json.dumps(first), json.dumps(first | {"n_kv": 512} | row)]
    (record,), notes = parsed(tmp_path, "\n".join(lines))
    assert [s.n_kv for q in record.quantizations for s in q.speeds] == [0]
    assert len([note for note in notes if "line 2: a row of a sweep that is not numbers" in note]) == 1
    save_record(record, tmp_path / "r.json")
    assert load_record(tmp_path / "r.json") == record


@pytest.mark.parametrize(
    "line",
    [
        f"perplexity: calculating perplexity over {'9' * 5000} chunks, n_ctx=512",
        f"[{'9' * 5000}]5.0,",
        f"Final estimate: PPL over {'9' * 5000} chunks for n_ctx=512 = 5.0 +/- 0.1",
        f"main: n_kv_max = 5, n_ubatch = {'9' * 5000}",
        f"{'9' * 5000}.00.000.001 I x",
        f"| model | test | t/s |\n| a | pp512 @ d{'9' * 5000} | 5.0 |",
        f"| model | test | t/s |\n| a | pp512 | {'9' * 400} |",
        "| quant | ppl |\n| a | 1e999 |",
    ],
)
def test_long_numbers_in_a_log(tmp_path: Path, line: str) -> None:
    with pytest.raises(MeasureError):
        parsed(tmp_path, line)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"QTYPE,bpw,ppl\nq4_K,4.5,5.5\n{LONG},4,5\n", "line 3: field larger"),
        (f"{CSV_HEAD}\nabc,{LONG},5,512,0,0,5.0\n", "line 2: field larger"),
        (f"{CSV_HEADER}\n{LONG},4\n", "line 2: field larger"),
        (f'{LONG},"\n', "no log or table"),
        (f"{CSV_HEADER}\n{'a,' * 16}b\n", "line 2: it is damaged"),
    ],
)
def test_cells_that_are_too_long(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(MeasureError) as error:
        parsed(tmp_path, text)
    assert message in error.value.message


@pytest.mark.parametrize("value", ["nan", "inf", "1e999"])
def test_figures_of_a_table_that_cannot_be(tmp_path: Path, value: str) -> None:
    row = {"value": value, "metric": "ppl", "method": "none", "bpw": "4.5"}
    counts = dict.fromkeys(("n_ctx", "n_chunks", "n_tokens", "n_nan", "n_bytes"), "1")
    cells = [({"name": "q"} | row | counts).get(name, "") for name in CSV_HEADER.split(",")]
    with pytest.raises(MeasureError, match="line 2: it is damaged"):
        parsed(tmp_path, f"{CSV_HEADER}\n{','.join(cells)}\n")


@pytest.mark.parametrize("speed", [Speed(-1, 5.0), Speed(1 << 63, 5.0), Speed(0, float("nan"))])
def test_a_record_that_could_not_be_read_again_is_not_written(tmp_path: Path, speed: Speed) -> None:
    record = Record(ModelFacts("m"), (Quantization("q", speeds=(speed,)),))
    with pytest.raises(MeasureError, match="speeds"):
        save_record(record, tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


def test_two_csv_tables_of_llama_bench_in_one_file(tmp_path: Path) -> None:
    rows = [f"abc,m.gguf,5,512,0,0,{rate}" for rate in (10.0, 20.0)]
    (record,), _ = parsed(tmp_path, f"{CSV_HEAD}\n{rows[0]}\n{CSV_HEAD}\n{rows[1]}\n")
    assert [(q.name, q.speeds[0].pp) for q in record.quantizations] == [("m", 10.0), ("m #2", 20.0)]
    with pytest.raises(MeasureError, match="line 5: a test of the benchmark is not numbers"):
        parsed(tmp_path, f"ggml_init: x\n{CSV_HEAD}\n{rows[0]}\n{CSV_HEAD}\nabc,m.gguf,5,512,0,0,fast\n")


def test_speeds_of_two_engines_are_two_curves(tmp_path: Path) -> None:
    bench = [Speed(n, 100.0 - n, None, "llama-bench") for n in (4096, 0)]
    sweep = [Speed(n, None, 50.0, "llama-sweep-bench") for n in (0, 4096)]
    record = Record(ModelFacts("m"), (Quantization("air", speeds=(*bench, *sweep)),))
    draw_context(record).save(tmp_path / "x.svg")
    drawn = (tmp_path / "x.svg").read_text("utf-8")
    assert "air, llama-bench" in drawn
    assert "air, llama-sweep-bench" in drawn
    point = Record(ModelFacts("m"), (Quantization("air", speeds=(*bench, sweep[0])),))
    assert len(draw_context(point).titles) == 2


def test_columns_that_are_not_read_are_told_once(tmp_path: Path) -> None:
    text = "QTYPE,PPL ratio,ppl,Δ vs BF16\nq4_K,1.02,5.5,0.1\nq3_K,1.03,5.6,0.2\n"
    _, notes = parsed(tmp_path, text, "m.csv")
    assert [note.partition(".csv: ")[2] for note in notes] == [
        "line 1: what stands in the columns PPL ratio, Δ vs BF16, which ggplan does not read from tables;"
        " it is left out"
    ]


@pytest.mark.parametrize("as_csv", [True, False])
@pytest.mark.parametrize(
    ("heading", "cells", "shares"),
    [
        ("same top p", ("0.931", "1"), (0.931, 1.0)),
        ("same top p", ("93.1", "0.9"), (0.931, 0.009)),
        ("same top p", ("0.931%", "0.8%"), (0.00931, 0.008)),
        ("same top p (%)", ("0.931", "0.8"), (0.00931, 0.008)),
    ],
)
def test_shares_as_fractions(
    tmp_path: Path, as_csv: bool, heading: str, cells: tuple[str, str], shares: tuple[float, float]
) -> None:
    rows = [("quant", heading, "RMS Δp"), ("a", cells[0], "0.02"), ("b", cells[1], "0.03")]
    text = "\n".join(",".join(row) if as_csv else f"| {' | '.join(row)} |" for row in rows)
    (record,), _ = parsed(tmp_path, text)
    metrics = [q.measurements[0].metrics for q in record.quantizations]
    assert tuple(m["same_top"].value for m in metrics) == shares
    factor = 1 if shares == (0.931, 1.0) else 0.01
    assert metrics[0]["delta_p_rms"].value == pytest.approx(0.02 * factor)


LONG_TABLES = {
    "markdown": "| quant | ppl |\n|---|---|\n" + "| q4_K | 5.5 |\n" * 8000,
    "results": "Final estimate: PPL = 5.0 +/- 0.1\n" * 8000,
    "bench": "\n".join(json.dumps(TEST | {"avg_ts": float(i)}) for i in range(4000)),
    "settings": "\n".join(json.dumps(TEST | {"n_batch": i}) for i in range(4000)),
    "csv": "QTYPE,ppl\n" + "q4_K,5.5\n" * 8000,
}


@pytest.mark.parametrize("kind", LONG_TABLES)
def test_the_time_grows_as_the_text(tmp_path: Path, kind: str) -> None:
    """8,000 results of one name took 25 s where each was compared with all before it."""
    started = time.process_time()
    (record,), _ = parsed(tmp_path, LONG_TABLES[kind])
    assert len(record.quantizations) in (4000, 8000)
    assert time.process_time() - started < 12


def test_a_wide_table_of_sensitivities(tmp_path: Path) -> None:
    names = [f"blk.{i}.attn_k.weight" for i in range(20_000)]
    path = tmp_path / "kld_results.csv"
    path.write_text(f"QTYPE,{','.join(names)}\niq1_kt,{','.join(['0.1'] * len(names))}\n")
    started = time.process_time()
    (table,) = read_sensitivities(path)
    assert len(table.places) == 20_000
    assert time.process_time() - started < 12
