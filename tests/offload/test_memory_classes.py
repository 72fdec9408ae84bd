"""What a context keeps, by kind of memory, reckoned by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from memory_rows import header

from ggplan.ggml_types import parse_type
from ggplan.offload.cache.classes import cache_tensors
from ggplan.offload.dimensions import dimensions_of
from ggplan.offload.header import Header
from ggplan.offload.holding import holding_of
from ggplan.offload.settings import Settings

EMBEDDING = [("token_embd.weight", "f16", (64, 100))]
PLAIN = {
    "block_count": 4, "embedding_length": 64, "context_length": 4096, "attention__head_count": 4,
    "attention__head_count_kv": 2, "attention__key_length": 32, "attention__value_length": 16,
}  # fmt: skip
ONE = Settings(context=1024, slots=1, flash_attention="on")


def kept(made: Header, settings: Settings) -> dict[str, int]:
    """Bytes by role."""
    dimensions = dimensions_of(made)
    sums: dict[str, int] = {}
    for tensor in cache_tensors(dimensions, settings, holding_of(dimensions, settings)):
        n = tensor.shape[1] * tensor.shape[2] * tensor.type.row_bytes(tensor.shape[0])
        sums[tensor.role] = sums.get(tensor.role, 0) + n
    return sums


def test_keys_and_values_of_every_block() -> None:
    made = header("llama", EMBEDDING, **PLAIN)
    assert kept(made, ONE) == {"k": 4 * 1024 * 2 * 32 * 2, "v": 4 * 1024 * 2 * 16 * 2}
    quantized = replace(ONE, cache_k=parse_type("q8_0"), cache_v=parse_type("q4_0"))
    assert kept(made, quantized) == {"k": 4 * 1024 * 2 * 34, "v": 4 * 1024 * 18}


@pytest.mark.parametrize(
    ("slots", "unified", "context", "cells", "streams"),
    [(1, None, 1000, 1024, 1), (4, True, 1000, 1024, 1), (4, False, 1000, 256, 4), (3, None, 10000, 3584, 3)],
)
def test_cells_and_streams(slots: int, unified: bool | None, context: int, cells: int, streams: int) -> None:
    made = header("llama", EMBEDDING, **PLAIN)
    settings = Settings(context=context, slots=slots, unified_cache=unified)
    holding = holding_of(dimensions_of(made), settings)
    assert (holding.n_cells, holding.n_streams) == (cells, streams)
    assert kept(made, settings)["k"] == 4 * cells * streams * 2 * 32 * 2


def test_a_server_has_four_slots_of_one_stream_unless_told() -> None:
    dimensions = dimensions_of(header("llama", EMBEDDING, **PLAIN))
    holding = holding_of(dimensions, Settings(context=4096))
    assert (holding.n_slots, holding.n_streams, holding.n_outputs) == (4, 1, 4)
    bench = holding_of(dimensions, Settings(program="llama-bench", context=4096))
    assert (bench.n_slots, bench.n_outputs) == (1, 512)
    assert holding_of(dimensions, Settings(slots=1)).n_context == 4096  # as it was trained


def test_without_flash_attention_values_are_as_wide_as_the_widest_block() -> None:
    made = header("llama", EMBEDDING, **PLAIN | {"attention__head_count_kv": [2, 2, 1, 4]})
    off = replace(ONE, flash_attention="off")
    assert kept(made, ONE)["v"] == (2 + 2 + 1 + 4) * 1024 * 16 * 2
    assert kept(made, off)["v"] == 4 * 1024 * 4 * 16 * 2


def test_latent_attention_keeps_one_key_and_no_value() -> None:
    latent = {
        "attention__key_length": 576, "attention__value_length": 512, "attention__head_count_kv": 1,
        "attention__key_length_mla": 192, "attention__value_length_mla": 128, "attention__kv_lora_rank": 512,
    }  # fmt: skip
    made = header("deepseek2", EMBEDDING, **PLAIN | latent)
    assert kept(made, ONE) == {"k": 4 * 1024 * 576 * 2}
    sparse = {"attention__indexer__key_length": 128, "attention__indexer__top_k": 64}
    made = header("glm-dsa", EMBEDDING, **PLAIN | latent | sparse, attention__indexer__types=[1, 0, 0, 1])
    assert kept(made, ONE) == {"k": 4 * 1024 * 576 * 2, "indexer k": 2 * 1024 * 128 * 2}


def test_windows() -> None:
    made = header("gpt-oss", EMBEDDING, **PLAIN, attention__sliding_window=128)
    settings = Settings(context=8192, slots=1, micro_batch=512)
    window = 768  # 128 + 512, in steps of 256
    assert kept(made, settings)["k"] == 2 * (8192 + window) * 2 * 32 * 2
    assert kept(made, replace(settings, full_window=True))["k"] == 4 * 8192 * 2 * 32 * 2
    # Four slots of one stream keep a window each.
    four = kept(made, replace(settings, slots=4, unified_cache=True))["k"]
    assert four == 2 * (8192 + 1024) * 2 * 32 * 2
    # A window is never longer than the context.
    assert kept(made, replace(settings, context=512))["k"] == 4 * 512 * 2 * 32 * 2


@pytest.mark.parametrize(
    ("architecture", "keys", "slides"),
    [
        ("gemma2", {}, [1, 0, 1, 0]),
        ("gemma3", {"attention__sliding_window": 512}, [1, 1, 1, 1]),
        ("gemma3", {}, [0, 0, 0, 0]),
        ("cohere2moe", {"attention__sliding_window": 512}, [0, 1, 1, 1]),
        ("llama4", {}, [1, 1, 1, 0]),
        ("llama4", {"attention__sliding_window": 0}, [0, 0, 0, 0]),
        ("step35", {"attention__sliding_window": 512, "attention__sliding_window_pattern": [0, 1, 1, 0]},
         [0, 1, 1, 0]),
        ("gpt-oss", {"attention__sliding_window": 128, "attention__sliding_window_pattern": 4}, [1, 1, 1, 0]),
        ("qwen3", {"attention__sliding_window": 512}, [0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_which_blocks_slide(architecture: str, keys: dict[str, object], slides: list[int]) -> None:
    dimensions = dimensions_of(header(architecture, EMBEDDING, **PLAIN | keys))
    assert [int(s) for s in dimensions.slides] == slides


def test_recurrent_state_is_of_one_size() -> None:
    state = {
        "ssm__conv_kernel": 4, "ssm__inner_size": 128, "ssm__state_size": 16, "ssm__group_count": 2,
        "ssm__time_step_rank": 8, "full_attention_interval": 4,
    }  # fmt: skip
    made = header("qwen3next", EMBEDDING, **PLAIN | state)
    row_r, row_s = 3 * (128 + 2 * 2 * 16), 16 * 128
    found = kept(made, replace(ONE, slots=2, unified_cache=True))
    assert found == {
        "k": 1024 * 2 * 32 * 2,
        "v": 1024 * 2 * 16 * 2,
        "r": 3 * 2 * row_r * 4,
        "s": 3 * 2 * row_s * 4,
    }
    pure = header("mamba", EMBEDDING, **PLAIN | state | {"ssm__group_count": 0})
    assert kept(pure, ONE) == {"r": 4 * 3 * 128 * 4, "s": 4 * row_s * 4}
    both = header("falcon-h1", EMBEDDING, **PLAIN | state)
    assert kept(both, ONE)["k"] == 4 * 1024 * 2 * 32 * 2
    assert kept(both, ONE)["s"] == 4 * row_s * 4


def test_short_convolutions_and_kda() -> None:
    heads = {"attention__head_count_kv": [0, 0, 2, 0]}
    made = header("lfm2", EMBEDDING, **PLAIN | heads, shortconv__l_cache=3)
    assert kept(made, ONE) == {"k": 1024 * 2 * 32 * 2, "v": 1024 * 2 * 16 * 2, "r": 3 * 64 * 2 * 4, "s": 0}
    latent = {
        "attention__key_length_mla": 48, "attention__value_length_mla": 32, "attention__key_length": 576,
        "attention__head_count_kv": [0, 0, 1, 0],
    }  # fmt: skip
    kda = {"kda__head_dim": 32, "ssm__conv_kernel": 4}
    made = header("kimi-linear", EMBEDDING, **PLAIN | latent | kda)
    assert kept(made, ONE) == {"k": 1024 * 576 * 2, "r": 3 * 3 * 3 * 4 * 32 * 4, "s": 3 * 32 * 32 * 4 * 4}


def test_blocks_for_drafting_keep_nothing_in_the_main_context() -> None:
    made = header("glm4moe", EMBEDDING, **PLAIN, nextn_predict_layers=1)
    assert kept(made, ONE)["k"] == 3 * 1024 * 2 * 32 * 2


def test_msa_and_shared_caches() -> None:
    made = header(
        "minimax-m3", EMBEDDING, **PLAIN, attention__indexer__key_length=64, leading_dense_block_count=1
    )
    found = kept(made, ONE)
    assert found["indexer k"] == 3 * 1024 * 64 * 2
    assert found["indexer v"] == 3 * 1024 * 16 * 2
    pattern = {"attention__sliding_window": 512, "attention__sliding_window_pattern": [1, 0, 1, 0]}
    made = header("gemma4", EMBEDDING, **PLAIN | pattern, attention__shared_kv_layers=2)
    assert kept(made, replace(ONE, micro_batch=256))["k"] == (1024 + 768) * 2 * 32 * 2


def test_deepseek_4() -> None:
    keys = {
        "block_count": 3, "attention__key_length": 64, "attention__head_count_kv": 1,
        "attention__sliding_window": 128,
        "attention__indexer__key_length": 32, "attention__compress_ratios": [0, 4, 128],
    }  # fmt: skip
    found = kept(header("deepseek4", EMBEDDING, **PLAIN | keys), replace(ONE, context=8192, micro_batch=512))
    assert found["k"] == 3 * 768 * 64 * 2
    assert found["k of 4"] == 2048 * 64 * 2
    assert found["k of 128"] == 256 * 64 * 2
    assert found["indexer k"] == 2048 * 32 * 2
    assert found["state"] == found["score"] == (8 * 128 + 128 * 64 + 8 * 64) * 4


def test_encoders_keep_nothing() -> None:
    assert kept(header("bert", EMBEDDING, **PLAIN), ONE) == {}
