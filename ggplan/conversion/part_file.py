"""A file of the output while it is being written: `OUT.gguf.part`.

It has its final size from the start. If the file system supports it, its space is reserved too
(posix_fallocate), so that a disk which is too small fails in the first second instead of the fifth hour. If
the file system does not, glibc imitates the call by writing a byte to every block; Linux' own fallocate shows
which is the case.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ggplan.errors import ConversionError
from ggplan.planning import Plan
from ggplan.text import format_bytes, printable


@dataclass(frozen=True, slots=True)
class PartFile:
    """An open file of the output.

    Attributes
    ----------
    number
        Its number in the set, from 0.
    path, part
        Its final name, and the name it has until it is complete.
    plan
        The plan of its contents.
    is_final
        Whether it already has the final name, because an earlier run was stopped after renaming it.
    """

    number: int
    path: Path
    part: Path
    plan: Plan
    descriptor: int
    is_final: bool = False

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of `data` at `offset`; the system may take it in pieces."""
        while data.nbytes:
            written = os.pwrite(self.descriptor, data, offset)
            data, offset = data[written:], offset + written

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Up to `n_bytes` from `offset` on, less at the end of the file."""
        return os.pread(self.descriptor, n_bytes, offset)

    def write_all_but_weights(self) -> None:
        """Give the file its size, and write everything except weights: the header, zeros between tensors."""
        plan = self.plan
        os.ftruncate(self.descriptor, plan.file_bytes)
        self.write(memoryview(plan.header), 0)
        data_at = len(plan.header)
        ends = [tensor.offset for tensor in plan.tensors[1:]] + [plan.data_bytes]
        for tensor, end in zip(plan.tensors, ends, strict=False):
            at = tensor.offset + tensor.n_bytes
            self.write(memoryview(bytes(end - at)), data_at + at)

    def has_size_and_header(self) -> bool:
        """Whether the file has the planned size and header."""
        size = os.fstat(self.descriptor).st_size
        header = self.plan.header
        return size == self.plan.file_bytes and self.read(0, len(header)) == header

    def sync_data(self) -> None:
        """Make the written data durable."""
        getattr(os, "fdatasync", os.fsync)(self.descriptor)

    def sync(self) -> None:
        """Make the whole file durable, its size and times too."""
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Close the file; it stays where it is."""
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


def part_path(path: Path) -> Path:
    """The name a file has until it is complete."""
    return path.with_name(path.name + ".part")


def open_part(number: int, path: Path, plan: Plan, *, keep: bool) -> PartFile:
    """Open the part file of an output, a new one unless it exists and `keep` is true."""
    part = part_path(path)
    if not keep:
        part.unlink(missing_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o666)
    return PartFile(number, path, part, plan, descriptor)


def open_final(number: int, path: Path, plan: Plan) -> PartFile:
    """Open a file that has its final name already, to read it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return PartFile(number, path, part_path(path), plan, descriptor, is_final=True)


def check_space(paths: list[tuple[Path, int]]) -> None:
    """Refuse a folder with too little room for part files of these sizes; blocks they already have are free.

    Raises
    ------
    ConversionError
        Naming the file, the bytes it needs and those that are free.
    """
    folder = paths[0][0].parent
    missing = 0
    for part, n_bytes in paths:
        with contextlib.suppress(OSError):
            missing -= min(os.stat(part, follow_symlinks=False).st_blocks * 512, n_bytes)
        missing += n_bytes
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < missing:
        shown = printable(str(paths[0][0])).removesuffix(".part")
        raise ConversionError(
            f"{shown} needs {format_bytes(missing)} and {printable(str(folder))} has "
            f"{format_bytes(free)} free",
            hint="make room, or write to another disk",
        )


def reserve(part: PartFile) -> None:
    """Reserve the disk space of a part file, where the file system can."""
    n_bytes = part.plan.file_bytes
    if n_bytes and hasattr(os, "posix_fallocate") and _has_fallocate(part.descriptor):
        os.posix_fallocate(part.descriptor, 0, n_bytes)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, so that they survive a power cut, if the system can do that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _has_fallocate(descriptor: int) -> bool:
    """Whether the file system reserves space itself, asked by reserving one byte."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return int(call(descriptor, 0, 0, 1)) == 0 or ctypes.get_errno() != errno.EOPNOTSUPP
