"""The bridge with llama.cpp's real converter: our own bytes where we know a family, its bytes where not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import program
import pytest
from tiny_checkpoints import tensor_bytes

from ggplan.opening import open_model
from ggplan.sources.gguf import open_gguf

pytestmark = pytest.mark.oracle

SMALL = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
ATTENTION = {**SMALL, "num_attention_heads": 4, "intermediate_size": 160}
# Families that the converter knows and ggplan does not.
STRANGERS = {
    "stablelm": ("StableLmConfig", {**ATTENTION, "num_key_value_heads": 2}),
    "starcoder2": ("Starcoder2Config", {**ATTENTION, "num_key_value_heads": 2}),
    "mamba": ("MambaConfig", {**SMALL, "state_size": 16}),
}


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny model of each, with the tokenizer of the other tests."""
    import torch
    import transformers
    from tiny_checkpoints import write_tokenizer

    work = tmp_path_factory.mktemp("strangers")
    for name, (config, values) in STRANGERS.items():
        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**values))
        model.to(torch.bfloat16).save_pretrained(work / name)
        write_tokenizer(work / name)
    return work


@pytest.mark.parametrize("case", ["glm4moe_mtp", "qwen3moe_fused", "kimi_k2"])
def test_the_same_file_as_without_the_bridge(
    reference_models: Path, llama_cpp: Path, tmp_path: Path, case: str
) -> None:
    folder, files = reference_models / case, [tmp_path / "own.gguf", tmp_path / "bridge.gguf"]
    for output, options in zip(files, ((), ("--converter", llama_cpp)), strict=True):
        done = program.run("convert", folder, output, "-r", "Q5_K_S", "--pre", "glm4", *options)
        assert done.returncode == 0, done.stderr
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("mtp", ["drop", "only"])
@pytest.mark.parametrize("case", ["glm4moe_mtp", "glm_dsa_mtp"])
def test_mtp_blocks_through_the_bridge(
    reference_models: Path, llama_cpp: Path, tmp_path: Path, case: str, mtp: str
) -> None:
    folder, files = reference_models / case, [tmp_path / "own.gguf", tmp_path / "bridge.gguf"]
    for output, options in zip(files, ((), ("--converter", llama_cpp)), strict=True):
        done = program.run("convert", folder, output, "--pre", "glm4", "--mtp", mtp, *options)
        assert done.returncode == 0, done.stderr
    assert files[0].read_bytes() == files[1].read_bytes()


def test_strangers_are_what_the_converter_and_then_ggplan_make(
    strangers: Path, convert: Callable, llama_cpp: Path, tmp_path: Path
) -> None:
    """In one pass the tensors and keys of two: the converter's bf16, and the mix of that."""
    jobs = [
        {"folder": strangers / name, "output": tmp_path / f"{name}.gguf", "outtype": "auto", "pre": "glm4"}
        for name in STRANGERS
    ]
    convert(jobs)
    for name in STRANGERS:
        theirs, ours = open_gguf(tmp_path / f"{name}.gguf"), tmp_path / f"{name}.q8.gguf"
        model = open_model(strangers / name, converter=llama_cpp, pre="glm4")
        assert [(t.name, t.shape, t.type) for t in model] == [(t.name, t.shape, t.type) for t in theirs]
        assert [tensor_bytes(t) for t in model] == [tensor_bytes(t) for t in theirs]
        metadata = {key: value for key, value in theirs.metadata.items() if key != "general.file_type"}
        assert list(model.metadata.items()) == list(metadata.items())
        options = ("-r", "Q8_0", "--pre", "glm4", "--converter", llama_cpp)
        assert program.run("convert", strangers / name, ours, *options).returncode == 0
        two = tmp_path / f"{name}.two.gguf"
        assert program.run("convert", tmp_path / f"{name}.gguf", two, "-r", "Q8_0").returncode == 0
        assert [(t.name, t.type, tensor_bytes(t)) for t in open_gguf(ours)] == [
            (t.name, t.type, tensor_bytes(t)) for t in open_gguf(two)
        ]


def test_code_of_a_checkpoint_is_not_run(reference_models: Path, llama_cpp: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reference_models / "qwen3", tmp_path / "evil"))
    mark = tmp_path / "run"
    (folder / "evil.py").write_text(
        f"open({str(mark)!r}, 'w')\n"
        "from transformers import Qwen3Config as EvilConfig, Qwen2Tokenizer as EvilTokenizer\n"
    )
    for name, key, value in (
        ("config.json", "AutoConfig", "evil.EvilConfig"),
        ("tokenizer_config.json", "AutoTokenizer", [None, "evil.EvilTokenizer"]),
    ):
        document = json.loads((folder / name).read_text())
        document["auto_map"] = {key: value}
        (folder / name).write_text(json.dumps(document))
    program.run("convert", folder, tmp_path / "o.gguf", "--pre", "glm4", "--converter", llama_cpp)
    assert not mark.exists()
