"""What holds for every family, and what a family's tables cannot show."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import CASES, DATA, read_case, write_case, write_tensors

from ggplan.arch import families, to_gguf
from ggplan.arch.config import Config
from ggplan.arch.families import architectures
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.names import gguf_name
from ggplan.arch.tensors import DENSE, MOE, Table, convert_tensors
from ggplan.dialects.hf_names import modules_of
from ggplan.errors import CheckpointError
from ggplan.model import Model
from ggplan.sources.huggingface import open_checkpoint
from ggplan.sources.safetensors import read_tensors
from ggplan.sources.schemes import QuantizationConfig, join_tensors


def opened(folder: Path, case: str) -> Model:
    return to_gguf(open_checkpoint(write_case(folder, read_case(case))), pre="glm4")


def key_templates(owner: type) -> Iterator[str]:
    """The names of keys in the gguf package's classes of constants."""
    for value in vars(owner).values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, type):
            yield from key_templates(value)


@pytest.mark.parametrize("case", CASES)
def test_keys_are_those_that_llama_cpp_knows(case: str) -> None:
    from gguf import Keys

    known = set(key_templates(Keys)) | {"{arch}.attention.indexer.types", "{arch}.attention.recurrent_layers"}
    golden = json.loads((DATA / "goldens" / f"{case}.json").read_text())["keys"]
    architecture = golden["general.architecture"][1]
    of_family = [key for key in golden if key.startswith(f"{architecture}.")]
    assert len(of_family) > 5
    for key in of_family:
        assert key.replace(architecture, "{arch}", 1) in known


def test_every_architecture_has_a_golden() -> None:
    goldens = [json.loads((DATA / "goldens" / f"{case}.json").read_text())["keys"] for case in CASES]
    covered = {keys["general.architecture"][1] for keys in goldens}
    assert covered == {architecture.name for architecture in architectures().values()}


@pytest.mark.parametrize("case", CASES)
def test_dialects_have_the_hugging_face_name_of_every_tensor(tmp_path: Path, case: str) -> None:
    """A module's name, with the expert's number, is one that the checkpoint has."""
    model = opened(tmp_path, case)
    stored = open_checkpoint(tmp_path).tensors
    names = {name.replace("language_model.", "").replace("model.model.", "model.") for name in stored}
    modules = modules_of(model)
    assert modules
    for module in modules:
        for name in module.names():
            # Experts that are stored fused are known by the modules of transformers, one for each.
            fused = f"{name.partition('.experts.')[0]}.experts.gate_up_proj"
            assert {name, f"{name}.weight", fused, f"{fused}.weight"} & names, name


def test_families_and_dialects_are_listed_without_the_gguf_package() -> None:
    program = (
        "import sys; from ggplan.arch.families import architectures; import ggplan.dialects; "
        "assert len(architectures()) > 20; assert 'gguf' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_class_of_two_families_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = (*families.families(), families.families()[0])
    monkeypatch.setattr(families, "families", lambda: twice)
    with pytest.raises(RuntimeError, match="and another both have"):
        architectures.__wrapped__()


def test_a_name_that_no_table_has() -> None:
    assert gguf_name("qwen2", "model.layers.{}.self_attn.q_proj.bias") == "blk.{}.attn_q.bias"
    assert gguf_name("deepseek2", "model.layers.{}.eh_proj") == "blk.{}.nextn.eh_proj"
    for architecture, name in (("qwen2", "model.layers.{}.conv"), ("none", "lm_head")):
        with pytest.raises(CheckpointError, match=f"no name for .*{name.split('.')[-1]} of {architecture}"):
            gguf_name(architecture, name)


def test_sizes_that_no_config_states_are_those_of_the_other_layers(tmp_path: Path) -> None:
    values = {"vocab_size": 8, "hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 2}
    layout = Layout("qwen2", Config("config.json", values, 9))
    table = Table([*layout.layer("mlp.gate_proj"), *layout.layer("self_attn.conv", to="x")], [DENSE, MOE])
    path = tmp_path / "m.safetensors"

    def converted(gate: list[int], conv: list[int]) -> tuple:
        shapes = {"0.mlp.gate_proj": [5, 4], "0.self_attn.conv": [3], "1.mlp.gate_proj": gate}
        shapes["1.self_attn.conv"] = conv
        tensors = {f"model.layers.{name}.weight": ("BF16", shape) for name, shape in shapes.items()}
        write_tensors(path, tensors)
        checkpoint = join_tensors(read_tensors(path), QuantizationConfig(tmp_path, {}))
        return convert_tensors(checkpoint, table, "m")

    assert [tensor.shape for tensor in converted([5, 4], [3])] == [(5, 4), (3,), (5, 4), (3,)]
    with pytest.raises(CheckpointError, match=r"has the shape 6 x 4, but in other layers it is 5 x 4"):
        converted([6, 4], [3])
    with pytest.raises(CheckpointError, match=r"has the shape 5 x 5, but config.json makes it n x 4"):
        converted([5, 5], [3])
    with pytest.raises(CheckpointError, match=r"has the shape 3 x 1, but in other layers it is 3"):
        converted([5, 4], [3, 1])


def test_counts_that_each_layer_has_its_own_of() -> None:
    values = {
        "vocab_size": 8,
        "hidden_size": 4,
        "head_dim": 2,
        "num_hidden_layers": 2,
        "num_attention_heads": [2, 4],
        "num_key_value_heads": [2, 0],
        "intermediate_size": [6, 8],
    }
    config = Config("config.json", values, 9)
    (q,) = Layout("qwen3", config).layer("self_attn.q_proj")
    (down,) = Layout("qwen3", config).layer("mlp.down_proj")
    assert (q.shape, down.shape) == ((None, 4), (4, None))
    keys = Keys("x")
    text_keys(keys, config)
    written = {key: value.decode() for key, value in keys.values.items()}
    assert written["x.attention.head_count"] == [2, 4]
    assert written["x.attention.head_count_kv"] == [2, 0]
    assert written["x.feed_forward_length"] == [6, 8]


def test_a_family_may_rename_tensors_before_they_are_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that predict further tokens under a name of their own, after the others in the GGUF."""

    def rename(config: Config, name: str) -> str:
        return name.replace("model.mtp.0.", f"model.layers.{config.count('num_hidden_layers')}.")

    whole = opened(tmp_path / "whole", "glm4moe_mtp")
    known = architectures()
    renaming = {**known, "Glm4MoeForCausalLM": replace(known["Glm4MoeForCausalLM"], rename=rename)}
    monkeypatch.setattr("ggplan.arch.families.architectures", lambda: renaming)
    spec = read_case("glm4moe_mtp")
    for shard, tensors in spec["shards"].items():
        spec["shards"][shard] = {n.replace("model.layers.3.", "mtp.0."): t for n, t in tensors.items()}
    named = to_gguf(open_checkpoint(write_case(tmp_path / "named", spec)), pre="glm4")
    assert {(t.name, t.shape) for t in named.tensors} == {(t.name, t.shape) for t in whole.tensors}


def test_parts_that_see_are_left_out_with_a_note(tmp_path: Path) -> None:
    model = opened(tmp_path, "qwen3vl")
    (note,) = [note for note in model.notes if "see or hear" in note]
    left_out = [name for name in open_checkpoint(tmp_path).tensors if "visual" in name]
    assert note.startswith(f"{len(left_out)} tensors of the parts")
    assert "--mmproj" in note
    assert not any("visual" in tensor.name for tensor in model.tensors)


def test_a_part_that_sees_is_no_tensor_of_a_text_model(tmp_path: Path) -> None:
    spec = read_case("qwen3vl")
    spec["config"] = spec["config"].pop("text_config") | {"architectures": ["Qwen3ForCausalLM"]}
    with pytest.raises(CheckpointError, match=r"visual.*, which config\.json has no place for"):
        to_gguf(open_checkpoint(write_case(tmp_path, spec)), pre="glm4")


def test_the_text_parts_own_class_is_taken(tmp_path: Path) -> None:
    """As Kimi K2.5 has it: the whole model's class is its own, its text part is a DeepSeek V3."""
    spec = read_case("deepseek_v3")
    whole = opened(tmp_path / "whole", "deepseek_v3")
    text = spec["config"]
    spec["config"] = {"architectures": ["KimiUnknown"], "model_type": "kimi", "text_config": text}
    for shard, tensors in spec["shards"].items():
        spec["shards"][shard] = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    part = to_gguf(open_checkpoint(write_case(tmp_path / "part", spec)), pre="glm4")
    assert [(t.name, t.shape) for t in part.tensors] == [(t.name, t.shape) for t in whole.tensors]
    own = {k: v for k, v in part.metadata.items() if k != "general.name"}
    assert own == {k: v for k, v in whole.metadata.items() if k != "general.name"}


@pytest.mark.parametrize("columns", [48, 64, 32])
def test_experts_of_qwen3_vl_in_either_order(tmp_path: Path, columns: int) -> None:
    """Published transposed, saved by transformers 5 as in other models; also where a matrix is square."""
    spec = read_case("qwen3vlmoe")
    text = spec["config"]["text_config"]
    width = text["hidden_size"]
    text["moe_intermediate_size"] = columns
    for tensors in spec["shards"].values():
        for name, entry in tensors.items():
            if ".mlp.experts." in name:
                n = entry[1][0]
                entry[1] = [n, width, 2 * columns] if "gate_up" in name else [n, columns, width]
    published = to_gguf(open_checkpoint(write_case(tmp_path / "published", spec)), pre="glm4")
    folder = write_case(tmp_path / "saved", spec)
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    n_header = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + n_header]), bytearray(raw[8 + n_header :])
    for name, entry in header.items():
        if ".mlp.experts." in name:
            start, stop = entry["data_offsets"]
            values = np.frombuffer(bytes(data[start:stop]), "<u2").reshape(entry["shape"])
            data[start:stop] = values.swapaxes(1, 2).tobytes()
            entry["shape"] = [entry["shape"][k] for k in (0, 2, 1)]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    saved = to_gguf(open_checkpoint(folder), pre="glm4")
    for ours, theirs in zip(saved.tensors, published.tensors, strict=True):
        assert (ours.name, ours.shape) == (theirs.name, theirs.shape)
        assert ours.rows is not None
        assert theirs.rows is not None
        np.testing.assert_array_equal(
            ours.rows.read_float32(0, ours.n_rows), theirs.rows.read_float32(0, theirs.n_rows)
        )


@pytest.mark.parametrize(
    ("case", "size"), [("qwen3moe", 32), ("qwen3vlmoe", 32), ("dots1", 64), ("qwen2moe", 48)]
)
def test_a_size_of_shared_experts_is_a_key_of_all_kin_of_qwen2moe(
    tmp_path: Path, case: str, size: int
) -> None:
    spec = read_case(case)
    values = spec["config"].get("text_config", spec["config"])
    values["shared_expert_intermediate_size"] = size
    model = to_gguf(open_checkpoint(write_case(tmp_path, spec)), pre="glm4")
    key = f"{model.architecture}.expert_shared_feed_forward_length"
    assert model.metadata[key].decode() == size
    keys = list(model.metadata)
    assert keys.index(key) == keys.index(f"{model.architecture}.expert_feed_forward_length") + 1


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("gpt_oss", "model.layers.1.self_attn.sinks"),
        ("gpt_oss", "model.layers.1.mlp.experts.gate_up_proj_bias"),
        ("gpt_oss", "model.layers.1.mlp.experts.down_proj"),
        ("glm_dsa_mtp", "model.layers.1.self_attn.indexer.k_norm.bias"),
        ("glm_dsa_mtp", "model.layers.3.eh_proj.weight"),
        ("qwen2moe", "model.layers.1.mlp.shared_expert_gate.weight"),
        ("gemma3", "model.layers.1.pre_feedforward_layernorm.weight"),
        ("phi4", "model.layers.1.self_attn.qkv_proj.weight"),
        ("glm4", "model.layers.1.post_mlp_layernorm.weight"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, case: str, name: str) -> None:
    spec = read_case(case)
    for tensors in spec["shards"].values():
        tensors.pop(name, None)
    with pytest.raises(CheckpointError, match=f"lacks the tensor '{name}'"):
        to_gguf(open_checkpoint(write_case(tmp_path, spec)), pre="glm4")
