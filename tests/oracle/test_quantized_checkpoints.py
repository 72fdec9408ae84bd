"""Quantized checkpoints against llama.cpp: its converter's keys and bytes; its programs load them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from quantized_folders import with_tokenizer
from quantizing import quantized_folder

import ggplan
from ggplan.planning.settling import settle
from ggplan.sources.gguf import open_gguf

pytestmark = pytest.mark.oracle

PRE = "qwen2"
TEXT = Path(__file__).parents[2] / "ggplan" / "demo_model" / "joshua.txt"


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("ct-nvfp4a16", ""), ("modelopt-nvfp4", ""), ("modelopt-nvfp4", "W4A16_NVFP4")],
)
def test_nvfp4_equals_the_converters(name: str, algorithm: str, convert: Callable, tmp_path: Path) -> None:
    folder, output = with_tokenizer(name, tmp_path), tmp_path / "theirs.gguf"
    if algorithm:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"]["quant_algo"] = algorithm
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "hf_quant_config.json").unlink()
    convert([{"folder": folder, "output": output, "outtype": "bf16", "pre": PRE}])
    ours, theirs = settle(ggplan.open_model(folder, pre=PRE)), open_gguf(output)
    keys = {key: value for key, value in theirs.metadata.items() if key != "general.file_type"}
    assert ours.metadata == keys
    assert list(ours.metadata) == list(keys)
    assert ("general.tensor_extra.name" in keys) == bool(algorithm)
    found = {t.name: t for t in (*ours.tensors, *ours.companions)}
    assert found.keys() == {t.name for t in theirs.tensors}
    for tensor in theirs.tensors:
        our = found[tensor.name]
        assert (our.type, our.shape) == (tensor.type, tensor.shape), tensor.name
        rows = our.rows if our.stored is None else our.stored
        if our.type.name in ("f32", "bf16"):
            assert (rows.read_float32(0, our.n_rows) == tensor.rows.read_float32(0, our.n_rows)).all()
        else:
            assert rows.read_bytes(0, our.n_rows) == tensor.stored.read_bytes(0, our.n_rows), tensor.name


@pytest.mark.parametrize("name", ["ct-nvfp4a16", "modelopt-nvfp4", "ct-mxfp4a16"])
def test_llama_cpp_measures_the_same_with_codes_as_with_their_weights(
    name: str, llama_cpp: Path, tmp_path: Path
) -> None:
    """They are one model, but llama.cpp multiplies codes with 8-bit activations, and f32 with f32."""
    folder = with_tokenizer(name, tmp_path)
    model = ggplan.open_model(folder, pre=PRE)
    results = []
    for title, recipe in (("kept", "@default keep"), ("f32", "@default f32")):
        path = tmp_path / f"{title}.gguf"
        ggplan.convert(ggplan.make_plan(model, ggplan.parse_recipe(recipe)), path)
        results.append(perplexity(llama_cpp / "build" / "bin" / "llama-perplexity", path))
    assert results[0] == pytest.approx(results[1], rel=1e-2)


def perplexity(program: Path, model: Path) -> float:
    command = [program, "-m", model, "-f", TEXT, "-c", "128", "--chunks", "4", "-t", "1"]
    for _ in range(8):  # the last line is sometimes lost at exit
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=300,
            env=os.environ | {"LLAMA_ARG_REPACK": "0"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        if found := re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr):
            return float(found[1])
    raise AssertionError("llama-perplexity never printed its result")


@pytest.mark.parametrize(("form", "type_"), [("w4a16", "q4_0"), ("gptq", "q4_0"), ("awq", "q5_0")])
def test_a_model_of_int4_keeps_its_perplexity(form: str, type_: str, llama_cpp: Path, tmp_path: Path) -> None:
    """A trained GLM-4.5 of experts: kept codes are the checkpoint's weights; encoded anew they are others.

    llama.cpp multiplies q4_0 with activations that it rounds to 8 bits, float32 with float32. So what is
    equal to the digit is the perplexity of the kept file's weights in float32; that of the file is near it.
    """
    decoded = quantized_folder(Path(ggplan.__file__).parent / "demo_model", tmp_path / form, form)
    source = ggplan.open_model(tmp_path / form, pre="glm4")

    def written(model: ggplan.Model, name: str, recipe: str) -> Path:
        path = tmp_path / name
        options = ggplan.ConvertOptions(allow_requantize=True)
        ggplan.convert(ggplan.make_plan(model, ggplan.parse_recipe(recipe)), path, options)
        return path

    kept = written(source, "kept.gguf", "@default keep")
    moved = [tensor for tensor in open_gguf(kept).tensors if tensor.type.name == type_]
    assert sum(tensor.n_weights for tensor in moved) == sum(weights.size for weights in decoded.values())
    exact = written(source, "f32.gguf", "@default f32")
    again = written(
        open_gguf(exact), "q4_0.gguf", "".join(f"^{t.name}$ = q4_0\n" for t in moved) + "@default f32"
    )
    program = llama_cpp / "build" / "bin" / "llama-perplexity"
    of_weights = perplexity(program, exact)
    assert perplexity(program, written(open_gguf(kept), "kept-f32.gguf", ".* = f32!")) == of_weights
    assert perplexity(program, kept) == pytest.approx(of_weights, rel=2e-3)
    assert perplexity(program, written(open_gguf(again), "q4_0-f32.gguf", ".* = f32!")) > of_weights * 1.001
