"""What a run is called: by its loader, heading or command, never by another's."""

from pathlib import Path

import pytest
from test_runs import BENCH, OWN, entries, facts

from ggplan.errors import MeasureError
from ggplan.measure.parsing import parse_files

LOADER = """\
llama_model_loader: loaded meta data with 44 key-value pairs and 803 tensors from {}.gguf (version GGUF V3)
print_info: file size   = 65.44 GiB (4.89 BPW)
"""
RUN = """\
perplexity: calculating perplexity over 2 chunks, n_ctx=512, batch_size=2048, n_seq=4
[1]5.0000,[2]5.5000,
Final estimate: PPL = 5.5000 +/- 0.02805
"""


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (
            "+ llama-perplexity -m A-Q2_K.gguf -f t.raw\nerror: failed to open A-Q2_K.gguf: No such file\n",
            "line 1: a run of A-Q2_K.gguf that ends before any result",
        ),
        (
            "+ llama-perplexity -m A-Q2_K.gguf -f secret.raw\n",
            "line 1: a run of A-Q2_K.gguf that ends before any result",
        ),
        ("## A-Q2_K.gguf\n", "line 1: the heading A-Q2_K.gguf: below it B-Q4_K.gguf was opened"),
        ("=== A-Q2_K.gguf ===\nbuild: 1 (abc)\n", "line 1: the heading A-Q2_K.gguf: below it B-Q4_K.gguf"),
        ("### `IQ5_K` run\n", "line 1: the heading IQ5_K run: below it B-Q4_K.gguf was opened"),
        (LOADER.format("A-Q2_K"), "line 1: a run of A-Q2_K.gguf that ends before any result"),
    ],
)
def test_what_the_loader_opens_is_what_was_measured(tmp_path: Path, before: str, told: str) -> None:
    path, notes = tmp_path / "x.log", []
    path.write_text(before + LOADER.format("B-Q4_K") + RUN, encoding="utf-8")
    (record,) = parse_files([path], note=notes.append)
    (entry,) = record.quantizations
    assert facts(entry) == {
        "name": "B-Q4_K", "file": "B-Q4_K.gguf", "size": round(65.44 * 2**30), "bpw": 4.89, "n_ctx": 512,
        "chunks": 2,
    }  # fmt: skip
    assert len(notes) == 1
    assert told in notes[0]


@pytest.mark.parametrize(
    ("heading", "opened", "name"),
    [
        ("## B.gguf", "B-00001-of-00003", "B"),
        ("## Q4_K_M.gguf", "unsloth_Air-Q4_K_M", "Q4_K_M"),
        ("### `Q4_K` with an imatrix", "Air-Q4_K_M", "Q4_K with an imatrix"),
        ("## Smol FP16 59 GiB", "air-F16", "Smol FP16"),
        ("+ llama-perplexity -m /m/B-00001-of-00003.gguf", "B-00001-of-00003", "B"),
    ],
)
def test_other_names_of_the_file_that_was_opened(
    tmp_path: Path, heading: str, opened: str, name: str
) -> None:
    (entry,) = entries(f"{heading}\n{LOADER.format(opened)}{RUN}", tmp_path / "x.log")
    assert (entry.name, entry.file.name) == (name, f"{opened}.gguf")


@pytest.mark.parametrize("rest", [RUN.split("\n", 1)[1], RUN.split("\n", 2)[2]])
@pytest.mark.parametrize("start", ["", RUN.split("\n")[0].replace("over 2", "over 6") + "\n"])
def test_the_rest_of_a_log_is_not_named_by_the_log_before(tmp_path: Path, start: str, rest: str) -> None:
    """A log that ends after its loader, or after the start of its run, before the end of another log."""
    path, notes = tmp_path / "x.log", []
    path.write_text(f"## A.gguf\n{LOADER.format('A')}{start}{rest}", encoding="utf-8")
    (record,) = parse_files([path], note=notes.append)
    assert [{k: v for k, v in facts(q).items() if k != "chunks"} for q in record.quantizations] == [
        {"name": "x"}
    ]
    assert any("line 2: a run of A.gguf" in n or "line 4: the log " in n for n in notes)


def test_a_result_that_is_not_the_last_chunks(tmp_path: Path) -> None:
    text = LOADER.format("A") + RUN.replace("PPL = 5.5000", "PPL = {}")
    (entry,) = entries(text.format("5.5001"), tmp_path / "x.log")
    assert entry.name == "A"
    (entry,) = entries(text.format("5.5005"), tmp_path / "x.log")
    assert facts(entry) == {"name": "x"}
    assert entry.measurements[0].metrics["ppl"].value == 5.5005


def test_one_command_of_several_models_names_none(tmp_path: Path) -> None:
    table = BENCH + BENCH.split("\n")[2].replace("air Q4_K", "air Q8_0") + "\n"
    text = "$ llama-bench -m a.gguf -m b.gguf\n" + table.replace("\nbuild: 8cf427ff (5163)\n", "")
    assert {q.file.name for q in entries(text, tmp_path / "x.md")} == {""}


def test_headings_name_the_tables_of_llama_bench_below_them(tmp_path: Path) -> None:
    table = "\n".join(BENCH.split("\n")[:4])
    text = f"## air-hq4_k.gguf\n{table}\n\n## air-q4_mine.gguf\n{table.replace('118.80', '218.80')}\n"
    found = entries(text, tmp_path / "x.md")
    assert [(q.name, q.file.name, q.speeds[0].pp) for q in found] == [
        ("air-hq4_k", "air-hq4_k.gguf", 118.8),
        ("air-q4_mine", "air-q4_mine.gguf", 218.8),
    ]
    other = BENCH.split("\n")[2].replace("air Q4_K", "air Q8_0")
    found = entries(f"## air-hq4_k.gguf\n{table}\n{other}\n", tmp_path / "x.md")
    assert [(q.name, q.file.name) for q in found] == [("air Q4_K", ""), ("air Q8_0", "")]
    found = entries(f"## Q8_0 on my machine\n{table}\n", tmp_path / "x.md")
    assert [q.name for q in found] == ["air Q4_K"]


@pytest.mark.parametrize("with_row", [True, False])
def test_statistics_of_two_pasted_results(tmp_path: Path, with_row: bool) -> None:
    first, second = (OWN[f"kld.glm4moe-tiny.{q}.txt"].split("\n") for q in ("Q4_K_M", "Q2_K"))
    start = next(i for i, line in enumerate(first) if line.startswith("====== Perplexity"))
    cut = start + 8 if with_row else start + 2
    path = tmp_path / "x.log"
    path.write_text("\n".join(first[start - 2 * with_row : cut] + second[cut:]), encoding="utf-8")
    with pytest.raises(MeasureError, match="several runs are mixed"):
        parse_files([path])
