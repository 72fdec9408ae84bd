"""Integers in every layout, made of random codes, zero points and scales by a plain packer of the tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from handmade_safetensors import bf16, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import packed, packed_fast

from ggplan.errors import CheckpointError
from ggplan.quants import dequantize
from ggplan.sources.safetensors import read_tensors
from ggplan.sources.schemes import QuantizationConfig, join_tensors
from ggplan.sources.tensors import CheckpointTensor

FORMS = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def opened(path: Path, config: Mapping[str, object], **tensors: object) -> CheckpointTensor:
    """The one tensor of weights that the tensors of a module `m` hold."""
    write_safetensors(path, {f"m.{name}": tensor for name, tensor in tensors.items()})
    joined = join_tensors(read_tensors(path), QuantizationConfig(path.parent, dict(config)))
    assert list(joined) == ["m.weight"]
    return joined["m.weight"]


@dataclass
class Made:
    """Random integers: unsigned codes [rows, columns], zero points and scales [rows, groups]."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    groups: np.ndarray  # of each column

    @property
    def weights(self) -> np.ndarray:
        levels = self.codes.astype(np.int64) - self.zeros[:, self.groups]
        return levels.astype(np.float32) * self.scales[:, self.groups]


def made(
    rng: np.random.Generator,
    shape: tuple[int, int],
    bits: int,
    group: int,
    *,
    symmetric: bool,
    lowest: int = 0,
) -> Made:
    """Zero points are `lowest` or more; scales are exact in float16 and bfloat16, some negative, some 0."""
    n_rows, n_columns = shape
    n_groups = -(-n_columns // group)
    codes = rng.integers(0, 1 << bits, shape)
    zeros = rng.integers(lowest, 1 << bits, (n_rows, n_groups))
    if symmetric:
        zeros[:] = 1 << (bits - 1)
    scales = rng.integers(-100, 101, (n_rows, n_groups)).astype(np.float32) / 1024
    return Made(codes, zeros, scales, np.arange(n_columns) // group)


def check(tensor: CheckpointTensor, expected: np.ndarray, rng: np.random.Generator, moved: str = "") -> None:
    """Any range of rows is right, and the codes decode to the same; `moved` is their type, "" for none."""
    rows = tensor.rows
    assert rows is not None
    assert tensor.shape == expected.shape
    flat = expected.reshape(-1, expected.shape[-1])
    start = int(rng.integers(0, len(flat) + 1))
    stop = int(rng.integers(start, len(flat) + 1))
    assert rows.fault() == ""
    found = rows.read(start, stop)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.array_equal(found, flat[start:stop])
    assert np.array_equal(rows.read(0, len(flat)), flat)
    if not moved:
        assert tensor.codes is None
        assert tensor.why_decoded
        return
    assert tensor.codes is not None
    assert tensor.codes.dtype.name == moved
    assert tensor.codes.fault() == ""
    assert np.array_equal(dequantize(tensor.codes.read(start, stop), tensor.codes.dtype), flat[start:stop])


def type_of(bits: int, *, symmetric: bool, n_columns: int, group: int) -> str:
    """The type that holds such codes: the table of docs and nothing of the code under test."""
    if n_columns % 32 or (group < n_columns and group % 32):
        return ""
    if symmetric:
        return {5: "q5_0", 6: "q8_0", 7: "q8_0", 8: "q8_0"}.get(bits, "q4_0")
    return {4: "q5_0", 5: "q8_0", 6: "q8_0", 7: "q8_0", 8: ""}.get(bits, "q4_0")


@FORMS
@given(
    bits=st.integers(1, 8),
    n_rows=st.integers(1, 70),
    n_columns=st.sampled_from((32, 64, 96, 20, 33)),
    strategy=st.sampled_from(("tensor", "channel", "group", "block")),
    group=st.sampled_from((16, 32, 64, 24)),
    symmetric=st.booleans(),
    packing=st.sampled_from(("dense", "padded")),
    experts=st.sampled_from((0, 2)),
    stored=st.sampled_from((bf16, np.float16, np.float32)),
    seed=SEEDS,
)
def test_packed_integers_of_compressed_tensors(
    bits, n_rows, n_columns, strategy, group, symmetric, packing, experts, stored, seed, tmp_path_factory
) -> None:
    rng = np.random.default_rng(seed)
    columns = group if strategy in ("group", "block") else n_columns
    slices = [made(rng, (n_rows, n_columns), bits, columns, symmetric=symmetric) for _ in range(experts or 1)]
    block_rows = {"tensor": n_rows, "block": 8}.get(strategy, 1)
    for one in slices:
        one.scales = one.scales[::block_rows].repeat(block_rows, axis=0)[:n_rows]
        one.zeros = one.zeros[::block_rows].repeat(block_rows, axis=0)[:n_rows]
    words = [packed(one.codes, bits, packing) for one in slices]
    scales = np.stack([one.scales[::block_rows] for one in slices])
    tensors: dict[str, object] = {
        "weight_packed": np.stack(words) if experts else words[0],
        "weight_scale": stored(scales if experts else scales[0]),
        "weight_shape": np.array([n_rows, n_columns]),
    }
    if not symmetric:
        if strategy in ("tensor", "block"):
            zeros = np.stack([one.zeros[::block_rows] - (1 << (bits - 1)) for one in slices]).astype(np.int8)
        else:
            zeros = np.stack([packed(one.zeros.T, bits, packing).T for one in slices])
        tensors["weight_zero_point"] = zeros if experts else zeros[0]
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy}
    if strategy == "group":
        weights["group_size"] = group
    if strategy == "block":
        weights["block_structure"] = [8, group]
    config = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "version": "0.18.0" if packing == "dense" else "0.17.1",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    tensor = opened(tmp_path_factory.getbasetemp() / "ct.safetensors", config, **tensors)
    expected = np.stack([one.weights for one in slices])
    moved = type_of(bits, symmetric=symmetric, n_columns=n_columns, group=columns)
    check(tensor, expected if experts else expected[0], rng, moved)


@FORMS
@given(
    n_rows=st.integers(1, 40),
    strategy=st.sampled_from(("tensor", "channel", "group")),
    symmetric=st.booleans(),
    bits=st.sampled_from((4, 8)),
    format_=st.sampled_from(("int-quantized", "naive-quantized")),
    seed=SEEDS,
)
def test_integers_in_bytes(n_rows, strategy, symmetric, bits, format_, seed, tmp_path_factory) -> None:
    rng = np.random.default_rng(seed)
    group = 32 if strategy == "group" else 64
    one = made(rng, (n_rows, 64), bits, group, symmetric=symmetric)
    if strategy == "tensor":
        one.scales[:], one.zeros[:] = one.scales[0], one.zeros[0]
    half = 1 << (bits - 1)
    part = slice(0, 1 if strategy == "tensor" else None)
    tensors: dict[str, object] = {
        "weight": (one.codes - half).astype(np.int8),
        "weight_scale": bf16(one.scales[part].reshape(-1) if strategy == "tensor" else one.scales[part]),
        "input_scale": bf16(np.ones(1)),
    }
    if not symmetric:
        zeros = (one.zeros[part] - half).astype(np.int8)
        tensors["weight_zero_point"] = zeros.reshape(-1) if strategy == "tensor" else zeros
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy}
    weights |= {"group_size": 32} if strategy == "group" else {}
    config = {
        "quant_method": "compressed-tensors", "format": format_,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    tensor = opened(tmp_path_factory.getbasetemp() / "bytes.safetensors", config, **tensors)
    assert tensor.bits == bits
    check(tensor, one.weights, rng, type_of(bits, symmetric=symmetric, n_columns=64, group=group))


@pytest.mark.parametrize("unset", [False, True])
def test_columns_out_of_order_in_compressed_tensors(unset: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    one = made(rng, (9, 64), 4, 32, symmetric=True)
    order = rng.permutation(one.groups)
    if not unset:
        one.groups = order
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "actorder": "group"}
    config = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    tensor = opened(
        tmp_path / "t.safetensors",
        config,
        weight_packed=packed(one.codes, 4, "dense"),
        weight_scale=bf16(one.scales),
        weight_shape=np.array([9, 64]),
        weight_g_idx=np.where(unset & (np.arange(64) == 5), -1, order).astype(np.int32),
    )
    check(tensor, one.weights, rng, "q4_0" if unset else "")


def test_groups_that_are_listed_and_are_neighbours_are_moved(tmp_path: Path) -> None:
    """GPTQ's static groups, and a `weight_g_idx` in order, of one that columns out of order would have."""
    rng = np.random.default_rng(4)
    one = made(rng, (8, 64), 4, 32, symmetric=True)
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "actorder": "group"}
    compressed = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    tensor = opened(
        tmp_path / "ct.safetensors",
        compressed,
        weight_packed=packed(one.codes, 4, "dense"),
        weight_scale=bf16(one.scales),
        weight_shape=np.array([8, 64]),
        weight_g_idx=one.groups.astype(np.int32),
    )
    check(tensor, one.weights, rng, "q4_0")
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": True}
    tensors = {
        "qweight": packed(one.codes, 4, "dense").T,
        "qzeros": packed(one.zeros.T - 1, 4, "dense"),
        "scales": one.scales.T.astype(np.float16),
        "g_idx": one.groups.astype(np.int32),
    }
    static = opened(tmp_path / "gptq.safetensors", {**gptq, "static_groups": True}, **tensors)
    check(static, one.weights, rng, "q4_0")
    tensors["g_idx"] = tensors["g_idx"][::-1].copy()  # a config that is wrong
    lying = opened(tmp_path / "gptq.safetensors", {**gptq, "static_groups": True}, **tensors)
    assert lying.codes is not None
    assert "order of their activations" in lying.codes.fault()


@FORMS
@given(
    bits=st.integers(2, 8),
    n_outputs=st.sampled_from((8, 32, 40, 72)),
    group=st.sampled_from((16, 32, 96)),
    format_=st.sampled_from(
        (None, "gptq", "gptq_v2", "gptq_p", "auto-round", "auto-round v2", "auto-round gm")
    ),
    symmetric=st.booleans(),
    order=st.sampled_from(("none", "trivial", "acts")),
    seed=SEEDS,
)
def test_gptq(bits, n_outputs, group, format_, symmetric, order, seed, tmp_path_factory) -> None:
    rng = np.random.default_rng(seed)
    if format_ in (None, "gptq", "gptq_v2") and bits in (5, 6, 7):
        format_ = "gptq_p"
    adds_one = format_ in (None, "gptq", "auto-round")
    one = made(rng, (n_outputs, 96), bits, group, symmetric=symmetric, lowest=1 if adds_one else 0)
    packing = "planar" if format_ == "gptq_p" else "dense"
    zeros = one.zeros - 1 if adds_one else one.zeros
    if order == "acts":
        one.groups = rng.permutation(one.groups)
    tensors = {
        "qweight": packed(one.codes, bits, packing).T,
        "qzeros": packed(zeros.T, bits, packing),
        "scales": one.scales.T.astype(np.float16),
    }
    if order != "none":
        tensors["g_idx"] = one.groups.astype(np.int32)
    size = -1 if group == 96 else group
    if format_ is not None and format_.startswith("auto-round"):
        packing_format = {
            "auto-round": "auto_round:auto_gptq", "auto-round v2": "auto_round",
            "auto-round gm": "auto_round:gptqmodel",
        }[format_]  # fmt: skip
        config = {"quant_method": "auto-round", "packing_format": packing_format}
    else:
        config = {"quant_method": "gptq", "desc_act": order == "acts"}
        config |= {} if format_ is None else {"checkpoint_format": format_}
    config |= {"bits": bits, "group_size": size, "sym": symmetric}
    tensor = opened(tmp_path_factory.getbasetemp() / "gptq.safetensors", config, **tensors)
    moved = type_of(bits, symmetric=symmetric, n_columns=96, group=group)
    if order == "acts" and group != 96 and format_ is not None and format_.startswith("auto-round") and moved:
        assert tensor.codes is not None  # AutoRound has no desc_act: g_idx itself is looked at
        assert "order of their activations" in tensor.codes.fault()
        tensor = CheckpointTensor("m.weight", tensor.file, "", tensor.shape, tensor.rows, None, "g_idx")
        moved = ""
    check(tensor, one.weights, rng, "" if order == "acts" and group != 96 else moved)


@FORMS
@given(
    bits=st.sampled_from((4, 4, 2, 3, 8)),
    n_outputs=st.sampled_from((8, 32, 40, 72)),
    group=st.sampled_from((16, 32, 64)),
    by=st.sampled_from(("awq", "auto-round", "nothing")),
    seed=SEEDS,
)
def test_awq_gemm(bits, n_outputs, group, by, seed, tmp_path_factory) -> None:
    rng = np.random.default_rng(seed)
    if bits != 4:
        n_outputs = 32
    if by == "nothing":
        bits = 4
    one = made(rng, (n_outputs, 64), bits, group, symmetric=False)
    packing = "interleaved" if bits == 4 else "dense"
    tensors = {
        "qweight": packed(one.codes.T, bits, packing),
        "qzeros": packed(one.zeros.T, bits, packing),
        "scales": one.scales.T.astype(np.float16),
    }
    config = {
        "awq": {
            "quant_method": "awq", "w_bit": bits, "q_group_size": group, "zero_point": True,
            "version": "GEMM",
        },
        "auto-round": {
            "quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": bits,
            "group_size": group, "sym": False,
        },
        "nothing": {},
    }[by]  # fmt: skip
    tensor = opened(tmp_path_factory.getbasetemp() / "awq.safetensors", config, **tensors)
    check(tensor, one.weights, rng, type_of(bits, symmetric=False, n_columns=64, group=group))


def padded_columns(values: np.ndarray, n_columns: int) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, n_columns - values.shape[1])))


@pytest.mark.parametrize(
    ("n_columns", "group", "words"),
    [(256, 128, 1), (128, 64, 2), (320, 64, 2), (64, 32, 4), (1280, 32, 8), (128, -1, 1)],
)
def test_awq_gemv(n_columns: int, group: int, words: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(n_columns)
    one = made(rng, (12, n_columns), 4, group if group > 0 else n_columns, symmetric=False)
    tensor = opened(
        tmp_path / "t.safetensors",
        {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemv"},
        qweight=packed(one.codes, 4, "dense"),
        qzeros=packed(padded_columns(one.zeros, 8 * words), 4, "dense"),
        scales=padded_columns(one.scales, 8 * words).astype(np.float16),
    )
    check(tensor, one.weights, rng, "q5_0")


@pytest.mark.parametrize("names", ["qzeros", "scaled_zeros"])
@pytest.mark.parametrize(("n_columns", "group", "n_scales"), [(128, 64, 16), (256, 128, 8), (256, 128, 2)])
def test_awq_gemv_fast(n_columns: int, group: int, n_scales: int, names: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(n_columns)
    one = made(rng, (8, n_columns), 4, group, symmetric=False)
    products = (-one.scales * one.zeros).astype(np.float16)
    tensors = {
        "qweight": packed_fast(one.codes),
        "scales": padded_columns(one.scales, n_scales).T.astype(np.float16),
        names: padded_columns(products, n_scales).T,
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    config |= {"version": "gemv_fast"} if n_scales % 8 == 0 else {"version": "gemm", "backend": "llm-awq"}
    tensor = opened(tmp_path / "t.safetensors", config, **tensors)
    expected = one.codes.astype(np.float32) * one.scales[:, one.groups]
    expected += products.astype(np.float32)[:, one.groups]
    check(tensor, expected, rng)


def test_zero_points_of_0_in_gptqs_first_format(tmp_path: Path) -> None:
    """GPTQModel subtracts 1 from eight fields at once: the borrow of a 0 goes into the next field."""
    zeros = np.array([[8, 0, 5, 0, 15, 1, 0, 7]])
    words = (packed(zeros, 4, "dense").view(np.uint32) - np.uint32(0x11111111)).view(np.int32)
    assert words.view(np.uint32).tolist() == [[0x5F0DF3F7]]
    tensor = opened(
        tmp_path / "t.safetensors",
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq"},
        qweight=packed(np.zeros((8, 32), int), 4, "dense").T,
        qzeros=words,
        scales=np.ones((1, 8), np.float16),
    )
    assert tensor.rows is not None
    assert (-tensor.rows.read(0, 8)[:, 0]).tolist() == zeros[0].tolist()


def test_modules_of_several_bits_and_groups(tmp_path: Path) -> None:
    """`dynamic` names them by expressions that only Python has; the tensors say which is which."""
    rng = np.random.default_rng(5)
    wide, narrow = (
        made(rng, (32, 64), bits, group, symmetric=True, lowest=1) for bits, group in ((8, 32), (4, 64))
    )
    tensors = {
        f"{module}.{name}": values
        for module, one, bits in (("a", wide, 8), ("b", narrow, 4))
        for name, values in {
            "qweight": packed(one.codes, bits, "dense").T,
            "qzeros": packed(one.zeros.T - 1, bits, "dense"),
            "scales": one.scales.T.astype(np.float16),
        }.items()
    }
    write_safetensors(tmp_path / "t.safetensors", {**tensors, "a.bias": np.ones(32, np.float16)})
    dynamic = {"+:(?!b)a": {"bits": 8, "group_size": 32}, "-:(?<!x)c": {}}
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "dynamic": dynamic}
    joined = join_tensors(read_tensors(tmp_path / "t.safetensors"), QuantizationConfig(tmp_path, config))
    assert list(joined) == ["a.bias", "a.weight", "b.weight"]
    check(joined["a.weight"], wide.weights, rng, "q8_0")
    check(joined["b.weight"], narrow.weights, rng, "q4_0")


@pytest.mark.parametrize(
    ("bits", "name", "moved"),
    [
        (4, "m.b", ("q4_0", "q5_0")),
        (8, "m.b", ("q8_0", "")),
        (4, ".*b", ("q5_0", "q5_0")),  # an expression may mean any
        (4, "another.b", ("q5_0", "q5_0")),
    ],
)
def test_one_module_that_is_not_symmetric(
    bits: int, name: str, moved: tuple[str, str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(6)
    both = {sign: made(rng, (32, 64), bits, 64, symmetric=sign == "a", lowest=1) for sign in "ab"}
    tensors = {
        f"m.{sign}.{part}": values
        for sign, one in both.items()
        for part, values in {
            "qweight": packed(one.codes, bits, "dense").T,
            "qzeros": packed(one.zeros.T - 1, bits, "dense"),
            "scales": one.scales.T.astype(np.float16),
        }.items()
    }
    write_safetensors(tmp_path / "t.safetensors", tensors)
    config = {
        "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": bits,
        "group_size": 64, "sym": True, "extra_config": {name: {"sym": False}},
    }  # fmt: skip
    joined = join_tensors(read_tensors(tmp_path / "t.safetensors"), QuantizationConfig(tmp_path, config))
    for sign, type_ in zip("ab", moved, strict=True):
        check(joined[f"m.{sign}.weight"], both[sign].weights, rng, type_)


def test_stacked_experts_of_gptq(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    experts = [made(rng, (16, 64), 4, 32, symmetric=False, lowest=1) for _ in range(3)]
    tensor = opened(
        tmp_path / "t.safetensors",
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False},
        qweight=np.stack([packed(one.codes, 4, "dense").T for one in experts]),
        qzeros=np.stack([packed(one.zeros.T - 1, 4, "dense") for one in experts]),
        scales=np.stack([one.scales.T.astype(np.float16) for one in experts]),
        g_idx=experts[0].groups.astype(np.int32),
    )
    check(tensor, np.stack([one.weights for one in experts]), rng, "q5_0")


@pytest.mark.parametrize("shape", [(0, 64), (8, 0), (0, 0)])
def test_matrices_without_weights(shape: tuple[int, int], tmp_path: Path) -> None:
    config = {
        "quant_method": "compressed-tensors", "format": "int-quantized",
        "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}},
    }  # fmt: skip
    tensors = {"weight": np.zeros(shape, np.int8), "weight_scale": bf16(np.ones((shape[0], 1)))}
    tensor = opened(tmp_path / "t.safetensors", config, **tensors)
    assert tensor.rows is not None
    assert tensor.rows.fault() == ""
    assert tensor.rows.read(0, shape[0]).shape == shape


@pytest.mark.parametrize("sizes", [(128, 96), (96, 128)])
def test_group_sizes_between_which_shapes_do_not_decide_are_refused(
    sizes: tuple[int, int], tmp_path: Path
) -> None:
    """160 inputs make two groups of 128 and two of 96."""
    one = made(np.random.default_rng(9), (32, 160), 4, 96, symmetric=True)
    tensors = {
        "qweight": packed(one.codes, 4, "dense").T,
        "qzeros": packed(one.zeros.T - 1, 4, "dense"),
        "scales": one.scales.T.astype(np.float16),
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": sizes[0], "sym": True}
    both = {**config, "dynamic": {"+:.*down_proj": {"group_size": sizes[1]}}}
    with pytest.raises(CheckpointError, match=r"has 2 groups; .* make as many of each"):
        opened(tmp_path / "t.safetensors", both, **tensors)
    stated = opened(tmp_path / "t.safetensors", {**config, "group_size": 96}, **tensors)
    check(stated, one.weights, np.random.default_rng(1), "q4_0")
    listed = opened(tmp_path / "t.safetensors", both, **tensors, g_idx=one.groups.astype(np.int32))
    assert listed.rows is not None
    np.testing.assert_array_equal(listed.rows.read(0, 32), one.weights)
