"""bitsandbytes, HQQ, torchao and W4A16_AWQ: any sizes, against packers that do it one weight at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from handmade_safetensors import bf16, fp8, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.errors import CheckpointError
from ggplan.sources.safetensors import read_tensors
from ggplan.sources.schemes import QuantizationConfig, join_tensors
from ggplan.sources.tensors import CheckpointTensor

SEEDS = st.integers(0, 2**32 - 1)


def opened(
    path: Path, tensors: dict, method: str, metadata: dict[str, str] | None = None, **config: object
) -> dict[str, CheckpointTensor]:
    write_safetensors(path, tensors, metadata)
    return join_tensors(
        read_tensors(path), QuantizationConfig(Path("folder"), {"quant_method": method, **config})
    )


def check(tensor: CheckpointTensor, expected: np.ndarray, rng: np.random.Generator) -> None:
    """All rows at once, and some range of them."""
    assert tensor.rows is not None
    assert tensor.rows.fault() == ""
    assert tensor.shape == expected.shape
    rows = expected.reshape(-1, expected.shape[-1])
    assert np.array_equal(tensor.rows.read(0, len(rows)), rows)
    start, stop = sorted(rng.integers(0, len(rows) + 1, 2).tolist())
    assert np.array_equal(tensor.rows.read(start, stop), rows[start:stop])


# bitsandbytes -----------------------------------------------------------------------------------------------

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
]  # fmt: skip
FP4_HALF = [
    0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
]  # fmt: skip
TABLES = {"nf4": np.array(NF4, "f4"), "fp4": np.array(FP4_HALF + [-value for value in FP4_HALF], "f4")}


def four_bits(
    shape: tuple[int, ...], kind: str, block: int, rng: np.random.Generator, nested: int = 0
) -> tuple[dict, np.ndarray]:
    """The tensors of a module, and its weights."""
    n = math.prod(shape)
    codes = rng.integers(0, 16, n)
    packed = np.zeros(-(-n // 2), np.uint8)
    for i, code in enumerate(codes.tolist()):
        packed[i // 2] |= code << (0 if i % 2 else 4)
    n_blocks = -(-n // block)
    state = {"quant_type": kind, "blocksize": block, "dtype": "float16", "shape": list(shape)}
    tensors = {"m.weight": packed[:, None], "m.weight.quant_map": TABLES[kind]}
    if nested:
        inner = rng.integers(0, 256, n_blocks).astype("u1")
        table = rng.standard_normal(256).astype("f4")
        outer = rng.random(-(-n_blocks // nested)).astype("f4")
        offset = np.float32(rng.random())
        factors = [table[code] * outer[i // nested] + offset for i, code in enumerate(inner)]
        state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": float(offset)}
        tensors |= {
            "m.weight.absmax": inner, "m.weight.nested_absmax": outer, "m.weight.nested_quant_map": table
        }  # fmt: skip
    else:
        factors = list(rng.random(n_blocks).astype("f4"))
        tensors["m.weight.absmax"] = np.array(factors, "f4")
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors[f"m.weight.quant_state.bitsandbytes__{kind}"] = text
    weights = [TABLES[kind][code] * np.float32(factors[i // block]) for i, code in enumerate(codes)]
    return tensors, np.array(weights, "f4").reshape(shape)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    kind=st.sampled_from(["nf4", "fp4"]),
    block=st.sampled_from([2, 4, 7, 64]),
    nested=st.sampled_from([0, 1, 3, 256]),
    seed=SEEDS,
)
def test_four_bits_of_bitsandbytes(
    shape: tuple[int, ...], kind: str, block: int, nested: int, seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    tensors, weights = four_bits(shape, kind, block, rng, nested)
    path = tmp_path_factory.getbasetemp() / "bnb.safetensors"
    tensor = opened(path, tensors, "bitsandbytes", load_in_4bit=True)["m.weight"]
    check(tensor, weights, rng)
    assert tensor.codes is None


@pytest.mark.parametrize("storage", ["BF16", "F16", "F32"])
def test_bytes_in_another_type_of_the_file(storage: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tensors, weights = four_bits((6, 8), "nf4", 4, rng)
    raw = tensors["m.weight"].reshape(-1)
    width = 4 if storage == "F32" else 2
    tensors["m.weight"] = (storage, raw.view(f"u{width}")[:, None])
    check(opened(tmp_path / "t.safetensors", tensors, "bitsandbytes")["m.weight"], weights, rng)


STATE = ".quant_state.bitsandbytes__nf4"


def changed_state(**changes: object) -> np.ndarray:
    state = {"quant_type": "nf4", "blocksize": 4, "dtype": "float16", "shape": [2, 8], **changes}
    stated = {key: value for key, value in state.items() if value != "gone"}
    return np.frombuffer(json.dumps(stated).encode(), np.uint8)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (STATE, changed_state(shape=[2, 9]), r"8 bytes, but weights of shape \[2, 9\] have 9"),
        (STATE, changed_state(blocksize=2), r"4 factors, but .* have 8"),
        (STATE, changed_state(blocksize=0), "impossible blocksize 0"),
        (STATE, changed_state(shape=[2, -8]), "impossible shape"),
        (STATE, changed_state(shape="x"), "impossible shape x"),
        (STATE, changed_state(quant_type="fp4"), "quant_type fp4, its name says nf4"),
        (STATE, changed_state(more=1), "says more, which"),
        (STATE, changed_state(shape="gone"), "does not say shape"),
        (STATE, np.frombuffer(b"{", np.uint8), "not valid JSON"),
        (".quant_state.bitsandbytes__int3", changed_state(), "in the form int3 of bitsandbytes"),
        (".absmax", np.ones(4, "f2"), "is F16"),
        (".absmax", None, r"needs the tensor 'm\.weight\.absmax'"),
        (".absmax", np.ones(4, "u1"), r"needs the tensor 'm\.weight\.nested_absmax'"),
        (".quant_map", np.ones(15, "f4"), "not 16 numbers of F32"),
    ],
)  # fmt: skip
def test_four_bits_that_do_not_fit(name: str, value: np.ndarray | None, said: str, tmp_path: Path) -> None:
    tensors, _ = four_bits((2, 8), "nf4", 4, np.random.default_rng(1))
    if value is None:
        del tensors["m.weight" + name]
    else:
        tensors["m.weight" + name] = value
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path / "t.safetensors", tensors, "bitsandbytes")


def test_faults_of_bitsandbytes(tmp_path: Path) -> None:
    tensors, _ = four_bits((2, 8), "nf4", 4, np.random.default_rng(1))
    wrong = {"absmax": np.array([1, np.inf, 1, 1], "f4"), "quant_map": TABLES["nf4"] * 2}
    for name, value in wrong.items():
        path = tmp_path / f"{name}.safetensors"
        rows = opened(path, {**tensors, f"m.weight.{name}": value}, "bitsandbytes")["m.weight"].rows
        assert name in rows.fault()


def test_int8_of_bitsandbytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    codes, maxima = rng.integers(-127, 128, (7, 12)).astype("i1"), rng.random(7).astype("f4")
    tensors = {"m.weight": codes, "m.SCB": maxima, "m.weight_format": np.zeros((), "u1")}
    tensor = opened(tmp_path / "t.safetensors", tensors, "bitsandbytes")["m.weight"]
    check(tensor, codes.astype("f4") * maxima[:, None] * np.float32(7.874015718698502e-3), rng)
    assert "float16" in tensor.why_decoded
    for name, value, said in (
        ("m.weight_format", np.ones((), "u1"), "layout of a kernel"),
        ("m.SCB", maxima[:6], "has 7 rows"),
        ("m.weight", codes.view("u1"), "should be an I8 matrix"),
    ):
        with pytest.raises(CheckpointError, match=said):
            opened(tmp_path / "x.safetensors", {**tensors, name: value}, "bitsandbytes")
    tensors["m.SCB"] = np.where(np.arange(7) == 3, np.float32(np.nan), maxima)
    assert "index 3" in opened(tmp_path / "n.safetensors", tensors, "bitsandbytes")["m.weight"].rows.fault()


# HQQ --------------------------------------------------------------------------------------------------------

PACKINGS = {8: ("8bit_u8", 1), 4: ("4bit_u8", 2), 3: ("3bit_32", 10), 2: ("2bit_u8", 4), 1: ("1bit_u8", 8)}


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        bits = values.astype("f4").view("u4")
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view("f4")
    return values.astype({"float16": "f2", "float32": "f4"}[dtype]).astype("f4")


def text(value: str) -> np.ndarray:
    return np.frombuffer(value.encode(), np.uint8)


def hqq(
    shape: tuple[int, int], bits: int, axis: int, group: int, dtype: str, rng: np.random.Generator
) -> tuple[dict, np.ndarray]:
    packing, parts = PACKINGS[bits]
    n = math.prod(shape)
    codes = rng.integers(0, 1 << bits, n).reshape((-1, group) if axis else (group, -1))
    height = -(-len(codes) // parts)
    rows = np.zeros((height * parts, codes.shape[1]), np.int64)
    rows[: len(codes)] = codes
    words = np.zeros((height, codes.shape[1]), np.int64)
    for part in range(parts):
        words |= rows[part * height : (part + 1) * height] << bits * (parts - 1 - part)
    groups = (len(codes), 1) if axis else (1, codes.shape[1])
    scale, zero = (rounded(rng.random(groups).astype("f4") * size, dtype) for size in (0.1, 1 << bits))
    weights = rounded(rounded(codes.astype("f4") - zero, dtype) * scale, dtype)
    stored = {"float16": lambda v: v.astype("f2"), "bfloat16": bf16, "float32": lambda v: v}[dtype]
    tensors = {
        "m.W_q": words.astype("i4" if bits == 3 else "u1"), "m.scale": stored(scale), "m.zero": stored(zero),
        "m.shape": np.array(shape, "i8"), "m.nbits": np.int32(bits).reshape(()),
        "m.axis": np.int32(axis).reshape(()), "m.group_size": np.int32(group).reshape(()),
        "m.packing": text(packing), "m.compute_dtype": text("torch." + dtype),
        "m.quant_scale": np.zeros((), "u1"), "m.quant_zero": np.zeros((), "u1"),
        "m.channel_wise": np.ones((), "u1"), "m.view_as_float": np.zeros((), "u1"),
        "m.unpack_view_dtype": text("torch.uint8"), "m.bias": np.zeros(shape[0], "f4"),
    }  # fmt: skip
    return tensors, weights.reshape(shape)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    bits=st.sampled_from(sorted(PACKINGS)),
    axis=st.integers(0, 1),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    group=st.sampled_from([1, 2, 5, 8]),
    seed=SEEDS,
)
def test_hqq(
    rows: int, columns: int, bits: int, axis: int, dtype: str, group: int, seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    parts = PACKINGS[bits][1]
    # The packed rows must be filled, but those of 3 bits.
    if axis == 0:
        group *= parts if bits != 3 else 1
        shape = (rows * group, columns)
    else:
        shape = (rows * parts, columns * group)
    tensors, weights = hqq(shape, bits, axis, group, dtype, rng)
    path = tmp_path_factory.getbasetemp() / "hqq.safetensors"
    joined = opened(path, tensors, "hqq", quant_config={}, skip_modules=["lm_head"])
    assert sorted(joined) == ["m.bias", "m.weight"]
    check(joined["m.weight"], weights, rng)


@pytest.mark.parametrize("bits", [4, 3])
def test_codes_of_hqq_in_a_float_type(bits: int, tmp_path: Path) -> None:
    """`view_as_float`: the words as float16, whatever values that makes."""
    rng = np.random.default_rng(7)
    tensors, weights = hqq((8, 20), bits, 1, 10, "float16", rng)
    tensors["m.W_q"] = ("F16", tensors["m.W_q"].view("u2"))
    tensors["m.view_as_float"] = np.ones((), "u1")
    check(opened(tmp_path / "t.safetensors", tensors, "hqq")["m.weight"], weights, rng)


def test_three_values_in_two_bits_of_hqq(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    tensors, weights = hqq((8, 20), 2, 1, 10, "float16", rng)
    tensors["m.nbits"] = np.float32(1.58).reshape(())
    check(opened(tmp_path / "t.safetensors", tensors, "hqq")["m.weight"], weights, rng)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("m.shape", np.array([8, 10], "i8"), "groups of 5, but its group_size is 10"),
        ("m.W_q", np.zeros((8, 9), "u1"), r"72 bytes, but 4bit_u8 .* takes 80"),
        ("m.shape", np.array([8, 21], "i8"), "groups"),
        ("m.shape", np.array([0, 20], "i8"), "impossible shape"),
        ("m.shape", np.array([8, 20, 1], "i8"), "should be 2 integers"),
        ("m.axis", np.int32(2).reshape(()), "axis 2"),
        ("m.nbits", np.int32(5).reshape(()), "4bit_u8 of 5 bits"),
        ("m.packing", text("gemlite"), "packed as gemlite"),
        ("m.packing", np.zeros(100, "u1"), "no short text"),
        ("m.group_size", np.int32(20).reshape(()), "groups of 10, but its group_size is 20"),
        ("m.compute_dtype", text("torch.int8"), r"computed in torch\.int8"),
        ("m.channel_wise", np.zeros((), "u1"), "channel_wise"),
        ("m.quant_zero", np.ones((), "u1"), r"quantized too \(quant_zero\)"),
        ("m.zero", np.zeros((5, 1), "f2"), "5 zero points for 16 scales"),
        ("m.zero", np.zeros((16, 1), "i4"), "no float"),
        ("m.zero", None, "lacks its zero"),
        ("m.meta_scale", np.zeros(1, "f4"), "facts meta_scale"),
    ],
)
def test_hqq_that_does_not_fit(name: str, value: np.ndarray | None, said: str, tmp_path: Path) -> None:
    tensors, _ = hqq((8, 20), 4, 1, 10, "float16", np.random.default_rng(1))
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path / "t.safetensors", tensors, "hqq")


def test_rows_of_hqq_that_parts_do_not_divide(tmp_path: Path) -> None:
    """80 bytes are what 4bit_u8 takes of 15 rows with one added, which only 3bit_32 has."""
    tensors, _ = hqq((8, 20), 4, 1, 10, "float16", np.random.default_rng(1))
    tensors["m.shape"] = np.array([5, 30], "i8")
    tensors |= {f"m.{name}": np.zeros((15, 1), "f2") for name in ("scale", "zero")}
    with pytest.raises(CheckpointError, match=r"4bit_u8, but 15 rows .* are no multiple of 2"):
        opened(tmp_path / "t.safetensors", tensors, "hqq")


# torchao ----------------------------------------------------------------------------------------------------


def torchao(
    data: dict, kind: str, block: list[int], prefix: str = "m._weight_", **facts: object
) -> tuple[dict, dict]:
    """The tensors of a parameter, and the metadata that says what they are."""
    stated = {
        "_type": kind,
        "_data": {"block_size": block, "dtype": {"_type": "torch.dtype", "_data": "bfloat16"}, **facts},
        "_tensor_data_names": list(data),
    }
    metadata = {"m.weight": json.dumps(stated), "tensor_names": '["m.weight"]', "format": "pt"}
    return {prefix + name: value for name, value in data.items()}, metadata


INT4 = {"_type": "torch.dtype", "_data": "int4"}
ASYMMETRIC = {"default": {"_data": {"mapping_type": {"_data": "ASYMMETRIC", "_type": "MappingType"}}}}


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    block=st.tuples(st.integers(1, 3), st.sampled_from([1, 3, 32])),
    prefix=st.sampled_from(["m._weight_", "m.weight:"]),
    seed=SEEDS,
)
def test_integers_of_torchao(
    grid: tuple[int, int], block: tuple[int, int], prefix: str, seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    shape = (grid[0] * block[0], grid[1] * block[1])
    codes = rng.integers(-8, 8, shape).astype("i1")
    scale = bf16(np.round(rng.random(grid) * 100 + 1))
    zero = rng.integers(-8, 8, grid).astype("i1")
    tensors, metadata = torchao(
        {"qdata": codes, "scale": scale, "zero_point": zero}, "IntxUnpackedToInt8Tensor", list(block),
        prefix, target_dtype=INT4,
    )  # fmt: skip
    wide = lambda values: values.repeat(block[0], axis=0).repeat(block[1], axis=1)  # noqa: E731
    scales = (scale[1].astype("u4") << 16).view("f4")
    expected = (codes.astype("f4") - wide(zero).astype("f4")) * wide(scales)
    path = tmp_path_factory.getbasetemp() / "torchao.safetensors"
    tensor = opened(path, tensors, "torchao", metadata, quant_type=ASYMMETRIC)["m.weight"]
    check(tensor, expected, rng)
    if tensor.codes is not None:
        assert tensor.codes.dtype.name == "q5_0"
        assert tensor.codes.fault() == ""
        assert np.array_equal(tensor.codes.read_float32(0, shape[0]), expected)


def test_stacked_integers_of_torchao(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    codes, scale = rng.integers(-128, 128, (3, 5, 64)).astype("i1"), np.arange(1, 31).reshape(3, 5, 2) / 8
    data = {"qdata": codes, "scale": scale.astype("f4"), "zero_point": np.zeros((3, 5, 2), "i1")}
    tensors, metadata = torchao(data, "Int8Tensor", [1, 1, 32])
    tensor = opened(tmp_path / "t.safetensors", tensors, "torchao", metadata)["m.weight"]
    expected = codes.astype("f4") * scale.astype("f4").repeat(32, axis=-1)
    check(tensor, expected, rng)
    assert tensor.codes.fault() == ""
    assert np.array_equal(tensor.codes.read_float32(3, 13), expected.reshape(15, 64)[3:13])


def test_zero_points_where_the_config_has_none(tmp_path: Path) -> None:
    data = {
        "qdata": np.ones((4, 32), "i1"), "scale": np.ones((4, 1), "f4"), "zero_point": np.zeros((4, 1), "i1")
    }  # fmt: skip
    tensors, metadata = torchao(data, "Int8Tensor", [1, 32])
    tensor = opened(tmp_path / "t.safetensors", tensors, "torchao", metadata, quant_type={})["m.weight"]
    assert tensor.codes.dtype.name == "q8_0"
    assert tensor.codes.fault() == ""
    data["zero_point"] = np.array([[0], [0], [3], [0]], "i1")
    tensors, metadata = torchao(data, "Int8Tensor", [1, 32])
    tensor = opened(tmp_path / "z.safetensors", tensors, "torchao", metadata, quant_type={})["m.weight"]
    assert tensor.codes.fault() == ""  # which q8_0 holds all the same
    assert tensor.rows.read(1, 3).tolist() == [[1] * 32, [-2] * 32]
    assert tensor.codes.read_float32(1, 3).tolist() == [[1] * 32, [-2] * 32]
    data["qdata"][2] = -126
    tensors, metadata = torchao(data, "Int8Tensor", [1, 32])
    tensor = opened(tmp_path / "o.safetensors", tensors, "torchao", metadata, quant_type={})["m.weight"]
    assert "'m.weight' has levels -129 to 1" in tensor.codes.fault()
    assert tensor.rows.read(2, 3).tolist() == [[-129] * 32]


def test_torchao_without_a_config(tmp_path: Path) -> None:
    data = {"qdata": fp8(np.full((4, 8), 0x40)), "scale": np.ones((4, 1), "f4")}
    tensors, metadata = torchao(data, "Float8Tensor", [1, 8])
    write_safetensors(tmp_path / "t.safetensors", tensors, metadata)
    joined = join_tensors(read_tensors(tmp_path / "t.safetensors"), QuantizationConfig(Path("folder"), {}))
    assert joined["m.weight"].rows.read(3, 4).tolist() == [[2] * 8]


@pytest.mark.parametrize("block", [[1, 8], [4, 8], [2, 4]])
def test_float8_of_torchao(block: list[int], tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    grid = (4 // block[0], 8 // block[1])
    scale = rng.random(grid).astype("f4") + np.float32(0.5)
    tensors, metadata = torchao({"qdata": fp8(np.full((4, 8), 0x40)), "scale": scale}, "Float8Tensor", block)
    expected = np.float32(2) * scale.repeat(block[0], axis=0).repeat(block[1], axis=1)
    check(opened(tmp_path / "t.safetensors", tensors, "torchao", metadata)["m.weight"], expected, rng)


@pytest.mark.parametrize(
    ("kind", "block", "facts", "said"),
    [
        ("Int4TilePackedTo4dTensor", [1, 32], {}, "torchao's type Int4TilePackedTo4dTensor, which"),
        ("Int4Tensor", [1, 32], {}, "torchao's type Int4Tensor"),
        ("Float8Tensor", [1, 32], {}, "is I8, but of torchao's type Float8Tensor"),
        ("Int8Tensor", [1, 16], {}, r"blocks of \[1, 16\] .* but scales of shape \[4, 1\]"),
        ("Int8Tensor", [1, 0], {}, "impossible block_size"),
        ("Int8Tensor", [32], {}, r"blocks of \[32\]"),
        ("Int8Tensor", [1, 32], {"rotation": 1}, "says rotation"),
        ("IntxUnpackedToInt8Tensor", [1, 32], {"target_dtype": {"_data": "uint4"}}, "target_dtype uint4"),
    ],
)
def test_torchao_that_is_not_read(
    kind: str, block: list[int], facts: dict[str, object], said: str, tmp_path: Path
) -> None:
    data = {"qdata": np.ones((4, 32), "i1"), "scale": np.ones((4, 1), "f4")}
    tensors, metadata = torchao(data, kind, block, **facts)
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path / "t.safetensors", tensors, "torchao", metadata)
    with pytest.raises(CheckpointError, match="does not say of which type"):
        opened(tmp_path / "u.safetensors", tensors, "torchao")


def test_factors_of_activations_of_torchao_are_no_scales(tmp_path: Path) -> None:
    """AWQ and SmoothQuant: `act_pre_scale` multiplies the input, so the weights are others."""
    data = {
        "qdata": np.ones((4, 32), "i1"),
        "scale": np.ones((4, 1), "f4"),
        "act_pre_scale": np.ones(32, "f4"),
    }
    tensors, metadata = torchao(data, "Int8Tensor", [1, 32])
    with pytest.raises(CheckpointError, match=r"has the parts act_pre_scale, qdata, scale; ggplan reads"):
        opened(tmp_path / "t.safetensors", tensors, "torchao", metadata)


# W4A16_AWQ --------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    halves=st.integers(1, 9), groups=st.integers(1, 4), group=st.sampled_from([1, 3, 32, 64]),
    factor=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_w4a16_awq(
    halves: int, groups: int, group: int, factor: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-8, 8, (2 * halves, groups * group))
    packed = np.zeros((halves, groups * group), np.uint8)
    for (row, column), code in np.ndenumerate(codes):
        packed[row // 2, column] |= (int(code) & 15) << (4 if row % 2 else 0)
    scale = (rng.random((2 * halves, groups)) + 0.1).astype("f2").astype("f4")
    tensors = {"m.weight": packed, "m.weight_scale": scale}
    expected = codes.astype("f4") * scale.repeat(group, axis=1)
    if factor:
        tensors["m.pre_quant_scale"] = rng.random(groups * group).astype("f4")
        expected = expected * tensors["m.pre_quant_scale"]
    path = tmp_path_factory.getbasetemp() / "awq.safetensors"
    tensor = opened(path, tensors, "modelopt", quant_algo="W4A16_AWQ", group_size=group)["m.weight"]
    check(tensor, expected, rng)
    assert (tensor.codes is not None) == (not factor and group % 32 == 0)
    if tensor.codes is not None:
        assert tensor.codes.dtype.name == "q4_0"
        assert np.array_equal(tensor.codes.read_float32(0, 2 * halves), expected)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("m.weight_scale", np.ones((3, 2), "f4"), r"of shape \[3, 2\] should have two rows for each"),
        ("m.weight_scale", np.ones((4, 3), "f4"), "3 scales for a row of 64 weights"),
        ("m.pre_quant_scale", np.ones(63, "f4"), "its weights have 64 columns"),
        ("m.weight_scale_2", np.ones((), "f4"), r"second scale of 4-bit integers \(W4A8_AWQ\)"),
    ],
)
def test_w4a16_awq_that_does_not_fit(name: str, value: np.ndarray, said: str, tmp_path: Path) -> None:
    tensors = {"m.weight": np.zeros((2, 64), "u1"), "m.weight_scale": np.ones((4, 2), "f4"), name: value}
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path / "t.safetensors", tensors, "modelopt", quant_algo="W4A16_AWQ")
