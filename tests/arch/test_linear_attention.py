"""Families with linear attention or state spaces: what their goldens do not show."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoints import read_case, write_case

from ggplan.arch import to_gguf
from ggplan.errors import CheckpointError
from ggplan.model import Model
from ggplan.sources.huggingface import open_checkpoint


def opened(folder: Path, case: str, change: Callable[[dict], object] | None = None) -> Model:
    spec = read_case(case)
    if change is not None:
        change(spec)
    return to_gguf(open_checkpoint(write_case(folder, spec)), pre="glm4")


def without_mtp(spec: dict) -> None:
    for tensors in spec["shards"].values():
        for name in [name for name in tensors if name.startswith("mtp.")]:
            del tensors[name]


@pytest.mark.parametrize(
    ("case", "key"),
    [
        ("qwen3_5_mtp", "mtp_num_hidden_layers"),
        ("qwen3_5_moe_mtp", "mtp_num_hidden_layers"),
        ("nemotron_h_moe_mtp", "num_nextn_predict_layers"),
    ],
)
def test_layers_for_further_tokens_that_were_dropped_are_not_counted(
    tmp_path: Path, case: str, key: str
) -> None:
    """llama.cpp cannot load a file that counts them and lacks them."""
    model = opened(tmp_path, case, without_mtp)
    assert model.metadata[f"{model.architecture}.block_count"].decode() == 4
    assert f"{model.architecture}.nextn_predict_layers" not in model.metadata
    assert any(f"says {key} 1, but the checkpoint has 0" in note for note in model.notes)


def test_layers_for_further_tokens_are_counted_where_config_json_does_not(tmp_path: Path) -> None:
    model = opened(tmp_path, "qwen3_next_mtp")
    assert model.metadata["qwen3next.block_count"].decode() == 5
    assert model.metadata["qwen3next.nextn_predict_layers"].decode() == 1
    assert model.metadata["qwen3next.attention.recurrent_layers"].decode() == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert not any("mtp" in note for note in model.notes)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("qwen3_next_mtp", {"linear_num_key_heads": 3}, "linear_num_value_heads is 4, not a multiple"),
        ("qwen3_next_mtp", {"linear_num_value_heads": 4294967294}, "but config.json makes it"),
        ("qwen3_next_mtp", {"layer_types": ["full_attention"]}, "layer_types names 1 layers"),
        ("qwen3_next_mtp", {"layer_types": ["mamba"] * 4}, "'mamba', which llama.cpp does not know"),
        ("qwen3_next_mtp", {"mlp_only_layers": [1]}, "mixes layers with and without experts"),
        ("nemotron_h", {"hybrid_override_pattern": "M-*X"}, "'X', which llama.cpp does not know"),
        ("nemotron_h", {"hybrid_override_pattern": "M" * 1000}, "names 1000 layers"),
        ("nemotron_h", {"hybrid_override_pattern": ""}, "lacks layers_block_type"),
        ("nemotron_h", {"n_groups": 3}, "n_groups is 3, which does not divide"),
        ("nemotron_h_moe_mtp", {"hybrid_override_pattern": "ME*-"}, "layers with experts and dense ones"),
        ("nemotron_h_moe_mtp", {"num_nextn_predict_layers": 2}, "llama.cpp knows one such layer"),
        ("granitehybrid", {"layer_types": ["mamba"] * 2}, "layer_types names 2 layers"),
        ("granitehybrid", {"layer_types": None}, "lacks layer_types"),
        ("granitehybrid", {"mamba_n_heads": 7}, "not a multiple of heads"),
        ("lfm2", {"block_ffn_dim_multiplier": 1e30}, "an impossible size"),
        ("lfm2", {"layer_types": ["conv"]}, "layer_types names 1 layers"),
        ("cohere2", {"rotary_pct": 1.5}, "rotary_pct is not a part of one"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, case: str, change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, case, lambda spec: spec["config"].update(change))
