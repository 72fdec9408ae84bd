"""The GGUF header: what is refused and what is taken, with ggml's own reader as the judge."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from handmade_gguf import ARRAY, BOOL, F32, I32, STRING, U8, U32, array, gguf, pair, record, small_model, text
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.errors import CheckpointError
from ggplan.metadata import MetadataType
from ggplan.sources.gguf_header import read_header

GIB = 1 << 30


def aligned_to(alignment: int, kind: int = U32) -> bytes:
    return pair("general.alignment", kind, struct.pack("<I", alignment))


# name: (file, what the message must say). After llama.cpp's tests/test-gguf.cpp, public advisories
# (CVE-2024-21802, -21825, -21836, -23496, -23605, CVE-2025-53630, CVE-2026-27940, -33298) and our own malice.
REFUSED = {
    "empty file": (b"", "not a GGUF file"),
    "half a magic": (b"GG", "not a GGUF file"),
    "magic": (gguf(magic=b"FUGG"), "not a GGUF file"),
    "only the magic": (b"GGUF", "the version would take 4 bytes"),
    "version 0": (gguf(version=0), "version 0"),
    "version 1": (gguf(version=1), "version 1"),
    "version 4": (gguf(version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "49 bytes on which gguf 0.19's reader never ends": (
        gguf([array("k", U8, 2**60, b"")], alignment=1),
        "'k' would take 1,152,921,504,606,846,976 bytes",
    ),
    "cut in an array's length": (
        gguf(n_pairs=1)[:24] + text("k") + struct.pack("<II", ARRAY, STRING) + b"\xff\xff",
        "'k' would take 8 bytes, but 2 are left",
    ),
    "tensor count of 2^64 - 1": (gguf(n_records=2**64 - 1), "18,446,744,073,709,551,615 tensors"),
    "tensor count past the end": (gguf(n_records=2), "2 tensors"),
    "pair count of 2^64 - 1": (gguf(n_pairs=2**64 - 1), "key-value pairs"),
    "pair count past the end": (gguf([pair("k", U8, b"\0")], n_pairs=9), "9 key-value pairs"),
    "one pair too few": (gguf([pair("k", U8, b"\0"), bytes(14)], n_pairs=3), ""),
    "key length of 2^64 - 1": (
        gguf([text("k", 2**64 - 1) + bytes(32)]),
        "key 0 would take 18,446",
    ),
    "key length past the end": (gguf([text("k", 99) + bytes(32)]), "key 0 would take 99 bytes"),
    "empty key": (gguf([pair("", U8, b"\0")]), "key 0 is empty"),
    "key that is not UTF-8": (gguf([pair(b"\xff\xfe", U8, b"\0")]), "key 0 is not UTF-8"),
    "duplicate key": (gguf([pair("k", U8, b"\0"), pair("k", I32, bytes(4))]), "'k' occurs twice"),
    "value type 13": (gguf([pair("k", 13, bytes(8))]), "'k' has the unknown type 13"),
    "value type -1": (gguf([pair("k", 2**32 - 1, bytes(8))]), "unknown type 4294967295"),
    "array of arrays": (gguf([array("k", ARRAY, 1, bytes(12))]), "array of arrays"),
    "item type 13": (gguf([array("k", 13, 1, bytes(8))]), "unknown type 13"),
    "string of 2^64 - 1": (gguf([pair("k", STRING, text("", 2**64 - 1))]), "'k' would take 18,446"),
    "string past the end": (gguf([pair("k", STRING, text("abc", 400))]), "'k' would take 400 bytes"),
    "array of 2^63 floats": (gguf([array("k", F32, 2**63, bytes(64))]), "36,893,488,147,419,103,232 bytes"),
    "array of 2^62 floats, 2^64 bytes": (
        gguf([array("k", F32, 2**62, bytes(64))]),
        "would take 18,446",
    ),
    "array of 2^60 strings": (
        gguf([array("k", STRING, 2**60, bytes(64))]),
        "1,152,921,504,606,846,976 strings",
    ),
    "array of strings cut short": (gguf([array("k", STRING, 8, bytes(64)[:-1])], alignment=1), "8 strings"),
    "array with an endless string": (
        gguf([array("k", STRING, 2, text("", 2**64 - 9) + text(""))]),
        "'k' would take",
    ),
    "alignment 0": (gguf([aligned_to(0)]), "alignment is 0"),
    "alignment 13": (gguf([aligned_to(13)]), "alignment is 13"),
    "alignment as int32": (gguf([aligned_to(32, I32)]), "int32, not uint32"),
    "alignment as an array": (gguf([array("general.alignment", U32, 1, bytes(4))]), "array, not uint32"),
    "name of 64 bytes": (gguf((), [record("n" * 64, (4,), 0, 0)], bytes(32)), "longer than 63 bytes"),
    "name of 2^64 - 1": (gguf((), [text("n", 2**64 - 1) + bytes(32)]), "the name of tensor 0 would take"),
    "name that is not UTF-8": (gguf((), [record(b"\xc3", (4,), 0, 0)], bytes(32)), "not UTF-8"),
    "duplicate name": (
        gguf((), [record("a", (8,), 0, 0), record("a", (8,), 0, 32)], bytes(64)),
        "'a' is there twice",
    ),
    "5 dimensions": (gguf((), [record("a", (1,) * 5, 0, 0)], bytes(32)), "5 dimensions"),
    "2^32 - 1 dimensions": (gguf((), [record("a", (1,), 0, 0, n_dims=2**32 - 1)], bytes(32)), "dimensions"),
    "negative dimension": (gguf((), [record("a", (2**64 - 1,), 0, 0)], bytes(32)), "impossible shape"),
    "2^63 weights": (gguf((), [record("a", (2**63,), 24, 0)], bytes(32)), "impossible shape"),
    "2^63 weights by product": (
        gguf((), [record("a", (2**33 - 4, 2**33 - 4), 0, 0)], bytes(32)),
        "impossible shape",
    ),
    "2^64 bytes": (gguf((), [record("a", (2**31, 2**31), 27, 0)], bytes(32)), "it is truncated"),
    "2^64 - 16 bytes, which pad to 0": (
        gguf((), [record("a", (4, 2**30 - 1, 2**30 + 1), 0, 0)], bytes(32)),
        "it is truncated",
    ),
    "2^64 bytes in two tensors": (
        gguf((), [record("a", (2**63 - 64,), 24, 0), record("b", (2**63 - 64,), 24, 2**63 - 64)], bytes(32)),
        "it is truncated",
    ),
    "exabytes in a file of bytes": (
        gguf((), [record("a", (2**30, 2**30), 12, 0)], bytes(32)),
        "it is truncated",
    ),
    "no weights in 2^62 rows": (gguf((), [record("a", (0, 2**62), 0, 0)], bytes(32)), "no weights"),
    "half a block": (gguf((), [record("a", (48,), 8, 0)], bytes(64)), "not whole blocks of 32"),
    "removed type 4": (gguf((), [record("a", (32,), 4, 0)], bytes(64)), "'a' has type 4"),
    "type 43": (gguf((), [record("a", (32,), 43, 0)], bytes(64)), "'a' has type 43"),
    "type -1": (gguf((), [record("a", (32,), 2**32 - 1, 0)], bytes(64)), "has type 4294967295"),
    "offset -1": (
        gguf((), [record("a", (8,), 0, 2**64 - 1)], bytes(32)),
        "offset 18,446,744,073,709,551,615",
    ),
    "offset that wraps into the header": (
        gguf((), [record("a", (8,), 0, 2**64 - 32)], bytes(32)),
        "instead of 0",
    ),
    "offset that is not aligned": (
        gguf((), [record("a", (5,), 0, 0), record("b", (5,), 0, 20)], bytes(64)),
        "20 instead of 32",
    ),
    "overlap": (
        gguf((), [record("a", (16,), 0, 0), record("b", (16,), 0, 32)], bytes(96)),
        "32 instead of 64",
    ),
    "all tensors in one place": (
        gguf((), [record(f"t{k}", (16,), 0, 0) for k in range(50)], bytes(64)),
        "'t1' has offset 0",
    ),
    "gap": (gguf((), [record("a", (8,), 0, 0), record("b", (8,), 0, 64)], bytes(96)), "64 instead of 32"),
    "laid out by another alignment": (
        gguf([aligned_to(64)], [record("a", (8,), 0, 0), record("b", (8,), 0, 32)], bytes(128), alignment=64),
        "32 instead of 64",
    ),
    "data cut short": (gguf((), [record("a", (8,), 0, 0)], bytes(31)), "it is truncated"),
    "no data": (gguf((), [record("a", (8,), 0, 0)], alignment=1), "before its data begins"),
    "header cut in a record": (small_model()[:330], ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    content, said = REFUSED[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    message = str(caught.value)
    assert said in message
    assert "bad.gguf" in message
    assert "\n" not in message
    assert message.isprintable()


ACCEPTED = {
    "no tensors, no pairs": gguf(),
    "no padding after an empty header": gguf(alignment=1),
    "version 2": gguf(version=2),
    "every kind of value": small_model(),
    "name of 63 bytes": gguf((), [record("n" * 63, (4,), 0, 0)], bytes(32)),
    "4 dimensions": gguf((), [record("a", (2, 1, 3, 2), 0, 0)], bytes(64)),
    "no dimensions": gguf((), [record("a", (), 0, 0)], bytes(32)),
    "no weights": gguf((), [record("a", (4, 0), 0, 0), record("b", (8,), 0, 0)], bytes(32)),
    "alignment 1": gguf(
        [aligned_to(1)], [record("a", (3,), 1, 0), record("b", (3,), 1, 6)], bytes(12), alignment=1
    ),
    "alignment 4096": gguf([aligned_to(4096)], [record("a", (3,), 1, 0)], bytes(4096), alignment=4096),
    "no padding at the end": gguf((), [record("a", (5,), 0, 0)], bytes(20)),
    "bytes after the end": gguf((), [record("a", (5,), 0, 0)], bytes(1000)),
    "a bool of 2": gguf([pair("k", BOOL, b"\x02")]),
    "an empty array": gguf([array("k", STRING, 0, b""), array("n", F32, 0, b"")]),
    "a string that is not UTF-8": gguf([pair("k", STRING, text(b"\xff"))]),
    "an intermediate type": gguf((), [record("a", (256,), 15, 0)], bytes(320)),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str, tmp_path: Path, ggml: ctypes.CDLL) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(ACCEPTED[case])
    header = read_header(path)
    assert all(record.offset + record.n_bytes <= path.stat().st_size for record in header.tensors)
    assert ggml_accepts(ggml, path)


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    spec = importlib.util.find_spec("libggml")
    assert spec is not None
    assert spec.origin is not None
    library = ctypes.CDLL(str(min(Path(spec.origin).parent.rglob("libggml-base.so*"))))
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
    library.gguf_free.argtypes = [ctypes.c_void_p]
    library.ggml_log_set(QUIET, None)
    return library


class InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


def ggml_accepts(ggml: ctypes.CDLL, path: Path) -> bool:
    context = ggml.gguf_init_from_file(os.fsencode(path), InitParams(True, None))
    if context:
        ggml.gguf_free(context)
    return bool(context)


# Where we are stricter than ggml's header reader, knowingly: it leaves the data to its callers, takes any
# bytes as a name, and allows more of everything.
STRICTER = ("it is truncated", "not UTF-8", "no weights and the impossible shape")
NUMBERS = [
    0,
    1,
    2,
    5,
    13,
    31,
    32,
    64,
    2**16,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 32,
    2**64 - 1,
]


@st.composite
def broken_models(draw: st.DrawFn) -> bytes:
    """A sound file after one to three changes: bytes, numbers, insertions, deletions, truncation."""
    content = bytearray(small_model())
    header_end = 448
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, header_end))
        match draw(st.sampled_from(["byte", "long", "int", "insert", "delete"])):
            case "byte":
                content[at] = draw(st.integers(0, 255))
            case "long":
                content[at : at + 8] = struct.pack("<Q", draw(st.sampled_from(NUMBERS)))
            case "int":
                content[at : at + 4] = struct.pack("<I", draw(st.sampled_from(NUMBERS)) & 0xFFFFFFFF)
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "delete":
                del content[at : at + draw(st.integers(1, 9))]
    if draw(st.integers(0, 9)) == 0:
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


@settings(max_examples=400, deadline=2000)
@given(content=broken_models())
def test_verdicts_are_ggmls(
    content: bytes, ggml: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutant.gguf"
    path.write_bytes(content)
    accepted = ggml_accepts(ggml, path)
    try:
        header = read_header(path)
    except CheckpointError as error:
        agrees = not accepted or any(reason in str(error) for reason in STRICTER)
    else:
        agrees = accepted or any(record.type.engine != "llama.cpp" for record in header.tensors)
    assert agrees


def test_values_are_the_bytes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small_model())
    metadata = read_header(path).metadata
    assert metadata["general.architecture"].decode() == "llama"
    assert metadata["tokens"].decode() == ["a", "", "ccc"]
    assert metadata["scores"].item_type is MetadataType.FLOAT32
    encoded = b"".join(text(key) + value.encode() for key, value in metadata.items())
    assert encoded == small_model()[24 : 24 + len(encoded)]


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 7, 65_520, 65_528, 65_536, 300_000]), max_size=6),
    after=st.integers(0, 99),
)
def test_strings_may_lie_across_any_window(
    lengths: list[int], after: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "strings.gguf"
    strings = [bytes([65 + k]) * length for k, length in enumerate(lengths)]
    path.write_bytes(
        gguf(
            [array("k", STRING, len(strings), b"".join(map(text, strings))), pair("last", U8, bytes([after]))]
        )
    )
    metadata = read_header(path).metadata
    assert metadata["k"].decode() == [raw.decode() for raw in strings]
    assert metadata["last"].decode() == after


def test_claims_cost_no_memory(tmp_path: Path) -> None:
    """Files of a few bytes that claim gigabytes, and a sparse one that has them, without any content."""
    claims = [
        gguf([array("k", U8, 100 * GIB, bytes(64))]),
        gguf([array("k", STRING, 100 * GIB, bytes(64))]),
        gguf([pair("k", STRING, text("", 100 * GIB))]),
        gguf(n_records=100 * GIB),
        gguf((), [record("a", (GIB, 100), 0, 0)], bytes(32)),
    ]
    sparse = gguf([array("k", U8, 100 * GIB, b"")])
    for number, content in enumerate([*claims, sparse]):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(content)
        if content is sparse:
            os.truncate(path, 200 * GIB)
        tracemalloc.start()
        with pytest.raises(CheckpointError):
            read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


def test_control_characters_of_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf((), [record("a\x1b[31m\n\u202e", (48,), 8, 0)], bytes(64)))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert r"a\x1b[31m\n\u202e" in str(caught.value)


def test_a_header_that_is_cut_anywhere_is_said_to_be_truncated(tmp_path: Path) -> None:
    tokens = b"".join(text(f"token-{number}") for number in range(3000))
    scores = struct.pack("<3000f", *[0.5] * 3000)
    path = tmp_path / "whole.gguf"
    path.write_bytes(
        gguf(
            [array("tokens", STRING, 3000, tokens), array("scores", F32, 3000, scores)],
            [record("a", [32], 0, 0)],
        )
        + bytes(4096)
    )
    data, cut = path.read_bytes(), tmp_path / "cut.gguf"
    end = read_header(path).end
    for size in (24, 30, 60, 200, 20_000, 24_000, end - 60, end - 1):
        cut.write_bytes(data[:size])
        for header_only in (False, True):
            with pytest.raises(CheckpointError, match="ends within its header") as caught:
                read_header(cut, header_only=header_only)
            assert "it is truncated" in caught.value.message
            assert caught.value.hint.startswith("download more of it")
