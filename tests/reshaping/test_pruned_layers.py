"""Layers that stay when others are pruned are of the kind that they were, or it is told that they are not."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from small_models import Key, key, made, refused, values, write_model

PATTERN, RECURRENT = "attention.sliding_window_pattern", "attention.recurrent_layers"


def layers_of(path: Path, architecture: str, count: int, keys: dict[str, Key]) -> Path:
    """A model of `count` layers with one matrix each."""
    tensors = {f"blk.{n}.attn_q.weight": (32, 32) for n in range(count)}
    return write_model(path, architecture, {"block_count": count, **keys}, tensors)


@pytest.mark.parametrize(
    ("architecture", "count", "keys", "layers", "name", "kinds"),
    [
        # By number alone every second layer of gpt-oss sees all tokens: 1 and 3 of 0 to 3.
        ("gpt-oss", 4, {"attention.sliding_window": 128}, "1", PATTERN, [True, True, False]),
        ("gpt-oss", 4, {"attention.sliding_window": 128}, "0,1", PATTERN, None),
        ("gpt-oss", 4, {"attention.sliding_window": 128}, "3", PATTERN, None),
        ("cohere2moe", 6, {}, "0,1", PATTERN, [True, True, False, True]),
        ("gemma3", 7, {"attention.sliding_window": 8}, "0", PATTERN, [True] * 4 + [False, True]),
        ("gemma3", 7, {}, "0", PATTERN, None),
        ("llama4", 5, {}, "0", PATTERN, [True, True, False, True]),
        ("llama4", 5, {"attention.sliding_window": 0}, "0", PATTERN, None),
        # Where the file says how many, that counts; where it lists them, the list is cut.
        ("gemma2", 4, {PATTERN: 3}, "0", PATTERN, [True, False, True]),
        ("gemma2", 4, {PATTERN: [True, False, False, True]}, "0", PATTERN, [False, False, True]),
        ("qwen35", 4, {"full_attention_interval": 2}, "0", RECURRENT, [False, True, False]),
        ("qwen3next", 5, {"nextn_predict_layers": 1}, "0", RECURRENT, [True, True, False, False]),
        ("qwen35", 4, {RECURRENT: [True, False, True, False]}, "1", RECURRENT, [True, True, False]),
    ],
)
def test_kinds_that_numbers_tell_are_written(
    tmp_path: Path, architecture: str, count: int, keys: dict[str, Key], layers: str, name: str, kinds: object
) -> None:
    source = layers_of(tmp_path / "m.gguf", architecture, count, keys)
    model, told = made(source, tmp_path / "out.gguf", "--prune-layers", layers)
    assert key(model, name) == kinds
    assert (f"{architecture}.{name}" in told) is (kinds is not None)
    assert "tells the kind of a layer by its number" not in told


@pytest.mark.parametrize(
    ("architecture", "count", "keys", "layers", "words"),
    [
        (
            "smollm3",
            8,
            {},
            "1",
            "leaves rope out of every 4th layer, by its number: of those that stay it was 3, 7",
        ),
        ("smollm3", 8, {}, "1", "and will be 4 (numbers before pruning)"),
        ("gemma3", 62, {}, "61", "scales attention as the 27B in gemma3 models of 62 layers alone"),
        ("exaone4", 64, {"attention.sliding_window": 4096}, "0", "this one had 64, and will have 63"),
        ("rwkv6", 4, {"rescale_every_n_layers": 2}, "1", "rwkv6.rescale_every_n_layers tells the kind"),
    ],
)
def test_kinds_that_no_key_holds_are_told(
    tmp_path: Path, architecture: str, count: int, keys: dict[str, Key], layers: str, words: str
) -> None:
    source = layers_of(tmp_path / "m.gguf", architecture, count, keys)
    assert words in made(source, tmp_path / "out.gguf", "--prune-layers", layers)[1]


def test_nothing_is_told_where_all_stay_as_they_were(tmp_path: Path) -> None:
    source = layers_of(tmp_path / "m.gguf", "smollm3", 8, {})
    told = made(source, tmp_path / "out.gguf", "--prune-layers", "0-3")[1]
    assert told.count("note: ") == 1
    assert "layers 0-3 are pruned: 4 tensors" in told


def test_a_layer_where_llama_cpp_looks_for_experts_has_them(tmp_path: Path) -> None:
    tensors = {
        f"blk.{n}.ffn_{'up_exps' if n % 2 else 'up'}.weight": (2, 32, 32)[n % 2 == 0 :] for n in range(4)
    }
    keys = {"block_count": 4, "interleave_moe_layer_step": 2, "expert_count": 2}
    source = write_model(tmp_path / "m.gguf", "llama4", keys, tensors)
    message = refused("convert", source, tmp_path / "out.gguf", "--prune-layers", "0")
    assert "layer 1 has experts, but as layer 0, which it would be, llama.cpp looks for a dense" in message
    assert "prune 2 that follow each other" in message
    assert not (tmp_path / "out.gguf").exists()
    model, _ = made(source, tmp_path / "out.gguf", "--prune-layers", "1,2")
    assert [t.name for t in model] == ["blk.0.ffn_up.weight", "blk.1.ffn_up_exps.weight"]


def gemma4(path: Path, columns: int, kind: gguf.GGMLQuantizationType | None = None) -> Path:
    """Six layers, each with a part of two matrices; the last two have the K and V of layers 2 and 3."""
    keys = {
        "block_count": 6,
        "attention.shared_kv_layers": 2,
        PATTERN: [True, False, True, False, True, False],
    }
    tensors = {f"blk.{n}.attn_q.weight": (32, 32) for n in range(6)}
    tensors |= {
        "per_layer_token_embd.weight": (5, 6 * columns),
        "per_layer_model_proj.weight": (6 * columns, 32),
    }
    return write_model(
        path, "gemma4", keys, tensors, {} if kind is None else {"per_layer_token_embd.weight": kind}
    )


@pytest.mark.parametrize("kind", [None, gguf.GGMLQuantizationType.Q8_0])
def test_matrices_with_a_part_for_each_layer_lose_those_of_the_pruned(
    tmp_path: Path, kind: gguf.GGMLQuantizationType | None
) -> None:
    source = gemma4(tmp_path / "m.gguf", 32, kind)
    whole, _ = made(source, tmp_path / "whole.gguf")
    model, _ = made(source, tmp_path / "out.gguf", "--prune-layers", "1,5")
    kept = np.array([0, 2, 3, 4])
    assert key(model, "attention.shared_kv_layers") == 1
    table, projection = "per_layer_token_embd.weight", "per_layer_model_proj.weight"
    assert model[table].type == whole[table].type
    assert np.array_equal(
        values(model, table), values(whole, table).reshape(5, 6, 32)[:, kept].reshape(5, -1)
    )
    expected = values(whole, projection).reshape(6, 32, 32)[kept].reshape(-1, 32)
    assert np.array_equal(values(model, projection), expected)


def test_blocks_of_several_layers_are_not_cut(tmp_path: Path) -> None:
    source = gemma4(tmp_path / "m.gguf", 16, gguf.GGMLQuantizationType.Q8_0)
    message = refused("plan", source, "--prune-layers", "0")
    assert "per_layer_token_embd.weight in q8_0 has blocks of 32 weights, a layer 16 columns" in message


@pytest.mark.parametrize(
    ("layers", "taken", "words"),
    [
        ("3", None, "layers 4-5 cannot go on taking K and V from layers 2-3"),
        ("2", None, "they must stay the last before"),
        ("2,4", 1, ""),  # the layer with a window is gone, and so is layer 4, which had its K and V
        ("0", 2, ""),
        ("4,5", 0, ""),
        ("2,3,4,5", 0, ""),
    ],
)
def test_layers_with_the_k_and_v_of_others(
    tmp_path: Path, layers: str, taken: int | None, words: str
) -> None:
    source = gemma4(tmp_path / "m.gguf", 32)
    if taken is None:
        assert words in refused("plan", source, "--prune-layers", layers)
    else:
        model, _ = made(source, tmp_path / "out.gguf", "--prune-layers", layers)
        assert key(model, "attention.shared_kv_layers") == taken


def test_gemma_3n_has_twenty_layers_with_their_own_k_and_v(tmp_path: Path) -> None:
    source = layers_of(tmp_path / "m.gguf", "gemma3n", 25, {})
    assert "llama.cpp knows them by the number 20" in refused("plan", source, "--prune-layers", "0")
    made(source, tmp_path / "out.gguf", "--prune-layers", "24")


@pytest.mark.parametrize(
    ("layers", "left"), [("1-2", 2), ("0,2-3", 1), ("3", 3), ("1,1-1,1", 3), (" 1 - 2 ", 2)]
)
def test_ranges_of_layers(tmp_path: Path, layers: str, left: int) -> None:
    source = layers_of(tmp_path / "m.gguf", "llama", 4, {})
    assert key(made(source, tmp_path / "out.gguf", "--prune-layers", layers)[0], "block_count") == left


@pytest.mark.parametrize("layers", ["-1", "3,,7", "3-", "-", "5-3", "0-99999", "1 2", "1..2", "a-b", "٣"])
def test_lists_of_layers_that_are_none(tmp_path: Path, layers: str) -> None:
    source = layers_of(tmp_path / "m.gguf", "llama", 4, {})
    code = 1 if layers == "0-99999" else 2
    message = refused("plan", source, "--prune-layers", layers, code=code)
    assert ("there is no layer 4" if code == 1 else "is not a list of layers such as 3,7 or 3-7") in message


def test_mtp_blocks_are_dropped_from_a_model_that_says_it_has_none(tmp_path: Path) -> None:
    source = layers_of(tmp_path / "m.gguf", "glm4moe", 2, {"nextn_predict_layers": 0})
    model, told = made(source, tmp_path / "out.gguf", "--mtp", "drop")
    assert "glm4moe.nextn_predict_layers" not in model.metadata
    assert "`--mtp drop` changes nothing but the key" in told


def test_pruning_the_mtp_blocks_leaves_a_model_that_never_had_any(tmp_path: Path) -> None:
    tensors = {f"blk.{n}.attn_q.weight": (32, 32) for n in range(4)}
    tensors |= {f"blk.{n}.nextn.eh_proj.weight": (32, 64) for n in (2, 3)}
    keys = {"block_count": 4, "nextn_predict_layers": 2}
    source = write_model(tmp_path / "m.gguf", "glm4moe", keys, tensors)
    pruned, _ = made(source, tmp_path / "pruned.gguf", "--prune-layers", "2-3")
    dropped, told = made(source, tmp_path / "dropped.gguf", "--mtp", "drop")
    assert "MTP blocks 2-3 are left out: 4 tensors" in told
    own = [{k: v for k, v in m.metadata.items() if not k.startswith("ggplan.")} for m in (pruned, dropped)]
    assert own[0] == own[1]
    one, _ = made(source, tmp_path / "one.gguf", "--prune-layers", "3")
    assert key(one, "nextn_predict_layers") == 1
