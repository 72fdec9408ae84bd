"""What of a model is written, against llama.cpp's converter and llama-quantize with the same options."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from program import run
from test_converter import assert_same_keys, assert_same_tensors
from tiny_checkpoints import OUTTYPES, read_case, write_case

from ggplan.arch import to_gguf
from ggplan.model import Model
from ggplan.reshaping import Reshaping, reshape
from ggplan.sources.gguf import open_gguf
from ggplan.sources.huggingface import open_checkpoint

pytestmark = pytest.mark.oracle

MTP_CASES = (
    "glm4moe_mtp", "glm_dsa_mtp", "deepseek_v32_mtp", "glm4moe_lite_mtp", "hy_v3_mtp", "nemotron_h_moe_mtp",
    "qwen3_5_mtp", "qwen3_5_moe_mtp", "qwen3_next_mtp", "step35_mtp",
)  # fmt: skip
QKV_CASES = (
    "llama", "llama_bias", "mistral", "qwen2", "qwen3moe", "glm4moe_mtp", "gemma3", "gemma4", "lfm2",
    "nemotron_h_moe_mtp", "qwen3_5_moe_mtp", "step35_mtp",
)  # fmt: skip
GATE_UP_CASES = ("qwen3_5_moe_mtp", "qwen3_next_mtp", "gemma4_moe")
JOBS = {
    **{f"{case} --no-mtp": (case, Reshaping(mtp="drop"), ["--no-mtp"]) for case in MTP_CASES},
    **{f"{case} --fuse-qkv": (case, Reshaping(fuse=("qkv",)), ["--fuse-qkv"]) for case in QKV_CASES},
    **{
        f"{case} --fuse-gate-up-exps --fuse-qkv": (
            case,
            Reshaping(fuse=("gate-up", "qkv")),
            ["--fuse-gate-up-exps", "--fuse-qkv"],
        )
        for case in GATE_UP_CASES
    },
    "glm4moe --no-mtp": ("glm4moe", Reshaping(mtp="drop"), ["--no-mtp"]),  # which says that it has none
    "glm4moe_mtp --no-mtp --fuse-qkv": (
        "glm4moe_mtp",
        Reshaping(mtp="drop", fuse=("qkv",)),
        ["--no-mtp", "--fuse-qkv"],
    ),
    **{f"{case} --mtp": (case, Reshaping(mtp="only"), ["--mtp"]) for case in MTP_CASES},
}


@pytest.fixture(scope="session")
def both(convert: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Model, Model]]:
    """A checkpoint as ggplan reshapes it, and as llama.cpp's converter wrote it."""
    work = tmp_path_factory.mktemp("reshaped")
    for case in {case for case, _, _ in JOBS.values()}:
        write_case(work / case, read_case(case))
    outputs = {name: work / f"{number}.gguf" for number, name in enumerate(JOBS)}
    convert(
        [
            {
                "folder": work / case,
                "output": outputs[name],
                "outtype": OUTTYPES.get(case, "bf16"),
                "pre": "glm4",
                "options": options,
            }
            for name, (case, _, options) in JOBS.items()
        ]
    )

    def pair(name: str) -> tuple[Model, Model]:
        case, wishes, _ = JOBS[name]
        ours = to_gguf(open_checkpoint(work / case), pre="glm4")
        return reshape(ours, wishes)[0], open_gguf(outputs[name])

    return pair


@pytest.mark.parametrize("name", JOBS)
def test_equal_to_the_converters(both: Callable, name: str) -> None:
    ours, theirs = both(name)
    assert_same_keys(ours, theirs)
    assert_same_tensors(ours, theirs)


PRUNED = {
    "the first": ("llama", "0", "COPY"),
    "the last": ("llama", "2", "COPY"),
    "two": ("qwen3moe", "2,0", "COPY"),
    "with an MTP block": ("glm4moe_mtp", "1", "COPY"),
    "quantized": ("llama", "1", "Q4_K_M"),
    "quantized experts": ("qwen3moe", "1", "Q4_0"),
}


@pytest.mark.parametrize("name", PRUNED)
def test_pruned_as_llama_quantize_does(llama_cpp: Path, tmp_path: Path, name: str) -> None:
    case, layers, mix = PRUNED[name]
    write_case(tmp_path / case, read_case(case))
    source, theirs, ours = (tmp_path / f"{which}.gguf" for which in ("source", "theirs", "ours"))
    done = run("convert", tmp_path / case, source, "--pre", "glm4")
    assert done.returncode == 0, done.stderr
    quantize = llama_cpp / "build" / "bin" / "llama-quantize"
    subprocess.run([quantize, "--prune-layers", layers, source, theirs, mix], check=True, capture_output=True)
    recipe = [] if mix == "COPY" else ["-r", mix]
    done = run("convert", source, ours, "--prune-layers", layers, *recipe)
    assert done.returncode == 0, done.stderr

    expected, found = open_gguf(theirs), open_gguf(ours)
    ignored = "general.file_type" if mix == "COPY" else ""
    keys = {k: v for k, v in found.metadata.items() if not k.startswith("ggplan.") and k != ignored}
    assert keys == {
        k: v for k, v in expected.metadata.items() if not k.startswith("ggplan.") and k != ignored
    }
    assert [(t.name, t.type, t.shape) for t in found] == [(t.name, t.type, t.shape) for t in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.stored is not None
        assert other.stored is not None
        assert one.stored.read_bytes(0, one.n_rows) == other.stored.read_bytes(0, other.n_rows), one.name


# Layers that stay and must be read as they were: with a window, recurrent, with a part of a shared matrix.
LOADED = {
    "gemma4": "1",
    "gpt_oss": "1",
    "gemma3": "0",
    "cohere2": "2",
    "qwen3_5_mtp": "0",
    "lfm2": "0",
    "step35_mtp": "1",
}


@pytest.mark.parametrize("case", LOADED)
def test_a_pruned_model_runs(llama_cpp: Path, tmp_path: Path, case: str) -> None:
    write_case(tmp_path / case, read_case(case))
    pruned = tmp_path / "pruned.gguf"
    done = run("convert", tmp_path / case, pruned, "--pre", "glm4", "--prune-layers", LOADED[case])
    assert done.returncode == 0, done.stderr
    (tmp_path / "text.txt").write_text("the cat sat on a mat and ran far away from home " * 200)
    program = llama_cpp / "build" / "bin" / "llama-perplexity"
    command = [program, "-m", pruned, "-f", tmp_path / "text.txt", "-c", "128", "-b", "128", "--chunks", "1"]
    command += ["-t", "1"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
