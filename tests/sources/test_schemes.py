"""How quantized tensors are put together: by any number of schemes, with nothing passed over in silence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from handmade_safetensors import bf16, fp8, write_safetensors

from ggplan.errors import CheckpointError
from ggplan.ggml_types import BF16, F32
from ggplan.model import RowSource
from ggplan.sources.safetensors import read_tensors
from ggplan.sources.schemes import SCHEMES, Group, QuantizationConfig, Recognised, Weights, join_tensors
from ggplan.sources.tensors import StoredTensor

ONES = np.full((4, 4), 0x38)
NOTHING = QuantizationConfig(Path("folder"), {})


def stored(tmp_path: Path, **tensors: object) -> dict[str, StoredTensor]:
    write_safetensors(tmp_path / "t.safetensors", tensors)
    return read_tensors(tmp_path / "t.safetensors")


def halves(name: str = "halves", keys: tuple[str, ...] = ()) -> SimpleNamespace:
    """A scheme as a later module would be: `X.levels` (bytes) times `X.step`, under the name `X.weight`."""

    def recognise(tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> Recognised:
        modules = [name.removesuffix(".levels") for name in tensors if name.endswith(".levels")]
        groups = [
            Group(m + ".weight", name, {"codes": tensors[m + ".levels"], "step": tensors[m + ".step"]})
            for m in modules
        ]
        return Recognised(groups, [m + ".input_step" for m in modules if m + ".input_step" in tensors], keys)

    def join(group: Group, config: QuantizationConfig) -> Weights:
        codes, step = group.parts["codes"], group.parts["step"]
        raw = np.fromfile(codes.file, np.uint8, codes.n_bytes, offset=codes.offset).reshape(codes.shape)
        return Weights(
            RowSource(F32, codes.shape, lambda start, stop: raw[start:stop] * step.read_floats(0, 1))
        )

    return SimpleNamespace(NAME=name, recognise=recognise, join=join)


def test_schemes_stand_side_by_side_in_one_checkpoint(tmp_path: Path) -> None:
    tensors = stored(
        tmp_path,
        **{
            "a.weight": fp8(ONES),
            "a.weight_scale": np.float32([3]),
            "b.levels": np.arange(8, dtype="u1").reshape(2, 4),
            "b.step": np.float32([0.5]),
            "b.input_step": np.float32([9]),
            "c.weight": bf16(np.ones((2, 4))),
        },
    )
    joined = join_tensors(tensors, NOTHING, (*SCHEMES, halves()))
    assert list(joined) == ["a.weight", "b.weight", "c.weight"]
    assert [t.stored_as for t in joined.values()] == ["F8_E4M3", "halves", "BF16"]
    assert [t.rows.dtype for t in joined.values()] == [F32, F32, BF16]
    assert {t.type for t in joined.values()} == {BF16}
    assert joined["a.weight"].rows.read(3, 4).tolist() == [[3] * 4]
    assert joined["b.weight"].rows.read(1, 2).tolist() == [[2, 2.5, 3, 3.5]]


def test_a_tensor_that_two_schemes_claim(tmp_path: Path) -> None:
    tensors = stored(tmp_path, **{"b.levels": np.zeros((2, 4), "u1"), "b.step": np.float32([1])})
    with pytest.raises(CheckpointError, match=r"'b\.levels' belongs to two quantized tensors"):
        join_tensors(tensors, NOTHING, (halves(), halves("other")))


def test_weights_that_are_there_plain_and_quantized(tmp_path: Path) -> None:
    tensors = stored(
        tmp_path,
        **{
            "b.levels": np.zeros((2, 4), "u1"),
            "b.step": np.float32([1]),
            "b.weight": np.ones((2, 4), "f4"),
        },
    )
    with pytest.raises(CheckpointError, match=r"'b\.weight' are there both plain and quantized"):
        join_tensors(tensors, NOTHING, (halves(),))


def test_what_no_scheme_joins_stays_as_it_is_stored(tmp_path: Path) -> None:
    """An architecture has no place for such a name, or does not take the type, and says so."""
    tensors = stored(tmp_path, **{"x.levels": np.zeros((2, 4), "i4"), "x.g_idx": np.zeros(4, "i4")})
    joined = join_tensors(tensors, NOTHING)
    assert {name: (t.stored_as, t.shape, t.rows) for name, t in joined.items()} == {
        "x.g_idx": ("I32", (4,), None),
        "x.levels": ("I32", (2, 4), None),
    }


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "fp8", "rotation": 3}, "says rotation, which ggplan does not know"),
        ({"bits": 4, "group_size": 128}, "says bits, group_size, which ggplan does not know"),
        ({"quant_method": "fp8", "quantized_layers": {}, "moe_quant_algo": "NVFP4"}, "quantized_layers"),
        ({"quant_method": "fp8", "a\x1b": 1}, r"says a\x1b, which"),
        (
            {"quant_method": "fp8", "transform_config": {"config_groups": {"R1": {}}}},
            "its weights were transformed",
        ),
        ({"quant_method": "halves"}, "is quantized by halves, which ggplan does not read"),
    ],
)
def test_keys_of_the_config_that_nobody_knows(tmp_path: Path, config: dict[str, object], said: str) -> None:
    tensors = stored(tmp_path, w=fp8(ONES), w_scale=np.float32([1]))
    with pytest.raises(CheckpointError, match=re.escape(said)):
        join_tensors(tensors, QuantizationConfig(Path("folder"), config))


def test_a_key_is_known_if_any_scheme_names_it(tmp_path: Path) -> None:
    tensors = stored(tmp_path, w=fp8(ONES), w_scale=np.float32([1]))
    config = QuantizationConfig(Path("folder"), {"quant_method": "fp8", "step_bits": 4})
    assert list(join_tensors(tensors, config, (*SCHEMES, halves(keys=("step_bits",))))) == ["w"]


PUBLISHED = {
    "DeepSeek-V3.1": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [2, 2],
    },
    "Ministral-3": {
        "activation_scheme": "static",
        "dequantize": False,
        "modules_to_not_convert": ["lm_head"],
        "quant_method": "fp8",
        "weight_block_size": None,
    },
    "Qwen3-32B-FP8-Static-PerTensor": {
        "config_groups": {"group_0": {"weights": {"dynamic": False, "num_bits": 8, "type": "float"}}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": "FP8",
        "producer": {"name": "modelopt", "version": "0.31"},
        "quant_algo": "FP8",
    },
    "llmcompressor": {
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}},
        "format": "float-quantized",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "moe_sparsity_config": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.20.1",
    },
}


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_published_configs_are_read(tmp_path: Path, config: dict[str, object]) -> None:
    tensors = stored(tmp_path, w=fp8(ONES), w_scale=np.float32([2]))
    weights = join_tensors(tensors, QuantizationConfig(Path("folder"), config))["w"]
    assert weights.rows.read(0, 1).tolist() == [[2] * 4]
