"""Results as people write them on cards, what other programs put before each line, and hostile lines."""

import io
import time
from pathlib import Path

import pytest

from ggplan.errors import MeasureError
from ggplan.measure.parsing import parse_files
from ggplan.measure.record import Quantization

LOG = """\
build: 4089 (6908b72) with cc for x86_64-linux-gnu
llama_model_loader: loaded meta data with 44 key-value pairs and 803 tensors from /m/A-Q2_K.gguf (version V3)
print_info: file size   = 65.44 GiB (4.89 BPW)
perplexity: calculating perplexity over 2 chunks, n_ctx=512, batch_size=2048, n_seq=4
[1]5.0000,[2]5.5000,

Final estimate: PPL = 5.5000 +/- 0.02805
"""


def parsed(tmp_path: Path, text: str) -> tuple[list[Quantization], list[str]]:
    path, notes = tmp_path / "x.log", list[str]()
    path.write_text(text, encoding="utf-8")
    found = [q for r in parse_files([path], note=notes.append) for q in r.quantizations]
    return found, [n.split("x.log: ")[1] for n in notes]


@pytest.mark.parametrize("log", [LOG, LOG.replace("build: ", "0.00.001.000 I build: ")])
@pytest.mark.parametrize(
    "prefix",
    [
        "2025-09-01T10:00:01.123Z ",
        "2025-09-01T10:00:01.1234567Z ",
        "2025-09-01 10:00:01,123 ",
        "[2025-09-01 10:00:01] ",
        "2025-09-01T10:00:01.123456789+02:00 stderr F ",
        "Sep 01 10:00:01 ",
        "Sep  1 10:00:01 box llama-perplexity[123]: ",
        "[10:00:01] ",
        "[1756720801] ",
        "llama-1  | ",
        "llama  | 2025-09-01T10:00:01.123Z ",
    ],
)
def test_what_other_programs_put_before_each_line(tmp_path: Path, prefix: str, log: str) -> None:
    whole = parsed(tmp_path, log)
    text = "".join(f"{prefix}{line}\n" for line in log.splitlines())
    found, notes = parsed(tmp_path, text)
    assert (found, notes) == whole
    assert (found[0].name, found[0].bpw) == ("A-Q2_K", 4.89)
    assert found[0].measurements[0].n_ctx == 512


def test_lines_of_several_services_are_refused(tmp_path: Path) -> None:
    lines = [f"llama-{1 + i % 2} | {line}\n" for i, line in enumerate(LOG.splitlines() * 2)]
    with pytest.raises(MeasureError, match=r"several services \(llama-1, llama-2\), mixed") as caught:
        parsed(tmp_path, "".join(lines))
    assert "docker compose logs SERVICE" in caught.value.hint


def test_a_table_without_outer_bars_is_not_a_service(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("A|ub|Q4|4.5|3.3|https://x\nA|ub|Q5|5.5|3.2|\nA|ub|Q6|6.5|3.1|\n")
    assert len(parse_files(tmp_path / "x.db")[0].quantizations) == 3


CARD = """\
## A-Q4_K_M 60 GiB (4.5 BPW)
Final estimate: PPL = 4.9000 +/- 0.02000
## A-Q5_K_M 70.1 GiB (5.5 BPW)
{}
## A-Q6_K 80 GiB (6.5 BPW)
TODO
## Thanks
"""


@pytest.mark.parametrize(
    "line",
    ["PPL = 4.8000 +/- 0.02000", "PPL: 4.8 +/- 0.02", "**Perplexity:** 4.8 ± 0.02", "- ppl = `4.8 ± 0.02`",
     "Final PPL = 4.8 +/- 0.02"],
)  # fmt: skip
def test_results_as_people_write_them(tmp_path: Path, line: str) -> None:
    found, notes = parsed(tmp_path, CARD.format(line))
    assert [(q.name, q.bpw, q.measurements[0].metrics["ppl"].value) for q in found] == [
        ("A-Q4_K_M", 4.5, 4.9),
        ("A-Q5_K_M", 5.5, 4.8),
    ]
    assert found[1].measurements[0].metrics["ppl"].error == 0.02
    assert notes == ["line 5: the heading A-Q6_K: there is no result below it; it is left out"]


@pytest.mark.parametrize("value", ["NaN", "nan", "-nan(ind)", "inf"])
def test_a_result_that_is_no_number_is_named_so(tmp_path: Path, value: str) -> None:
    text = CARD.format(f"Final estimate: PPL = {value} +/- {value}")
    assert "line 4: its perplexity is not a number (nan or inf)" in parsed(tmp_path, text)[1][0]
    if value != "NaN":
        cut = LOG.partition("[1]")[0] + f"[1]{value},[2]{value},\n\nUnexpected negative standard deviation\n"
        with pytest.raises(MeasureError, match=r"not a number \(nan or inf\) after chunk 2"):
            parsed(tmp_path, cut)


def test_standard_input_that_is_a_page_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Input:
        buffer = io.BytesIO(b"<!DOCTYPE html><html>")

    monkeypatch.setattr("sys.stdin", Input())
    with pytest.raises(MeasureError, match="<stdin> is a web page"):
        parse_files("-")


HOSTILE = {
    "blank lines": "\n" * 50_000 + "hello\n",
    "lines of blanks": (" " * 40 + "\n") * 20_000 + "hello\n",
    "comments": "# a\n\n" * 20_000 + "hello\n",
    "blanks in headings": ("# a" + " " * 1990 + "b\n") * 200,
    "marks in headings": ("# a" + "#=-* " * 390 + "b\n") * 200,
    "commas in headings": ("# " + "," * 1900 + "x\n") * 200,
    "letters in headings": ("# " + "a" * 1900 + " Q4_K\n") * 200,
    "underscores": ("# " + "_" * 1900 + " x\n") * 200,
    "brackets in headings": ("# " + "[" * 900 + "](" * 400 + "\n") * 200,
    "names without ending": ("# " + "a.ggu" * 390 + "\n") * 200,
    "blanks after a size": ("- a 65 GiB" + " " * 1900 + "x b\n") * 200,
    "blanks before a size": ("- a" + " " * 1900 + "x GiB\n") * 200,
    "blanks in a size": ("65" + " " * 1900 + "GiB x b\n") * 200,
    "marks of lists": ("- " + "*`_" * 600 + "a\n") * 200,
    "words before a result": ("- " + "a:` " * 480 + "Final estimate: PPL = x\n") * 200,
    "commas before a result": ("a" + "," * 1900 + "xFinal estimate: PPL = x\n") * 200,
    "commands": ("main " * 380 + "x.gguf\n") * 200,
    "options": ("llama-bench " + '-m "x ' * 300 + "x.gguf\n") * 200,
    "loaders": ("loaded meta data with from " * 70 + "\n") * 200,
    "loading": ("load model: '" * 140 + ".gguf \n") * 200,
    "failures": ("failed to load " * 120 + "\n") * 200,
    "quotations": ("> " * 900 + "x\n") * 200,
    "colours": ("\x1b[0;0" * 380 + "\n") * 200,
    "results": ("## Q4_K\nPPL" + " " * 1900 + "= 5x\n") * 200,
    "stamps": "2025-09-01T10:00:01Z 2025-09-01T10:00:01Z\n" * 20_000,
    "dots of a sweep": "main: n_kv_max = 5, n_ubatch = 512\n" + ("[" * 40 + "." * 1900 + "\n") * 200,
    "numbers": ("[1]" + "9" * 1900 + "\n") * 200,
    "one long line": "# " + "a ,_*`[(" * 50_000 + "\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_lines_take_linear_time(tmp_path: Path, kind: str) -> None:
    """0.4 MB of lines take a tenth of a second, and seconds where a pattern takes quadratic time."""
    started = time.process_time()
    found, _ = parsed(tmp_path, HOSTILE[kind] + "\n" * 3 + LOG)
    assert [q.measurements[0].metrics["ppl"].value for q in found] == [5.5]
    assert time.process_time() - started < 2.5


@pytest.mark.parametrize("kind", ["blank lines", "lines of blanks", "comments"])
def test_hostile_texts_without_a_result_are_refused_in_linear_time(tmp_path: Path, kind: str) -> None:
    started = time.process_time()
    with pytest.raises(MeasureError, match="no log or table"):
        parsed(tmp_path, HOSTILE[kind])
    assert time.process_time() - started < 3
