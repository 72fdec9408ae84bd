"""Command lines of the engines are read as they read them, and written so that they read them back."""

from __future__ import annotations

import contextlib
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.errors import CommandError
from ggplan.ggml_types import F16, Engine, parse_type
from ggplan.offload.commands import parse_command, read_command
from ggplan.offload.flags import ENGINES
from ggplan.offload.settings import Override, Settings
from ggplan.offload.writing import write_command
from ggplan.planning.devices import EXPERTS

Q8_0 = parse_type("q8_0")


def test_a_line_as_people_write_it() -> None:
    line = (
        "CUDA_VISIBLE_DEVICES=0 ./build/bin/llama-server \\\n"
        "    --model '/models/GLM 4.5.gguf' \\\n"
        '    -ngl 99 -ot "blk\\.(1|2)\\.ffn_.*_exps=CUDA0,exps=CPU" # experts\n'
        "    --ctx-size 32768 -ub 2048 -fa on -ctk q8_0 -ctv q8_0 --host 0.0.0.0 --port 8080 > log 2>&1 &"
    )
    command = read_command(line)
    assert not command.faults
    assert command.model == "/models/GLM 4.5.gguf"
    assert command.settings == Settings(
        gpu_layers=99, context=32768, micro_batch=2048, flash_attention="on", cache_k=Q8_0, cache_v=Q8_0,
        overrides=(Override(r"blk\.(1|2)\.ffn_.*_exps", "CUDA0"), Override("exps", "CPU")),
    )  # fmt: skip
    assert "CUDA_VISIBLE_DEVICES shows the program 1 GPU: say so with --gpus" in command.notes
    assert [g.line for g in command.given if g.name == "-c"] == [4]


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("-ngl 12", "gpu_layers", 12),
        ("--gpu-layers all", "gpu_layers", -1),
        ("--n-gpu-layers auto", "gpu_layers", -1),
        ("-c 4096 --ctx-size 8192", "context", 8192),
        ("--batch_size 64", "batch", 64),
        ("-ts 3,1", "tensor_split", (3.0, 1.0)),
        ("-ts 3/1", "tensor_split", (3.0, 1.0)),
        ("-ts 0,0", "tensor_split", ()),
        ("-sm row", "split_mode", "row"),
        ("-mg 1", "main_gpu", 1),
        ("-np 2", "slots", 2),
        ("-np -1", "slots", None),
        ("-kvu", "unified_cache", True),
        ("-no-kvu", "unified_cache", False),
        ("--no-kv-unified", "unified_cache", False),
        ("-fa enabled", "flash_attention", "on"),
        ("-fa 0", "flash_attention", "off"),
        ("-fa -1", "flash_attention", "auto"),
        ("-nkvo", "cache_on_gpu", False),
        ("-nkvo --kv-offload", "cache_on_gpu", True),
        ("--no-op-offload", "op_offload", False),
        ("--swa-full", "full_window", True),
        ("-lm mmap+mlock", "load_mode", "mmap+mlock"),
        ("-lm auto", "load_mode", "mmap"),
        ("-nr", "repack", False),
        ("--no-repack --repack", "repack", True),
        ("--no-host", "host_buffer", False),
        ("--spec-type ngram-mod,draft-mtp", "mtp", True),
        ("--spec-draft-n-max 2", "n_drafted", 2),
        ("--spec-type ngram-mod,draft-mtp", "n_guessed", 64),
        ("--spec-type ngram-mod --spec-ngram-mod-n-max 8", "n_guessed", 8),
        ("--spec-ngram-simple-size-m 12 --spec-type ngram-simple", "n_guessed", 12),
        ("--spec-type draft-eagle3 --spec-draft-n-max 5", "n_guessed", 5),
        ("--spec-type none", "n_guessed", 0),
        ("-cram 0", "host_cache_mib", 0),
        ("-cram -1", "host_cache_mib", -1),
        ("-t 16", "threads", 16),
        ("-t -1", "threads", None),
        ("--kv-unified-per-slot 4096", "context", 16384),
        ("-cmoe", "overrides", (Override(EXPERTS, "CPU"),)),
        ("-ncmoe 1 -ot a=CUDA0", "overrides", (Override(rf"blk\.0{EXPERTS}", "CPU"), Override("a", "CUDA0"))),
        ("-ncffn 1", "overrides", (Override(r"blk\.0\.ffn_(up|down|gate)\.", "CPU"),)),
    ],
)
def test_options_of_llama_server(words: str, field: str, value: object) -> None:
    assert getattr(parse_command(f"llama-server {words}"), field) == value
    assert getattr(parse_command(words), field) == value


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("-c 4096", "flash_attention", "on"),
        ("-fa", "flash_attention", "on"),
        ("-fa -ngl 3", "gpu_layers", 3),
        ("-fa OFF", "flash_attention", "off"),
        ("-no-fa", "flash_attention", "off"),
        ("--no-mmap", "load_mode", "none"),
        ("--mlock", "load_mode", "mmap+mlock"),
        ("--mlock --no-mmap", "load_mode", "mlock"),
        ("-ctk q6_0", "cache_k", parse_type("q6_0")),
        ("-op -1,0", "op_offload", False),
        ("--spec-type mtp:n_max=1", "mtp", True),
        # -cmoe and -ncmoe stand behind every -ot, and the last of them counts.
        (
            "-cmoe -ncmoe 1 -ot a=CPU",
            "overrides",
            (Override("a", "CPU"), Override(rf"blk\.0{EXPERTS}", "CPU")),
        ),
    ],
)
def test_options_of_ik_llama(words: str, field: str, value: object) -> None:
    assert getattr(parse_command(f"llama-server {words}", "ik_llama.cpp"), field) == value


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("", "context", 512),
        ("-p 2048 -n 0", "context", 2048),
        ("-pg 4096,256", "context", 4352),
        ("-p 512,1024 -d 0,16384", "context", 17408),
        ("-d 0-8192+2048", "context", 8704),
        ("-ot 'a=CPU;b=CUDA0' -ncmoe 1", "overrides",
         (Override("a", "CPU"), Override("b", "CUDA0"), Override(rf"blk\.0{EXPERTS}", "CPU"))),
        ("-ts 3/1", "tensor_split", (3.0, 1.0)),
        ("-nkvo 1", "cache_on_gpu", False),
        ("-nopo 1", "op_offload", False),
        ("--no-host 0", "host_buffer", True),
        ("--repack 0", "repack", False),
        ("-fa 1", "flash_attention", "on"),
    ],
)  # fmt: skip
def test_options_of_llama_bench(words: str, field: str, value: object) -> None:
    assert getattr(parse_command(f"llama-bench {words}"), field) == value


def test_perplexity_has_a_context_of_512() -> None:
    assert parse_command("llama-perplexity -m f.gguf -f wiki.txt").context == 512
    assert parse_command("llama-perplexity -c 4096").context == 4096


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("llama-server --no-mmap", "`--no-mmap` no longer exists in llama.cpp", "write -lm none"),
        ("llama-server --ctx-sze 4096", "no option `--ctx-sze`", "did you mean `--ctx-size`?"),
        ("llama-server --ctx-size=4096", "takes no `=`", "`--ctx-size VALUE`"),
        ("llama-server -c 32k", "is read as 32", "write 32768"),
        ("llama-server -c", "has no value", "after it"),
        ("llama-server -ctk q8_o", "no type of a KV cache", "write q8_0"),
        ("llama-server -mla 3", "an option of ik_llama.cpp", "use ik_llama.cpp"),
        ("llama-server -fa -c 4096", "-c is not on, off or auto", "write on, off or auto"),
        ("llama-server -ot blk.{1,2}.=CPU", "without `=`: blk.{1", "`(1|2)` for `{1,2}`"),
        ("llama-server -ot exps=CUDA_Host", "unknown buffer type: CUDA_Host", "write CPU"),
        ("llama-server -ot exps=cpu", "unknown buffer type: cpu", "write CPU"),
        ("llama-server -lm mlok", "mlok is unknown", "write mlock"),
        ("llama-server -np 0", "no number of slots", "1 or more"),
        ("llama-server -ub 0", "too small", "write 1 or more"),
        ("llama-server model.gguf", "belongs to no option", "quote"),
        ("llama-perplexity -cram 0", "llama-perplexity has no `-cram`", "llama-server"),
        ("llama-bench -ub 512,2048", "several tests", "one value"),
        ("llama-srver -c 1", "`llama-srver` is no program", "is it `llama-server`?"),
        ("llama-server -m 'x", "the ' on line 1", ""),
        ("LLAMA_ARG_NO_MMAP=1 llama-server", "LLAMA_ARG_NO_MMAP is not read", ""),
        ("", "the command is empty", "llama-server"),
    ],
)
def test_what_the_program_would_refuse(line: str, message: str, hint: str) -> None:
    with pytest.raises(CommandError) as caught:
        parse_command(line)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_all_faults_are_listed_with_their_lines() -> None:
    command = read_command("llama-server --mlock \\\n -c 4096 --fmoe \\\n -ub x -ngl 99")
    assert [(f.kind, f.line) for f in command.faults] == [("gone", 1), ("unknown", 2), ("value", 3)]
    assert (command.settings.context, command.settings.gpu_layers) == (4096, 99)


def test_variables_count_as_options_and_lose_to_them() -> None:
    line = "LLAMA_ARG_CTX_SIZE=4096 LLAMA_ARG_KV_OFFLOAD=0 LLAMA_ARG_SWA_FULL=0 llama-server -ub 64"
    found = parse_command(line)
    assert (found.context, found.cache_on_gpu, found.full_window) == (4096, False, False)
    assert parse_command(f"{line} -c 512").context == 512


@pytest.mark.parametrize(
    "line",
    [
        "numactl --interleave=all ./llama-server -c 4096",
        "sudo nice -n 5 /opt/llama.cpp/llama-server.exe -c 4096",
        r"'C:\llama\llama-server.exe' -c 4096",
        "llama serve -c 4096",
        "llama-server -c 4096 | tee log",
        "llama-server -c 4096; llama-server -c 8192",
        "llama-server -c 40\\\n96",
        "llama-server ^\n -c 4096",
        "llama-server\n  -c 4096",
        "llama-server -ot blk.(1|2)=CPU -c 4096 && echo",
    ],
)
def test_lines_as_shells_and_pages_have_them(line: str) -> None:
    assert parse_command(line).context == 4096


def test_what_is_not_reckoned_is_noted() -> None:
    command = read_command("llama-server --mmproj p.gguf -md d.gguf --gpt-oss-120b-default -dev CUDA1,CUDA2")
    assert not command.faults
    assert len(command.notes) == 3
    assert command.devices == ("CUDA1", "CUDA2")
    assert read_command("llama-server -dev none").devices == ()
    assert read_command("llama-sweep-bench -amb 512 -mla 3").notes == (
        "`-amb`: the limit on the size of K times Q is not reckoned",
    )


def test_fit_is_on_unless_it_is_turned_off() -> None:
    assert read_command("llama-server").fits
    assert not read_command("llama-server -fit off").fits
    assert not read_command("llama-server", "ik_llama.cpp").fits
    assert read_command("llama-server --fit", "ik_llama.cpp").fits
    assert not read_command("llama-bench").fits


def test_the_source_of_each_override_is_known() -> None:
    command = read_command("llama-server -c 1 -ot a=CPU,b=CPU -ub 2 -ncmoe 2")
    assert [command.given[i].name for i in command.sources] == ["-ot", "-ot", "-ncmoe", "-ncmoe"]


NAMES = r"abk.\(|)_*+[]-^$0123456789"
OVERRIDES = st.lists(
    st.one_of(
        st.builds(
            Override, st.text(NAMES, min_size=1, max_size=12), st.sampled_from(["CPU", "CUDA0", "CUDA1"])
        ),
        st.just(Override(EXPERTS, "CPU")),
        st.builds(lambda i: Override(rf"blk\.{i}{EXPERTS}", "CPU"), st.integers(0, 3)),
    ),
    max_size=6,
).map(tuple)
TYPES = st.sampled_from([F16, Q8_0, parse_type("q4_0"), parse_type("bf16")])
COMMON = {
    "gpu_layers": st.integers(-1, 999),
    "overrides": OVERRIDES,
    "tensor_split": st.lists(st.integers(0, 64).map(float), max_size=3).map(
        lambda s: tuple(s) if any(s) else ()
    ),
    "main_gpu": st.integers(0, 3),
    "split_mode": st.sampled_from(["none", "layer"]),
    "batch": st.integers(1, 8192),
    "micro_batch": st.integers(1, 8192),
    "cache_k": TYPES,
    "cache_v": TYPES,
    "cache_on_gpu": st.booleans(),
    "op_offload": st.booleans(),
    "load_mode": st.sampled_from(["none", "mmap", "mlock", "mmap+mlock"]),
    "threads": st.none() | st.integers(1, 256),
}
SERVER = {
    "context": st.none() | st.integers(0, 1 << 20),
    "slots": st.none() | st.integers(1, 64),
    "mtp": st.booleans(),
    "host_cache_mib": st.none() | st.integers(-1, 8192),
}
LLAMA_SERVER = st.builds(
    Settings, **COMMON, **SERVER,
    flash_attention=st.sampled_from(["on", "off", "auto"]), unified_cache=st.none() | st.booleans(),
    full_window=st.booleans(), repack=st.booleans(), host_buffer=st.booleans(),
    n_drafted=st.integers(0, 16), n_guessed=st.integers(0, 64),
)  # fmt: skip
IK = st.builds(
    Settings, **COMMON, **SERVER,
    program=st.sampled_from(["llama-server", "llama-sweep-bench"]),
    flash_attention=st.sampled_from(["on", "off"]),
)  # fmt: skip
BENCH = st.builds(
    Settings, **COMMON, program=st.just("llama-bench"), context=st.integers(1, 1 << 20),
    flash_attention=st.sampled_from(["on", "off", "auto"]), repack=st.booleans(), host_buffer=st.booleans(),
)  # fmt: skip


@given(LLAMA_SERVER)
@settings(max_examples=100, deadline=None)
def test_llama_server_is_written_as_it_is_read(wanted: Settings) -> None:
    assert parse_command(shlex.join(write_command(wanted, "a b.gguf", "llama.cpp"))) == wanted


@given(IK)
@settings(max_examples=100, deadline=None)
def test_ik_is_written_as_it_is_read(wanted: Settings) -> None:
    line = shlex.join(write_command(wanted, "m.gguf", "ik_llama.cpp"))
    assert parse_command(line, "ik_llama.cpp") == wanted


@given(BENCH)
@settings(max_examples=100, deadline=None)
def test_llama_bench_is_written_as_it_is_read(wanted: Settings) -> None:
    assert parse_command(shlex.join(write_command(wanted, "m.gguf", "llama.cpp"))) == wanted


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_no_text_breaks_the_reader(text: str) -> None:
    for engine in ENGINES:
        with contextlib.suppress(CommandError):
            read_command("llama-server " + text, engine)


@pytest.mark.parametrize(
    ("wanted", "engine", "message"),
    [
        (Settings(overrides=(Override("a{1,2}", "CPU"),)), "llama.cpp", "cannot be written"),
        (Settings(overrides=(Override("a=b", "CPU"),)), "llama.cpp", "cannot be written"),
        (Settings(program="llama-cli", unified_cache=True), "llama.cpp", "llama-cli has no option -kvu"),
        (Settings(full_window=True), "ik_llama.cpp", "no option --swa-full, nor has ik_llama.cpp"),
        (Settings(load_mode="dio"), "ik_llama.cpp", "direct I/O"),
        (Settings(program="llama-bench", mtp=True, context=1), "llama.cpp", "no option for mtp"),
    ],
)
def test_what_an_engine_cannot_be_told(wanted: Settings, engine: Engine, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        write_command(wanted, "m.gguf", engine)


def test_lines_as_they_are_published() -> None:
    docker = read_command(
        "docker run --gpus all -p 80:80 ghcr.io/ggml-org/llama.cpp:server-cuda -m /m -c 4096"
    )
    assert (docker.settings.program, docker.settings.context, docker.faults) == ("llama-server", 4096, ())
    bench = read_command("llama-bench -m x -mmp 0 -ub 512,2048 -fa 0,1")
    assert [fault.kind for fault in bench.faults] == ["gone", "tests", "tests"]
    assert (bench.settings.load_mode, bench.settings.micro_batch) == ("none", 512)
    old = read_command("llama-server --no-mmap -c 4096")
    assert [fault.kind for fault in old.faults] == ["gone"]
    assert old.settings.load_mode == "none"
    assert read_command("llama-server --mlock --no-mmap").settings.load_mode == "mlock"
    # What -rtr interleaves for the CPU is not copied to a GPU.
    assert not read_command("llama-server -rtr", "ik_llama.cpp").settings.op_offload
