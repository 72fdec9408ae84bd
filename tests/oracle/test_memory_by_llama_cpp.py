"""What `ggplan fit --command` reckons, judged by what llama.cpp allocates here, on the CPU: byte for byte."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import program
import pytest

from ggplan import convert, make_plan, open_model

pytestmark = pytest.mark.oracle

Allocate = Callable[[str, str], dict[str, int]]

# Keys and values of every head; one latent vector; windows; state beside attention, of three kinds; indexers.
MODELS = (
    "glm4moe_mtp", "glm4moe_lite_mtp", "gemma3", "qwen3_5_moe_mtp", "nemotron_h_moe_mtp", "lfm2moe",
    "glm_dsa_mtp", "deepseek_v32_mtp", "step35_mtp", "hy_v3_mtp", "gpt_oss",
)  # fmt: skip
NEARLY = {"hy_v3_mtp": 0.01}  # whose graph is not described: compute buffers are right within this part
LINES = (
    "-c 4096 -ub 512 -fa on -np 1",
    "-c 1024 -ub 128 -fa off -np 1",
    "-c 3000 -b 256 -ub 64 -fa on -np 3",
    "-c 2048 -ub 256 -fa on -np 4 -kvu",
)


@pytest.fixture(scope="module")
def allocate(llama_cpp: Path, tmp_path_factory: pytest.TempPathFactory) -> Allocate:
    """llama.cpp's own figures for a command line, loaded really or without allocating."""
    built = tmp_path_factory.mktemp("allocating") / "allocate"
    libraries = llama_cpp / "build" / "bin"
    done = subprocess.run(
        [
            "g++", "-std=c++17", "-O0", "-o", built, Path(__file__).with_name("allocate.cpp"),
            *(f"-I{llama_cpp / folder}" for folder in ("common", "include", "ggml/include", "vendor")),
            f"-L{libraries}", "-lllama-common", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]

    def run(how: str, line: str) -> dict[str, int]:
        ran = subprocess.run(
            [built, how, *shlex.split(line)], capture_output=True, text=True, check=False, timeout=120
        )
        assert ran.returncode == 0, ran.stderr[-4000:]
        return {
            name: int(n)
            for name, n in (row.split() for row in ran.stdout.splitlines() if row.count(" ") == 1)
        }

    return run


def reckoned(file: Path, line: str) -> dict[str, int]:
    done = program.run("fit", file, "--command", line, "--gpus", "0", "--json")
    assert done.returncode == 0, done.stderr
    (host,) = json.loads(done.stdout)["devices"]
    return {part: host[part] for part in ("weights", "context", "compute")}


@pytest.mark.parametrize("case", MODELS)
def test_as_llama_cpp_allocates(
    case: str, reference_models: Path, allocate: Allocate, tmp_path: Path
) -> None:
    file = tmp_path / f"{case}.gguf"
    convert(make_plan(open_model(reference_models / case, pre="llama-bpe")), file)
    for line in LINES:
        command = f"llama-server -m {shlex.quote(str(file))} -ngl 0 {line}"
        found, expected = reckoned(file, command), allocate("no_alloc", command)
        if case in NEARLY:
            assert found["compute"] == pytest.approx(expected["compute"], rel=NEARLY[case])
            found["compute"] = expected["compute"]
        assert found == expected, line
    assert expected == allocate("really", command)
