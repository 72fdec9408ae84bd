"""Tables whose layers differ: one name of the checkpoint, other shapes and targets by kind of layer."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import write_tensors

from ggplan.arch.tensors import DENSE, MOE, Table, TensorSpec, convert_tensors
from ggplan.arch.transforms import sliced
from ggplan.errors import CheckpointError
from ggplan.model import TensorInfo
from ggplan.sources.safetensors import read_tensors
from ggplan.sources.schemes import QuantizationConfig, join_tensors

LAYER, BLOCK = "model.layers.{}.", "blk.{}."
LINEAR, FULL = "linear_attention", "full_attention"
# As in a hybrid model: `self_attn.o_proj` is narrower where attention is linear, `in_proj` is two GGUF
# tensors there and one elsewhere, and `mlp.gate` is the router of layers with experts and the gate of dense
# ones.
SPECS = [
    TensorSpec(LAYER + "self_attn.o_proj.weight", BLOCK + "ssm_out.weight", (4, 6), LINEAR),
    TensorSpec(LAYER + "self_attn.o_proj.weight", BLOCK + "attn_output.weight", (4, 8), FULL),
    TensorSpec(
        LAYER + "self_attn.in_proj.weight",
        BLOCK + "attn_qkv.weight",
        (6, 4),
        LINEAR,
        transform=partial(sliced, group=6, offset=0, length=4),
    ),
    TensorSpec(
        LAYER + "self_attn.in_proj.weight",
        BLOCK + "attn_gate.weight",
        (6, 4),
        LINEAR,
        transform=partial(sliced, group=6, offset=4, length=2),
    ),
    TensorSpec(LAYER + "self_attn.in_proj.weight", BLOCK + "attn_q.weight", (8, 4), FULL),
    TensorSpec(LAYER + "mlp.gate.weight", BLOCK + "ffn_gate.weight", (7, 4), "dense"),
    TensorSpec(LAYER + "mlp.gate.weight", BLOCK + "ffn_gate_inp.weight", (2, 4), "moe"),
    TensorSpec(LAYER + "mlp.experts.{}.up.weight", BLOCK + "ffn_up_exps.weight", (5, 4), "moe"),
    TensorSpec(LAYER + "self_attn.sinks", BLOCK + "attn_sinks.weight", (3,), FULL, optional=True),
]
LAYERS = [DENSE | {LINEAR}, MOE | {FULL}, MOE | {LINEAR}, DENSE | {FULL}]
SOURCES = {
    "model.layers.0.self_attn.o_proj.weight": [4, 6],
    "model.layers.0.self_attn.in_proj.weight": [6, 4],
    "model.layers.0.mlp.gate.weight": [7, 4],
    "model.layers.1.self_attn.o_proj.weight": [4, 8],
    "model.layers.1.self_attn.in_proj.weight": [8, 4],
    "model.layers.1.mlp.gate.weight": [2, 4],
    "model.layers.1.mlp.experts.0.up.weight": [5, 4],
    "model.layers.1.mlp.experts.1.up.weight": [5, 4],
    "model.layers.2.self_attn.o_proj.weight": [4, 6],
    "model.layers.2.self_attn.in_proj.weight": [6, 4],
    "model.layers.2.mlp.gate.weight": [2, 4],
    "model.layers.2.mlp.experts.0.up.weight": [5, 4],
    "model.layers.2.mlp.experts.1.up.weight": [5, 4],
    "model.layers.3.self_attn.o_proj.weight": [4, 8],
    "model.layers.3.self_attn.in_proj.weight": [8, 4],
    "model.layers.3.mlp.gate.weight": [7, 4],
}


def converted(tmp_path: Path, shapes: dict[str, list[int]]) -> dict[str, TensorInfo]:
    path = tmp_path / "m.safetensors"
    write_tensors(path, {name: ("BF16", shape) for name, shape in shapes.items()})
    checkpoint = join_tensors(read_tensors(path), QuantizationConfig(tmp_path, {}))
    tensors = convert_tensors(checkpoint, Table(SPECS, LAYERS, n_experts=2), "m")
    return {tensor.name: tensor for tensor in tensors}


def test_each_kind_of_layer_has_its_own_shape_and_target(tmp_path: Path) -> None:
    tensors = converted(tmp_path, SOURCES)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "blk.0.ssm_out.weight": (4, 6),
        "blk.0.attn_qkv.weight": (1, 4, 4),
        "blk.0.attn_gate.weight": (1, 2, 4),
        "blk.0.ffn_gate.weight": (7, 4),
        "blk.1.attn_output.weight": (4, 8),
        "blk.1.attn_q.weight": (8, 4),
        "blk.1.ffn_gate_inp.weight": (2, 4),
        "blk.1.ffn_up_exps.weight": (2, 5, 4),
        "blk.2.ssm_out.weight": (4, 6),
        "blk.2.attn_qkv.weight": (1, 4, 4),
        "blk.2.attn_gate.weight": (1, 2, 4),
        "blk.2.ffn_gate_inp.weight": (2, 4),
        "blk.2.ffn_up_exps.weight": (2, 5, 4),
        "blk.3.attn_output.weight": (4, 8),
        "blk.3.attn_q.weight": (8, 4),
        "blk.3.ffn_gate.weight": (7, 4),
    }
    assert tensors["blk.0.ffn_gate.weight"].type.name == "bf16"
    assert tensors["blk.1.ffn_gate_inp.weight"].type.name == "f32"
    whole = (
        read_tensors(tmp_path / "m.safetensors")["model.layers.2.self_attn.in_proj.weight"].rows().read(0, 6)
    )
    np.testing.assert_array_equal(tensors["blk.2.attn_qkv.weight"].rows.read(0, 4), whole[:4])
    np.testing.assert_array_equal(tensors["blk.2.attn_gate.weight"].rows.read(0, 2), whole[4:])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model.layers.1.self_attn.o_proj.weight": [4, 6]},
            r"layers\.1\.self_attn\.o_proj\.weight' has the shape 4 x 6, but config\.json makes it 4 x 8",
        ),
        (
            {"model.layers.2.mlp.gate.weight": [7, 4]},
            r"layers\.2\.mlp\.gate\.weight' has the shape 7 x 4, but config\.json makes it 2 x 4",
        ),
        ({"model.layers.3.mlp.gate.weight": None}, r"lacks the tensor 'model\.layers\.3\.mlp\.gate\.weight'"),
        (
            {"model.layers.2.self_attn.o_proj.weight": None},
            r"lacks the tensor 'model\.layers\.2\.self_attn\.o_proj\.weight'",
        ),
        (
            {"model.layers.0.mlp.experts.0.up.weight": [5, 4]},
            r"holds the tensor 'model\.layers\.0\.mlp\.experts\.0\.up\.weight', which .* has no place",
        ),
        (
            {"model.layers.0.self_attn.sinks": [3]},
            r"'model\.layers\.0\.self_attn\.sinks', which .* has no place",
        ),
        (
            {"model.layers.1.self_attn.sinks": [3]},
            r"lacks the tensor 'model\.layers\.3\.self_attn\.sinks', though other layers have it",
        ),
    ],
)
def test_a_tensor_of_another_kind_of_layer_is_refused(
    tmp_path: Path, changes: dict[str, list[int] | None], said: str
) -> None:
    shapes = {name: shape for name, shape in (SOURCES | changes).items() if shape is not None}
    with pytest.raises(CheckpointError, match=said):
        converted(tmp_path, shapes)
