"""The bridge to llama.cpp's converter, with a small package in the converter's place.

The package has the few names of the real one that the bridge uses, over the real `gguf`. The real converter
is run by `tests/oracle/test_bridge_by_llama_cpp.py`.
"""

import json
import os
import shutil
import time
from pathlib import Path

import gguf
import numpy as np
import program
import pytest

from ggplan import open_model
from ggplan.bridge import open_by_converter
from ggplan.errors import CheckpointError, TokenizerError
from ggplan.ggml_types import BF16, F32

CONVERSION = '''
import json, os, signal, sys
import gguf, numpy as np, torch


class ModelType:
    TEXT = 1


class Lazy:
    """What `get_tensors` yields: torch has more, the bridge looks at no more."""

    def __init__(self, dtype, value):
        self.dtype, self.value = dtype, value


def numbers(name):
    if name == "broken.weight":
        raise ValueError("no such\\nexpert")
    if name == "killed.weight":
        os.kill(os.getpid(), signal.SIGKILL)
    return np.arange(6 * 64, dtype=np.float32).reshape(6, 64)


class ModelBase:
    @staticmethod
    def load_hparams(folder, is_mistral_format):
        return json.loads((folder / "config.json").read_text())

    @staticmethod
    def get_model_part_names(folder, prefix, suffix):
        return sorted(p.name for p in folder.iterdir() if p.name.startswith(prefix) and p.suffix == suffix)


class Tiny(ModelBase):
    def __init__(self, folder, ftype, output):
        self.dir_model, self.ftype = folder, ftype
        self.names = json.loads((folder / "config.json").read_text())["tensors"]
        self.n_blocks = len({name.split(".")[1] for name in self.names if name.startswith("blk.")})
        self.gguf_writer = gguf.GGUFWriter(None, "tiny")

    def get_tensors(self):
        for name in self.names:
            yield name, Lazy("torch.bfloat16", name)

    def prepare_tensors(self):
        print("noise on standard output")
        floats = self.ftype == gguf.LlamaFileType.ALL_F32
        kind = gguf.GGMLQuantizationType.F32 if floats else gguf.GGMLQuantizationType.BF16
        for name, lazy in self.get_tensors():
            meta = gguf.LazyNumpyTensor.meta_with_dtype_and_shape(np.float32, (6, 64))
            data = gguf.LazyNumpyTensor(meta=meta, args=(name,), func=numbers)
            self.gguf_writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)

    def get_vocab_base_pre(self, tokenizer):
        raise NotImplementedError("BPE pre-tokenizer was not recognized")

    def set_vocab(self):
        self.gguf_writer.add_string("tokenizer.ggml.model", "gpt2")
        self.gguf_writer.add_string("tokenizer.ggml.pre", self.get_vocab_base_pre(None))

    def prepare_metadata(self, vocab_only):
        self.gguf_writer.add_file_type(self.ftype)
        self.gguf_writer.add_uint32("tiny.block_count", self.n_blocks)
        if self.n_blocks > 1:
            self.gguf_writer.add_uint32("tiny.nextn_predict_layers", 1)
        self.set_vocab()


def get_model_architecture(hparams, model_type):
    return hparams["architectures"][0]


def get_model_class(name):
    if name != "TinyForCausalLM":
        raise NotImplementedError(f"Architecture {name!r} not supported!")
    return Tiny
'''
TORCH = "def set_num_threads(n): pass\ndef set_grad_enabled(flag): pass\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("llama.cpp")
    for name, text in {
        "conversion/__init__.py": CONVERSION,
        "torch/__init__.py": TORCH,
        "transformers/__init__.py": "",
        "transformers/dynamic_module_utils.py": "",
    }.items():
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text(text)
    shutil.copytree(Path(gguf.__file__).parent, tree / "gguf-py" / "gguf")
    return tree


def checkpoint(tmp_path: Path, *names: str, architecture: str = "TinyForCausalLM") -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    listed = ", ".join(f'"{name}"' for name in names)
    (folder / "config.json").write_text(f'{{"architectures": ["{architecture}"], "tensors": [{listed}]}}')
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_names_keys_types_and_weights_are_the_converters(tree: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "output.weight", "blk.0.attn_q.weight")
    model = open_by_converter(folder, tree, pre="glm4")
    assert [(t.name, t.shape, t.type, t.stored_as) for t in model] == [
        ("output.weight", (6, 64), BF16, "BF16"),
        ("blk.0.attn_q.weight", (6, 64), BF16, "BF16"),
    ]
    assert (model.architecture, model.pretokenizer) == ("tiny", "glm4")
    assert "general.file_type" not in model.metadata
    assert [path.name for path in model.files] == ["model.safetensors"]
    assert len(model.converter) == 64
    assert model.converter[:12] in model.notes[0]
    expected = np.arange(6 * 64, dtype=np.float32).reshape(6, 64)
    for tensor in (*model, *model):  # and back to the first
        assert tensor.rows is not None
        assert tensor.rows.dtype == F32
        assert (tensor.rows.read(0, 6) == expected).all()
        assert (tensor.rows.read(2, 3) == expected[2:3]).all()
        assert tensor.rows.read(4, 4).shape == (0, 64)
        with pytest.raises(ValueError, match="rows 5 to 7 of 6"):
            tensor.rows.read(5, 7)


def test_another_converter_has_another_identity(tree: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "output.weight")
    other = Path(shutil.copytree(tree, tmp_path / "other"))
    (other / "conversion" / "tiny.py").write_text("")
    identities = {open_model(folder, converter=t, pre="x").converter for t in (tree, other)}
    assert len(identities) == 2
    assert "" not in identities


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken.weight", "cannot compute broken.weight: ValueError: no such expert"),
        ("killed.weight", "the process that computes it was ended by signal 9; is there memory"),
    ],
)
def test_a_tensor_that_fails_is_named_and_the_others_still_come(
    tree: Path, tmp_path: Path, name: str, said: str
) -> None:
    model = open_by_converter(checkpoint(tmp_path, name, "output.weight"), tree, pre="x")
    for _ in range(2):
        rows = model[name].rows
        assert rows is not None
        with pytest.raises(CheckpointError, match=said):
            rows.read(0, 1)
    rows = model["output.weight"].rows
    assert rows is not None
    assert rows.read(0, 1)[0, 63] == 63


def test_the_process_ends_with_the_model(tree: Path, tmp_path: Path) -> None:
    model = open_by_converter(checkpoint(tmp_path, "output.weight"), tree, pre="x")
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("no list of children here")
    assert children.read_text().split()
    del model
    deadline = time.monotonic() + 10
    while children.read_text().split() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children.read_text().split()


def test_codes_of_a_quantized_checkpoint_are_decoded_with_a_note(tree: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "output.weight")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    result = program.run("plan", str(folder), "--converter", str(tree), "--pre", "x")
    assert result.returncode == 0, result.stderr
    assert "its codes are not moved" in result.stderr


def test_an_architecture_that_the_converter_does_not_know(tree: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "output.weight", architecture="OtherForCausalLM")
    result = program.run("plan", str(folder), "--converter", str(tree), "--pre", "x")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    said = "does not read it: NotImplementedError: Architecture 'OtherForCausalLM' not supported!"
    assert f"llama.cpp's converter {said}" in result.stderr


def test_a_tokenizer_that_the_converter_refuses_keeps_from_converting_alone(
    tree: Path, tmp_path: Path
) -> None:
    folder, output = checkpoint(tmp_path, "output.weight"), tmp_path / "o.gguf"
    model = open_by_converter(folder, tree)
    assert isinstance(model.obstacle, TokenizerError)
    assert not [key for key in model.metadata if key.startswith("tokenizer.")]
    said = "does not read its tokenizer: NotImplementedError: BPE pre-tokenizer was not recognized"
    given = ("--converter", str(tree))
    for command in (("plan", folder), ("inspect", folder), ("rules", "new", "-m", folder)):
        result = program.run(*command, *given)
        assert result.returncode == 0, result.stderr
        assert said in result.stderr
        assert "to convert it, name it with `--pre`" in result.stderr
    result = program.run("convert", folder, output, *given)
    assert result.returncode == 1
    assert said in result.stderr
    assert "`--pre`" in result.stderr
    assert not output.exists()
    assert program.run("convert", folder, output, *given, "--pre", "glm4").returncode == 0
    result = program.run("verify", output, "--against", folder, *given)
    assert result.returncode == 0, result.stderr


def test_every_command_that_opens_a_model_takes_the_converter(tree: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "output.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight")
    given = ("--converter", str(tree), "--pre", "glm4")
    (recipe := tmp_path / "r.recipe").write_text("attn_q = q8_0\n@default bf16\n@assert size < 1 GiB\n")
    (other := tmp_path / "other.recipe").write_text("blk.0.attn_q = q8_0\n@default bf16\n")
    for command, code in (
        (("inspect", folder, "--tensors"), 0),
        (("plan", folder, "-r", recipe), 0),
        (("rules", "check", recipe, "-m", folder), 0),
        (("rules", "explain", "blk.1.attn_q.weight", "-r", recipe, "-m", folder), 0),
        (("rules", "test", recipe, "-m", folder), 0),
        (("rules", "new", "-m", folder), 0),
        (("rules", "from", folder), 0),
        (("rules", "export", recipe, "--dialect", "llama-quantize", "-m", folder), 0),
        (("diff", recipe, other, "-m", folder), 1),
        (("diff", folder, recipe), 1),
        (("chart", folder, "-r", recipe, "-o", tmp_path / "types.svg"), 0),
        (("chart", folder, "-r", recipe, "-o", tmp_path / "parts.svg", "--kind", "parts"), 0),
    ):
        result = program.run(*command, *given)
        assert result.returncode == code, (command, result.stderr)
        assert "names, keys and transforms are those of Tiny" in result.stderr
    # The MTP block, of which the one that the recipes differ in, is gone.
    result = program.run("diff", recipe, other, "-m", folder, *given, "--mtp", "drop")
    assert result.returncode == 0, result.stdout + result.stderr
    result = program.run("rules", "list", folder, "--converter", str(tree))
    assert result.returncode == 1
    assert "whose architecture is tiny" in result.stderr
    for command in (("rules", "list", "glm4moe"), ("diff", "Q4_K_M", "Q5_K_M", "-m", "GLM-4.5-Air")):
        result = program.run(*command, "--converter", str(tree))
        assert result.returncode == 2
        assert "--converter reads a Hugging Face folder, and none is named" in result.stderr


def test_the_mtp_block_of_a_model_that_the_converter_reads(tree: Path, tmp_path: Path) -> None:
    names = ("token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight")
    folder = checkpoint(tmp_path, *names)
    given = ("--converter", str(tree), "--pre", "glm4")
    for mtp, count, left in (("drop", 1, {*names[:3]}), ("only", 2, {*names[:2], names[3]})):
        output = tmp_path / f"{mtp}.gguf"
        result = program.run("convert", folder, output, *given, "--mtp", mtp)
        assert result.returncode == 0, result.stderr
        made = open_model(output)
        assert {t.name for t in made} == left
        assert made.metadata["tiny.block_count"].decode() == count
        assert program.run("reproduce", output, folder, *given).returncode == 0
        result = program.run("inspect", folder, *given, "--mtp", mtp, "--tensors")
        assert ("blk.1.attn_q" in result.stdout) is (mtp == "only")


def test_what_is_no_tree_and_no_checkpoint(tree: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "output.weight")
    result = program.run("plan", str(folder), "--converter", str(tmp_path))
    assert result.returncode == 1
    assert "it lacks conversion/__init__.py" in result.stderr
    result = program.run("plan", "GLM-4.5-Air", "--converter", str(tree))
    assert result.returncode == 1
    assert "is not a folder" in result.stderr
    (folder / "config.json").unlink()
    result = program.run("plan", str(folder), "--converter", str(tree))
    assert result.returncode == 1
    assert "holds no config.json" in result.stderr


def test_conversions_record_the_converter_and_are_reproduced(tree: Path, tmp_path: Path) -> None:
    folder, output = checkpoint(tmp_path, "output.weight", "blk.0.attn_q.weight"), tmp_path / "o.gguf"
    (recipe := tmp_path / "q8.recipe").write_text("attn_q = q8_0\n")
    options = ("--converter", str(tree), "--pre", "glm4")
    result = program.run("convert", str(folder), str(output), "-r", str(recipe), *options)
    assert result.returncode == 0, result.stderr
    model = open_model(output)
    lines = [str(line) for line in model.metadata["ggplan.inputs"].decode_items(9)]
    assert f"{open_model(folder, converter=tree, pre='x').converter} converter" in lines
    for given in (options, options[:2]):  # without --pre the recorded one is taken
        result = program.run("reproduce", str(output), str(folder), *given)
        assert result.returncode == 0, result.stderr
        assert ("the recorded one, glm4" in result.stderr) is (given != options)
    assert program.run("verify", str(output), "--against", str(folder), "--exact", *options).returncode == 0
    assert program.run("verify", str(output), "--converter", str(tree)).returncode == 2
