"""Logs one after another in one file: what a cut or failed one printed is never the next one's."""

from pathlib import Path

import pytest
from test_runs import entries, facts

from ggplan.errors import MeasureError
from ggplan.measure.parsing import parse_files

LOADER = """\
llama_model_loader: loaded meta data with 44 key-value pairs and 803 tensors from /m/A-Q2_K.gguf (version V3)
llama_model_loader: Dumping metadata keys/values. Note: KV overrides do not apply in this output.
llama_model_loader: - kv   2:                               general.name str              = Air
load: special_eot_id is not in special_eog_ids
print_info: file size   = 65.44 GiB (4.89 BPW)
load_tensors: loading model tensors, this can take a while..
llama_context: constructing llama_context
sched_reserve:        CPU compute buffer size =    10.00 MiB
init: llama threadpool init, n_threads = 2
"""
RUN = """\
load: special_eot_id is not in special_eog_ids
init: llama threadpool init, n_threads = 2
system_info: n_threads = 2 (n_threads_batch = 2) / 2 | CPU : SSE3 = 1 |
perplexity: tokenizing the input ..
perplexity: calculating perplexity over 2 chunks, n_ctx=512, batch_size=2048, n_seq=4
[1]5.0000,[2]5.5000,
Final estimate: PPL = 5.5000 +/- 0.02805
"""


def timed(text: str, start: int = 0) -> str:
    """The text as llama.cpp prints it with the time, a millisecond a line; chunks have none."""
    lines = enumerate(text.splitlines(), start)
    return "".join(f"{line}\n" if line[0] == "[" else f"0.00.{at:03}.000 I {line}\n" for at, line in lines)


def test_the_whole_log_names_its_run(tmp_path: Path) -> None:
    whole = LOADER + "".join(RUN.splitlines(keepends=True)[2:])
    for text in (whole, timed(whole)):
        (entry,) = entries(text, tmp_path / "x.log")
        assert (entry.name, entry.bpw, entry.file.n_bytes) == ("A-Q2_K", 4.89, round(65.44 * 2**30))


@pytest.mark.parametrize("lines", range(2, 10))
@pytest.mark.parametrize("times", [(True, True), (False, True), (True, False), (False, False)])
def test_a_log_cut_while_loading_gives_the_next_nothing(
    tmp_path: Path, lines: int, times: tuple[bool, bool]
) -> None:
    path, notes = tmp_path / "x.log", list[str]()
    cut = "".join(LOADER.splitlines(keepends=True)[:lines])
    # The second run's times go on from the first's, so that they do not tell the two apart.
    path.write_text(
        (timed(cut) if times[0] else cut) + (timed(RUN, 50) if times[1] else RUN), encoding="utf-8"
    )
    (record,) = parse_files([path], note=notes.append)
    assert [facts(q) for q in record.quantizations] == [{"name": "x", "n_ctx": 512, "chunks": 2}]
    assert record.model.name == "unnamed model"
    assert [n.split(": ", 1)[1] for n in notes] == [
        "line 1: a run of A-Q2_K.gguf that ends before any result; it is left out"
    ]


@pytest.mark.parametrize("lines", range(2, 10))
@pytest.mark.parametrize("start", ["llama_model_loader: - kv   2: ", "llm_load_print_meta: "])
def test_a_log_cut_while_loading_gives_a_sweep_nothing(tmp_path: Path, lines: int, start: str) -> None:
    sweep = f"{start}general.name = Big\n"
    sweep += "main: n_kv_max = 512, n_batch = 512, n_ubatch = 512, flash_attn = 1\n"
    sweep += "|   512 |    128 |    0 |    1.279 |  3203.03 |   11.250 |    91.02 |\n"
    path, notes = tmp_path / "x.log", list[str]()
    path.write_text("".join(LOADER.splitlines(keepends=True)[:lines]) + sweep, encoding="utf-8")
    (record,) = parse_files([path], note=notes.append)
    (entry,) = record.quantizations
    assert (entry.name, entry.bpw, entry.file.n_bytes) == ("x", 0.0, 0)
    assert [n.split(": ", 1)[1] for n in notes] == [
        "line 1: a run of A-Q2_K.gguf that ends before any result; it is left out"
    ]


def test_a_failed_run_does_not_name_the_next(tmp_path: Path) -> None:
    failed = "srv: loading model '/m/A-Q2_K.gguf'\nllama_perplexity: unable to load model\n"
    (entry,) = entries(timed(failed, 7) + timed(RUN), tmp_path / "x.log")
    assert facts(entry) == {"name": "x", "n_ctx": 512, "chunks": 2}


def test_a_heading_that_has_its_result_does_not_name_a_log_below_it(tmp_path: Path) -> None:
    card = "## a/M-Q8_0.gguf\n26.730 GiB (8.501 BPW)\nFinal estimate: PPL = 8.1890 +/- 0.06369\n"
    for run in (RUN, timed(RUN)):
        first, second = entries(card + run, tmp_path / "x.md")
        assert (first.name, first.bpw, first.measurements[0].metrics["ppl"].value) == ("M-Q8_0", 8.501, 8.189)
        assert facts(second) == {"name": "x", "n_ctx": 512, "chunks": 2}


def test_a_name_and_its_result_in_one_line(tmp_path: Path) -> None:
    card = """\
## IQ5_K 5.9 BPW, 77.704 GiB
Final estimate: PPL = 4.5867 +/- 0.02776

* `Q8_0` 109.381 GiB (8.505 BPW): Final estimate: PPL = 4.5798 +/- 0.02804
* `IQ4_KSS`: Final estimate: PPL = 4.7056 +/- 0.02909
**smol-IQ2_KL** - 43.870 GiB - `Final estimate: PPL = 5.0697 +/- 0.03166`
"""
    found = entries(card, tmp_path / "x.md")
    assert [
        (q.name, q.bpw, round(q.file.n_bytes / 2**30, 3), q.measurements[0].metrics["ppl"].value)
        for q in found
    ] == [
        ("IQ5_K", 5.9, 77.704, 4.5867),
        ("Q8_0", 8.505, 109.381, 4.5798),
        ("IQ4_KSS", 0.0, 0.0, 4.7056),
        ("smol-IQ2_KL", 0.0, 43.87, 5.0697),
    ]


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("value", ["5", "5.", "5.5", "5.500"])
def test_a_final_estimate_that_is_cut(tmp_path: Path, value: str, end: str) -> None:
    path = tmp_path / "x.log"
    path.write_text(RUN.split("5.5000 +/-")[0] + value + end, encoding="utf-8")
    with pytest.raises(MeasureError, match="cut within its last line"):
        parse_files([path])


@pytest.mark.parametrize("rest", ["5.5000", "5.5000 +/-", "5.5000 +/- 0.0", "5.5000 +/- 0.0280"])
def test_an_error_that_is_cut(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "x.log"
    path.write_text(RUN.split("5.5000 +/-")[0] + rest, encoding="utf-8")
    with pytest.raises(MeasureError, match="cut within its last line"):
        parse_files([path])
    if rest.endswith("0"):
        path.write_text(RUN.split("5.5000 +/-")[0] + "5.5000 +/- 0.0280\n", encoding="utf-8")
        with pytest.raises(MeasureError, match="cut within its last line"):
            parse_files([path])
    (entry,) = entries(RUN.rstrip("\n"), path)
    assert entry.measurements[0].metrics["ppl"].error == 0.02805


def test_a_perplexity_below_one_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    path.write_text("## Q8_0\nFinal estimate: PPL = 0.0000 +/- 0.00000\n", encoding="utf-8")
    with pytest.raises(MeasureError, match="none is below 1"):
        parse_files([path])


@pytest.mark.parametrize("dots", ["...", "| ... | ... | ... | ... | ... | ... | ... |", "…", "[...]"])
def test_a_sweep_from_which_rows_were_taken_out(tmp_path: Path, dots: str) -> None:
    rows = [
        f"|   512 |    128 | {n} |    1.279 |  {5000 - n}.03 |   11.250 |    91.02 |"
        for n in range(0, 2560, 512)
    ]
    text = "CMD --model …/X-IQ4_XS.gguf \\\n"
    text += "main: n_kv_max = 4096, n_batch = 512, n_ubatch = 512, flash_attn = 1\n"
    (entry,) = entries(text + "\n".join([*rows[:2], dots, *rows[3:]]) + "\n", tmp_path / "x.log")
    assert (entry.name, entry.file.name) == ("X-IQ4_XS", "X-IQ4_XS.gguf")
    assert [(s.n_kv, s.pp) for s in entry.speeds] == [
        (0, 5000.03),
        (512, 4488.03),
        (1536, 3464.03),
        (2048, 2952.03),
    ]
    path, notes = tmp_path / "x.log", list[str]()
    path.write_text(text + "\n".join([*rows[:2], *rows[3:]]) + "\n", encoding="utf-8")
    (record,) = parse_files([path], note=notes.append)
    assert [s.n_kv for s in record.quantizations[0].speeds] == [0, 512]
    assert "beginning is missing" in notes[0]
