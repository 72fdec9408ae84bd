"""Imatrix files of both forms: the values llama-quantize would use, and what is refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.errors import Error, ImatrixError
from ggplan.imatrix import ImatrixEntry, load_imatrix

RNG = np.random.default_rng(0)


def write_gguf(path: Path, tensors: dict[str, np.ndarray], **keys: object) -> Path:
    """An imatrix as llama-imatrix writes it; a key of None is left out."""
    writer = gguf.GGUFWriter(path, "")
    stated = {"datasets": ["calib.txt"], "chunk_count": 7, "chunk_size": 512} | keys
    writer.add_type("imatrix")
    for key, value in stated.items():
        if isinstance(value, list):
            writer.add_array(f"imatrix.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"imatrix.{key}", value)
        elif value is not None:
            writer.add_string(f"imatrix.{key}", str(value))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair(name: str, sums: np.ndarray, counts: object) -> dict[str, np.ndarray]:
    """The two tensors of a weight."""
    return {
        f"{name}.in_sum2": np.asarray(sums, np.float32),
        f"{name}.counts": np.asarray(counts, np.float32),
    }


def test_the_gguf_form(tmp_path: Path) -> None:
    dense = RNG.random((1, 64), np.float32)
    experts = RNG.random((3, 32), np.float32)
    tensors = {
        **pair("blk.0.attn_q.weight", dense, [[7]]),
        **pair("blk.0.ffn_up_exps.weight", experts, [[5], [0], [3]]),
        "blk.0.attn_q.weight.in_sum": dense,
        "blk.0.attn_q.weight.stats": np.full(12, np.nan, np.float32),
    }
    imatrix = load_imatrix(write_gguf(tmp_path / "i.gguf", tensors, datasets=["a.txt", "b.txt"]))
    assert imatrix.path == tmp_path / "i.gguf"
    assert imatrix.datasets == ("a.txt", "b.txt")
    assert imatrix.chunk_count == 7
    assert list(imatrix.entries) == ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"]
    assert len(imatrix.entries) == 2
    assert "blk.0.attn_q.weight" in imatrix.entries
    assert imatrix.entries.get("blk.0.attn_k.weight") is None

    entry = imatrix.entries["blk.0.attn_q.weight"]
    assert entry.values.dtype == np.float32
    assert np.array_equal(entry.values, dense / np.float32(7))
    assert entry.counts.tolist() == [7]
    assert entry.matrices_without_data == ()

    entry = imatrix.entries["blk.0.ffn_up_exps.weight"]
    assert np.array_equal(entry.values[[0, 2]], experts[[0, 2]] / np.array([[5], [3]], np.float32))
    assert np.array_equal(entry.values[1], np.ones(32))
    assert entry.matrices_without_data == (1,)


@pytest.mark.parametrize(
    ("count", "tokens"), [(0.4, 0), (0.5, 1), (1.5, 2), (2.5, 3), (-2.5, -3), (16777217, 16777216)]
)
def test_counts_round_as_lround_does(tmp_path: Path, count: float, tokens: int) -> None:
    sums = np.full((1, 32), 3, np.float32)
    entry = load_imatrix(write_gguf(tmp_path / "i.gguf", pair("w", sums, [count]))).entries["w"]
    assert entry.counts.tolist() == [tokens]
    assert np.array_equal(entry.values, sums / np.float32(tokens) if tokens > 0 else np.ones((1, 32)))


def test_a_matrix_without_tokens_may_hold_anything(tmp_path: Path) -> None:
    sums = np.array([[np.nan] * 32, [2] * 32], np.float32)
    entry = load_imatrix(write_gguf(tmp_path / "i.gguf", pair("w", sums, [0, 2]))).entries["w"]
    assert np.array_equal(entry.values, np.ones((2, 32)))


def test_values_for_a_tensor() -> None:
    values = np.arange(24, dtype=np.float32)
    experts = ImatrixEntry("w", values.reshape(4, 6), np.ones(4, np.int64))
    assert np.array_equal(experts.for_tensor((4, 9, 6)), values.reshape(4, 6))
    one_row = ImatrixEntry("w", values.reshape(1, 24), np.ones(1, np.int64))
    assert np.array_equal(one_row.for_tensor((4, 9, 6)), values.reshape(4, 6))
    assert np.array_equal(one_row.for_tensor((9, 24)), values.reshape(1, 24))
    assert np.array_equal(one_row.for_tensor((24,)), values.reshape(1, 24))
    for shape in ((4, 9, 5), (3, 9, 6), (6, 6), (2, 2, 9, 7)):
        with pytest.raises(ImatrixError, match="the imatrix has 24 values for 'w', which needs"):
            experts.for_tensor(shape)


ROW = np.ones((1, 32), np.float32)


@pytest.mark.parametrize(
    ("tensors", "keys", "said"),
    [
        ({"w": ROW}, {}, "is a GGUF file but not an imatrix"),
        ({"w.in_sum2": ROW}, {}, r"'w' has no tensor 'w\.counts'"),
        ({**pair("v", ROW, [1]), "w.counts": ROW}, {}, r"'w' has no tensor 'w\.in_sum2'"),
        ({"w.in_sum2": ROW.astype(np.float16), "w.counts": ROW}, {}, "sums of f16 and counts of f32"),
        (pair("w", ROW, [1, 1, 1]), {}, "32 sums for 3 counts"),
        (pair("w", ROW, np.ones((0, 4))), {}, "32 sums for 0 counts"),
        (pair("w", ROW * np.inf, [1]), {}, "values of 'w' are negative or not finite, the first"),
        (pair("w", -ROW, [1]), {}, "values of 'w' are negative or not finite, the first"),
        (pair("w", ROW * np.nan, [1]), {}, "values of 'w' are negative or not finite, the first"),
        (pair("w", ROW, [np.nan]), {}, "the counts of 'w' are not numbers of tokens"),
        (pair("w", ROW, np.array([0x7F800001], np.uint32).view("f4")), {}, "not numbers of tokens"),
        (pair("w", ROW, [1e30]), {}, "the counts of 'w' are not numbers of tokens"),
        (pair("w", ROW, [1]), {"datasets": None}, r"lacks the key imatrix\.datasets"),
        (pair("w", ROW, [1]), {"chunk_count": None}, r"lacks the key imatrix\.chunk_count"),
        (pair("w", ROW, [1]), {"chunk_size": None}, r"lacks the key imatrix\.chunk_size"),
        (pair("w", ROW, [1]), {"datasets": "a.txt"}, "is not an array of strings"),
        (pair("w", ROW, [1]), {"chunk_count": "x"}, "is not a number"),
    ],
)
def test_wrong_gguf_files_are_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], keys: dict[str, object], said: str
) -> None:
    with pytest.raises(ImatrixError, match=said):
        load_imatrix(write_gguf(tmp_path / "i.gguf", tensors, **keys))


def legacy_entry(name: bytes, n_batches: int, values: np.ndarray, *, length: int | None = None) -> bytes:
    start = struct.pack("<i", len(name) if length is None else length) + name
    return start + struct.pack("<ii", n_batches, values.size) + values.astype("<f4").tobytes()


def legacy(*entries: bytes, count: int | None = None, tail: bytes = b"") -> bytes:
    return struct.pack("<i", len(entries) if count is None else count) + b"".join(entries) + tail


TAIL = struct.pack("<ii", 123, 9) + b"calib.txt"
TEN = np.arange(10, dtype=np.float32)
WHOLE = legacy(legacy_entry(b"blk.0.attn_q.weight", 3, TEN), legacy_entry(b"w", 0, TEN), tail=TAIL)


def test_the_legacy_form(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(WHOLE)
    imatrix = load_imatrix(str(path))
    assert (imatrix.datasets, imatrix.chunk_count) == (("calib.txt",), 123)
    entry = imatrix.entries["blk.0.attn_q.weight"]
    assert np.array_equal(entry.for_tensor((4, 10))[0], TEN / np.float32(3))
    assert np.array_equal(entry.for_tensor((2, 4, 5)), (TEN / np.float32(3)).reshape(2, 5))
    assert entry.counts.tolist() == [3]
    assert np.array_equal(imatrix.entries["w"].values[0], TEN)
    assert imatrix.entries["w"].matrices_without_data == (0,)


@pytest.mark.parametrize(
    ("tail", "datasets", "chunk_count"),
    [(b"", (), 0), (struct.pack("<i", 5), (), 5), (struct.pack("<ii", 5, 0), (), 5)],
)
def test_the_tail_of_the_legacy_form_is_optional(
    tmp_path: Path, tail: bytes, datasets: tuple[str, ...], chunk_count: int
) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy(legacy_entry(b"w", 1, TEN), tail=tail))
    imatrix = load_imatrix(path)
    assert (imatrix.datasets, imatrix.chunk_count) == (datasets, chunk_count)


BAD = np.array([1, np.nan], np.float32)
ONE = legacy_entry(b"w", 1, TEN)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the number of entries would have 4 bytes, and 0 are left"),
        (b"\1\0", "the number of entries would have 4 bytes"),
        (legacy(count=0), "it would have 0 entries"),
        (legacy(ONE, count=-1), "it would have -1 entries"),
        (legacy(ONE, count=2**31 - 1), "it would have 2,147,483,647 entries"),
        (legacy(ONE, count=2), "the name of entry 2"),
        (legacy(legacy_entry(b"w", 1, TEN, length=-1)), "entry 1 would have -1 bytes"),
        (legacy(legacy_entry(b"w", 1, TEN, length=2**31 - 1)), "entry 1 would have 2,147,483,647 bytes"),
        (legacy(legacy_entry(b"w", 1, TEN, length=60)), "entry 1 would have 60 bytes"),
        (legacy(legacy_entry(b"", 1, TEN)), "has no name"),
        (legacy(ONE, ONE), "entry 2, 'w', is there twice"),
        (legacy(legacy_entry(b"w", 1, TEN[:0])), "'w', has 0 values"),
        (legacy(struct.pack("<iciI", 1, b"w", 1, 2**32 - 1)), "'w', has -1 values"),
        (legacy(struct.pack("<iciI", 1, b"w", 1, 2**31 - 1)), "'w', would have 8,589,934,588 bytes"),
        (legacy(ONE)[:-1], "'w', would have 40 bytes, and 39 are left"),
        (legacy(legacy_entry(b"w", 1, BAD)), "values of 'w' are negative or not finite, the first"),
        (legacy(ONE, tail=b"\1"), "the number of chunks"),
        (legacy(ONE, tail=struct.pack("<ii", 1, 99)), "the name of the dataset would have 99 bytes"),
        (b"GGUF", "version"),
        (b"PK\x03\x04" + bytes(99), "it would have"),
    ],
)
def test_wrong_legacy_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(content)
    with pytest.raises(ImatrixError, match=said) as caught:
        load_imatrix(path)
    assert "imatrix.dat" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing"])
def test_what_is_not_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "imatrix.dat"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
    with pytest.raises(ImatrixError, match=r"imatrix\.dat"):
        load_imatrix(path)


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    tensors = {**pair("v", RNG.random((2, 8)), [1, 0]), **pair("w", RNG.random((1, 8)), [3])}
    path = write_gguf(tmp_path_factory.mktemp("imatrix") / "i.gguf", tensors)
    return path.read_bytes(), WHOLE


@settings(max_examples=300, deadline=2000)
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    data: st.DataObject, sound_files: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(data.draw(st.sampled_from(sound_files)))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.imatrix"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        imatrix = load_imatrix(path)
    except Error as error:
        harmless = str(error).isprintable()
    else:
        harmless = all(np.isfinite(entry.values).all() for entry in imatrix.entries.values())
    assert harmless


def test_entries_are_read_when_asked_for(tmp_path: Path) -> None:
    """The memory of a loaded imatrix does not grow with the values in it."""
    import tracemalloc

    big = {}
    for number in range(20):
        big.update(pair(f"w{number}", np.ones((64, 1024), np.float32), np.ones(64)))
    path = write_gguf(tmp_path / "i.gguf", big)
    tracemalloc.start()
    imatrix = load_imatrix(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 5 << 20
    assert peak < 3 << 20
    path.unlink()
    with pytest.raises(Error, match=r"cannot read .*i\.gguf"):
        imatrix.entries["w3"]
