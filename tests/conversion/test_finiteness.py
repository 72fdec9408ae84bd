"""Weights that are not finite: refused by name and before the work, made zeros, or kept."""

import json
import math
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from test_convert import write_gguf

import ggplan
from ggplan.errors import ConversionError
from ggplan.ggml_types import parse_type
from ggplan.planning import Nonfinite
from ggplan.sources.gguf_header import read_header

NAME = "blk.0.attn_q.weight"
FP8_NAME = "model.layers.0.self_attn.o_proj.weight"
DATA = Path(__file__).parent.parent / "data" / "hf"
RNG = np.random.default_rng(3)


def source_of(folder: Path, weights: np.ndarray, name: str = NAME) -> Path:
    path = folder / "source.gguf"
    write_gguf(path, {name: weights})
    return path


def converted(source: Path, type_: str, nonfinite: Nonfinite, **options: object) -> np.ndarray:
    """The bytes of the only tensor of what a source becomes."""
    target = source.parent / "out.gguf"
    recipe = ggplan.parse_recipe(f"@default {type_}")
    plan = ggplan.make_plan(ggplan.open_model(source), recipe, nonfinite=nonfinite)
    ggplan.convert(plan, target, ggplan.ConvertOptions(force=True, **options))
    (record,) = read_header(target).tensors
    assert record.type.name == type_
    raw = target.read_bytes()[record.offset : record.offset + record.n_bytes]
    return np.frombuffer(raw, np.uint8)


def damaged_rows() -> np.ndarray:
    rows = RNG.standard_normal((6, 256)).astype(np.float32)
    rows[3, 17], rows[3, 40], rows[5, 255] = np.nan, np.inf, -np.inf
    return rows


@pytest.mark.parametrize("type_", ["f32", "f16", "bf16", "q8_0", "q4_K"])
def test_refused_with_tensor_count_and_first_place(tmp_path: Path, type_: str) -> None:
    source = source_of(tmp_path, damaged_rows())
    with pytest.raises(ConversionError) as caught:
        converted(source, type_, "refuse")
    assert caught.value.message == (
        f"{NAME} has 3 weights that are not finite, the first nan at row 3, column 17 (source.gguf)"
    )
    assert "--nonfinite zero" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


@pytest.mark.parametrize("type_", ["f32", "f16", "bf16", "q8_0", "q4_K", "q2_K", "iq4_nl"])
def test_zero_encodes_zeros_in_their_place(tmp_path: Path, type_: str) -> None:
    rows = damaged_rows()
    found = converted(source_of(tmp_path, rows), type_, "zero")
    cleared = np.where(np.isfinite(rows), rows, np.float32(0))
    assert np.array_equal(found, ggplan.quantize(cleared, type_).reshape(-1))
    metadata = ggplan.open_model(tmp_path / "out.gguf").metadata
    assert metadata["ggplan.nonfinite"].decode() == "zero"


def test_the_default_leaves_no_key(tmp_path: Path) -> None:
    converted(source_of(tmp_path, np.ones((2, 32), np.float32)), "q8_0", "refuse")
    assert "ggplan.nonfinite" not in ggplan.open_model(tmp_path / "out.gguf").metadata


@pytest.mark.parametrize(("type_", "dtype"), [("f32", "<u4"), ("f16", "<u2"), ("bf16", "<u2")])
def test_keep_is_ggmls_conversion(tmp_path: Path, type_: str, dtype: str) -> None:
    patterns = [
        0x7F800000,
        0xFF800000,
        0x7FC00000,
        0xFFC00000,
        0x7F800001,
        0xFFFFFFFF,
        0x7FFFFFFF,
        0x3F800000,
    ]
    rows = np.array([patterns * 4] * 2, np.uint32).view(np.float32)
    found = converted(source_of(tmp_path, rows), type_, "keep").view(dtype)[:8]
    # ggml_compute_fp32_to_fp16 and _bf16: NaN is quiet and keeps its sign; f16's has no other bit.
    expected = {
        "f32": patterns,
        "f16": [0x7C00, 0xFC00, 0x7E00, 0xFE00, 0x7E00, 0xFE00, 0x7E00, 0x3C00],
        "bf16": [0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0x7FC0, 0xFFFF, 0x7FFF, 0x3F80],
    }[type_]
    assert [hex(word) for word in found] == [hex(word) for word in expected]


@pytest.mark.parametrize("type_", ["q8_0", "q4_K", "mxfp4"])
def test_no_type_with_blocks_can_keep_them(tmp_path: Path, type_: str) -> None:
    with pytest.raises(ConversionError) as caught:
        converted(source_of(tmp_path, damaged_rows()), type_, "keep")
    assert f"{type_} cannot hold them: give this tensor f32, f16 or bf16" in caught.value.hint


def test_the_count_is_of_the_whole_tensor_whatever_thread_meets_it(tmp_path: Path) -> None:
    rows = np.ones((3000, 1024), np.float32)  # too large to be looked at before the work
    rows[100::700, 5] = np.nan
    rows[2999, 1023] = np.inf
    source = source_of(tmp_path, rows)
    for threads in (1, 4):
        with pytest.raises(ConversionError, match=r"has 6 weights .* first nan at row 100, column 5"):
            converted(source, "q8_0", "refuse", threads=threads)


@pytest.mark.parametrize("n_rows", [2, 9000])  # few enough to be looked at before the work, or not
def test_weights_too_large_for_f16_are_counted(tmp_path: Path, n_rows: int) -> None:
    rows = np.ones((n_rows, 256), np.float32)
    rows[1, 3], rows[1, 4], rows[1, 5], rows[0, 7] = 70000, -1e30, 65520, 65519
    with pytest.raises(ConversionError) as caught:
        converted(source_of(tmp_path, rows), "f16", "refuse")
    assert caught.value.message == (
        f"{NAME} has 3 weights that are too large for f16, the first 70000 at row 1, column 3 (source.gguf)"
    )
    assert "bf16 or f32" in caught.value.hint


@pytest.mark.parametrize("nonfinite", ["zero", "keep"])
def test_weights_too_large_for_f16_are_cut_down_or_infinite(tmp_path: Path, nonfinite: Nonfinite) -> None:
    rows = np.ones((2, 32), np.float32)
    rows[1, 3], rows[1, 4] = 70000, -1e30
    found = converted(source_of(tmp_path, rows), "f16", nonfinite).view(np.float16)
    largest = 65504 if nonfinite == "zero" else np.inf
    assert found[35:38].tolist() == [largest, -largest, 1]


def test_weights_beyond_bf16(tmp_path: Path) -> None:
    rows = np.full((2, 32), np.finfo(np.float32).max)
    source = source_of(tmp_path, rows)
    with pytest.raises(ConversionError, match="has 64 weights that are too large for bf16"):
        converted(source, "bf16", "refuse")
    assert set(converted(source, "bf16", "zero").view("<u2").tolist()) == {0x7F7F}


@pytest.mark.parametrize("type_", ["q8_0", "q4_K", "q6_K", "q3_K"])
@pytest.mark.parametrize("nonfinite", ["refuse", "zero", "keep"])
def test_a_scale_that_overflows_is_refused_always(tmp_path: Path, type_: str, nonfinite: Nonfinite) -> None:
    rows = np.ones((2, 256), np.float32)
    rows[1, 7] = 1e9
    with pytest.raises(ConversionError) as caught:
        converted(source_of(tmp_path, rows), type_, nonfinite)
    assert caught.value.message == (
        f"{NAME} holds 1e+09 at row 1, column 7, too large for {type_}: the scale of its block is not finite"
    )


def test_copied_blocks_are_looked_at(tmp_path: Path) -> None:
    source = source_of(tmp_path, np.ones((4, 64), np.float32))
    converted(source, "q8_0", "refuse")
    quantized = tmp_path / "out.gguf"
    (record,) = read_header(quantized).tensors
    data = bytearray(quantized.read_bytes())
    data[record.offset + 34 * 5 : record.offset + 34 * 5 + 2] = b"\x00\x7e"
    quantized.write_bytes(data)
    source.unlink()
    quantized.rename(source)
    for nonfinite in ("refuse", "keep"):
        with pytest.raises(
            ConversionError, match="a block of q8_0 whose scale is not finite, at row 2, block 1"
        ):
            converted(source, "q8_0", nonfinite)
    found = ggplan.dequantize(converted(source, "q8_0", "zero"), "q8_0")
    assert np.array_equal(found.reshape(8, 32).all(axis=1), np.arange(8) != 5)
    assert not found.reshape(8, 32)[5].any()


def write_fp8_checkpoint(folder: Path, code: int, scale: float) -> Path:
    """The tiny DeepSeek-V3 in fp8, with one odd code and one odd scale in the first block of a matrix."""
    folder.mkdir()
    spec = json.loads((DATA / "deepseek_v3_fp8.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DATA / name, folder / name)
    (folder / "config.json").write_text(json.dumps(spec["config"]))
    (tensors,) = spec["shards"].values()
    header, data = {}, b""
    for name, (dtype, shape) in tensors.items():
        n = math.prod(shape)
        raw = {"F8_E4M3": b"\x38", "F32": b"\0\0\x80\x3f", "BF16": b"\x80\x3f"}[dtype] * n
        if name == FP8_NAME:
            raw = raw[:5] + bytes([code]) + raw[6:]
        if name == f"{FP8_NAME}_scale_inv":
            raw = np.float32(scale).tobytes() + raw[4:]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


@pytest.mark.parametrize(
    ("code", "scale", "said"),
    [
        (
            0x7F,
            1,
            r"blk\.0\.attn_output\.weight has 1 weight that is not finite, the first nan at row 0, column 5",
        ),
        (0xFF, 1, r"the first nan at row 0, column 5"),
        (
            0x38,
            np.nan,
            r"blk\.0\.attn_output\.weight: '.*o_proj\.weight_scale_inv' has 1 scale .* first nan at index 0",
        ),
        (0x38, np.inf, r"the first inf at index 0"),
        (0x38, 0, r"the first 0\.0 at index 0"),
        (0x38, -1, r"the first -1\.0 at index 0"),
    ],
)
def test_fp8_codes_and_scales(tmp_path: Path, code: int, scale: float, said: str) -> None:
    model = ggplan.open_model(write_fp8_checkpoint(tmp_path / "m", code, scale), pre="glm4")
    plan = ggplan.make_plan(model)
    with pytest.raises(ConversionError, match=said):
        ggplan.convert(plan, tmp_path / "out.gguf")
    ggplan.convert(ggplan.make_plan(model, nonfinite="zero"), tmp_path / "out.gguf")
    tensors = {t.name: t for t in ggplan.open_model(tmp_path / "out.gguf").tensors}
    rows = tensors["blk.0.attn_output.weight"].rows.read_float32(0, 1)
    assert np.isfinite(rows).all()
    assert rows[0, 5] == (scale if code == 0x38 and np.isfinite(scale) else 0)


def test_negative_importance_is_damage(tmp_path: Path) -> None:
    from test_convert import write_imatrix

    sums = np.ones((1, 64), np.float32)
    sums[0, 9] = -1
    write_imatrix(tmp_path / "i.gguf", {NAME: sums}, {NAME: np.ones((1, 1), np.float32)})
    with pytest.raises(
        ggplan.Error, match=r"1 of 64 values of .* negative or not finite, the first -1\.0 at index 9"
    ):
        ggplan.load_imatrix(tmp_path / "i.gguf")


@pytest.mark.parametrize(
    "type_", ["q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs", "q4_0", "q5_1"]
)
def test_importance_of_zero_makes_no_scale_infinite(type_: str) -> None:
    from ggplan.quants.soundness import unsound_blocks

    rows = RNG.standard_normal((4, 256)).astype(np.float32)
    blocks = ggplan.quantize(rows, type_, imatrix=np.zeros(256, np.float32))
    found = parse_type(type_)
    assert not unsound_blocks(blocks.reshape(-1, found.block_bytes), found).any()
