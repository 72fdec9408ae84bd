"""Inputs are read out of a compute graph: nodes as llama.cpp has them in memory, made of NumPy's arrays."""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ggplan.calibration import Calibration
from ggplan.calibration.collecting import Activation, LayerCollector
from ggplan.calibration.graph_inputs import Callback, GraphInput, Reading, Survey, inputs_of_graph
from ggplan.calibration.graph_nodes import Graph, _Tensor
from ggplan.errors import CalibrationError, MeasureError

ADD, MULTIPLY, MULTIPLY_EXPERTS = 2, 29, 30
N, TOKENS, EXPERTS, USED = 16, 20, 4, 2


def library(name: bytes | None = None) -> Any:
    """llama-cpp-python as far as graphs are read with it; `name` is what it calls every tensor."""
    names = {ADD: b"ADD", MULTIPLY: b"MUL_MAT", MULTIPLY_EXPERTS: b"MUL_MAT_ID"}

    def op_name(op: int) -> bytes:
        return names[op]

    def get_name(pointer: int) -> bytes:
        return name or ctypes.cast(pointer, ctypes.POINTER(_Tensor)).contents.name

    def is_host(buffer: int) -> bool:
        return buffer == 1

    found = SimpleNamespace(ggml_op_name=op_name, ggml_get_name=get_name, ggml_backend_buffer_is_host=is_host)
    return SimpleNamespace(__version__="0", llama_cpp=SimpleNamespace(_lib=found))


class Memory:
    """Tensors of a graph, which stay as long as this does."""

    def __init__(self) -> None:
        self.kept: list[object] = []

    def tensor(self, values: np.ndarray, name: str, view_of: Any = None) -> Any:
        """A tensor around an array, rows first; in memory of another if `view_of` is given."""
        made = _Tensor(type=0 if values.dtype == np.float32 else 26, data=values.ctypes.data, buffer=1)
        shape, strides = values.shape[::-1], values.strides[::-1]
        for i in range(4):
            made.ne[i] = shape[i] if i < len(shape) else 1
            made.nb[i] = strides[i] if i < len(shape) else values.itemsize * values.size
        made.name = name.encode()
        if view_of is not None:
            made.view_src = ctypes.addressof(view_of)
        self.kept += [values, made]
        return made

    def weight(self, name: str, *shape: int) -> Any:
        return self.tensor(np.zeros(shape, np.float32), name)

    def node(self, op: int, *sources: Any) -> int:
        """The address of a node."""
        made = _Tensor(op=op)
        for i, source in enumerate(sources):
            made.src[i] = ctypes.pointer(source)
        self.kept.append(made)
        return ctypes.addressof(made)


def layer(memory: Memory, n: int, rng: np.random.Generator, tokens: int = TOKENS) -> tuple[list[int], dict]:
    """The nodes of a layer with experts, and what its matrices are given."""
    x, y = (rng.standard_normal((tokens, N), np.float32) for _ in "xy")
    own = rng.standard_normal((tokens, USED, N), np.float32)
    wide = np.zeros((tokens, EXPERTS), np.int32)  # ids are a view of a wider array: their rows are strided
    wide[:, :USED] = [rng.permutation(EXPERTS)[:USED] for _ in range(tokens)]
    heads = rng.standard_normal((3, tokens, N), np.float32)
    attn = memory.tensor(x, f"attn_norm-{n}")
    ffn = memory.tensor(y, f"ffn_norm-{n}")
    each = memory.tensor(y.reshape(tokens, 1, N), f"ffn_norm-{n} (reshaped)", ffn)
    ids, glu = memory.tensor(wide[:, :USED], "ids"), memory.tensor(own, "node_17")
    stack = memory.tensor(heads, f"q_nope-{n}")
    w, e = memory.weight, (EXPERTS, 8, N)
    nodes = [
        memory.node(MULTIPLY, w(f"blk.{n}.attn_q.weight", 8, N), attn),
        memory.node(ADD, attn, attn),
        memory.node(MULTIPLY, w(f"blk.{n}.attn_k.weight", 8, N), attn),
        memory.node(MULTIPLY, w("cache_k", 8, N), attn),
        memory.node(MULTIPLY, w(f"blk.{n}.attn_k_b.weight", 3, 8, N), stack),
        memory.node(MULTIPLY, w(f"blk.{n}.ffn_gate_inp.weight", 8, N), ffn),
        memory.node(MULTIPLY_EXPERTS, w(f"blk.{n}.ffn_gate_exps.weight", *e), each, ids),
        memory.node(MULTIPLY_EXPERTS, w(f"CUDA0#blk.{n}.ffn_up_exps.weight#0", *e), each, ids),
        memory.node(MULTIPLY_EXPERTS, w(f"blk.{n}.ffn_down_exps.weight", *e), glu, ids),
    ]
    return nodes, {"x": x, "y": y, "own": own, "ids": wide[:, :USED], "heads": heads}


def run(callback: Callback, nodes: list[int]) -> int:
    """What llama.cpp does with a graph; returns how many nodes were computed."""
    for i, node in enumerate(nodes):
        if callback(node, True, None) and not callback(node, False, None):
            return i + 1
    return len(nodes)


def surveyed(nodes: list[int]) -> tuple[Graph, list[GraphInput]]:
    callback = Callback(graph := Graph(library()))
    callback.watcher = survey = Survey(lambda name: name.startswith("blk."))
    run(callback, nodes)
    callback.check()
    return graph, inputs_of_graph(survey.nodes, TOKENS)


def test_a_survey_finds_what_inputs_there_are() -> None:
    memory = Memory()
    nodes, _ = layer(memory, 3, np.random.default_rng(0))
    _, found = surveyed(nodes)
    told = {
        a.name: (each.layer, each.leader, a.tensors, a.expert_tensors)
        for each in found
        for a in [each.activation]
    }
    assert told == {
        "attn_norm": (3, "blk.3.attn_q.weight", ("blk.3.attn_q.weight", "blk.3.attn_k.weight"), ()),
        "q_nope": (3, "blk.3.attn_k_b.weight", ("blk.3.attn_k_b.weight",), ()),
        "ffn_norm": (
            3, "blk.3.ffn_gate_exps.weight", ("blk.3.ffn_gate_inp.weight",),
            ("blk.3.ffn_gate_exps.weight", "blk.3.ffn_up_exps.weight"),
        ),
        "input of ffn_down_exps": (3, "blk.3.ffn_down_exps.weight", (), ("blk.3.ffn_down_exps.weight",)),
    }  # fmt: skip
    by_name = {each.activation.name: each.activation for each in found}
    assert (by_name["q_nope"].n_slices, by_name["q_nope"].has_own_rows) == (3, True)
    assert (by_name["ffn_norm"].n_routes, by_name["ffn_norm"].has_own_rows) == (USED, False)
    assert by_name["input of ffn_down_exps"].rows_per_token == USED


def test_what_is_read_is_what_was_given() -> None:
    rng, memory = np.random.default_rng(1), Memory()
    first, _ = layer(memory, 0, rng)
    graph, inputs = surveyed(first)
    collector = LayerCollector(0, [each.activation for each in inputs], 2 * TOKENS)
    callback = Callback(graph)
    callback.watcher = Reading(graph, inputs, {0: collector})
    given = []
    for _ in range(2):  # graphs at other addresses
        nodes, values = layer(memory, 0, rng)
        given.append(values)
        assert run(callback, nodes) == len(nodes)
    callback.check()
    whole = {name: np.concatenate([each[name] for each in given]) for name in ("x", "y", "own", "ids")}
    sums = collector.sums()
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    close(sums["blk.0.attn_k.weight"].squares[0], (whole["x"] ** 2).sum(axis=0))
    for expert in range(EXPERTS):
        came = whole["ids"] == expert
        up, down = sums["blk.0.ffn_up_exps.weight"], sums["blk.0.ffn_down_exps.weight"]
        assert up.counts[expert] == down.counts[expert] == came.sum()
        close(up.squares[expert], (whole["y"][came.any(axis=1)] ** 2).sum(axis=0))
        close(down.squares[expert], (whole["own"][came] ** 2).sum(axis=0))
    heads = sum((each["heads"] ** 2).sum(axis=1) for each in given)
    close(sums["blk.0.attn_k_b.weight"].squares.reshape(3, N), heads)
    assert sums["blk.0.attn_k_b.weight"].counts.tolist() == [2 * TOKENS]


def test_a_graph_ends_after_the_last_layer_that_is_wanted() -> None:
    rng, memory = np.random.default_rng(2), Memory()
    nodes = [node for n in range(3) for node in layer(memory, n, rng)[0]]
    graph, inputs = surveyed(nodes)
    collector = LayerCollector(1, [each.activation for each in inputs if each.layer == 1], TOKENS)
    callback = Callback(graph)
    callback.watcher = Reading(graph, inputs, {1: collector})
    assert run(callback, nodes) == 18
    assert set(collector.sums()) == {name for name in collector.sums() if name.startswith("blk.1.")}


@pytest.mark.parametrize("keep", [True, False])
def test_rows_that_llama_imatrix_leaves_out(tmp_path: Path, keep: bool) -> None:
    rng, memory = np.random.default_rng(3), Memory()
    graph, inputs = surveyed(layer(memory, 0, rng)[0])
    collector = LayerCollector(0, [each.activation for each in inputs], 2 * TOKENS + 8, keep=keep)
    callback = Callback(graph)
    callback.watcher = Reading(graph, inputs, {0: collector})
    given = []
    for tokens in (TOKENS, 8, TOKENS):  # a batch of 28 in two, and one more
        nodes, values = layer(memory, 0, rng, tokens)
        given.append(values)
        run(callback, nodes)
    callback.check()
    sums = collector.sums()
    assert sums["blk.0.attn_q.weight"].counts.tolist() == [2 * TOKENS]
    assert sums["blk.0.ffn_gate_inp.weight"].counts.tolist() == [2 * TOKENS]
    assert sums["blk.0.ffn_up_exps.weight"].counts.sum() == USED * (2 * TOKENS + 8)
    if not keep:
        return
    file = collector.write(tmp_path, "run")
    calibration = Calibration(tmp_path, "", {}, (file,), {}, "", "")
    both = np.concatenate([given[0]["y"], given[2]["y"]])
    moments = calibration.moments("blk.0.ffn_gate_inp.weight")
    assert moments is not None
    np.testing.assert_allclose(moments.matrix, both.T @ both / len(both), atol=0.02)


def test_rows_for_experts_alone_stand_last(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    collector = LayerCollector(0, [Activation("x", 64, ("a",), ("b",), EXPERTS, USED)], 28)
    x = rng.standard_normal((28, 64), np.float32)
    routes = np.stack([rng.permutation(EXPERTS)[:USED] for _ in range(28)]).astype(np.int32)
    for rows, few in [(slice(0, 10), False), (slice(10, 18), True), (slice(18, 28), False)]:
        collector.add("x", x[rows], routes[rows], only_experts=few)
    file = collector.write(tmp_path, "run")
    assert [(i.form, sum(i.tokens)) for i in file.inputs] == [("rows", 20), ("routed", 56)]
    calibration = Calibration(tmp_path, "", {}, (file,), {}, "", "")
    plain = calibration.moments("a")
    assert plain is not None
    both = np.concatenate([x[:10], x[18:]])
    np.testing.assert_allclose(plain.matrix, both.T @ both / 20, atol=0.03)
    for expert in range(EXPERTS):
        came = x[(routes == expert).any(axis=1)]
        moments = calibration.moments("b", expert)
        assert moments is not None
        np.testing.assert_allclose(moments.matrix, came.T @ came / len(came), atol=0.05)


def test_a_weight_that_is_used_twice_has_both_inputs() -> None:
    rng, memory = np.random.default_rng(4), Memory()
    weight = memory.weight("blk.0.attn_q.weight", 8, N)
    x = [rng.standard_normal((TOKENS, N), np.float32) for _ in "ab"]
    nodes = [memory.node(MULTIPLY, weight, memory.tensor(values, f"x_{i}")) for i, values in enumerate(x)]
    graph, inputs = surveyed(nodes)
    assert [(each.activation.rows_per_token, each.n_sources) for each in inputs] == [(2, 2)]
    collector = LayerCollector(0, [inputs[0].activation], TOKENS)
    callback = Callback(graph)
    callback.watcher = Reading(graph, inputs, {0: collector})
    run(callback, nodes)
    callback.check()
    found = collector.sums()["blk.0.attn_q.weight"]
    assert found.counts.tolist() == [2 * TOKENS]
    np.testing.assert_allclose(found.squares[0], sum((values**2).sum(axis=0) for values in x), rtol=1e-5)


def test_what_cannot_be_read_is_refused() -> None:
    rng, memory = np.random.default_rng(5), Memory()
    nodes, _ = layer(memory, 0, rng)
    with pytest.raises(MeasureError, match="another layout of tensors"):
        Graph(library(b"else")).node(nodes[0])
    graph, inputs = surveyed(nodes)
    callback = Callback(graph)
    callback.watcher = Reading(graph, inputs, {0: LayerCollector(0, [e.activation for e in inputs], TOKENS)})
    moved = memory.tensor(rng.standard_normal((TOKENS, N), np.float32), "elsewhere")
    nodes[2] = memory.node(MULTIPLY, memory.weight("blk.0.attn_k.weight", 8, N), moved)
    run(callback, nodes)
    with pytest.raises(CalibrationError, match=r"the input of 'blk.0.attn_k.weight' is not what it was"):
        callback.check()
    on_card = memory.tensor(rng.standard_normal((TOKENS, N), np.float32), "x")
    on_card.buffer = 2
    other = [memory.node(MULTIPLY, memory.weight("blk.0.attn_q.weight", 8, N), on_card)]
    graph, inputs = surveyed(other)
    callback = Callback(graph)
    callback.watcher = Reading(graph, inputs, {0: LayerCollector(0, [e.activation for e in inputs], TOKENS)})
    run(callback, other)
    with pytest.raises(MeasureError, match="is on another device than the CPU"):
        callback.check()
