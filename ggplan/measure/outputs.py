"""What a measurement writes: checked before an engine starts, and complete before it has its name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from ggplan.errors import MeasureError
from ggplan.text import printable


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name, then rename it, so that an incomplete file never has the final name.

    Raises
    ------
    MeasureError
        If it cannot be written.
    """
    part = _part_of(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise MeasureError(f"cannot write {printable(str(path))}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a path that `write_whole` could not write; a file beside it is created and removed to find out.

    Raises
    ------
    MeasureError
        If it is a folder or a device, or its folder does not exist or cannot be written.
    """
    shown = printable(str(path))
    if path.exists() and not path.is_file():
        raise MeasureError(f"cannot write {shown}: it is {'a folder' if path.is_dir() else 'no file'}")
    if not path.absolute().parent.is_dir():
        raise MeasureError(f"cannot write {shown}: its folder does not exist")
    part = _part_of(path)
    try:
        part.open("xb").close()
        part.unlink()
    except OSError as error:
        raise MeasureError(f"cannot write {shown}: {error.strerror}") from error


def is_of_another_kind(path: Path, start: bytes) -> bool:
    """Whether there is a file that does not begin as files of a kind do; an empty one is of any kind.

    Raises
    ------
    MeasureError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = file.read(len(start))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise MeasureError(f"cannot read {printable(str(path))}: {error.strerror}") from error
    return found not in (b"", start)


def find_same(path: Path, others: Iterable[Path]) -> Path | None:
    """The first of some paths that leads to the same file, by a symbolic or a hard link too, or None."""
    wanted = _identity(path)
    return next((other for other in others if _identity(other) == wanted), None)


def _identity(path: Path) -> tuple[object, ...]:
    """Device and inode of a file; where none is yet, its path with all links resolved."""
    try:
        status = os.stat(path)
    except OSError:
        return (os.path.realpath(path),)
    return status.st_dev, status.st_ino


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.part")
