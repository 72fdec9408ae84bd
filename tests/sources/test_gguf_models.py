"""GGUF files as models, written by the `gguf` package and by hand, single and split."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from handmade_gguf import I32, STRING, U16, array, pair, record, small_model, text
from handmade_gguf import gguf as handmade
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.errors import CheckpointError, Error
from ggplan.ggml_types import F32, TYPES
from ggplan.sources.gguf import open_gguf

RNG = np.random.default_rng(0)


def test_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    weights = {
        "token_embd.weight": RNG.standard_normal((10, 64), np.float32),
        "blk.0.attn_norm.weight": RNG.standard_normal(64, np.float32),
        "blk.0.ffn_up_exps.weight": RNG.standard_normal((3, 5, 64)).astype(np.float16),
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_array("tokenizer.ggml.tokens", [f"<{k}>" for k in range(1000)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 1000)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    blocks = gguf.quants.quantize(weights["token_embd.weight"], gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    model = open_gguf(path)
    assert (model.kind, model.architecture, model.path) == ("gguf", "llama", path)
    assert model.metadata["llama.block_count"].decode() == 1
    assert model.metadata["tokenizer.ggml.tokens"].decode() == [f"<{k}>" for k in range(1000)]
    assert [t.name for t in model.tensors] == [*weights, "output.weight"]
    for tensor in model.tensors[:3]:
        values = weights[tensor.name]
        matrix = values.reshape(-1, 64).astype(np.float32)
        assert tensor.shape == values.shape
        assert tensor.origin == "m.gguf"
        rows = tensor.rows
        assert rows is not None
        assert tensor.stored is rows
        assert rows.dtype == tensor.type
        assert np.array_equal(rows.read_float32(0, tensor.n_rows), matrix)
        assert np.array_equal(rows.read_float32(tensor.n_rows - 1, tensor.n_rows), matrix[-1:])
        assert rows.read_bytes(0, tensor.n_rows) == values.tobytes()
    output = model.tensors[3]
    assert (output.type.name, output.stored_as, output.shape) == ("q8_0", "q8_0", (10, 64))
    assert output.stored is not None
    assert output.stored.read_bytes(2, 5) == blocks[2:5].tobytes()
    assert output.rows is not None
    assert (output.rows.dtype, output.stored.dtype) == (F32, output.type)
    decoded = gguf.quants.dequantize(blocks[2:5], gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(output.rows.read(2, 5), decoded)


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_every_type_of_the_table(type_, tmp_path: Path) -> None:
    """Two tensors, so that the size of the first is the offset of the second."""
    n_columns = 2 * type_.block_size
    n_bytes = 3 * type_.row_bytes(n_columns)
    data = RNG.integers(0, 60, n_bytes, np.uint8).tobytes()
    aligned = -(-n_bytes // 32) * 32
    path = tmp_path / "m.gguf"
    records = [record("a", (n_columns, 3), type_.id, 0), record("b", (4,), 0, aligned)]
    path.write_bytes(handmade((), records, data + bytes(aligned - n_bytes + 16)))
    first = open_gguf(path).tensors[0]
    assert (first.type, first.n_bytes) == (type_, n_bytes)
    assert first.stored is not None
    assert first.stored.read_bytes(0, 3) == data
    assert first.stored.read_bytes(1, 2) == data[n_bytes // 3 : 2 * n_bytes // 3]
    assert (first.rows is not None) == type_.decodable
    if first.rows is not None:
        assert first.rows.read(1, 3).shape == (2, n_columns)


def test_bf16_is_widened(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(handmade((), [record("a", (2,), 30, 0)], struct.pack("<2H", 0x3F80, 0x7FC1)))
    rows = open_gguf(path).tensors[0].rows
    assert rows is not None
    assert rows.read(0, 1).tolist() == [[0x3F80, 0x7FC1]]
    assert rows.read_float32(0, 1).view(np.uint32).tolist() == [[0x3F800000, 0x7FC10000]]


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small_model())
    tensor = open_gguf(path).tensors[0]
    assert tensor.rows is not None
    assert tensor.stored is not None
    for read in (tensor.rows.read_float32, tensor.stored.read_bytes):
        for start, stop in ((-1, 1), (0, 3), (2, 1)):
            with pytest.raises(ValueError, match="of 2"):
                read(start, stop)


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small_model())
    tensor = open_gguf(path).tensors[-1]
    os.truncate(path, 448)
    assert tensor.rows is not None
    with pytest.raises(CheckpointError, match=r"m\.gguf shrank or is truncated"):
        tensor.rows.read(0, 1)


def shard(number: int, count: int, names: list[str], n_tensors: int, *more: bytes) -> bytes:
    """File `number` (from 0) of a set; each tensor holds its own name's first byte four times."""
    pairs = [
        *more,
        pair("split.no", U16, struct.pack("<H", number)),
        pair("split.count", U16, struct.pack("<H", count)),
        pair("split.tensors.count", I32, struct.pack("<i", n_tensors)),
    ]
    records = [record(name, (4,), 24, 32 * k) for k, name in enumerate(names)]
    return handmade(pairs, records, b"".join(name.encode()[:1] * 4 + bytes(28) for name in names))


ARCHITECTURE = pair("general.architecture", STRING, text("llama"))


def split_set(tmp_path: Path, **changes: bytes) -> list[Path]:
    """Three files, of which the first holds metadata only."""
    contents = {
        "first": shard(0, 3, [], 3, ARCHITECTURE),
        "second": shard(1, 3, ["a", "b"], 3),
        "third": shard(2, 3, ["c"], 3),
    } | changes
    paths = [tmp_path / f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_any_file_opens_its_set(tmp_path: Path, opened: int) -> None:
    paths = split_set(tmp_path)
    model = open_gguf(paths[opened])
    assert model.architecture == "llama"
    assert list(model.metadata) == ["general.architecture"]
    assert [(t.name, t.origin) for t in model.tensors] == [
        ("a", paths[1].name),
        ("b", paths[1].name),
        ("c", paths[2].name),
    ]
    assert all(
        t.stored is not None and t.stored.read_bytes(0, 1) == t.name.encode() * 4 for t in model.tensors
    )


def test_a_set_that_the_gguf_package_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2, small_first_shard=True)
    writer.add_block_count(5)
    weights = {f"blk.{k}.attn_norm.weight": RNG.standard_normal(33, np.float32) for k in range(5)}
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 4
    model = open_gguf(paths[2])
    assert model.metadata["llama.block_count"].decode() == 5
    assert {t.name for t in model.tensors} == set(weights)
    for tensor in model.tensors:
        assert tensor.rows is not None
        assert np.array_equal(tensor.rows.read_float32(0, 1)[0], weights[tensor.name])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"second": shard(2, 3, ["a", "b"], 3)},
            "m-00002.*its metadata makes it file 3 of 3, its name file 2 of 3",
        ),
        ({"second": shard(1, 4, ["a", "b"], 3)}, "file 2 of 4"),
        ({"third": handmade()}, "file 0 of -1"),
        ({"third": shard(2, 3, ["a"], 3)}, "m-00003.*'a' is also in m-00002"),
        ({"third": shard(2, 3, ["c", "d"], 3)}, "the set has 4 tensors, not the stated 3"),
        ({"first": shard(0, 3, [], 2**31 - 1)}, "not the stated 2,147,483,647"),
        ({"first": shard(0, 4, [], 3)}, "one of 4 files of a split model"),
        ({"first": shard(0, 65535, [], 3)}, "one of 65,535 files"),
        ({"third": b"GGUF"}, "m-00003"),
        ({"first": handmade([pair("split.count", STRING, text("3"))])}, "split.count is not an integer"),
    ],
)
def test_a_set_that_does_not_fit_together(tmp_path: Path, changes: dict[str, bytes], said: str) -> None:
    paths = split_set(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=said):
        open_gguf(paths[0])


def test_a_set_that_is_not_whole(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    paths[0].unlink()
    paths[1].unlink()
    with pytest.raises(
        CheckpointError, match=r"2 of 3 files of the set are missing: m-00001-of-00003\.gguf, m-00002"
    ):
        open_gguf(paths[2])
    renamed = paths[2].rename(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="its name does not end in -00003-of-00003"):
        open_gguf(renamed)


def test_a_numbered_name_alone_makes_no_set(tmp_path: Path) -> None:
    path = tmp_path / "m-00002-of-00009.gguf"
    path.write_bytes(small_model())
    assert len(open_gguf(path).tensors) == 4


def test_the_architecture(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(handmade())
    assert open_gguf(path).architecture == ""
    path.write_bytes(handmade([pair("general.architecture", I32, bytes(4))]))
    with pytest.raises(CheckpointError, match=r"general\.architecture is not a string"):
        open_gguf(path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"m\.gguf"):
        open_gguf(path)


@settings(max_examples=300, deadline=2000)
@given(data=st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Flip bytes anywhere in a sound file, or cut it: it opens and reads, or raises our own error."""
    content = bytearray(small_model())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        model = open_gguf(path)
    except Error as error:
        harmless = str(error).isprintable()
    else:
        harmless = all(
            t.stored is None or len(t.stored.read_bytes(0, t.n_rows)) == t.n_bytes for t in model.tensors
        )
    assert harmless


def test_a_large_vocabulary_opens_at_once(tmp_path: Path) -> None:
    """256k tokens and merges took the gguf package ten seconds; the bound is generous for a busy machine."""
    count = 256_000
    strings = b"".join(text(b"%06d" % k) for k in range(count))
    pairs = [
        array("tokenizer.ggml.tokens", STRING, count, strings),
        array("tokenizer.ggml.merges", STRING, count, strings),
        array("tokenizer.ggml.token_type", I32, count, bytes(4 * count)),
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(handmade(pairs))
    start = time.perf_counter()
    metadata = open_gguf(path).metadata
    assert time.perf_counter() - start < 2
    assert metadata["tokenizer.ggml.merges"].length == count
    assert metadata["tokenizer.ggml.tokens"].decode_items(2) == ["000000", "000001"]
