"""Experts that stay suffice for the router, whatever form it has; lists of them that lie are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from program import run
from small_models import Key, key, made, refused, values, write_model

sys.path.insert(0, str(Path(__file__).parent.parent / "arch"))

from tiny_checkpoints import read_case, write_case

import ggplan

KEEP = "--keep-experts"


def experts_of(path: Path, n: int = 8, architecture: str = "qwen3moe", **keys: Key) -> Path:
    """Two layers of `n` experts with their routers."""
    given: dict[str, Key] = {"block_count": 2, "expert_count": n, "expert_used_count": 2, **keys}
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        for part in ("gate", "up", "down"):
            tensors[f"blk.{layer}.ffn_{part}_exps.weight"] = (n, 32, 32)
        tensors[f"blk.{layer}.ffn_gate_inp.weight"] = (n, 32)
        tensors[f"blk.{layer}.ffn_gate_inp.bias"] = (n,)
    return write_model(path, architecture, given, tensors)


def kept(tmp_path: Path, experts: str) -> Path:
    (tmp_path / "kept.txt").write_text(f"0: {experts}\n1: {experts}\n")
    return tmp_path / "kept.txt"


@pytest.mark.parametrize(
    ("groups", "used_groups", "used", "experts", "words"),
    [
        (2, 1, 2, "0 4", "1 expert of each of 2 groups is too few: the best two tell which group is used"),
        (2, 1, 3, "0 1 4 5", "each token is routed to 3 experts of 1 of the 2 groups"),
        (2, 2, 4, "0 1 4 5", ""),
        (2, 1, 2, "0 1 4 5", ""),
        (2, 1, 2, "0 1 2 4", "layer 0 would keep 1 experts of a group, 3 of another"),
        (3, 1, 2, "0 1 2", "the 8 experts of a layer are no 3 groups of one size"),
        (1, 1, 2, "5", "1 experts are too few: each token is routed to 2"),
    ],
)
def test_groups_keep_enough(
    tmp_path: Path, groups: int, used_groups: int, used: int, experts: str, words: str
) -> None:
    counts = {
        "expert_group_count": groups,
        "expert_group_used_count": used_groups,
        "expert_used_count": used,
    }
    source = experts_of(tmp_path / "m.gguf", **counts)
    if words:
        assert words in refused("plan", source, KEEP, kept(tmp_path, experts))
    else:
        made(source, tmp_path / "out.gguf", KEEP, kept(tmp_path, experts))


def test_a_bias_of_the_router_in_one_row(tmp_path: Path) -> None:
    """As ERNIE 4.5 has it, whose shape is (1, experts)."""
    folder = write_case(tmp_path / "ernie4_5_moe_mtp", read_case("ernie4_5_moe_mtp"))
    whole, some = tmp_path / "whole.gguf", tmp_path / "some.gguf"
    assert run("convert", folder, whole, "--pre", "glm4").returncode == 0
    before = ggplan.open_model(whole)
    layers = sorted(t.name.split(".")[1] for t in before if ".exp_probs_b." in t.name)
    assert layers
    (tmp_path / "kept.txt").write_text("".join(f"{layer}: 1 3\n" for layer in layers))
    done = run("convert", folder, some, "--pre", "glm4", KEEP, tmp_path / "kept.txt")
    assert done.returncode == 0, done.stderr
    after = ggplan.open_model(some)
    for layer in layers:
        bias = f"blk.{layer}.exp_probs_b.bias"
        assert np.array_equal(values(after, bias).ravel(), values(before, bias).ravel()[[1, 3]])


def test_all_experts_cost_nothing(tmp_path: Path) -> None:
    source = experts_of(tmp_path / "m.gguf", 8, expert_group_count=8)
    _, told = made(source, tmp_path / "out.gguf", KEEP, kept(tmp_path, "0-7"))
    assert "8 of 8 experts are kept in layers 0-1: 0 B less" in told
    assert "costs much" not in told


def test_maverick_is_known_by_its_experts(tmp_path: Path) -> None:
    source = experts_of(tmp_path / "m.gguf", 128, "llama4")
    assert "knows Llama 4 Maverick by its 128 experts" in refused(
        "plan", source, KEEP, kept(tmp_path, "0-63")
    )
    made(experts_of(tmp_path / "s.gguf", 16, "llama4"), tmp_path / "out.gguf", KEEP, kept(tmp_path, "0-7"))


@pytest.mark.parametrize("count", [[8, 8], "8", -8, 8.0, 0])
def test_a_count_of_experts_that_is_none(tmp_path: Path, count: Key) -> None:
    if count == -8:
        count = 2**31  # which no model has
        words = "has 8 experts, the model 2,147,483,648"
    else:
        words = "qwen3moe.expert_count is no number of experts"
    source = experts_of(tmp_path / "m.gguf", expert_count=count)
    assert words in refused("plan", source, KEEP, kept(tmp_path, "0-3"))


def test_experts_without_a_router(tmp_path: Path) -> None:
    source = write_model(
        tmp_path / "m.gguf",
        "qwen3moe",
        {"block_count": 1, "expert_count": 4},
        {"blk.0.ffn_up_exps.weight": (4, 32, 32)},
    )
    (tmp_path / "kept.txt").write_text("0: 1\n")
    message = refused("plan", source, KEEP, tmp_path / "kept.txt")
    assert "layer 0 would lose experts, but has no router" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0: " + "0-99999 " * 40_000 + "\n", "line 1: there are more than 1,048,576 experts"),
        ("".join(f"{n}: 0-99999\n" for n in range(20)), "there are more than 1,048,576 experts"),
        ('{"0": [0, 1], "0": [2, 3], "1": [0, 1]}', "layer 0 is there twice"),
        ('{"0": [0, 1], "00": [2, 3], "1": [0, 1]}', "layer 0 is there twice"),
        ("0: all\n", "'all' is no expert's number"),
    ],
)
def test_lists_that_lie(tmp_path: Path, text: str, words: str) -> None:
    source = experts_of(tmp_path / "m.gguf")
    (tmp_path / "kept.txt").write_text(text)
    assert words in refused("plan", source, KEEP, tmp_path / "kept.txt")


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ("-1", 2, "-1 is no number of experts"),
        ("1.5", 2, "1.5 is no number of experts"),
        ("95%", 2, "95% is no number of experts"),
        ("99999999999", 2, "99999999999 is no number of experts"),
        ("0", 1, "0 experts cannot be kept: the model has 8 in a layer"),
        ("9", 1, "9 experts cannot be kept: the model has 8 in a layer"),
        ("4", 1, "told by the counts of an imatrix"),
        ("nosuch.txt", 1, "cannot read nosuch.txt"),
    ],
)
def test_numbers_of_experts_that_are_none(tmp_path: Path, given: str, code: int, words: str) -> None:
    assert words in refused("plan", experts_of(tmp_path / "m.gguf"), KEEP, given, code=code)


def test_a_number_of_experts_for_each_layer_counts_in_the_bytes_of_a_token(tmp_path: Path) -> None:
    def per_token(used: Key) -> float:
        source = experts_of(tmp_path / "m.gguf", expert_used_count=used)
        return float(json.loads(run("plan", source, "--json").stdout)["memory"]["ram_bytes_per_token"])

    stack = 3 * 8 * 32 * 32 * 4  # bytes of a layer's experts
    assert per_token(2) == 2 * stack * 2 / 8
    assert per_token([1, 3]) == stack * 1 / 8 + stack * 3 / 8
    source = experts_of(tmp_path / "m.gguf", expert_used_count=[1, 3])
    assert "routed to 3" in refused("plan", source, KEEP, kept(tmp_path, "0 1"))
    model, _ = made(source, tmp_path / "out.gguf", KEEP, kept(tmp_path, "0 1 2"))
    assert key(model, "expert_count") == 3
