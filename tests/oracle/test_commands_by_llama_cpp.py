"""Command lines, judged by llama.cpp's own parser: what ggplan writes is accepted and means what it says."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggplan.ggml_types import F16, parse_type
from ggplan.offload.commands import read_command
from ggplan.offload.options import first_blocks
from ggplan.offload.settings import Override, Settings
from ggplan.offload.writing import write_command
from ggplan.planning.devices import EXPERTS

pytestmark = pytest.mark.oracle

Parse = Callable[[list[str]], tuple[int, list[tuple[str, str]], str]]
FLASH = {"auto": "-1", "off": "0", "on": "1"}
SPLIT = {"none": "0", "layer": "1", "row": "2", "tensor": "3"}


@pytest.fixture(scope="module")
def parse(llama_cpp: Path, tmp_path_factory: pytest.TempPathFactory) -> Parse:
    """llama.cpp's parser: the words of a command to its exit code, what it understood, and its messages."""
    program = tmp_path_factory.mktemp("parser") / "parse_command"
    libraries = llama_cpp / "build" / "bin"
    done = subprocess.run(
        [
            "g++", "-std=c++17", "-O0", "-o", program, Path(__file__).with_name("parse_command.cpp"),
            *(f"-I{llama_cpp / folder}" for folder in ("common", "include", "ggml/include", "vendor")),
            f"-L{libraries}", "-lllama-common", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]

    def run(words: list[str]) -> tuple[int, list[tuple[str, str]], str]:
        ran = subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=60)
        pairs = [tuple(line.split(" ", 1)) for line in ran.stdout.splitlines() if " " in line]
        return ran.returncode, pairs, ran.stderr

    return run


def understood(found: Settings, *, fits: bool) -> list[tuple[str, str]]:
    """What llama.cpp prints of settings."""
    numbers = {
        "context": found.context or 0, "batch": found.batch, "micro_batch": found.micro_batch,
        "slots": -1 if found.slots is None else found.slots, "unified_cache": int(bool(found.unified_cache)),
        "cache_on_gpu": int(found.cache_on_gpu), "op_offload": int(found.op_offload),
        "full_window": int(found.full_window), "repack": int(found.repack),
        "host_buffer": int(found.host_buffer), "fits": int(fits), "main_gpu": found.main_gpu,
        "host_cache_mib": 8192 if found.host_cache_mib is None else found.host_cache_mib,
    }  # fmt: skip
    split = [*found.tensor_split, 0.0, 0.0, 0.0][:3]
    return sorted([
        *((name, str(n)) for name, n in numbers.items()),
        ("cache_k", found.cache_k.name), ("cache_v", found.cache_v.name),
        ("flash_attention", FLASH[found.flash_attention]), ("split_mode", SPLIT[found.split_mode]),
        ("tensor_split", " ".join(f"{share:g}" for share in split)),
        *(("override", o.pattern) for o in found.overrides),
    ])  # fmt: skip


def told(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(pair for pair in pairs if pair[0] not in ("load_mode", "gpu_layers"))


OVERRIDES = st.lists(
    st.one_of(
        st.builds(Override, st.text(r"abk.\(|)_*+[]-^$0123456789", min_size=1, max_size=12), st.just("CPU")),
        st.just(Override(EXPERTS, "CPU")),
    ),
    max_size=4,
).map(tuple)
TYPES = st.sampled_from([F16, *map(parse_type, ("q8_0", "q4_0", "bf16", "iq4_nl", "q5_1", "f32"))])
SETTINGS = st.builds(
    Settings,
    gpu_layers=st.integers(-1, 999),
    overrides=st.one_of(OVERRIDES, st.integers(1, 9).map(lambda n: first_blocks(n, EXPERTS))),
    tensor_split=st.lists(st.integers(1, 64).map(float), max_size=3).map(tuple),
    main_gpu=st.integers(0, 3),
    split_mode=st.sampled_from(["none", "layer", "row", "tensor"]),
    batch=st.integers(1, 8192),
    micro_batch=st.integers(1, 8192),
    cache_k=TYPES,
    cache_v=TYPES,
    cache_on_gpu=st.booleans(),
    op_offload=st.booleans(),
    load_mode=st.sampled_from(["none", "mmap", "mlock", "mmap+mlock", "dio"]),
    threads=st.none() | st.integers(1, 256),
    context=st.none() | st.integers(0, 1 << 20),
    slots=st.none() | st.integers(1, 64),
    mtp=st.booleans(),
    host_cache_mib=st.none() | st.integers(-1, 8192),
    flash_attention=st.sampled_from(["on", "off", "auto"]),
    unified_cache=st.none() | st.booleans(),
    full_window=st.booleans(),
    repack=st.booleans(),
    host_buffer=st.booleans(),
)


@given(SETTINGS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_understood(parse: Parse, wanted: Settings) -> None:
    code, pairs, messages = parse(write_command(wanted, "a b.gguf", "llama.cpp"))
    assert code == 0, messages
    assert told(pairs) == understood(wanted, fits=False)
    found = dict(pairs)
    assert found["gpu_layers"] == str(wanted.gpu_layers if wanted.gpu_layers >= 0 else -2)
    # The default is to map the file where every device can.
    assert found["load_mode"] == ("auto" if wanted.load_mode == "mmap" else wanted.load_mode)


@pytest.mark.parametrize(
    "line",
    [
        "llama-server -c 4096 --ctx-size 8192 --batch_size 64 -fa enabled",
        "llama-server -ngl all -cmoe -ot a=CPU,b=CPU -ncmoe 2 -ncffn 1",
        "llama-server --no-kv-offload --kv-offload -nr --repack --no-op-offload -no-kvu -np -1",
        "llama-server -fit 0 -cram -1 -ts 3/1 -sm row -mg 1 -fa -1 -ctk q5_0 -lm auto",
        "llama-server --port 8080 --host 0.0.0.0 --jinja --temp 0.6 --control-vector-layer-range 1 2",
        "llama-server -kvu --swa-full --no-host",
    ],
)  # fmt: skip
def test_what_is_read_is_understood_alike(parse: Parse, line: str) -> None:
    command = read_command(line)
    assert not command.faults
    code, pairs, messages = parse(shlex.split(line))
    assert code == 0, messages
    assert told(pairs) == understood(command.settings, fits=command.fits)


@pytest.mark.parametrize(
    "line",
    [
        "llama-server --no-mmap", "llama-server --mlock", "llama-server --ctx-size=4096", "llama-server -c",
        "llama-server -ctk q6_0", "llama-server -fa maybe", "llama-server -ot blk.{1,2}=CPU",
        "llama-server -ot exps=CUDA_Host", "llama-server -lm all", "llama-server -np 0",
        "llama-server --draft 16", "llama-server -mla 3", "llama-perplexity -cram 0",
        "llama-server -ncmoe -1",
        "llama-server -sm graph", "llama-server model.gguf",
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_by_both(parse: Parse, line: str) -> None:
    assert read_command(line).faults
    assert parse(shlex.split(line))[0] != 0


def test_the_table_of_options_is_that_of_the_tree(llama_cpp: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
    import make_flags

    before = make_flags.TABLE.read_text(encoding="utf-8").splitlines()[2:]
    made = make_flags.table(llama_cpp)
    assert made == before


def test_llama_bench_takes_what_is_written(llama_cpp: Path) -> None:
    program = llama_cpp / "build" / "bin" / "llama-bench"
    if not program.exists():
        pytest.skip("llama-bench is not built: cmake --build build --target llama-bench")
    wanted = Settings(
        program="llama-bench", context=4096, gpu_layers=99, load_mode="none", flash_attention="on",
        micro_batch=1024, overrides=(Override("attn", "CPU"), *first_blocks(3, EXPERTS)), op_offload=False,
        cache_on_gpu=False, repack=False, host_buffer=False, tensor_split=(3.0, 1.0), threads=2,
    )  # fmt: skip
    words = write_command(wanted, "no such file.gguf", "llama.cpp")
    ran = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False, timeout=60)
    # Past its parser it looks for the file.
    assert "no such file.gguf" in ran.stderr
    assert "invalid parameter" not in ran.stderr
