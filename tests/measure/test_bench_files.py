"""llama-bench's forms for machines, alone and among the lines of a log; and rows that are cut short."""

import json
import time
from pathlib import Path

import pytest

from ggplan.errors import MeasureError
from ggplan.measure.parsing import parse_files
from ggplan.measure.record import Quantization


def test_of(file: str, n_prompt: int, n_gen: int, rate: object) -> dict[str, object]:
    return {
        "build_commit": "abc1234", "build_number": 1, "model_filename": file, "model_size": 1000,
        "n_prompt": n_prompt, "n_gen": n_gen, "n_depth": 0, "avg_ts": rate,
    }  # fmt: skip


test_of.__test__ = False  # type: ignore[attr-defined]
A, A_TG, B = test_of("a.gguf", 512, 0, 99.0), test_of("a.gguf", 0, 128, 10.0), test_of("b.gguf", 512, 0, 50.0)
RUN = """\
llama_model_loader: loaded meta data with 44 key-value pairs and 803 tensors from m-Q4_K.gguf (version V3)
perplexity: calculating perplexity over 2 chunks, n_ctx=512, batch_size=2048, n_seq=4
[1]5.0000,[2]5.5000,
Final estimate: PPL = 5.5000 +/- 0.02805
"""
CUDA = "ggml_cuda_init: found 1 CUDA devices:\n"


def parsed(tmp_path: Path, text: str) -> tuple[dict[str, list[tuple[float | None, float | None]]], list[str]]:
    path, notes = tmp_path / "x.log", list[str]()
    path.write_text(text, encoding="utf-8")
    found: list[Quantization] = [q for r in parse_files([path], note=notes.append) for q in r.quantizations]
    return {q.name: [(s.pp, s.tg) for s in q.speeds] for q in found}, [n.split("x.log: ")[1] for n in notes]


def by_line(*items: object) -> str:
    return "[\n" + ",\n".join(map(json.dumps, items)) + "\n]\n"


@pytest.mark.parametrize("text", [by_line(A, A_TG, B), json.dumps([A, A_TG, B], indent=2) + "\n"])
@pytest.mark.parametrize("above", ["", CUDA, RUN, "[1]5.0,\n", "[info] x\n[\n"])
@pytest.mark.parametrize("below", ["", "bye\n"])
def test_a_list_within_a_log(tmp_path: Path, text: str, above: str, below: str) -> None:
    found, notes = parsed(tmp_path, above + text + below)
    assert found.pop("m-Q4_K", []) == []
    assert found == {"a": [(99.0, 10.0)], "b": [(50.0, None)]}
    assert notes == ([] if not above.startswith("[1]") else notes)


def csv_of(*tests: dict[str, object]) -> str:
    return "\n".join([",".join(A), *(",".join(f'"{v}"' for v in t.values()) for t in tests)]) + "\n"


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_tests_that_a_record_does_not_keep_are_told(tmp_path: Path, form: str) -> None:
    tests = [test_of("a.gguf", 512, 128, 50.0), A, test_of("a.gguf", 2048, 0, 70.0)]
    text = {"json": by_line(*tests), "jsonl": "\n".join(map(json.dumps, tests)), "csv": csv_of(*tests)}[form]
    found, notes = parsed(tmp_path, text)
    first = {"json": 2, "jsonl": 1, "csv": 2}[form]
    assert found == {"a": [(99.0, None)]}
    assert [note.partition(": a record")[0] for note in notes] == [
        f"line {first}: the test pp512+tg128",
        f"line {first + 2}: the test pp2048",
    ]


def test_a_test_of_a_table_is_told_by_its_own_line(tmp_path: Path) -> None:
    table = "| model | test | t/s |\n| --- | --- | --- |\n| a | pp512 | 99 |\n| a | pp512+tg128 | 50 |\n"
    assert parsed(tmp_path, table)[1][0].startswith("line 4: the test pp512+tg128")


SWEEP = """\
|    PP |     TG |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |
|-------|--------|--------|----------|----------|----------|----------|
|  2048 |    512 |      0 |    4.100 |   499.28 |   31.100 |    16.10 |
"""
CUT_SWEEP = SWEEP + "|  2048 |    512 |   4096 |    4.300 |   476.28 |   32.1"
SWEEP_LINE = json.dumps({"n_kv_max": 4096, "pp": 512, "tg": 128, "n_kv": 0, "speed_pp": 9.0, "speed_tg": 1.0})
BENCH = "| model | size | test | t/s |\n| --- | ---: | --- | ---: |\n| a | 1 GiB | pp512 | 99.0 |\n"


@pytest.mark.parametrize(
    ("text", "line", "n_speeds"),
    [
        (CUT_SWEEP, 4, 1),
        (SWEEP + "\n" + CUT_SWEEP.replace("2048", "1024"), 8, 1),
        (SWEEP + "|  2048 |    512 |   4096 |\n", 4, 1),
        (SWEEP_LINE + "\n" + SWEEP_LINE.replace('"n_kv": 0', '"n_kv": 512')[:70], 2, 1),
        (json.dumps(A) + "\n" + json.dumps(A_TG)[:150], 2, 1),
        (csv_of(A, A_TG).rsplit(",", 1)[0], 3, 1),
        (csv_of(A) + '"abc1234","1","b.gguf"', 3, 1),
        (BENCH + "| a | 1 GiB | tg128 |", 4, 1),
        (BENCH + "| a | 1 GiB | tg128 | 10.", 4, 1),
        (BENCH + "| a | 1 Gi", 4, 1),
        (by_line(A, A_TG)[:-40], 3, 1),
        (json.dumps([A, A_TG], indent=1)[:-70], 13, 1),
        (by_line(A) [:-2], 3, 1),
    ],
)  # fmt: skip
def test_rows_that_are_cut_are_told(tmp_path: Path, text: str, line: int, n_speeds: int) -> None:
    found, notes = parsed(tmp_path, text)
    assert [len(speeds) for speeds in found.values()] == [n_speeds] * len(found)
    assert len(notes) >= 1
    assert any(note.startswith((f"line {line}:", f"line {line - 1}:")) for note in notes), notes


@pytest.mark.parametrize(
    "text", [by_line(test_of("a.gguf", 512, 0, None), B), json.dumps([A | {"avg_ts": None}, B])]
)
def test_a_test_without_a_rate_is_left_out(tmp_path: Path, text: str) -> None:
    found, notes = parsed(tmp_path, text)
    assert found == {"b": [(50.0, None)]}
    assert "a test of llama-bench without a rate" in notes[0]


def test_a_row_that_is_too_long_says_so_in_words(tmp_path: Path) -> None:
    with pytest.raises(
        MeasureError, match="line 2: a row of llama-bench with 9 cells, and the heading has 8"
    ):
        parsed(tmp_path, ",".join(A) + "\nabc1234,1,m.gguf,10,512,0,0,99,extra\n")


@pytest.mark.parametrize("folder", ["D:\\Models\\", "D:/Models/", "\\\\box\\m\\", "m/"])
@pytest.mark.parametrize("form", [csv_of, by_line])
def test_names_without_folders(tmp_path: Path, folder: str, form: object) -> None:
    text = form(A | {"model_filename": f"{folder}air-Q4_K_M.gguf"})  # type: ignore[operator]
    assert list(parsed(tmp_path, text)[0]) == ["air-Q4_K_M"]


@pytest.mark.parametrize(
    "text",
    [
        '[{"build_commit"\n' * 20_000,
        "[\n{\n" * 20_000,
        "[\n" * 50_000,
        '[{"avg_ts": 1' * 20_000,
        "[ {}\n" * 20_000,
    ],
)
def test_lists_that_never_end_take_linear_time(tmp_path: Path, text: str) -> None:
    started = time.process_time()
    found, _ = parsed(tmp_path, by_line(B) + text + '"build_commit"')
    assert found == {"b": [(50.0, None)]}
    assert time.process_time() - started < 5
