"""The members of a zip archive: where the standard library finds them, and nothing that is not one thing."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.errors import CheckpointError
from ggplan.sources.zip_records import read_records

MEMBERS = {"m/data.pkl": b"pickle", "m/data/0": bytes(range(200)), "m/data/1": b"", "m/byteorder": b"little"}


def archive(
    members: dict[str, bytes] = MEMBERS, compression: int = zipfile.ZIP_STORED, comment: bytes = b""
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
        file.comment = comment
    return buffer.getvalue()


def written(folder: Path, data: bytes) -> Path:
    path = folder / "m.bin"
    path.write_bytes(data)
    return path


def with_zip64_end(data: bytes) -> bytes:
    """The same archive with the end records of large ones, as torch always writes them."""
    _, _, _, _, count, n_bytes, offset, _ = struct.unpack("<4s4H2IH", data[-22:])
    at = len(data) - 22
    end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, n_bytes, offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
    return data[:at] + end + locator + data[at:]


@pytest.mark.parametrize("wide", [False, True])
def test_members_lie_where_they_are(tmp_path: Path, wide: bool) -> None:
    data = with_zip64_end(archive()) if wide else archive()
    found = read_records(written(tmp_path, data))
    assert {name: data[r.offset : r.offset + r.n_bytes] for name, r in found.items()} == MEMBERS


def damaged(data: bytes, at: int, change: bytes) -> bytes:
    return data[:at] + change + data[at + len(change) :]


SOUND = archive()
DIRECTORY = SOUND.index(b"PK\x01\x02")
WIDE = with_zip64_end(SOUND)
N = 1 << 30
REFUSED = {
    "nothing": (b"", "not a zip archive"),
    "a pickle": (b"\x80\x02}q\x00." + bytes(40), "not a zip archive"),
    "something before": (b"MZ" + SOUND, "not a zip archive"),
    "something behind": (SOUND + b"\x80\x04", "does not end as a zip archive does"),
    "another archive behind": (SOUND + archive({"m/data.pkl": b"x"}), "does not lie right before"),
    "a comment": (archive(comment=b"hi"), "does not end as a zip archive does"),
    "cut": (SOUND[:-5], "does not end"),
    "compressed": (archive({"m/data/0": bytes(1000)}, zipfile.ZIP_DEFLATED), "compressed"),
    "encrypted": (damaged(SOUND, DIRECTORY + 8, b"\x01"), "encrypted"),
    "larger than the file": (damaged(SOUND, DIRECTORY + 20, struct.pack("<II", N, N)), "outside the file"),
    "two sizes": (damaged(SOUND, DIRECTORY + 20, struct.pack("<I", 1)), "compressed"),
    "a member behind the end": (damaged(SOUND, DIRECTORY + 42, struct.pack("<I", N)), "outside the file"),
    "two names": (damaged(SOUND, 30, b"n"), "another name where it lies"),
    "two members of one name": (SOUND.replace(b"m/data/1", b"m/data/0"), "there twice"),
    "members upon one another": (SOUND.replace(b"m/data/1", b"m/data/0", 1), "another name"),
    "too few": (damaged(SOUND, len(SOUND) - 14, struct.pack("<HH", 1, 1)), "bytes too many"),
    "too many": (damaged(SOUND, len(SOUND) - 14, struct.pack("<HH", 9, 9)), "cut short"),
    "two ends that differ": (damaged(WIDE, len(WIDE) - 14, struct.pack("<HH", 9, 9)), "end records differ"),
    "a locator to nowhere": (damaged(WIDE, len(WIDE) - 34, struct.pack("<Q", 1 << 60)), "side by side"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    data, said = REFUSED[case]
    with pytest.raises(CheckpointError, match=said) as caught:
        read_records(written(tmp_path, data))
    assert str(caught.value).isprintable()


def test_overlapping_members(tmp_path: Path) -> None:
    # The second entry leads to the first member, which has taken its name.
    twice = archive({"a": b"12345678", "b": b"12345678"})
    first, second = (i for i in range(len(twice)) if twice.startswith(b"PK\x01\x02", i))
    twice = damaged(twice, second + 42, twice[first + 42 : first + 46])
    with pytest.raises(CheckpointError, match="another name"):
        read_records(written(tmp_path, twice))


def assert_printable(error: CheckpointError) -> None:
    assert str(error).isprintable()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(WIDE) - 1), st.binary(min_size=1, max_size=8), st.integers(0, 3))
def test_any_change_gives_an_error_or_members_inside_the_file(
    tmp_path_factory: pytest.TempPathFactory, at: int, change: bytes, cut: int
) -> None:
    data = damaged(WIDE, at, change)[: len(WIDE) - cut]
    path = written(tmp_path_factory.getbasetemp(), data)
    try:
        records = read_records(path)
    except CheckpointError as error:
        assert_printable(error)
        return
    end = 0
    for record in records.values():
        assert end <= record.offset <= record.offset + record.n_bytes <= len(data)
        end = record.offset + record.n_bytes
