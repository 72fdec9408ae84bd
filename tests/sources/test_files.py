from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ggplan.errors import CheckpointError
from ggplan.sources.files import file_size, listed, read_at, read_into, read_rectangle, read_whole, shown


def test_reads_at_a_position(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(100)))
    assert file_size(path) == 100
    assert read_at(path, 10, 5) == bytes(range(10, 15))
    assert read_at(path, 100, 0) == b""
    target = bytearray(20)
    read_into(path, 80, memoryview(target))
    assert target == bytes(range(80, 100))


@pytest.mark.parametrize("row_bytes", [8, 20_000, 9_000_000])  # read whole, row by row, and in pieces
@pytest.mark.parametrize(
    ("rows", "columns"), [((0, 2), (0, 8)), ((1, 2), (3, 7)), ((0, 2), (5, 5)), ((1, 1), (0, 4))]
)
def test_a_part_of_each_of_some_rows(
    tmp_path: Path, row_bytes: int, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    path = tmp_path / "f"
    matrix = np.random.default_rng(row_bytes).integers(0, 256, (2, row_bytes), np.uint8)
    path.write_bytes(b"12345" + matrix.tobytes())
    wide = columns[0], columns[1] if columns[1] < 8 else row_bytes
    for left, right in (columns, wide):
        found = read_rectangle(path, 5, row_bytes, rows, (left, right))
        assert np.array_equal(found, matrix[rows[0] : rows[1], left:right])
    with pytest.raises(CheckpointError, match="is truncated"):
        read_rectangle(path, 6, row_bytes, (1, 2), (row_bytes - 4, row_bytes))


@pytest.mark.parametrize(("offset", "n_bytes"), [(0, 101), (99, 2), (100, 1), (10**15, 1)])
def test_a_short_file_is_named(tmp_path: Path, offset: int, n_bytes: int) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match="weights shrank or is truncated"):
        read_at(path, offset, n_bytes)
    with pytest.raises(CheckpointError, match="weights shrank or is truncated"):
        read_into(path, offset, memoryview(bytearray(n_bytes)))


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a device", "a socket"])
def test_only_files_are_opened(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "thing"
    match kind:
        case "a folder":
            path.mkdir()
        case "a named pipe":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
        case "a socket":
            import socket

            monkeypatch.chdir(tmp_path)  # a socket's path must be short
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind("thing")
    for read in (file_size, lambda p: read_at(p, 0, 1), lambda p: read_whole(p, 9)):
        with pytest.raises(CheckpointError, match=f"thing is not a file but {kind}"):
            read(path)


def test_what_the_system_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*gone: No such file"):
        read_at(tmp_path / "gone", 0, 1)
    with pytest.raises(CheckpointError, match=r"cannot read .*: embedded null"):
        file_size(tmp_path / "a\0b")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(CheckpointError, match=r"cannot read .*loop: Too many levels"):
        file_size(loop)


def test_small_files_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(11))
    assert read_whole(path, 11) == bytes(11)
    with pytest.raises(CheckpointError, match="11 bytes; such a file may have 10"):
        read_whole(path, 10)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(100))
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        read_at(path, 0, 100)
        with pytest.raises(CheckpointError):
            read_at(path, 0, 101)
    assert len(os.listdir("/dev/fd")) == before


def test_names_are_shown_escaped_and_cut() -> None:
    assert shown("blk.0.ffn_up.weight") == "blk.0.ffn_up.weight"
    assert shown("a\x1b[2Jb\r") == r"a\x1b[2Jb\r"
    assert len(shown("x" * 10**6)) < 200
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(k) for k in range(9)]) == "0, 1, 2, 3, 4 and 4 more"
