"""The codes of quantized tensors as rows of GGUF tensors: moved with whole rows, else decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ggplan.arch.moving import moves_whole_rows
from ggplan.arch.tensors import MOE, Table, TensorSpec, convert_tensors
from ggplan.arch.transforms import constant, permuted, plain, sliced, transposed_slices
from ggplan.ggml_types import BF16, F32, GgmlType, parse_type
from ggplan.model import RowSource, TensorInfo
from ggplan.quants import dequantize, quantize
from ggplan.sources.codes import nearly_q4_1
from ggplan.sources.tensors import CheckpointTensor

Q4_0, Q5_0, Q8_0, NVFP4 = (parse_type(name) for name in ("q4_0", "q5_0", "q8_0", "nvfp4"))


def quantized(
    type_: GgmlType = Q4_0,
    shape: tuple[int, ...] = (8, 64),
    *,
    seed: int = 0,
    why: str = "",
    companions: Mapping[str, RowSource] | None = None,
    nearly: bool = False,
) -> CheckpointTensor:
    """A tensor whose codes a type holds, or, with a reason, none does."""
    rng = np.random.default_rng(seed)
    rows = quantize(rng.normal(size=(int(np.prod(shape[:-1])), shape[-1])).astype("f4"), type_)
    weights = dequantize(rows, type_)
    codes = RowSource(type_, shape, lambda start, stop: rows[start:stop].copy())
    return CheckpointTensor(
        "x", Path("model.safetensors"), type_.name.upper(), shape,
        RowSource(F32, shape, lambda start, stop: weights[start:stop].copy()),
        None if why else codes, why, companions or {}, nearly_q4_1(codes) if nearly else None,
    )  # fmt: skip


def made(
    parts: list[CheckpointTensor] | CheckpointTensor,
    target: str = "blk.{}.attn_q.weight",
    transform: Callable[[RowSource], RowSource] = plain,
) -> TensorInfo:
    """The GGUF tensor that is made of a tensor, or of experts."""
    if isinstance(parts, CheckpointTensor):
        spec = TensorSpec("layers.{}.x.weight", target, parts.shape, transform=transform, bias=False)
        tensors = {"layers.0.x.weight": parts}
        table = Table([spec], [MOE])
    else:
        spec = TensorSpec("layers.{}.experts.{}.x.weight", target, parts[0].shape, "moe", bias=False)
        tensors = {f"layers.0.experts.{k}.x.weight": part for k, part in enumerate(parts)}
        table = Table([spec], [MOE], len(parts))
    (info,) = convert_tensors(tensors, table, "folder")
    return info


def weights_of(source: RowSource | None) -> np.ndarray:
    assert source is not None
    return source.read_float32(0, source.n_rows)


@pytest.mark.parametrize(
    "transform",
    [plain, partial(permuted, n_heads=2), partial(sliced, group=4, offset=1, length=2)],
    ids=["plain", "permuted", "sliced"],
)
def test_whole_rows_move_with_their_codes(transform: Callable[[RowSource], RowSource]) -> None:
    info = made(quantized(), transform=transform)
    assert info.type == Q4_0
    assert info.stored is not None
    assert info.stored.shape == info.shape
    assert info.codes.outcome == "moved from Q4_0"
    np.testing.assert_array_equal(weights_of(info.stored), weights_of(info.rows))


@pytest.mark.parametrize(
    "transform",
    [
        partial(transposed_slices, group=8, length=8),
        lambda source: RowSource(source.dtype, source.shape, lambda a, b: source.read(a, b) + 1),
        lambda source: RowSource(source.dtype, source.shape, lambda a, b: source.read(a, b)[:, ::-1].copy()),
        lambda source: RowSource(
            source.dtype, source.shape, lambda a, b: source.read(a, b).reshape(-1, 7, 5)
        ),
    ],
    ids=["transposed", "added", "mirrored", "reshaped"],
)
def test_what_takes_rows_apart_decodes(transform: Callable[[RowSource], RowSource]) -> None:
    assert not moves_whole_rows(transform, quantized().codes, (8, 64))
    if not isinstance(transform, partial):
        return
    info = made(quantized(), transform=transform)
    assert (info.type, info.stored) == (BF16, None)
    assert info.codes.outcome == "decoded: the GGUF tensor is not made of whole rows of the checkpoint's"


def test_experts_of_one_type_are_stacked() -> None:
    parts = [quantized(seed=k) for k in range(3)]
    info = made(parts, "blk.{}.ffn_up_exps.weight")
    assert (info.type, info.shape) == (Q4_0, (3, 8, 64))
    np.testing.assert_array_equal(weights_of(info.stored), weights_of(info.rows))


def test_experts_of_several_integer_types_take_the_widest_exactly() -> None:
    for types in ([Q4_0, Q5_0], [Q5_0, Q4_0, Q8_0]):
        parts = [quantized(type_, seed=k) for k, type_ in enumerate(types)]
        info = made(parts, "blk.{}.ffn_up_exps.weight")
        assert info.type == max(types, key=lambda type_: type_.bits_per_weight)
        np.testing.assert_array_equal(weights_of(info.stored), weights_of(info.rows))


def test_experts_of_which_one_has_no_codes_are_decoded() -> None:
    parts = [quantized(), quantized(seed=1, why="group_size 16 is no multiple of 32")]
    info = made(parts, "blk.{}.ffn_up_exps.weight")
    assert (info.type, info.stored) == (BF16, None)
    assert info.codes.outcome == "decoded: group_size 16 is no multiple of 32 in 1 of 2 experts: expert 1"


def test_experts_of_types_that_have_nothing_in_common_are_decoded() -> None:
    info = made([quantized(), quantized(NVFP4)], "blk.{}.ffn_up_exps.weight")
    assert info.codes.why_decoded == "its experts have codes in q4_0 and nvfp4"


def test_a_router_stays_float() -> None:
    info = made(quantized(), "blk.{}.ffn_gate_inp.weight")
    assert (info.type, info.stored) == (F32, None)
    assert info.codes.outcome == "decoded: llama.cpp needs the tensor in float"


def test_companions_have_one_number_for_each_expert_and_ones_where_there_is_none() -> None:
    parts = [
        quantized(NVFP4, seed=0, companions={"scale": constant([2.0]), "input_scale": constant([7.0])}),
        quantized(NVFP4, seed=1, companions={"scale": constant([3.0])}),
    ]
    info = made(parts, "blk.{}.ffn_up_exps.weight")
    found = {c.name: weights_of(c.rows).tolist() for c in info.codes.companions}
    assert found == {"blk.0.ffn_up_exps.scale": [[2, 3]], "blk.0.ffn_up_exps.input_scale": [[7, 1]]}
    assert all(c.type == F32 and c.stored is c.rows for c in info.codes.companions)


def test_a_scale_that_llama_cpp_does_not_read_decodes_its_tensor() -> None:
    part = quantized(NVFP4, companions={"scale": constant([2.0])})
    assert made(part, "blk.{}.attn_kv_b.weight").codes.why_decoded.startswith("llama.cpp multiplies no scale")
    assert made(part, "blk.{}.attn_kv_b.weight").type == BF16
    assert made(part, "blk.{}.attn_output.weight").type == NVFP4


def test_q4_1_is_offered_where_all_experts_have_it() -> None:
    rows = "blk.{}.ffn_up_exps.weight"
    few = [quantized(), quantized(seed=1)]
    assert made(few, rows).codes.nearly is None  # exact in as many bits
    assert made([*few, quantized(Q5_0)], rows).codes.nearly is None  # of 5 bits, perhaps
    mixed = made([*few, quantized(Q5_0, nearly=True)], rows)
    assert mixed.type == Q5_0
    assert mixed.codes.nearly is not None
    assert mixed.codes.nearly.shape == mixed.shape
    assert mixed.codes.nearly.dtype.name == "q4_1"


def test_experts_in_a_wider_type_than_they_need_are_told() -> None:
    info = made([quantized(seed=0), quantized(Q5_0, seed=1), quantized(seed=2)], "blk.{}.ffn_up_exps.weight")
    assert info.codes is not None
    assert info.type == Q5_0
    assert info.codes.outcome.endswith(", 2 of 3 experts widened from q4_0 to q5_0, which expert 1 needs")
    several = made([quantized(seed=0), quantized(Q5_0), quantized(Q5_0)], "blk.{}.ffn_up_exps.weight")
    assert several.codes is not None
    assert several.codes.outcome.endswith("1 of 3 experts widened from q4_0 to q5_0, which experts 1, 2 need")
    same = made([quantized(), quantized()], "blk.{}.ffn_up_exps.weight")
    assert same.codes is not None
    assert same.codes.widened == ""


def test_a_companion_that_would_have_the_name_of_another_tensor() -> None:
    """Gemma 4's router has a `per_expert_scale`, which llama.cpp calls `ffn_down_exps.scale`."""
    parts = [quantized(NVFP4, seed=k, companions={"scale": constant([2.0])}) for k in range(2)]
    scale = RowSource(F32, (2,), lambda start, stop: np.array([[3.0, 5.0]], "f4")[start:stop])
    own = CheckpointTensor("s", Path("model.safetensors"), "F32", (2,), scale)
    specs = [
        TensorSpec(
            "layers.{}.experts.{}.x.weight", "blk.{}.ffn_down_exps.weight", (8, 64), "moe", bias=False
        ),
        TensorSpec("layers.{}.s", "blk.{}.ffn_down_exps.scale", (2,), "moe"),
    ]
    tensors = {f"layers.0.experts.{k}.x.weight": part for k, part in enumerate(parts)}
    (alone,) = convert_tensors(tensors, Table(specs[:1], [MOE], 2), "folder")
    assert [c.name for c in alone.codes.companions] == ["blk.0.ffn_down_exps.scale"]
    both = convert_tensors({**tensors, "layers.0.s": own}, Table(specs, [MOE], 2), "folder")
    found = {tensor.name: tensor for tensor in both}
    assert found.keys() == {"blk.0.ffn_down_exps.weight", "blk.0.ffn_down_exps.scale"}
    matrix = found["blk.0.ffn_down_exps.weight"]
    assert (matrix.type, matrix.stored, matrix.codes.companions) == (BF16, None, ())
    assert matrix.codes.outcome == (
        "decoded: the name of its scale is that of another tensor: blk.0.ffn_down_exps.scale"
    )
    assert weights_of(found["blk.0.ffn_down_exps.scale"].rows).tolist() == [[3.0, 5.0]]


def test_how_many_experts_are_plain_or_need_a_wider_type_is_said() -> None:
    part = quantized(seed=1)
    bits = np.zeros((8, 64), "<u2")
    plain = CheckpointTensor(
        "x", Path("model.safetensors"), "BF16", (8, 64),
        RowSource(BF16, (8, 64), lambda start, stop: bits[start:stop].copy()),
    )  # fmt: skip
    info = made([part, part, plain, part], "blk.{}.ffn_up_exps.weight")
    assert info.codes.outcome == "decoded: 1 of 4 experts is stored as BF16, not quantized: expert 2"
    info = made([part, quantized(Q5_0), part, part], "blk.{}.ffn_up_exps.weight")
    assert info.codes.outcome == (
        "moved from Q4_0, Q5_0, 3 of 4 experts widened from q4_0 to q5_0, which expert 1 needs"
    )
