"""Reading bytes, and rows of weights, from files that are not trusted.

A read opens the file, reads at a position, and closes it. That costs a few microseconds, little beside reads
of many kilobytes. In return a checkpoint of a thousand shards never reaches the limit of open files, readers
have no state, so any thread may use them, and nothing needs closing.

Only regular files are opened. Opening a FIFO would block forever, and opening a device may have side effects.
Both are refused before the open, and again after it by the descriptor, in case the file was replaced between.

Every reader first asks for a file's size, or reads it whole, and here it is told of a file that stands for
another (see `substitutes`).

A file on a server (`remote.RemotePath`) is read by the same functions: a small one from a copy, others by
ranges.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggplan.errors import CheckpointError, SubstituteError
from ggplan.ggml_types import GgmlType
from ggplan.model import RowSource, empty_rows, require_rows
from ggplan.sources.remote import RemoteFile, RemotePath
from ggplan.substitutes import START, find_substitute
from ggplan.text import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SHOWN_LENGTH = 160
_LISTED = 5
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def shown(text: object) -> str:
    """A path or an untrusted name for a message: escaped, and cut if it is too long."""
    whole = str(text)
    if len(whole) > _SHOWN_LENGTH:
        whole = whole[: _SHOWN_LENGTH - 3] + "..."
    return whole if whole.isprintable() else printable(whole)


def listed(names: list[str]) -> str:
    """The first few of some untrusted names, and how many more there are."""
    some = ", ".join(shown(name) for name in names[:_LISTED])
    return f"{some} and {len(names) - _LISTED} more" if len(names) > _LISTED else some


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The file's descriptor; errors of the system inside the block become a `CheckpointError`."""
    descriptor = -1
    try:
        _require_regular(path, os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        _require_regular(path, os.fstat(descriptor).st_mode)
        yield descriptor
    except OSError as error:
        raise CheckpointError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    except ValueError as error:  # a path with a NUL in it
        raise CheckpointError(f"cannot read {shown(path)}: {error}") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise CheckpointError(f"{shown(path)} is not a file but {kind}")


def _refuse_substitute(path: Path, descriptor: int) -> None:
    """Refuse a Git LFS pointer and a web page that lie where a file should."""
    found = find_substitute(os.pread(descriptor, START + 1, 0), path)
    if found is not None:
        raise SubstituteError(f"{shown(path)} is {found.what}", hint=found.hint)


def _on_server(path: Path) -> RemoteFile | None:
    """The file of a remote path of which there is no copy on this machine; None for any other path."""
    return path.only_remote() if isinstance(path, RemotePath) else None


def _read_start(remote: RemoteFile, path: Path) -> None:
    """Refuse what a server sends in the place of a file."""
    raw = bytearray(min(START + 1, remote.size))
    remote.read_into(0, memoryview(raw))
    if (found := find_substitute(bytes(raw), path)) is not None:
        raise SubstituteError(
            f"{shown(path)} is {found.what}",
            hint="give the address that the page's download button has (on the hub /resolve/, not /raw/)",
        )


def exists(path: Path) -> bool:
    """Whether there is a file or folder of this path."""
    return path.exists() if isinstance(path, RemotePath) else os.path.exists(path)


def file_size(path: Path) -> int:
    """Bytes in a regular file.

    Raises
    ------
    CheckpointError
        If the file cannot be opened, or a Git LFS pointer or a web page is in its place.
    """
    if (remote := _on_server(path)) is not None:
        _read_start(remote, path)
        return remote.size
    with _opened(path) as descriptor:
        _refuse_substitute(path, descriptor)
        return os.fstat(descriptor).st_size


def size_and_version(path: Path) -> tuple[int, str]:
    """The size of a file, and what tells its contents: when it was changed, or a server's hash or ETag.

    Raises
    ------
    CheckpointError
        If it is gone, or was found to be another one on its server.
    """
    if isinstance(path, RemotePath) and (path.file().version or path.only_remote()):
        remote = path.file()  # its copy on this machine has the same version
        if remote.is_changed:
            raise CheckpointError(f"{shown(path)} changed on the server")
        return remote.size, f"version {remote.version}"
    with _opened(path) as descriptor:
        status = os.fstat(descriptor)
        return status.st_size, f"changed {status.st_mtime_ns}"


def read_at(path: Path, offset: int, n_bytes: int) -> bytes:
    """Exactly `n_bytes` from `offset` on.

    Raises
    ------
    CheckpointError
        If the file ends before, or cannot be read.
    """
    if (remote := _on_server(path)) is not None:
        raw = bytearray(n_bytes)
        _read_remote(remote, path, offset, memoryview(raw))
        return bytes(raw)
    parts: list[bytes] = []
    done = 0
    with _opened(path) as descriptor:
        while done < n_bytes:
            part = os.pread(descriptor, n_bytes - done, offset + done)
            if not part:
                raise _truncated(path, offset, n_bytes, done)
            parts.append(part)
            done += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_into(path: Path, offset: int, target: memoryview) -> None:
    """Fill `target`, a contiguous buffer of bytes, with the file's bytes from `offset` on.

    Raises
    ------
    CheckpointError
        If the file ends before the buffer is full, or cannot be read.
    """
    if (remote := _on_server(path)) is not None:
        _read_remote(remote, path, offset, target)
        return
    with _opened(path) as descriptor:
        _fill(path, descriptor, offset, target)


def _fill(path: Path, descriptor: int, offset: int, target: memoryview) -> None:
    done = 0
    while done < len(target):
        n_read = os.preadv(descriptor, [target[done:]], offset + done)
        if n_read == 0:
            raise _truncated(path, offset, len(target), done)
        done += n_read


def _read_remote(remote: RemoteFile, path: Path, offset: int, target: memoryview) -> None:
    if offset + len(target) > remote.size:
        raise _truncated(path, offset, len(target), max(0, remote.size - offset))
    remote.read_into(offset, target)


def read_array(path: Path, offset: int, n_bytes: int) -> NDArray[np.uint8]:
    """As `read_at`, as a new array of bytes."""
    import numpy as np

    raw = np.empty(n_bytes, np.uint8)
    if n_bytes:
        read_into(path, offset, raw.data)
    return raw


# A read of its own for each row of a rectangle costs about as much as reading this many bytes more.
_GAP = 1 << 14
_RECTANGLE_PIECE = 1 << 23


def read_rectangle(
    path: Path, offset: int, row_bytes: int, rows: tuple[int, int], columns: tuple[int, int]
) -> NDArray[np.uint8]:
    """Part of each of some rows, as a new array (rows, bytes).

    Parameters
    ----------
    offset, row_bytes
        Where the first row of the matrix begins, and the bytes of each.
    rows, columns
        The first and the end of the rows, and of the bytes in a row.

    Raises
    ------
    CheckpointError
        As `read_at`.
    """
    import numpy as np

    (first, end), (left, right) = rows, columns
    n_rows, width = end - first, right - left
    if width == row_bytes:
        return read_array(path, offset + first * row_bytes, n_rows * row_bytes).reshape(n_rows, row_bytes)
    found = np.empty((n_rows, width), np.uint8)
    if not found.size:
        return found
    if row_bytes - width <= _GAP:
        step = max(1, _RECTANGLE_PIECE // row_bytes)
        for at in range(0, n_rows, step):
            n = min(step, n_rows - at)
            whole = read_array(path, offset + (first + at) * row_bytes, n * row_bytes)
            found[at : at + n] = whole.reshape(n, row_bytes)[:, left:right]
        return found
    if _on_server(path) is not None:
        band = _band_on_server(path, offset + first * row_bytes, n_rows * row_bytes)
        found[:] = band.reshape(n_rows, row_bytes)[:, left:right]
        return found
    with _opened(path) as descriptor:
        for i, row in enumerate(found):
            at = offset + (first + i) * row_bytes + left
            _fill(path, descriptor, at, row.data)
    return found


# Bands of rows that were read from servers for rectangles: each of the many rectangles of a band would be a
# request for each row.
_BANDS = 3
_bands: OrderedDict[tuple[Path, int, int], NDArray[np.uint8]] = OrderedDict()
_band_locks: dict[tuple[Path, int, int], threading.Lock] = {}
_bands_lock = threading.Lock()


def _band_on_server(path: Path, offset: int, n_bytes: int) -> NDArray[np.uint8]:
    """Whole rows, of which the last few that were asked for are kept; threads wait for one another's."""
    key = path, offset, n_bytes
    with _bands_lock:
        lock = _band_locks.setdefault(key, threading.Lock())
    with lock:
        with _bands_lock:
            if (kept := _bands.get(key)) is not None:
                _bands.move_to_end(key)
                return kept
        band = read_array(path, offset, n_bytes)
        with _bands_lock:
            _bands[key] = band
            while len(_bands) > _BANDS:
                _band_locks.pop(_bands.popitem(last=False)[0], None)
    return band


def read_rows(path: Path, offset: int, row_bytes: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Some rows of a matrix in a file, as a new array (rows, bytes of a row).

    Parameters
    ----------
    offset, row_bytes
        Where the first row of the matrix begins, and the bytes of each.
    rows
        The numbers of the rows, ascending.

    Raises
    ------
    CheckpointError
        As `read_at`.
    """
    import numpy as np

    found = np.empty((len(rows), row_bytes), np.uint8)
    if not found.size:
        return found
    # Rows that follow one another are one read.
    starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1)
    ends = np.append(starts[1:], len(rows))
    with _opened(path) as descriptor:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            target = found[start:end].reshape(-1).data
            _fill(path, descriptor, offset + int(rows[start]) * row_bytes, target)
    return found


def rows_in_file(path: Path, offset: int, dtype: GgmlType, shape: tuple[int, ...]) -> RowSource:
    """The rows of a tensor that are stored one after another in a file, from byte `offset` on."""
    n_columns = shape[-1] if shape else 1
    n_rows, row_bytes = math.prod(shape[:-1]), dtype.row_bytes(n_columns)

    def read(start: int, stop: int) -> NDArray[Any]:
        require_rows(start, stop, n_rows)
        rows = empty_rows(dtype, stop - start, n_columns)
        if rows.size:
            read_into(path, offset + start * row_bytes, rows.reshape(-1).data.cast("B"))
        return rows

    return RowSource(dtype, shape, read)


def begins_with(path: Path, magic: bytes) -> bool:
    """Whether the file's first bytes are `magic`."""
    return read_at(path, 0, min(len(magic), file_size(path))) == magic


def read_whole(path: Path, limit: int) -> bytes:
    """A whole small file, refused if it is larger than `limit` bytes, a Git LFS pointer or a web page."""
    if (remote := _on_server(path)) is not None:
        _refuse_large(path, remote.size, limit)
        if remote.copy() is None:
            _read_start(remote, path)
            return read_at(path, 0, remote.size)
    with _opened(path) as descriptor:
        _refuse_substitute(path, descriptor)
        size = os.fstat(descriptor).st_size
    _refuse_large(path, size, limit)
    return read_at(path, 0, size)


def _refuse_large(path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise CheckpointError(f"{shown(path)} has {size:,} bytes; such a file may have {limit:,}")


def _truncated(path: Path, offset: int, n_bytes: int, done: int) -> CheckpointError:
    return CheckpointError(
        f"{shown(path)} shrank or is truncated: {n_bytes:,} bytes at offset {offset:,} were expected, "
        f"{done:,} are there",
        hint="download the file again and compare its size with the original",
    )


def write_whole(path: Path, pieces: Iterable[bytes]) -> str:
    """Write a file under another name, then rename it, so that the final name never has a part; its SHA-256.

    Raises
    ------
    OSError
        If it cannot be written: each caller has an error of its own for that.
    """
    part = path.with_name(f"{path.name}.part")
    digest = hashlib.sha256()
    try:
        with part.open("wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return digest.hexdigest()
