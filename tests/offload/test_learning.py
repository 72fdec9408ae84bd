"""What a benchmark teaches: from the text of llama-bench or llama-sweep-bench to a stretched range."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import program
import pytest
from memory_rows import headers, write_header

from ggplan.cli.learning import benchmarks_in
from ggplan.errors import MachineError, MeasureError
from ggplan.ggml_types import F16, F32, parse_type
from ggplan.metadata import string, uint32
from ggplan.offload.active import active_bytes
from ggplan.offload.dimensions import Dimensions, dimensions_of
from ggplan.offload.header import Header, HeaderTensor
from ggplan.offload.learning import Benchmark, learn_from
from ggplan.offload.machine import Gpu, Machine
from ggplan.offload.machine_file import read_machine
from ggplan.offload.profiles import LLAMA_CPP
from ggplan.offload.settings import Settings
from ggplan.offload.speed import generation, prompt
from ggplan.offload.weights import Weights, place_weights

_SWEEP = """\
main: n_kv_max = 4096, n_batch = 2048, n_ubatch = 512, flash_attn = 1, n_gpu_layers = 99, n_threads = 16
|    PP |     TG |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |
|-------|--------|--------|----------|----------|----------|----------|
|   512 |    128 |      0 |    2.560 |   200.00 |   12.800 |    10.00 |
|   512 |    128 |    512 |    2.560 |   200.00 |   14.222 |     9.00 |
"""
_BENCH = """\
| model                  |      size |   params | backend | ngl |  test |           t/s |
| ---------------------- | --------: | -------: | ------- | --: | ----: | ------------: |
| glm4moe 106B.A12B Q4_K | 60.00 GiB | 110.47 B | CUDA    |  99 | pp512 | 200.00 ± 1.00 |
| glm4moe 106B.A12B Q4_K | 60.00 GiB | 110.47 B | CUDA    |  99 | tg128 |  10.00 ± 0.10 |
"""
_MACHINE = Machine((Gpu("RTX 3090", 24 << 30, 936e9, 24e9, 142e12),), 128 << 30, 80e9, 16)
_SETTINGS = Settings(context=4096)


def _placed() -> tuple[Weights, Dimensions]:
    tensors = [
        HeaderTensor("token_embd.weight", F16, (4096, 32000)),
        HeaderTensor("output_norm.weight", F32, (4096,)),
    ]
    tensors += [
        HeaderTensor(f"blk.{b}.{part}.weight", parse_type("q4_K"), (4096, 16384))
        for b in range(16)
        for part in ("attn_q", "ffn_up", "ffn_down")
    ]
    facts = {"block_count": 16, "embedding_length": 4096, "attention.head_count": 32, "context_length": 4096}
    metadata = {"general.architecture": string("llama")} | {f"llama.{k}": uint32(v) for k, v in facts.items()}
    header = Header("dense", metadata, tuple(tensors))
    dimensions = dimensions_of(header)
    return place_weights(header, dimensions, _SETTINGS, _MACHINE.gpus), dimensions


def _log(folder: Path, text: str) -> Path:
    path = folder / "bench.log"
    path.write_text(text, "utf-8")
    return path


def test_the_rows_of_a_sweep(tmp_path: Path) -> None:
    rows, notes = benchmarks_in(_log(tmp_path, _SWEEP))
    assert rows == [Benchmark(0, 200.0, 10.0), Benchmark(512, 200.0, 9.0)]
    assert notes == []


def test_the_tests_of_llama_bench(tmp_path: Path) -> None:
    rows, _ = benchmarks_in(_log(tmp_path, _BENCH))
    assert rows == [Benchmark(0, 200.0, 10.0)]


def test_several_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"bench\.log has 2 benchmarks") as refused:
        benchmarks_in(_log(tmp_path, _SWEEP + _SWEEP))
    assert refused.value.hint == "give a log with one file and one placement"


@pytest.mark.parametrize("text", ["", "nothing", "\x00" * 50, _SWEEP.splitlines()[0]])
def test_a_text_without_a_result_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"bench\.log has no result of a benchmark"):
        benchmarks_in(_log(tmp_path, text))


def test_a_damaged_table_is_an_error(tmp_path: Path) -> None:
    text = '[{"build_commit": "a", "n_gen": "x", "avg_ts": 5}]'
    with pytest.raises(MeasureError, match="line 1"):
        benchmarks_in(_log(tmp_path, text))


def test_the_same_file_is_predicted_as_it_was_measured() -> None:
    weights, dimensions = _placed()
    benchmarks = [Benchmark(0, 500.0, 20.0), Benchmark(1000, 500.0, 20.0)]
    machine, _ = learn_from(_MACHINE, weights, dimensions, _SETTINGS, LLAMA_CPP, benchmarks, "bench.log")
    active = active_bytes(weights, dimensions, _SETTINGS, depth=500)
    assert generation(active, machine, LLAMA_CPP, _SETTINGS).likely == pytest.approx(20, rel=0.1)
    assert prompt(active, machine, LLAMA_CPP, _SETTINGS).likely == pytest.approx(500, rel=0.1)
    assert machine.learned is not None
    assert machine.learned.file_bytes == active.file_bytes > 0


def test_a_speed_that_memory_cannot_give_is_refused() -> None:
    weights, dimensions = _placed()
    rows = [Benchmark(0, None, 2000.0)]
    with pytest.raises(MachineError, match=r"times faster than memory allows: .* nothing is kept") as refused:
        learn_from(_MACHINE, weights, dimensions, _SETTINGS, LLAMA_CPP, rows, "bench.log")
    assert "`--command`" in refused.value.hint


def test_it_is_learned_anew_and_not_on_top() -> None:
    weights, dimensions = _placed()
    rows = [Benchmark(0, None, 20.0)]
    once, _ = learn_from(_MACHINE, weights, dimensions, _SETTINGS, LLAMA_CPP, rows, "a.log")
    twice, _ = learn_from(once, weights, dimensions, _SETTINGS, LLAMA_CPP, rows, "a.log")
    assert once == twice
    assert once.learned is not None
    assert once.learned.prompt is None


def test_what_is_odd_is_told() -> None:
    weights, dimensions = _placed()
    active = active_bytes(weights, dimensions, _SETTINGS)
    likely = generation(active, _MACHINE, LLAMA_CPP, _SETTINGS).likely
    rows = [Benchmark(0, None, likely / 5)]
    _, notes = learn_from(_MACHINE, weights, dimensions, _SETTINGS, LLAMA_CPP, rows, "a.log")
    asked = "is the log of this file, this placement and this machine?"
    assert notes == (f"generation: 5.0 times slower than reckoned; {asked}",)
    rows = [Benchmark(0, None, likely), Benchmark(0, None, likely / 1.9)]
    _, notes = learn_from(_MACHINE, weights, dimensions, _SETTINGS, LLAMA_CPP, rows, "a.log")
    assert notes == ("generation: the rows are 1.9 times apart; the median counts",)


def test_a_benchmark_without_a_speed_teaches_nothing() -> None:
    weights, dimensions = _placed()
    with pytest.raises(MachineError, match=r"a\.log has no tokens per second"):
        learn_from(_MACHINE, weights, dimensions, _SETTINGS, LLAMA_CPP, [Benchmark(0, None, None)], "a.log")
    unknown = replace(_MACHINE, bandwidth=None, cores=None, gpus=())
    weights = place_weights(Header("x", {}, ()), dimensions, _SETTINGS, ())
    rows = [Benchmark(0, 1e-9, 1e9)]
    machine, _ = learn_from(unknown, weights, dimensions, _SETTINGS, LLAMA_CPP, rows, "a.log")
    assert machine.learned is not None
    assert 1e-3 <= (machine.learned.generation or 0) <= 1e3


_MACHINE_FILE = """\
# mine
ram = "128GiB"
bandwidth = "80GB/s"
[learned]
generation = 9.0
[[gpu]]
memory = "24GiB"  # the black one
"""


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, str]:
    """An environment with a machine's file, and the header of a file in the folder."""
    path = tmp_path / "ggplan" / "machine.toml"
    path.parent.mkdir()
    path.write_text(_MACHINE_FILE, "utf-8")
    write_header(headers("models")["GLM-4.5-Air.hq4k"], tmp_path / "air.gguf")
    _log(tmp_path, _BENCH)
    return {"XDG_CONFIG_HOME": str(tmp_path), "PATH": str(tmp_path)}


def test_what_is_learned_is_kept_beside_what_a_person_wrote(kept: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "ggplan" / "machine.toml"
    done = program.run("fit", "air.gguf", "--calibrate", "bench.log", folder=tmp_path, **kept)
    assert done.returncode == 0
    assert "learned from bench.log of air.gguf" in done.stdout
    assert "likely 10.0;" in done.stdout
    text = path.read_text("utf-8")
    assert text.startswith('# mine\nram = "128GiB"\nbandwidth = "80GB/s"\n[[gpu]]\n')
    assert "# the black one" in text
    assert text.count("[learned]") == 1
    learned = read_machine(path).learned
    assert learned is not None
    assert learned.generation != 9.0
    # It is learned from what is reckoned without what was learned before.
    program.run("fit", "air.gguf", "--calibrate", "bench.log", folder=tmp_path, **kept)
    assert path.read_text("utf-8") == text


def test_the_command_that_was_measured_may_be_another(kept: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "ggplan" / "machine.toml"
    line = "llama-bench -m air.gguf -ngl 99 -ncmoe 99 -fa 1"
    figures = []
    for arguments in ([], ["--command", line]):
        done = program.run("fit", "air.gguf", "--calibrate", "bench.log", *arguments, folder=tmp_path, **kept)
        assert done.returncode == 0
        learned = read_machine(path).learned
        assert learned is not None
        figures.append(learned.generation)
    # With more in RAM, the same speed is a faster machine.
    assert figures[1] < figures[0]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--vram", "24G"], 2, "no option may state another"),
        (["--check", "llama-server"], 2, "--calibrate goes with neither --check nor --gpus"),
        (["--command", "llama-bench --nonsense"], 1, "--nonsense"),
        (["--machine", "air.gguf"], 1, "air.gguf is no text"),
    ],
)
def test_calibrations_that_are_refused(
    arguments: list[str], code: int, says: str, kept: dict[str, str], tmp_path: Path
) -> None:
    before = (tmp_path / "ggplan" / "machine.toml").read_text("utf-8")
    done = program.run("fit", "air.gguf", "--calibrate", "bench.log", *arguments, folder=tmp_path, **kept)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert (tmp_path / "ggplan" / "machine.toml").read_text("utf-8") == before


def test_without_a_file_nothing_can_be_kept(kept: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "ggplan" / "machine.toml").unlink()
    done = program.run("fit", "air.gguf", "--calibrate", "bench.log", folder=tmp_path, **kept)
    assert done.returncode == 2
    assert "write one with `ggplan machine --write`" in done.stderr
