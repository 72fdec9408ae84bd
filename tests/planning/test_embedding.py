"""Which matrices are known to read the token embedding."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ggplan.ggml_types import parse_type
from ggplan.model import Model, TensorInfo
from ggplan.planning.embedding import readers_of_embedding

N = 32
F32 = parse_type("f32")


class Rows:
    """Weights that are the number of their row."""

    def read_float32(self, start: int, stop: int) -> np.ndarray:
        return np.repeat(np.arange(start, stop, dtype=np.float32)[:, np.newaxis], N, axis=1)


def tensor(name: str, *shape: int, weights: bool = True) -> TensorInfo:
    return TensorInfo(name, shape, F32, "", "F32", rows=Rows() if weights else None)


def model_of(layer: str, norms: str = "attn_norm ffn_norm", *more: TensorInfo, columns: int = N) -> Model:
    """A model with an embedding, an output, and these matrices and norms in layer 0."""
    tensors = [
        tensor("token_embd.weight", 50, N),
        tensor("output.weight", 50, N),
        tensor("blk.1.attn_q.weight", 8, N),
    ]
    tensors += [tensor(f"blk.0.{name}.weight", 40, columns) for name in layer.split()]
    tensors += [tensor(f"blk.0.{name}.weight", N) for name in norms.split()]
    return Model(Path("m"), "gguf", "llama", {}, (*tensors, *more))


def inputs(first: str, *others: str) -> dict[str, str]:
    """For each tensor its input: that of the first norm, or one of its own."""
    found = {f"blk.0.{name}.weight": "first" for name in first.split()}
    return found | {f"blk.0.{name}.weight": name for name in others}


@pytest.mark.parametrize(
    ("first", "others", "norms", "readers"),
    [
        ("attn_q attn_k attn_v", "attn_output ffn_gate ffn_up ffn_down", "attn_norm ffn_norm", "a a a f f"),
        ("attn_qkv", "ffn_up ffn_down", "attn_norm ffn_norm", "a f"),
        ("attn_q_a attn_kv_a_mqa", "attn_q_b ffn_gate_inp ffn_up_exps", "attn_norm ffn_norm", "a a f f"),
        ("attn_q", "ffn_gate ffn_up", "attn_norm post_attention_norm", "a p p"),
        ("attn_q", "ffn_gate", "attn_norm ffn_norm post_attention_norm", "a f"),
        ("attn_q attn_k ffn_up", "ffn_down", "attn_norm", "a a a"),
        ("attn_q", "ffn_up", "post_attention_norm", "- -"),
        ("ssm_in", "ffn_up_exps", "attn_norm ffn_norm", "a f"),
        ("ssm_in", "ssm_out", "attn_norm", ""),
        ("attn_q", "ffn_up_exps", "attn_norm attn_output_norm ffn_norm post_ffw_norm", "a f"),  # Grok
        ("attn_qkv", "ffn_gate_inp ffn_up_exps", "attn_norm attn_output_norm", ""),  # DBRX
        ("attn_qkv", "ffn_up", "attn_norm attn_norm_2", ""),  # Falcon
        ("attn_q", "ffn_gate ffn_gate_inp ffn_up_exps", "attn_norm ffn_norm ffn_norm_exps", ""),  # Arctic
        ("attn_q", "ffn_gate ffn_up_exps", "attn_norm ffn_norm pre_ffw_norm_2", ""),  # Gemma 4
        ("time_mix_key", "channel_mix_key", "attn_norm", ""),
    ],
)  # fmt: skip
def test_readers_and_the_norms_before_them(first: str, others: str, norms: str, readers: str) -> None:
    model = model_of(f"{first} {others}", norms)
    found = readers_of_embedding(model, inputs(first, *others.split()).get)
    kinds = {"attn_norm": "a", "ffn_norm": "f", "post_attention_norm": "p"}
    assert [kinds[r.norm.name.split(".")[2]] if r.norm else "-" for r in found] == readers.split()
    assert len({r.tensor.name for r in found}) == len(found)
    assert not any("down" in r.tensor.name or "output" in r.tensor.name for r in found)


Q = inputs("attn_q", "ffn_up")
WHOLE = model_of("attn_q ffn_up")
TIED = replace(WHOLE, tensors=tuple(t for t in WHOLE.tensors if t.name != "output.weight"))


@pytest.mark.parametrize(
    "model",
    [
        TIED,
        model_of("attn_q ffn_up", "attn_norm ffn_norm", tensor("position_embd.weight", 9, N)),
        model_of("attn_q ffn_up", "attn_norm ffn_norm", tensor("token_embd_norm.weight", N)),
        model_of("attn_q ffn_up", columns=2 * N),
        model_of("attn_q", "attn_norm ffn_norm", tensor("blk.0.ffn_up.weight", 40, N, weights=False)),
        model_of("attn_q ffn_up", "attn_norm", tensor("blk.0.ffn_norm.weight", 2 * N)),
        model_of("ffn_up"),
    ],
    ids=["tied", "positions", "a norm between", "columns", "no weights", "another norm", "no attention"],
)  # fmt: skip
def test_where_others_count_too_or_nothing_is_known_there_are_none(model: Model) -> None:
    assert readers_of_embedding(model, Q.get) == ()


def test_a_tensor_without_an_input_is_no_reader() -> None:
    model = model_of("attn_q attn_k ffn_gate ffn_up")
    found = readers_of_embedding(model, Q.get)
    assert [r.tensor.name for r in found] == ["blk.0.attn_q.weight", "blk.0.ffn_up.weight"]


@pytest.mark.parametrize(
    ("n_rows", "read"), [(40, 40), (600, 600), (2040, 2040), (5000, 1024), (128 * 768, 1024)]
)
def test_of_very_many_rows_some_from_all_over_are_read(n_rows: int, read: int) -> None:
    model = model_of("attn_q", "attn_norm ffn_norm", tensor("blk.0.ffn_up.weight", n_rows, N))
    reader = readers_of_embedding(model, Q.get)[1]
    rows = np.concatenate([reader.read(run) for run in reader.runs()])[:, 0]
    assert len(rows) == len(set(rows)) == read
    assert rows.max() < n_rows


def test_not_the_same_rows_of_every_expert_are_read() -> None:
    """128 experts of 768 rows, of 2048 columns."""
    n, norms = 2048, (tensor("blk.0.attn_norm.weight", 2048), tensor("blk.0.ffn_norm.weight", 2048))
    shapes = {"token_embd": (9, n), "output": (9, n), "blk.0.attn_q": (9, n), "blk.0.ffn_up": (128, 768, n)}
    tensors = (*(tensor(f"{name}.weight", *shape) for name, shape in shapes.items()), *norms)
    runs = readers_of_embedding(Model(Path("m"), "gguf", "llama", {}, tensors), Q.get)[1].runs()
    assert sum(end - start for start, end in runs) == 4 * n
    assert all(end <= next_[0] for (_, end), next_ in pairwise(runs)), "none twice"
    within = sorted(start % 768 for start, _ in runs)
    assert within[0] < 200
    assert within[-1] > 500
    assert len(set(within)) > 20
