"""Runs of one file are one entry; those of two files of one name are two, whatever the texts."""

import time
from pathlib import Path

import pytest

from ggplan.errors import MeasureError
from ggplan.measure import merge
from ggplan.measure.parsing import parse_files
from ggplan.measure.record import FileFacts, Metric, ModelFacts, Quantization, Record
from ggplan.measure.sizes import with_sizes


def loader(file: str, size: str = "24.60 GiB (4.89 BPW)") -> str:
    return (
        "llama_model_loader: loaded meta data with 44 key-value pairs and 803 tensors"
        f" from {file} (version GGUF V3)\n" + (f"print_info: file size   = {size}\n" if size else "")
    )


def run(ppl: str, n_ctx: int = 512) -> str:
    chunks = "".join(f"[{i}]{ppl}," for i in (1, 2, 3))
    start = f"perplexity: calculating perplexity over 3 chunks, n_ctx={n_ctx}, batch_size=2048, n_seq=4\n"
    return f"{start}{chunks}\nFinal estimate: PPL = {ppl} +/- 0.01234\n"


SWEEP = """\
main: n_kv_max = 4096, n_batch = 2048, n_ubatch = 512, flash_attn = 1
| PP | TG | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s |
|--|--|--|--|--|--|--|
| 512 | 128 | 0 | 1.0 | 512.0 | 1 | 128 |
"""


def parsed(tmp_path: Path, *texts: str, **options: str) -> tuple[list[Quantization], list[str]]:
    paths, notes = [], list[str]()
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"log{number}.log")
        paths[-1].write_text(text, encoding="utf-8")
    records = parse_files(paths, note=notes.append, **options)
    return [q for record in records for q in record.quantizations], notes


def shown(found: list[Quantization]) -> list[tuple[str, list[tuple[int, float]], int]]:
    return [
        (q.name, [(m.n_ctx, m.metrics["ppl"].value) for m in q.measurements], len(q.speeds)) for q in found
    ]


@pytest.mark.parametrize("second", [SWEEP, run("6.1234", 2048), run("6.1234")])
def test_two_files_of_one_name_are_two(tmp_path: Path, second: str) -> None:
    log, other = loader("m-Q4_K.gguf") + run("5.1234"), loader("m-Q4_K.gguf", "65.44 GiB (8.5 BPW)") + second
    found, notes = parsed(tmp_path, log, other)
    assert [(q.name, q.bpw) for q in found] == [("m-Q4_K", 4.89), ("m-Q4_K (log1)", 8.5)]
    assert "it has 65.4 GiB, not 24.6 GiB; it is called m-Q4_K (log1)" in notes[0]
    assert len(parsed(tmp_path, log + other)[0]) == 2
    third, _ = parsed(
        tmp_path, log, other, loader("m-Q4_K.gguf", "65.44 GiB (8.5 BPW)") + run("7.5000", 4096)
    )
    assert [len(q.measurements) for q in third] == [1, 1 if second is SWEEP else 2]


@pytest.mark.parametrize("folders", [("/x/airA/", "/x/airB/"), ("D:\\airA\\", "D:\\airB\\")])
def test_the_folder_tells_two_files(tmp_path: Path, folders: tuple[str, str]) -> None:
    one, other = (loader(f"{folder}Q4_K.gguf", "24.60 GiB") for folder in folders)
    found, notes = parsed(tmp_path, one + run("5.1234"), other + SWEEP)
    assert [q.name for q in found] == ["Q4_K", "Q4_K (airB)"]
    assert "it is in the folder airB, not airA" in notes[0]
    found, _ = parsed(tmp_path, one + run("5.1234") + other + SWEEP)
    assert sorted(q.name for q in found) == ["Q4_K (airA)", "Q4_K (airB)"]
    found, notes = parsed(tmp_path, one + run("5.1234"), loader("./Q4_K.gguf", "24.60 GiB") + SWEEP)
    assert (len(found), notes) == (1, [])


def test_one_file_at_two_contexts_is_one(tmp_path: Path) -> None:
    first, second = (loader("/m/A-Q8_0.gguf") + run(p, c) for p, c in (("5.1234", 512), ("4.5000", 2048)))
    expected = [("A-Q8_0", [(512, 5.1234), (2048, 4.5)], 0)]
    assert shown(parsed(tmp_path, first, second)[0]) == expected
    assert shown(parsed(tmp_path, first + second)[0]) == expected
    found, notes = parsed(tmp_path, first + second + first)
    assert shown(found) == expected
    assert [": the run of A-Q8_0 is there before; it counts once" in note for note in notes] == [True]
    assert shown(parsed(tmp_path, first, first)[0]) == [("A-Q8_0", [(512, 5.1234)], 0)]


def test_what_differs_is_not_joined(tmp_path: Path) -> None:
    log = loader("/m/A-Q8_0.gguf")
    found, _ = parsed(tmp_path, log + run("5.1000") + log + run("5.2000") + log + run("4.5000", 2048))
    assert [len(q.measurements) for q in found] == [1, 1, 1]


def test_bits_per_weight_tell_two_files_without_sizes() -> None:
    records = [Record(ModelFacts("m"), (Quantization("Q4", bpw=bpw),)) for bpw in (4.5, 8.5, 4.51)]
    merged = merge(merge(*records[:2]), records[2])
    assert [(q.name, q.bpw) for q in merged.quantizations] == [("Q4 (4.51 bpw)", 4.51), ("Q4 (8.5 bpw)", 8.5)]


def test_a_record_tells_its_bare_files_by_size() -> None:
    def of(size: int) -> Record:
        return Record(ModelFacts("m"), (Quantization("Q4", FileFacts(n_bytes=size << 30)),))

    merged = merge(of(24), of(65))
    assert [q.name for q in merged.quantizations] == ["Q4 (24.0 GiB)", "Q4 (65.0 GiB)"]
    assert merge(merged, of(65)) == merged
    assert len(merge(merged, Record(ModelFacts("m"), (Quantization("Q4"),))).quantizations) == 3


def test_a_file_that_the_log_does_not_name_is_refused(tmp_path: Path) -> None:
    from stub_engine import write_model

    (tmp_path / "p.log").write_text(loader("m-Q4_K.gguf", "") + run("5.1234"), encoding="utf-8")
    records = parse_files(tmp_path / "p.log")
    file = write_model(tmp_path / "tied.gguf", 0.1)
    with pytest.raises(
        MeasureError, match=r"tied\.gguf is not the file that the log names, m-Q4_K\.gguf"
    ) as caught:
        with_sizes(records, {}, [("", file)])
    assert "NAME=tied.gguf" in caught.value.hint
    (known,) = with_sizes(records, {}, [("m-Q4_K", file)])
    assert known.quantizations[0].parts
    (tmp_path / "q.log").write_text(run("5.1234"), encoding="utf-8")
    assert with_sizes(parse_files(tmp_path / "q.log"), {}, [("", file)])[0].quantizations[0].parts


def test_runs_without_a_model_are_told_where_one_of_several_is_asked_for(tmp_path: Path) -> None:
    name = "llama_model_loader: - kv   1: general.name str = {}\n"
    text = (
        "".join(loader(f"{m}.gguf") + name.format(m) + run("5.1000") for m in "AB")
        + loader("c.gguf")
        + run("6.1000")
    )
    found, notes = parsed(tmp_path, text, model_name="A")
    assert [q.name for q in found] == ["A"]
    assert any("c: no model is named, so it is left out" in note for note in notes)


def test_many_results_in_linear_time(tmp_path: Path) -> None:
    n = 20_000
    record = Record(ModelFacts("A"), tuple(Quantization(f"q{i}") for i in range(n)))
    started = time.process_time()
    (same,) = with_sizes([record], {"q5": 5})
    assert len(same.quantizations) == n
    assert time.process_time() - started < 5
    same_digest = tuple(Quantization(f"q{i}", FileFacts(sha256=f"{i // 2:064x}")) for i in range(2000))
    (joined,) = with_sizes([Record(ModelFacts("A"), same_digest)], {})
    assert len(joined.quantizations) == 1000
    text = "".join(loader("m.gguf") + run("5.1000", 512 + i) for i in range(2000))
    (entry,) = parsed(tmp_path, text)[0]
    assert len(entry.measurements) == 2000
    assert time.process_time() - started < 20
    assert entry.measurements[0].metrics["ppl"] == Metric(5.1, 0.01234, "unpaired tokens")
