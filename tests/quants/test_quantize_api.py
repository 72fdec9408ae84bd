"""What `quantize` and `dequantize` accept, refuse and promise, whatever the type."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ggplan.errors import Error, QuantizationError, TypeNameError
from ggplan.ggml_types import TYPES, GgmlType, parse_type
from ggplan.planning.fallback import fallback_type
from ggplan.planning.importance import uses_imatrix
from ggplan.quants import (
    EFFORTS,
    decode_into,
    dequantize,
    efforts_of,
    encode_into,
    first_nonfinite,
    quantize,
    warm_up,
)
from ggplan.quants.codecs import decoder, encoder
from ggplan.quants.soundness import are_sound, unsound_blocks
from ggplan.stock import needs_imatrix

ENCODABLE = [t for t in TYPES if t.encodable]
LIGHT = ["f32", "f16", "bf16", "q8_0", "q4_0", "q5_1"]  # compiled in a moment


def bell(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def needed(type: GgmlType, n: int) -> np.ndarray | None:
    """The least importance that a type can do with."""
    return np.ones(n, np.float32) if type.requires_imatrix else None


@pytest.mark.parametrize("type", TYPES, ids=str)
def test_the_functions_that_a_row_names_exist(type: GgmlType) -> None:
    if type.encodable:
        assert all(callable(encoder(type, effort)) for effort in EFFORTS)
        assert (encoder(type, "best") is encoder(type)) == (efforts_of(type) == ("default",))
    else:
        assert not type.best_encoder
    if type.decodable:
        assert callable(decoder(type))


def test_a_row_and_a_module_make_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up type: eight signs under one half, its functions in one module and all else in its row."""

    def encode(rows: np.ndarray, importance: np.ndarray | None, out: np.ndarray) -> None:
        groups = rows.reshape(-1, 8)
        blocks = out.reshape(-1, 3)
        blocks[:, :2] = np.abs(groups).mean(axis=1).astype("<f2").view(np.uint8).reshape(-1, 2)
        blocks[:, 2] = np.packbits(groups < 0, axis=1).ravel()

    def decode(blocks: np.ndarray, out: np.ndarray) -> None:
        scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
        out[:] = scales * (1 - 2 * np.unpackbits(blocks[:, 2:], axis=1).astype(np.float32))

    module = ModuleType("ggplan.quants.signs")
    monkeypatch.setattr(module, "encode", encode, raising=False)
    monkeypatch.setattr(module, "decode", decode, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    row = GgmlType("signs", 900, 8, 3, scale_offsets=(0,), imatrix="required", fallback="q8_0",
                   encoder="signs:encode", decoder="signs:decode")  # fmt: skip

    warm_up([row], with_imatrix=False)
    assert efforts_of(row) == ("default",)
    assert uses_imatrix(row)
    assert needs_imatrix(None, "blk.0.ffn_up.weight", row)
    with pytest.raises(QuantizationError, match="without an imatrix"):
        quantize(np.ones((1, 8)), row)
    weights = np.where(bell(3, 16) < 0, np.float32(-0.5), np.float32(0.5))
    blocks = quantize(weights, row, np.ones(16))
    assert blocks.shape == (3, 6)
    assert (dequantize(blocks, row) == weights).all()
    blocks[1, 3:5] = 0xFF
    assert unsound_blocks(blocks.reshape(-1, 3), row).tolist() == [False] * 3 + [True] + [False] * 2
    assert are_sound(row, 1.0)
    assert fallback_type(row, 96, "llama.cpp") == parse_type("q8_0")
    assert fallback_type(row, 100, "llama.cpp") == parse_type("f16")


def test_importing_f32_and_decoders_leave_numba_alone() -> None:
    program = """
import sys
import numpy as np
from ggplan.quants import dequantize, quantize
assert dequantize(quantize(np.ones((2, 32)), "f32"), "f32").sum() == 64
for name in ("f16", "q4_0", "q4_K", "iq4_nl", "q6_K"):
    dequantize(np.zeros((1, 144 * 210 * 18), np.uint8), name)
assert "numba" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("type", ENCODABLE, ids=str)
def test_same_blocks_by_name_and_type_and_in_any_frame(type: GgmlType) -> None:
    weights = bell(6, 512)
    importance = needed(type, 512)
    blocks = quantize(weights, type, importance)
    assert blocks.shape == (6, type.row_bytes(512))
    assert blocks.dtype == np.uint8
    assert (quantize(weights, type.name.upper(), importance) == blocks).all()
    assert (quantize(weights[2], type, importance) == blocks[2]).all()
    assert (quantize(weights.reshape(3, 2, 1, 512), type, importance) == blocks.reshape(3, 2, 1, -1)).all()
    assert (quantize(np.asfortranarray(weights), type, importance) == blocks).all()
    assert (quantize(np.repeat(weights, 2, axis=1)[:, ::2], type, importance) == blocks).all()
    assert dequantize(blocks.reshape(2, 3, -1), type).shape == (2, 3, 512)
    assert quantize(np.empty((0, 512)), type, importance).shape == (0, blocks.shape[1])
    assert quantize(np.empty((2, 0)), type, needed(type, 0)).shape == (2, 0)
    assert dequantize(np.empty((0, 0), np.uint8), type).shape == (0, 0)


@given(
    name=st.sampled_from(LIGHT),
    rows=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4).map(lambda n: 32 * n)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
)
def test_any_finite_weights_of_any_shape_make_blocks(name: str, rows: np.ndarray) -> None:
    type = parse_type(name)
    blocks = quantize(rows, name)
    assert blocks.shape == (*rows.shape[:-1], type.row_bytes(rows.shape[-1]))
    weights = dequantize(blocks, name)
    assert weights.shape == rows.shape
    if name == "f32":
        assert (weights == rows).all()


@pytest.mark.parametrize("given_as", [np.float64, np.float16, np.int16, np.bool_])
def test_other_real_numbers_are_taken(given_as: type) -> None:
    weights = (8 * bell(2, 64)).astype(given_as)
    assert (quantize(weights, "q8_0") == quantize(weights.astype(np.float32), "q8_0")).all()


def test_lists_and_read_only_arrays_are_taken() -> None:
    weights = bell(2, 64)
    expected = quantize(weights, "q8_0")
    frozen = np.frombuffer(weights.tobytes(), np.float32).reshape(2, 64)
    assert (quantize(frozen, "q8_0") == expected).all()
    assert (quantize(weights.tolist(), "q8_0") == expected).all()
    unaligned = np.frombuffer(b"." + weights.tobytes(), np.float32, offset=1).reshape(2, 64)
    assert (quantize(unaligned, "q8_0") == expected).all()
    assert (dequantize(np.frombuffer(expected.tobytes(), np.uint8), "q8_0")).shape == (128,)


@pytest.mark.parametrize(
    ("weights", "name", "words"),
    [
        (np.zeros((2, 1408)), "q4_K", "1408 % 256 = 128"),
        (np.zeros(33), "q8_0", "33 % 32 = 1"),
        (np.float32(1), "f32", "single number"),
        (np.zeros((2, 32), complex), "f32", "complex128"),
        (np.array([["a"]]), "f32", "<U1"),
        (np.zeros(256), "iq3_k", "cannot write iq3_k (a type of ik_llama.cpp)"),
        (np.zeros(256), "iq1_s", "iq1_s cannot be encoded without an imatrix"),
        (np.full((3, 32), 1e39), "f16", "96 of 96 weights"),
    ],
)
def test_what_cannot_be_encoded_is_refused_in_one_line(weights: np.ndarray, name: str, words: str) -> None:
    with pytest.raises(QuantizationError) as caught:
        quantize(weights, name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, Error)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("blocks", "name", "words"),
    [
        (np.zeros((2, 100), np.uint8), "q4_K", "100 % 144 = 100"),
        (np.zeros((2, 144), np.int8), "q4_K", "int8"),
        (np.uint8(1), "f32", "single byte"),
        (np.zeros(110, np.uint8), "iq3_k", r"cannot read iq3_k \(a type of ik_llama\.cpp\)"),
    ],
)
def test_what_cannot_be_decoded_is_refused(blocks: np.ndarray, name: str, words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        dequantize(blocks, name)


def test_a_name_of_no_type_is_refused() -> None:
    with pytest.raises(TypeNameError, match="Q4_K_M"):
        quantize(np.zeros(256), "Q4_K_M")
    with pytest.raises(TypeNameError, match="q4_k_x"):
        dequantize(np.zeros(144, np.uint8), "q4_k_x")


@pytest.mark.parametrize("type", ENCODABLE, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_counted_and_found(type: GgmlType, bad: float) -> None:
    weights = bell(2, 3, 256)
    weights[1, 0, 77] = weights[1, 2, 3] = bad
    with pytest.raises(QuantizationError, match=rf"2 of 1536 weights .* {bad} at \[1, 0, 77\]"):
        quantize(weights, type, needed(type, 256))


@pytest.mark.parametrize(
    ("imatrix", "words"),
    [
        (np.ones(63), r"\(63,\)"),
        (np.ones((1, 64)), r"\(1, 64\)"),
        (1.0, r"shape \(\)"),
        (np.r_[np.ones(62), np.nan, np.inf], r"2 of 64 imatrix values .* nan at \[62\]"),
        (np.r_[np.ones(60), -1, 2, -3, 1], r"column 60 is negative \(-1"),
        (np.array(["x"] * 64), "<U1"),
    ],
)
@pytest.mark.parametrize("name", ["q4_0", "q8_0", "f16"])
def test_an_imatrix_that_does_not_fit_is_refused(name: str, imatrix: object, words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        quantize(bell(2, 64), name, imatrix=imatrix)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0"])
def test_types_without_a_choice_ignore_the_imatrix(name: str) -> None:
    weights = bell(3, 64)
    assert (quantize(weights, name, imatrix=np.arange(64)) == quantize(weights, name)).all()


@pytest.mark.parametrize("type", [t for t in ENCODABLE if t.requires_imatrix], ids=str)
def test_what_needs_an_imatrix_is_never_encoded_without(type: GgmlType) -> None:
    rows = bell(1, 256)
    with pytest.raises(QuantizationError, match="without an imatrix"):
        encode_into(rows, type, None, np.empty((1, type.block_bytes), np.uint8))


@given(
    st.integers(0, 200_000).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(n - 1, 0)), max_size=3 if n else 0))
    ),
    st.sampled_from([np.nan, np.inf, -np.inf]),
)
def test_first_nonfinite_is_the_first(size_and_places: tuple[int, set[int]], bad: float) -> None:
    size, places = size_and_places
    weights = np.zeros(size, np.float32)
    weights[sorted(places)] = bad
    assert first_nonfinite(weights) == min(places, default=-1)


@pytest.mark.parametrize("type", ENCODABLE, ids=str)
def test_threads_may_share_an_output(type: GgmlType) -> None:
    weights = bell(64, 512)
    importance = needed(type, 512)
    expected = quantize(weights, type, importance)
    out = np.zeros_like(expected)
    back = np.empty_like(weights)
    warm_up([type], with_imatrix=False)

    def work(start: int) -> None:
        part = slice(start, start + 5)
        encode_into(weights[part], type, importance, out[part])
        decode_into(out[part], type, back[part])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(0, 64, 5)))
    assert (out == expected).all()
    assert (back.view(np.uint32) == dequantize(expected, type).view(np.uint32)).all()


def test_encoders_do_not_touch_their_input_or_the_bytes_around_their_output() -> None:
    weights = bell(3, 128)
    importance = np.ones(128, np.float32)
    for name in LIGHT:
        type = parse_type(name)
        before = weights.copy()
        out = np.full((5, type.row_bytes(128)), 0xA5, np.uint8)
        encode_into(weights, type, importance if name in ("f16", "q8_0") else None, out[1:4])
        assert (out[1:4] == quantize(weights, name)).all()
        assert (out[[0, 4]] == 0xA5).all()
        assert (weights == before).all()
        assert (importance == 1).all()
