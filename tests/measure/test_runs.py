"""Texts with several runs: each run is an entry of its own, and figures of two never meet in one."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from log_readers import parse_perplexity_log

from ggplan.errors import MeasureError
from ggplan.measure.logs import read_log
from ggplan.measure.parsing import parse_files
from ggplan.measure.record import Metric, Quantization
from ggplan.measure.sizes import with_sizes
from ggplan.measure.subjects import open_subjects

DATA = Path(__file__).parent.parent / "data"
CASES, LOGS = DATA / "cases", DATA / "logs"
IK = """\
main: build = 4089 (6908b72)
llama_model_loader: loaded meta data with 44 key-value pairs and 8 tensors from /m/{name}.gguf (version V3)
llm_load_print_meta: model size       = 47.828 GiB (3.719 BPW)
llm_load_print_meta: general.name     = {name}
perplexity: calculating perplexity over 4 chunks, n_ctx=512, batch_size=512, n_seq=1
perplexity: 0.24 seconds per pass - ETA 3.33 minutes
[1]{a}.3970,[2]6.9693,[3]4.6767,[4]{b}.0704,
llama_print_timings:        load time =   19142.40 ms

Final estimate: PPL over 4 chunks for n_ctx=512 = {b}.0704 +/- 0.02807
"""
OWN_LOGS = {path.name: path for path in [*LOGS.iterdir(), *CASES.glob("*glm*"), *CASES.glob("*GLM*")]}
OWN = {name: OWN_LOGS[name].read_text("utf-8") for name in sorted(OWN_LOGS)}
OWN |= {name: IK.format(name=name, a=a, b=b) for name, a, b in (("first", 5, 4), ("second", 7, 6))}
OWN["command"] = "+ ./llama-perplexity -m /m/third.gguf -f third.raw -c 256\n" + (
    IK.format(name="third", a=9, b=8)
    .replace("4 chunks", "5 chunks").replace("n_ctx=512", "n_ctx=256").replace("[4]8", "[4]1.1,[5]8")
    .replace("47.828 GiB (3.719", "50.5 GiB (4.25").replace("4089 (6908b72)", "4100 (1234567)")
)  # fmt: skip
OWN["divergence"] = (
    "0.00.001.000 I llama_model_loader: loaded meta data with 4 pairs from /m/fourth-Q2_K.gguf (version V3)\n"
    "0.00.002.000 I print_info: file size   = 20.5 GiB (2.25 BPW)\n" + OWN["kld.glm4moe-tiny.Q2_K.txt"]
)
OWN["bench"] = """\
$ llama-bench -m fifth.gguf -p 512 -n 128
| model | size | params | backend | fa | test | t/s |
| ----- | ---: | -----: | ------- | -: | ---- | --: |
| air Q4_0 | 15.44 GiB | 110.47 B | CUDA | 0 | pp512 | 318.80 ± 3.24 |
| air Q4_0 | 15.44 GiB | 110.47 B | CUDA | 0 | tg128 | 31.42 ± 0.59 |

build: 8cf427ff (5163)
"""
STARTS = ("calculating perplexity over", "computing over", "main: n_kv_max", "| model")


def figures(quantization: Quantization) -> set[tuple[object, ...]]:
    measured = {(k, m.value, m.error) for r in quantization.measurements for k, m in r.metrics.items()}
    speeds = {(s.n_kv, what, getattr(s, what)) for s in quantization.speeds for what in ("pp", "tg")}
    return measured | {speed for speed in speeds if speed[2] is not None}


def facts(q: Quantization) -> dict[str, object]:
    """What an entry says of the file and its run, without what a text does not tell."""
    told: dict[str, object] = {"name": q.name, "file": q.file.name, "size": q.file.n_bytes, "bpw": q.bpw}
    for m in q.measurements:
        text = m.text.name if m.text.name != "text not recorded" else ""
        told |= {"text": text, "n_ctx": m.n_ctx, "chunks": m.n_chunks, "build": m.build}
    for speed in q.speeds:
        told |= {"build": speed.build}
    return {key: value for key, value in told.items() if value}


def entries(text: str, path: Path) -> list[Quantization]:
    path.write_text(text, encoding="utf-8")
    return [q for record in parse_files([path]) for q in record.quantizations]


Whole = dict[str, tuple[set[tuple[object, ...]], dict[str, object]]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The figures of each log alone, and what it says of them."""
    path = tmp_path_factory.mktemp("whole") / "joined.log"
    found = {}
    for name, text in OWN.items():
        (entry,) = entries(text, path)
        found[name] = (figures(entry), facts(entry))
    return found


PIECES = st.tuples(
    st.sampled_from(sorted(OWN)), st.none() | st.integers(0, 90), st.none() | st.integers(0, 90)
)


def piece(name: str, start: int | None, end: int | None) -> list[str]:
    """Lines of a log from `start` to `end`.

    A log that lost its beginning lost the line that starts its run: one that begins between its first line
    and that one, after another log that ends just there, could not be told from the rest of the other.
    """
    lines = OWN[name].split("\n")
    first = next(i for i, line in enumerate(lines) if any(words in line for words in STARTS))
    start = max(start, first + 1) if start else start
    # So could statistics without a row of the chunks above them.
    block = next((i for i, line in enumerate(lines) if line.startswith("====== Perplexity")), 0)
    if start and start <= block:
        start = min(start, block - 2)
    return lines[start:end]


def program_of(name: str) -> str:
    """What ran a log of `OWN`."""
    return next((program for program in ("bench", "sweep-bench") if name.startswith(program)), "perplexity")


def last_row(lines: list[str]) -> str:
    """The number of the last row of a divergence run."""
    rows = [line for line in lines if line.strip()]
    return rows[-1].split()[0] if rows else ""


@pytest.mark.parametrize(
    ("above", "below"),
    [("bench", "command"), ("bench", "sweep-bench.GLM-4.5-Air_1024_1024.txt"), ("command", "bench")],
)
def test_a_command_names_the_file_of_its_own_programs_results_only(
    tmp_path: Path, above: str, below: str
) -> None:
    lines = OWN[below].split("\n")
    rest = lines[1:] if lines[0][:1] in "+$" else lines
    text = "\n".join([OWN[above].split("\n")[0], *rest])
    (entry,) = entries(text, tmp_path / "x.log")
    assert entry.name not in ("third", "fifth") or entry.name == {"command": "third"}.get(below)
    assert any("ends before any result" in left.why for left in read_log(text).left_out)


@settings(max_examples=400)
@example([("bench", None, 1), ("command", 1, None)])
@given(st.lists(PIECES, min_size=2, max_size=3))
def test_joined_logs_never_give_a_mixed_entry(
    tmp_path_factory: pytest.TempPathFactory, whole: Whole, pieces: list[tuple[str, int | None, int | None]]
) -> None:
    cut = [piece(*which) for which in pieces]
    # A row after the row before it, of another log, goes on with it for all that the text says; and a log
    # that does not begin with a build or a command goes on with one of its program that ended before its run.
    filled = [
        (program_of(name), found)
        for (name, *_), lines in zip(pieces, cut, strict=True)
        if (found := [line for line in lines if line.strip()])
    ]
    for (above_program, above), (below_program, below) in pairwise(filled):
        row = last_row(above)
        assume(not (row.isdigit() and last_row(below[:1]) == str(int(row) + 1)))
        has_start = any(words in line for line in above for words in STARTS)
        begins = below[0].startswith(("main: build", "+", "$"))
        is_head = any(words in line for line in below for words in STARTS)
        assume(has_start or begins or not (is_head or above_program == below_program))
        # Nor can the rest of one that lost its start, after one that has no more than its start.
        has_rows = any(re.match(r"\[\d|\s*\d|\||{", line) for line in above)
        assume(has_rows or begins or is_head or above_program != below_program)
    path = tmp_path_factory.getbasetemp() / "joined.log"
    try:
        found = entries("\n".join("\n".join(lines) for lines in cut), path)
    except MeasureError:
        found = []
    for entry in found:
        told = facts(entry)
        told["name"] = re.sub(r"( [\d.]+)?( #\d+)?$", "", entry.name)
        told = {key: value for key, value in told.items() if (key, value) != ("name", "joined")}
        assert any(
            figures(entry) <= whole[name][0] and told.items() <= whole[name][1].items() for name, *_ in pieces
        ), entry
    if all(start in (None, 0) and end is None for _, start, end in pieces):
        # The same run twice is one, where its log names the file.
        assert len({name for name, *_ in pieces}) <= len(found) <= len(pieces)


def test_three_logs_in_one_file() -> None:
    (record,) = parse_files([CASES / "three-perplexity-runs.log"])
    metrics = [q.measurements[0].metrics for q in record.quantizations]
    assert [m["ppl"].value for m in metrics] == [20.6764, 21.921059, 20.72887]
    assert metrics[0] == {"ppl": Metric(20.6764, 0.59736, "unpaired tokens")}
    assert [m["kld999"].value for m in metrics[1:]] == [0.692257, 0.081273]
    with pytest.raises(MeasureError, match="3 runs"):
        parse_perplexity_log((CASES / "three-perplexity-runs.log").read_text("utf-8"))


def test_two_sweeps_in_one_file() -> None:
    (record,) = parse_files([CASES / "two-sweeps.log"])
    assert [(q.name, [s.tg for s in q.speeds]) for q in record.quantizations] == [
        ("model-A", [10.0, 9.9]),
        ("model-B", [40.0, 39.0]),
    ]


def test_a_card_of_several() -> None:
    (record,) = parse_files([CASES / "card-of-several.md"])
    assert [(q.name, q.bpw, q.measurements[0].metrics["ppl"].value) for q in record.quantizations] == [
        ("M-27B-BF16", 16.001, 8.4276),
        ("M-27B-Q8_0", 8.501, 8.189),
    ]
    assert record.quantizations[1].file.n_bytes == round(26.73 * 2**30)


def test_a_row_without_a_figure_is_left_out_by_line() -> None:
    notes: list[str] = []
    (record,) = parse_files([CASES / "empty-cell.csv"], note=notes.append)
    assert [q.name for q in record.quantizations] == ["q4_K"]
    assert len(notes) == 1
    assert notes[0].endswith("empty-cell.csv: line 2: iq1_m has no ppl; the row is left out")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-8-sig", "utf-32"])
def test_logs_in_the_encodings_of_windows(tmp_path: Path, encoding: str) -> None:
    for name in ("kld.glm4moe-tiny.Q4_K_M.txt", "perplexity.glm4moe-tiny.bf16.txt"):
        path = tmp_path / name
        path.write_bytes(OWN[name].replace("\n", "\r\n").encode(encoding))
        assert parse_files([path]) == parse_files([LOGS / name])


def test_the_case_of_a_utf_16_log() -> None:
    (record,) = parse_files([CASES / "utf16.log"])
    assert record.quantizations[0].measurements[0].metrics["ppl"].value == 20.6764


@pytest.mark.parametrize("way", [("utf-8", "cp437"), ("utf-8", "cp1252"), ("cp1252", "utf-8")])
def test_signs_of_a_wrong_encoding(tmp_path: Path, way: tuple[str, str]) -> None:
    name = "kld.glm4moe-tiny.Q4_K_M.txt"
    path = tmp_path / name
    text = OWN[name].encode(way[0], "replace").decode(way[1], "replace")
    path.write_text(text, encoding="utf-8")
    assert parse_files([path]) == parse_files([LOGS / name])


def test_a_log_cut_short_after_a_whole_one(tmp_path: Path) -> None:
    path, notes = tmp_path / "x.log", []
    cut = OWN["kld.glm4moe-tiny.Q2_K.txt"].split("\n")[:38]
    path.write_text(OWN["kld.glm4moe-tiny.Q4_K_M.txt"] + "\n".join(cut), encoding="utf-8")
    (record,) = parse_files([path], note=notes.append)
    (quantization,) = record.quantizations
    assert quantization.measurements[0].metrics["kld"].value == 0.00627
    assert len(notes) == 1
    assert "line 86: the log ends after chunk 29 of 30 before its result; it is left out" in notes[0]


def test_statistics_of_another_run_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    first, second = (OWN[f"kld.glm4moe-tiny.{q}.txt"].split("\n") for q in ("Q4_K_M", "Q2_K"))
    at = next(i for i, line in enumerate(first) if line.startswith("90.0%   KLD"))
    path.write_text("\n".join(first[:at] + second[at:]), encoding="utf-8")
    with pytest.raises(MeasureError, match="several runs are mixed"):
        parse_files([path])


def test_a_file_of_unfinished_runs_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    cut = "\n".join(OWN["perplexity.glm4moe-tiny.bf16.txt"].split("\n")[:10])
    path.write_text(f"{cut}\n{cut}\n", encoding="utf-8")
    with pytest.raises(MeasureError, match=r"x\.log: none of its 2 runs has a result: line 9: .*; line 19: "):
        parse_files([path])


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_a_sweep_without_a_row_is_named(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "x.log"
    start = (CASES / "two-sweeps.log").read_text("utf-8").split("\n")[1 : lines + 1]
    path.write_text("\n".join(start) + "\nCUDA error: out of memory\n", encoding="utf-8")
    with pytest.raises(MeasureError, match="is a sweep-bench log without a row"):
        parse_files([path])


def test_a_log_without_a_result_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text(IK.format(name="a", a=1, b=2).partition("perplexity:")[0], encoding="utf-8")
    with pytest.raises(MeasureError, match=r"is a log of llama\.cpp that ends before any result"):
        parse_files([path])


def test_names_sizes_and_builds_come_from_the_log(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text(
        "+ ./llama-perplexity -m /models/air-Q4_K.gguf -f wiki.test.raw -ngl 99\n"
        + IK.format(name="air-Q4_K-00001-of-00002", a=5, b=4)
        + "### `IQ5_K` run\n"
        + IK.format(name="air-IQ5_K", a=5, b=7),
        encoding="utf-8",
    )
    log = read_log(path.read_text("utf-8"))
    assert [run.facts.build for run in log.runs] == ["4089 (6908b72)"] * 2
    (first,), (second,) = (r.quantizations for r in parse_files([path]))
    assert (first.name, second.name) == ("air-Q4_K", "IQ5_K run")
    assert first.measurements[0].text.name == "wiki.test.raw"
    assert second.measurements[0].text.name == "text not recorded"
    assert (first.bpw, first.file.n_bytes) == (3.719, round(47.828 * 2**30))
    assert first.file.name == "air-Q4_K-00001-of-00002.gguf"


def test_a_time_that_goes_back_is_another_process() -> None:
    header = [line for line in OWN["perplexity.glm4moe-tiny.bf16.txt"].split("\n") if "[1]" not in line][:9]
    loader = "0.00.000.001 I llama_model_loader: loaded meta data with 4 key-value pairs from {}.gguf"
    cut = "\n".join([loader.format("first"), *header[:5]])
    rest = "\n".join(OWN["perplexity.glm4moe-tiny.bf16.txt"].split("\n")[3:])
    (run,) = read_log(f"{cut}\n{rest}").runs
    assert run.facts.file == ""
    (run,) = read_log(f"{loader.format('own')}\n{OWN['perplexity.glm4moe-tiny.bf16.txt']}").runs
    assert run.facts.file == "own.gguf"


TABLE = """\
# Some model
## Results

| Quant | imatrix | Size (GB) | PPL | Mean KLD | 99.9% KLD | Same top p |
|:------|---------|----------:|-----|----------|-----------|-----------:|
| [**Q4_K_M**](x.gguf) | yes | 24.6 | 6.2332 ± 0.0378 | 0.0312 ± 0.0002 | 0.81 | 94.2 % |
| `IQ2_M` | yes | 12 | N/A | | | |
| Q2_K | no | 11 | - | 0.4 | | |
"""


def test_a_table_of_results_on_a_card(tmp_path: Path) -> None:
    path, notes = tmp_path / "card.md", []
    path.write_text(TABLE, encoding="utf-8")
    (record,) = parse_files([path], note=notes.append)
    first, second = record.quantizations
    assert (first.name, first.file.n_bytes) == ("Q4_K_M", 24_600_000_000)
    assert first.measurements[0].metrics == {
        "ppl": Metric(6.2332, 0.0378, "unpaired tokens"),
        "kld": Metric(0.0312, 0.0002, "paired tokens"),
        "kld999": Metric(0.81),
        "same_top": Metric(0.942),
    }
    assert (second.name, dict(second.measurements[0].metrics)) == ("Q2_K", {"kld": Metric(0.4)})
    assert [note.partition(": ")[2] for note in notes] == [
        "line 4: what stands in the column imatrix, which ggplan does not read from tables; it is left out",
        "line 7: IQ2_M has no ppl or kld or kld999 or same_top; it is left out",
    ]


def test_a_heading_below_a_name_is_of_it(tmp_path: Path) -> None:
    text = (
        "## IQ4_K 65.4 GiB (4.892 BPW)\n### Perplexity\nFinal estimate: PPL = 4.6 +/- 0.02\n"
        "## Thanks\nFinal estimate: PPL = 9.9 +/- 0.02\n"
    )
    found = entries(text, tmp_path / "card.md")
    assert [(q.name, q.measurements[0].metrics["ppl"].value) for q in found] == [("IQ4_K", 4.6)]


BULLETS = """\
## Quant Collection
* `BF16` 664.707 GiB (16.003 BPW)
  - Final estimate: PPL = 3.4454 +/- 0.01999
* `Q8_0` 353.259 GiB (8.505 BPW)
  - Final estimate: PPL = 3.4471 +/- 0.02001

## IQ5_K 249.099 GiB (5.997 BPW)
Final estimate: PPL = 3.4428 +/- 0.01993
```bash
# 93 Repeating Layers [0-92]
blk\\..*\\.attn_q.*=q8_0
```
"""


def test_results_below_list_items(tmp_path: Path) -> None:
    found = entries(BULLETS, tmp_path / "card.md")
    assert [(q.name, q.bpw, q.measurements[0].metrics["ppl"].value) for q in found] == [
        ("BF16", 16.003, 3.4454),
        ("Q8_0", 8.505, 3.4471),
        ("IQ5_K", 5.997, 3.4428),
    ]


BENCH = """\
| model | size | params | backend | fa | test | t/s |
| ----- | ---: | -----: | ------- | -: | ---- | --: |
| air Q4_K | 65.44 GiB | 110.47 B | CUDA | 0 | pp512 | 118.80 ± 3.24 |
| air Q4_K | 65.44 GiB | 110.47 B | CUDA | 0 | tg128 | 11.42 ± 0.59 |
| air Q4_K | 65.44 GiB | 110.47 B | CUDA | 1 | pp512 | 218.80 ± 3.24 |
| air Q4_K | 65.44 GiB | 110.47 B | CUDA | 1 | tg128 | 21.42 ± 0.59 |
| air Q4_K | 65.44 GiB | 110.47 B | CUDA | 1 | pp2048 | 318.80 ± 3.24 |

build: 8cf427ff (5163)
"""


def test_settings_of_llama_bench_are_runs_of_their_own(tmp_path: Path) -> None:
    path, notes = tmp_path / "bench.md", []
    path.write_text(BENCH, encoding="utf-8")
    (record,) = parse_files([path], note=notes.append)
    assert [(q.name, q.speeds[0].pp, q.speeds[0].tg) for q in record.quantizations] == [
        ("air Q4_K (fa 0)", 118.8, 11.42),
        ("air Q4_K (fa 1)", 218.8, 21.42),
    ]
    assert record.quantizations[0].speeds[0].build == "5163 (8cf427ff)"
    assert len(notes) == 1
    assert "pp2048" in notes[0]
    found = entries(BENCH + BENCH.replace("18.80", "99.90"), path)
    assert [q.speeds[0].pp for q in found] == [118.8, 218.8, 199.9, 299.9]


def test_two_lists_of_llama_bench_are_two_runs(tmp_path: Path) -> None:
    test = {"model_filename": "a-Q4_K.gguf", "model_size": 5, "n_prompt": 512, "n_gen": 0, "avg_ts": 10.0}
    lists = [json.dumps([test | {"avg_ts": rate}], indent=1) for rate in (10.0, 20.0)]
    found = entries("\n".join(lists), tmp_path / "bench.json")
    assert [(q.name, q.speeds[0].pp) for q in found] == [("a-Q4_K", 10.0), ("a-Q4_K #2", 20.0)]


def test_sweeps_of_one_model_in_two_files_are_two_entries() -> None:
    paths = [OWN_LOGS[name] for name in sorted(OWN_LOGS) if name.startswith("sweep")]
    (record,) = parse_files(paths)
    assert [len(q.speeds) for q in record.quantizations] == [64, 16]


def test_batched_bench_is_no_sweep(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text(
        "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |\n"
        "|-------|--------|------|--------|----------|----------|----------|----------|\n"
        "|   128 |    128 |    1 |    256 |    0.108 |  1186.64 |    3.079 |    41.57 |\n"
    )
    with pytest.raises(MeasureError, match="llama-batched-bench"):
        parse_files([path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("QTYPE,bpw,ppl\nq4_K,4.5,abc\n", "line 2: q4_K: the ppl 'abc' is not a number"),
        ("QTYPE,bpw,ppl\nq4_K,4.5\n", "line 2: it has 2 cells, and the heading 3"),
        ("QTYPE,bpw,ppl\nq4_K,4.5,\n", "no row of the table has a figure"),
        ("A|x|Q4|4.5|3.3|\nA|x|Q5\n", "line 2: it has 3 cells"),
        ("QTYPE,group0\nq4_K,0.4\n", "a table without results"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
)
def test_what_is_wrong_in_a_table_has_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(MeasureError, match=r"x\.csv") as error:
        parse_files([path])
    assert message in error.value.message


def test_rows_of_a_database_without_a_figure(tmp_path: Path) -> None:
    path, notes = tmp_path / "others.psv", []
    path.write_text(
        "model|author|quant|bpw|ppl|url\nA|ub|Q4|4.5|3.3|https://x\nA|ub|Q2||404|\n|ub|Q3|3.5|3.9|\n"
    )
    (record,) = parse_files([path], note=notes.append)
    assert [(q.name, q.author, q.url) for q in record.quantizations] == [("Q4", "ub", "https://x")]
    assert [note.partition(".psv: ")[2].partition(";")[0] for note in notes] == [
        "line 3: Q2 has no ppl (404)",
        "line 4: Q3 has no model",
    ]


def test_a_model_name_is_given_to_whatever_a_file_calls_it(tmp_path: Path) -> None:
    notes: list[str] = []
    paths = [CASES / "kld.glm4moe-tiny.Q2_K.txt", LOGS / "sweep-bench.GLM-4.5-Air_16384_4096.txt"]
    assert [r.model.name for r in parse_files(paths)] == ["unnamed model", "GLM 4.5 Air"]
    (record,) = parse_files(paths, model_name="Air", note=notes.append)
    assert (record.model.name, len(record.quantizations)) == ("Air", 2)
    assert any("its model GLM 4.5 Air is recorded as Air" in note for note in notes)
    path = tmp_path / "others.psv"
    path.write_text("A|x|Q4|4.5|3.3|\nB|x|Q4|4.5|3.3|\n")
    with pytest.raises(MeasureError, match=r"several models \(A, B\), none of which is called C"):
        parse_files([path], model_name="C")


def test_a_size_and_a_file_of_a_log(tmp_path: Path) -> None:
    from stub_engine import write_model

    records = parse_files([CASES / "kld.glm4moe-tiny.Q2_K.txt"])
    (sized,) = with_sizes(records, {"glm4moe-tiny.Q2_K": 10 << 20})
    assert sized.quantizations[0].file.n_bytes == 10 << 20
    with pytest.raises(MeasureError, match="no quantization is called Q2_K") as error:
        with_sizes(records, {"Q2_K": 5})
    assert "glm4moe-tiny.Q2_K" in error.value.hint
    file = write_model(tmp_path / "glm4moe-tiny.Q2_K.gguf", 0.1)
    (bare,) = with_sizes(records, {}, [("", file)])
    assert bare.quantizations[0].file.n_bytes == file.stat().st_size
    assert bare.model.name == "Tiny"
    (subject,) = open_subjects([file])
    (known,) = with_sizes(records, {}, [("", subject)])
    assert known.quantizations[0].file.sha256 == subject.sha256
    assert known.quantizations[0].parts
    with pytest.raises(MeasureError, match="was measured in a file of"):
        with_sizes([known], {"glm4moe-tiny.Q2_K": 5})


def test_a_file_of_another_size_than_its_log_says_is_refused(tmp_path: Path) -> None:
    from stub_engine import write_model

    path = tmp_path / "x.log"
    path.write_text(IK.format(name="air", a=5, b=4), encoding="utf-8")
    file = write_model(tmp_path / "air.gguf", 0.1)
    with pytest.raises(MeasureError, match=r"air has by what was read 47\.8 GiB, and .*air\.gguf has"):
        with_sizes(parse_files([path]), {}, [("", file)])


def test_a_size_that_was_given_is_not_called_the_logs(tmp_path: Path) -> None:
    from stub_engine import write_model

    (tmp_path / "air.csv").write_text("quant,ppl\nair,5\n")
    file = write_model(tmp_path / "air.gguf", 0.1)
    with pytest.raises(MeasureError, match=r"air has by the given size 30\.0 MiB"):
        with_sizes(parse_files(tmp_path / "air.csv"), {"air": 30 << 20}, [("", file)])


def test_a_record_and_a_log_become_one_when_the_file_names_the_model(tmp_path: Path) -> None:
    from stub_engine import write_model

    file = write_model(tmp_path / "glm4moe-tiny.Q2_K.gguf", 0.1)
    (subject,) = open_subjects([file])
    logs = parse_files(OWN_LOGS["kld.glm4moe-tiny.Q2_K.txt"])
    (record,) = with_sizes(logs, {}, [("", subject)])
    other = replace(record, quantizations=(Quantization("other"),))
    (joined,) = with_sizes([other, *logs], {}, [("glm4moe-tiny.Q2_K", subject)])
    assert [q.name for q in joined.quantizations] == ["other", "glm4moe-tiny.Q2_K"]
    (metric,) = (q.measurements[0].metrics for q in logs[0].quantizations)
    changed = replace(logs[0].quantizations[0].measurements[0], metrics={**metric, "ppl": Metric(1.5)})
    q = replace(record.quantizations[0], name="mine", measurements=(changed,))
    with pytest.raises(MeasureError, match="are of the same file, and of one kind"):
        with_sizes([replace(record, quantizations=(q,)), *logs], {}, [("glm4moe-tiny.Q2_K", subject)])


@pytest.mark.parametrize("head", ["", "# a comment, with a comma\n\n# and another\n"])
@pytest.mark.parametrize("names", ["QTYPE,blk.0.attn_k.weight", "tensor,columns,kld", "model,bf16,q8_0"])
def test_a_table_of_sensitivities_points_to_what_shows_it(tmp_path: Path, head: str, names: str) -> None:
    path = tmp_path / "kld_results.csv"
    path.write_text(f"{head}{names}\nq4_K{',0.1' * names.count(',')}\n")
    with pytest.raises(MeasureError, match="sensitivities") as caught:
        parse_files([path])
    assert caught.value.hint == f"`ggplan inspect {path}` shows it"


def test_the_table_of_ggplan_itself_is_read(tmp_path: Path) -> None:
    from ggplan.measure import record_to_csv

    records = parse_files([OWN_LOGS["kld.glm4moe-tiny.Q2_K.txt"], LOGS / "perplexity.glm4moe-tiny.bf16.txt"])
    path = tmp_path / "air.csv"
    path.write_text(record_to_csv(records[0]), encoding="utf-8")
    (again,) = parse_files([path])
    assert again.model == records[0].model
    assert [figures(q) for q in again.quantizations] == [figures(q) for q in records[0].quantizations]
    path.write_text(path.read_text("utf-8") * 2, encoding="utf-8")
    with pytest.raises(MeasureError, match="line 15: it is damaged"):
        parse_files([path])
