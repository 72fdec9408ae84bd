"""Logs and tables of other programs, as they print them, damaged and mixed up."""

import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_readers import parse_perplexity_log, parse_sweep_bench

from ggplan.errors import MeasureError
from ggplan.measure.logs import read_log
from ggplan.measure.parsing import parse_files
from ggplan.measure.record import Metric, Record
from ggplan.measure.record_json import record_from_json, record_to_json

LOGS = Path(__file__).parent.parent / "data" / "logs"
KLD = LOGS / "kld.glm4moe-tiny.Q4_K_M.txt"
SWEEP = LOGS / "sweep-bench.GLM-4.5-Air_16384_4096.txt"


def parsed(tmp_path: Path, content: str, name: str = "x.txt", **options: str) -> Record:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    (record,) = parse_files([path], **options)
    return record


def test_a_divergence_log() -> None:
    quality = parse_perplexity_log(KLD.read_text("utf-8"))
    assert (quality.n_ctx, quality.n_chunks, quality.n_tokens) == (512, 30, 7650)
    assert quality.metrics == {
        "ppl": Metric(20.728870, 0.598575, "unpaired tokens"),
        "delta_ln_ppl": Metric(0.002533, 0.001293, "paired tokens"),
        "delta_ppl": Metric(0.052447, 0.026789, "paired tokens"),
        "kld": Metric(0.006270, 0.000088, "paired tokens"),
        "kld_max": Metric(0.163816),
        "kld999": Metric(0.081273),
        "kld99": Metric(0.035384),
        "kld90": Metric(0.012886),
        "kld_median": Metric(0.004245),
        "delta_p_mean": Metric(-0.00057, 0.00021, "paired tokens"),
        "delta_p_rms": Metric(0.01803, 0.00039, "paired tokens"),
        "same_top": Metric(0.94824, 0.00253, "paired tokens"),
    }


def test_a_divergence_log_that_went_through_a_terminal() -> None:
    good = KLD.read_text("utf-8")
    for change in (("±", "+/-"), ("±", "_"), ("Δp", "?p"), ("Δp", "Dp"), ("\n", "\r\n")):
        quality = parse_perplexity_log(good.replace(*change))
        assert quality.metrics == parse_perplexity_log(good).metrics, change


def test_an_old_log_that_says_99_0_twice() -> None:
    good = KLD.read_text("utf-8")
    old = good.replace("99.9%   KLD", "99.0%   KLD")
    metrics = parse_perplexity_log(old).metrics
    assert metrics["kld999"].value == 0.081273
    assert metrics["kld99"].value == 0.035384


def test_a_plain_log() -> None:
    quality = parse_perplexity_log((LOGS / "perplexity.glm4moe-tiny.bf16.txt").read_text("utf-8"))
    assert quality.metrics == {"ppl": Metric(20.6764, 0.59736, "unpaired tokens")}
    assert quality.n_chunks == 30


def test_the_longer_form_of_the_final_line() -> None:
    line = "Final estimate: PPL over 565 chunks for n_ctx=512 = 3.4428 +/- 0.01993\n"
    quality = parse_perplexity_log(line)
    assert quality.metrics["ppl"] == Metric(3.4428, 0.01993, "unpaired tokens")
    assert (quality.n_chunks, quality.n_ctx) == (565, 512)


STRIDED = """\
main: Will perform strided perplexity calculation -> adjusting context size from 512 to 640
perplexity_v2: calculating perplexity over 3 chunks, batch_size=512
[1]10.1234,[2]11.5000,[3]12.2500,
"""


def test_a_strided_log_has_no_final_line() -> None:
    assert parse_perplexity_log(STRIDED).metrics == {"ppl": Metric(12.25)}


@pytest.mark.parametrize(
    "text",
    [
        STRIDED.replace(",[3]12.2500", ""),
        "perplexity: calculating perplexity over 3 chunks, n_ctx=512\n[1]4.1,[2]5.2,[3]6.3,\n",
        KLD.read_text("utf-8").partition("====== Perplexity")[0],
    ],
)
def test_an_unfinished_log_is_no_result(text: str) -> None:
    with pytest.raises(MeasureError, match=r"ends.*before its result"):
        parse_perplexity_log(text)


def test_sweep_bench() -> None:
    speeds = parse_sweep_bench(SWEEP.read_text())
    assert len(speeds) == 16
    assert (speeds[1].n_kv, speeds[1].pp, speeds[1].tg) == (4096, 2642.98, 83.23)
    line = (
        '{"n_kv_max": 512, "pp": 64, "tg": 16, "n_kv": 64, "t_pp": 0.1, "speed_pp": 640.5, "speed_tg": 16.1}'
    )
    (speed,) = parse_sweep_bench(f"noise\n{line}\n")
    assert (speed.n_kv, speed.pp, speed.tg) == (64, 640.5, 16.1)


BENCH = """\
| model                  |       size |     params | backend | threads | test          |            t/s |
| ---------------------- | ---------: | ---------: | ------- | ------: | ------------- | -------------: |
| glm4moe 106B.A12B Q4_K |  65.44 GiB |   110.47 B | CPU     |      16 |         pp512 |  118.80 ± 3.24 |
| glm4moe 106B.A12B Q4_K |  65.44 GiB |   110.47 B | CPU     |      16 |         tg128 |   11.42 ± 0.59 |
| glm4moe 106B.A12B Q4_K |  65.44 GiB |   110.47 B | CPU     |      16 | tg128 @ d4096 |    9.02 ± 0.11 |
| glm4moe 106B.A12B Q4_K |  65.44 GiB |   110.47 B | CPU     |      16 |   pp512+tg128 |   40.42 ± 0.59 |

build: 0c1e570 (11434)
"""


def test_llama_bench_as_a_table(tmp_path: Path) -> None:
    record = parsed(tmp_path, BENCH)
    (quantization,) = record.quantizations
    assert quantization.name == "glm4moe 106B.A12B Q4_K"
    assert quantization.file.n_bytes == int(65.44 * 2**30)
    assert [(s.n_kv, s.pp, s.tg) for s in quantization.speeds] == [(0, 118.8, 11.42), (4096, None, 9.02)]


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_llama_bench_for_machines(form: str) -> None:
    test = {
        "build_commit": "8cf427ff", "build_number": 5163, "cpu_info": "Ryzen", "gpu_info": "",
        "model_filename": "m/air-Q4_K.gguf", "model_size": 4677120000,
        "n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 7100.25,
    }  # fmt: skip
    writing = test | {"n_prompt": 0, "n_gen": 128, "avg_ts": 118.5}
    both = [test, writing]
    text = {
        "json": json.dumps(both, indent=1),
        "jsonl": "\n".join(map(json.dumps, both)),
        "csv": "\n".join([",".join(test), *(",".join(f'"{v}"' for v in t.values()) for t in both)]),
    }[form]
    (run,) = read_log(text).runs
    (speed,) = run.speeds
    assert (run.name, run.n_bytes, speed.pp, speed.tg) == ("m/air-Q4_K.gguf", 4677120000, 7100.25, 118.5)
    assert (speed.build, speed.hardware) == ("5163 (8cf427ff)", "Ryzen")


CARD = """\
# `ik_llama.cpp` imatrix quantizations
These first two are for reference: BF16 205.811 GiB (16.004 BPW), not a heading.
## `IQ5_K` 77.704 GiB (6.042 BPW)
Final estimate: PPL = 4.5867 +/- 0.02806

<details>
custom="..."
</details>
### **IQ4_K** 65.4 GiB (4.892 bpw)
Final estimate: PPL over 565 chunks for n_ctx=512 = 4.6273 +/- 0.02832
## IQ1_KT 36.0 GiB (2.802 BPW)
PPL not measured yet
## Quick start
Final estimate: PPL = 9.9999 +/- 0.1
"""


def test_a_model_card_old_and_new(tmp_path: Path) -> None:
    record = parsed(tmp_path, CARD, model_name="GLM-4.5-Air")
    assert record.model.name == "GLM-4.5-Air"
    assert [(q.name, q.bpw, q.measurements[0].metrics["ppl"].value) for q in record.quantizations] == [
        ("IQ5_K", 6.042, 4.5867),
        ("IQ4_K", 4.892, 4.6273),
    ]
    assert record.quantizations[0].file.n_bytes == round(77.704 * 2**30)
    assert record.quantizations[1].measurements[0].n_ctx == 512


def test_chart_data(tmp_path: Path) -> None:
    points = [
        {
            "name": "IQ4_K",
            "ppl": "4.6273 +/- 0.02832",
            "size": 65.4,
            "bpw": 4.892,
            "legend": "u",
            "comment": "c",
        },
        {"name": "Q8_0", "ppl": 4.5798, "bpw": "8.505", "url": "https://example.org"},
        {"name": "gone", "ppl": "0", "skip": True},
    ]
    record = parsed(tmp_path, json.dumps({"title": "Air", "data": points}))
    assert record.model.name == "Air"
    assert [q.name for q in record.quantizations] == ["IQ4_K", "Q8_0"]
    assert record.quantizations[0].measurements[0].metrics["ppl"] == Metric(
        4.6273, 0.02832, "unpaired tokens"
    )
    assert record.quantizations[1].url == "https://example.org"


def test_thireus_tables(tmp_path: Path) -> None:
    record = parsed(
        tmp_path, "QTYPE,bpw,ppl\nq8_0,8.505,4.5798\nq4_1,5.03,4.6532\nq4_1,4.9,4.6477\n", "GLM-4.5-Air.csv"
    )
    assert record.model.name == "GLM-4.5-Air"
    assert [q.name for q in record.quantizations] == ["q8_0", "q4_1", "q4_1 4.9"]
    database = "A|ub|Q4|4.5|3.3|https://x\nB|pure|Q8_0|8.5|3.2\n#A|off|Q2|2.5|9.9|\n"
    path = tmp_path / "others.db"
    path.write_text(database)
    assert [(r.model.name, len(r.quantizations)) for r in parse_files([path])] == [("A", 1), ("B", 1)]
    assert [r.model.name for r in parse_files([path], model_name="B")] == ["B"]


def test_several_files_of_one_model_become_one_record() -> None:
    (record,) = parse_files(sorted(LOGS.glob("*glm4moe-tiny*")), model_name="tiny")
    assert [q.name for q in record.quantizations] == ["glm4moe-tiny.Q4_K_M", "glm4moe-tiny.bf16"]


def test_a_record_is_read_as_itself(tmp_path: Path) -> None:
    (record,) = parse_files([KLD])
    assert parsed(tmp_path, json.dumps(record_to_json(record))) == record


@pytest.mark.parametrize(
    "content", ["", "hello\n", "{}", "[1, 2]", '{"data": [{"name": "x"}]}', "a|b|c|d|e|f\n"]
)
def test_what_is_nothing_is_refused_by_name(tmp_path: Path, content: str) -> None:
    with pytest.raises(MeasureError, match=r"x\.txt"):
        parsed(tmp_path, content)


LINES = [*CARD.splitlines(), *BENCH.splitlines(), *STRIDED.splitlines(), "|", "{", "QTYPE,bpw,ppl"]


@given(st.lists(st.sampled_from(LINES)))
def test_no_mixture_of_lines_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "mix.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    records = []
    with contextlib.suppress(MeasureError):
        records = parse_files([path])
    for record in records:
        assert record_from_json(record_to_json(record)) == record


@pytest.mark.parametrize("text", ["\n" * 5000, "#\n" * 5000, "ok\n" * 50_000, " \n\t\n" * 5000], ids=repr)
def test_a_text_without_a_result_is_refused_at_once(tmp_path: Path, text: str) -> None:
    began = time.process_time()
    with pytest.raises(MeasureError, match="is no log or table that ggplan knows"):
        parsed(tmp_path, text)
    assert time.process_time() - began < 10


def test_a_long_log_is_read_in_reasonable_time(tmp_path: Path) -> None:
    """A loader's lines take most of a log: no pattern is tried on each of them."""
    tensor = "llama_model_loader: - tensor  {}: blk.{}.ffn_down_exps.weight q4_K [ 1408, 4096, 128, 1 ]\n"
    loader = "".join(tensor.format(i, i) for i in range(20_000))
    began = time.process_time()
    record = parsed(tmp_path, loader + KLD.read_text("utf-8"))
    assert time.process_time() - began < 10  # a quarter of a second on an idle machine
    assert record.quantizations[0].measurements[0].metrics["kld"].value == 0.006270
