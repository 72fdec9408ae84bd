"""On which device a weight is loaded, and the bytes that it takes there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from memory_rows import header

from ggplan.ggml_types import parse_type
from ggplan.offload.allocation import gpu_bytes, host_bytes
from ggplan.offload.dimensions import dimensions_of
from ggplan.offload.header import Header
from ggplan.offload.machine import Gpu
from ggplan.offload.settings import Override, Settings
from ggplan.offload.weights import Weights, place_weights

CARD = Gpu("", 24 << 30)


def model(n_blocks: int = 4, *, tied: str = "", **keys: object) -> Header:
    tensors = [("token_embd.weight", tied or "f16", (256, 1024)), ("output_norm.weight", "f32", (256,))]
    tensors += [] if tied else [("output.weight", "f16", (256, 1024))]
    for i in range(n_blocks):
        tensors.append((f"blk.{i}.attn_norm.weight", "f32", (256,)))
        tensors.append((f"blk.{i}.ffn_up_exps.weight", "q4_K", (256, 512, 8)))
    tensors.append(("rope_freqs.weight", "f32", (32,)))
    given = {"block_count": n_blocks, "embedding_length": 256, "attention__head_count": 4}
    return header("llama", tensors, **given | keys)


def placed(made: Header, settings: Settings, n_gpus: int) -> Weights:
    return place_weights(made, dimensions_of(made), settings, [CARD] * n_gpus)


def norms(weights: Weights) -> list[str]:
    return [weights.devices()[f"blk.{i}.attn_norm.weight"] for i in range(4)]


@pytest.mark.parametrize(
    ("layers", "blocks", "output"),
    [
        (0, ["host"] * 4, "host"),
        (1, ["host"] * 4, "CUDA0"),
        (3, ["host", "host", "CUDA0", "CUDA0"], "CUDA0"),
        (5, ["CUDA0"] * 4, "CUDA0"),
        (-1, ["CUDA0"] * 4, "CUDA0"),
    ],
)
def test_layers_are_counted_from_the_end(layers: int, blocks: list[str], output: str) -> None:
    found = placed(model(), Settings(gpu_layers=layers), 1)
    assert norms(found) == blocks
    assert found.devices()["output.weight"] == output
    assert found.devices()["token_embd.weight"] == "host"


def test_shares_of_several_gpus() -> None:
    found = placed(model(), Settings(tensor_split=(3, 2)), 2)
    assert (norms(found), found.output) == (["CUDA0"] * 3 + ["CUDA1"], "CUDA1")
    one = placed(model(), Settings(split_mode="none", main_gpu=1), 2)
    assert norms(one) == ["CUDA1"] * 4


def test_the_first_override_wins() -> None:
    overrides = (Override(r"blk\.1\..*exps", "CUDA0"), Override("exps", "CPU"), Override("blk", "CUDA1"))
    found = placed(model(), Settings(overrides=overrides), 2).devices()
    assert found["blk.1.ffn_up_exps.weight"] == "CUDA0"
    assert found["blk.0.ffn_up_exps.weight"] == "host"
    assert found["blk.0.attn_norm.weight"] == "CUDA1"


def test_a_tied_output_is_loaded_twice() -> None:
    size = 1024 * parse_type("q4_0").row_bytes(256)
    found = placed(model(tied="q4_0"), Settings(), 1)
    copies = [one for one in found.loaded if one.tensor.name == "token_embd.weight"]
    assert [(c.use, c.device) for c in copies] == [("token_embd.weight", "host"), ("output.weight", "CUDA0")]
    assert copies[0].n_bytes == size
    # Without a GPU too, where the CPU's kernels want the rows in another order.
    twice = placed(model(tied="q4_0"), Settings(), 0).by_device()["host"]
    once = placed(model(tied="q4_0"), Settings(repack=False), 0).by_device()["host"]
    assert twice - once == size
    assert (
        placed(model(tied="q8_0"), Settings(), 0).by_device()
        == placed(model(tied="q8_0"), Settings(repack=False), 0).by_device()
    )


def test_factors_of_rotation_are_on_every_device_with_blocks() -> None:
    found = placed(model(), Settings(gpu_layers=3), 1)
    copies = [one.device for one in found.loaded if one.tensor.name == "rope_freqs.weight"]
    assert copies == ["host", "CUDA0"]


def test_blocks_for_drafting_are_loaded_when_drafts_are_asked_for() -> None:
    made = model(nextn_predict_layers=1)
    with_drafts = placed(made, Settings(mtp=True), 1)
    without = placed(made, Settings(), 1)
    assert "blk.3.attn_norm.weight" not in without.devices()
    assert "blk.3.attn_norm.weight" in with_drafts.devices()
    # They count as layers all the same.
    assert placed(made, Settings(gpu_layers=2), 1).blocks == ("host", "host", "host", "CUDA0")


def test_bytes_of_a_row_that_is_no_multiple_of_512() -> None:
    q8_0, f32 = parse_type("q8_0"), parse_type("f32")
    assert host_bytes(q8_0, (1408, 3)) == 3 * 44 * 34 + 24  # 32-byte steps
    assert gpu_bytes(q8_0, (1408, 3)) == -(-(3 * 44 * 34 + 4 * 34) // 128) * 128
    assert gpu_bytes(q8_0, (1024, 3)) == -(-(3 * 32 * 34) // 128) * 128
    assert gpu_bytes(f32, (100,)) == 512


def test_repacked_weights_are_not_streamed() -> None:
    experts = Settings(overrides=(Override("exps", "CPU"),))
    assert not any(one.repacked for one in placed(model(), experts, 1).loaded)
    plain = placed(model(), replace(experts, host_buffer=False), 1)
    assert {one.tensor.name.split(".")[2] for one in plain.loaded if one.repacked} == {"ffn_up_exps"}
