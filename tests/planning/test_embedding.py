"""Which matrices are known to read the token embedding, and nothing but it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggplan.ggml_types import parse_type
from ggplan.model import Model, TensorInfo
from ggplan.planning.embedding import readers_of_embedding

N = 32


class Rows:
    """Weights that are all one number."""

    def __init__(self, value: float, n_rows: int) -> None:
        self.value, self.n_rows = value, n_rows

    def read_float32(self, start: int, stop: int) -> np.ndarray:
        return np.full((min(stop, self.n_rows) - start, N), self.value, np.float32)


def model_of(inputs: dict[str, str | None], without: tuple[str, ...] = (), columns: int = N) -> Model:
    """A model with the tensors of layer 0 that `inputs` names, an embedding, an output and a norm."""
    f32 = parse_type("f32")
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (50, N), "output.weight": (50, N), "blk.0.attn_norm.weight": (N,),
        "blk.1.attn_q.weight": (8, N),
    }  # fmt: skip
    shapes |= {name: (600, columns) if "." in name else (8, columns) for name in inputs}
    tensors = tuple(
        TensorInfo(name, shape, f32, "", "F32", rows=Rows(2.0 if len(shape) == 1 else 3.0, 600))
        for name, shape in shapes.items()
        if name not in without
    )
    return Model(Path("m"), "gguf", "llama", {}, tensors)


@pytest.mark.parametrize(
    ("inputs", "readers"),
    [
        (
            {"attn_q": "norm", "attn_k": "norm", "attn_v": "norm", "attn_output": "kqv"},
            "attn_q attn_k attn_v",
        ),
        ({"attn_qkv": "norm", "ffn_up": "ffn"}, "attn_qkv"),
        (
            {"attn_q_a": "norm", "attn_kv_a_mqa": "norm", "attn_q_b": "q", "ffn_up": "f"},
            "attn_q_a attn_kv_a_mqa",
        ),
        ({"attn_q": "norm", "ffn_up": "norm", "ffn_down": "act"}, "attn_q ffn_up"),
        ({"ssm_in": "norm", "ssm_out": "y"}, "ssm_in"),
        ({"attn_qkv": "norm", "attn_gate": "norm", "ssm_out": "y"}, "attn_qkv attn_gate"),
        ({"time_mix_key": "x"}, None),
        ({"attn_q": None, "attn_k": None}, None),
    ],
)
def test_what_reads_it_has_the_input_of_the_first_matrices(
    inputs: dict[str, str | None], readers: str | None
) -> None:
    named = {f"blk.0.{name}.weight": input_ for name, input_ in inputs.items()}
    input_of = {**named, "blk.1.attn_q.weight": "norm of 1"}.get
    found = readers_of_embedding(model_of(named), input_of)
    if readers is None:
        assert found is None
        return
    assert found is not None
    assert [t.name for t in found.tensors] == [f"blk.0.{name}.weight" for name in readers.split()]
    assert found.norm is not None
    for pieces in found.rows():
        rows = np.concatenate(list(pieces))
        assert rows.shape == (600, N)
        assert (rows == 6).all(), "times the norm's weights"


Q = {"blk.0.attn_q.weight": "norm"}


@pytest.mark.parametrize(
    "model",
    [
        model_of(Q, without=("output.weight",)),
        model_of(Q, without=("token_embd.weight",)),
        model_of({**Q, "position_embd.weight": None}),
        model_of({**Q, "token_embd_norm.weight": None}),
        model_of(Q, columns=2 * N),
        Model(
            Path("m"), "inventory", "llama", {},
            tuple(TensorInfo(t.name, t.shape, t.type, "", "F32") for t in model_of(Q).tensors),
        ),
    ],
    ids=["tied", "no embedding", "positions are added", "a norm between", "other columns", "no weights"],
)  # fmt: skip
def test_where_others_count_too_or_nothing_is_known_there_are_none(model: Model) -> None:
    assert readers_of_embedding(model, Q.get) is None


def test_a_model_without_a_first_norm_has_its_rows_as_they_are() -> None:
    found = readers_of_embedding(model_of(Q, without=("blk.0.attn_norm.weight",)), Q.get)
    assert found is not None
    assert all((rows == 3).all() for pieces in found.rows() for rows in pieces)
