"""The journal of a conversion, `OUT.gguf.part.journal`: which bytes are durable on the disk.

It is a text file that only grows, one JSON object a line, each line with the start of its own SHA-256:

    {"plan": {"ggplan": "0.1.0", "the recipe": "9c1f…", …}} 5be0a3d1c7e2f904
    {"bytes": 268435456, "file": 0, "sha256": "77ab…", "tensor": "blk.3.ffn_up_exps.weight"} 0c4e…

The first line is the plan's fingerprint. Each other line says that the first `bytes` bytes of a tensor are
written and durable, and have this hash; the line is written after that. For a whole tensor it also gives, as
`source`, the hash of the weights it was made of. A tensor's bytes are hashed in order, so one running hash
serves the journal and, when the tensor is whole, the manifest.

A line that does not match its own hash was cut off by a crash or damaged, and is ignored: the work it
describes is done again. The journal also keeps two runs apart: a run holds its lock (flock).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ggplan.conversion.fingerprint import Fingerprint
from ggplan.errors import ConversionError
from ggplan.text import printable

_SIZE_LIMIT = 1 << 30
_CHECK_DIGITS = 16
NO_SOURCE = "none"
"""In place of the hash of its weights, for a tensor that is made of more than its weights."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Mark:
    """The first `n_bytes` bytes of a tensor, and their SHA-256 in hex digits.

    `source` is the hash of the weights, of a tensor that is whole; or `NO_SOURCE`.
    """

    n_bytes: int
    sha256: str
    source: str = ""


TensorKey = tuple[int, str]
"""The number of the output's file, and the tensor's name."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The contents of a journal: its plan (None if that cannot be read) and the marks."""

    plan: Fingerprint | None = None
    marks: dict[TensorKey, list[Mark]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Journal:
    """An open journal, locked by this process."""

    path: Path
    descriptor: int

    def read(self) -> Recorded:
        """Read all undamaged lines."""
        size = os.fstat(self.descriptor).st_size
        if size > _SIZE_LIMIT:
            return Recorded()
        recorded = Recorded()
        plan = None
        for line in _pread_all(self.descriptor, size).split(b"\n"):
            entry = _parse(line)
            if isinstance(entry.get("plan"), dict):
                plan = {str(label): str(value) for label, value in entry["plan"].items()}  # type: ignore[attr-defined]
                recorded.marks.clear()
            elif "tensor" in entry:
                _add_mark(recorded, entry)
        return Recorded(plan, recorded.marks) if plan is not None else Recorded()

    def begin(self, plan: Fingerprint) -> None:
        """Discard all records, and begin again with this plan."""
        os.ftruncate(self.descriptor, 0)
        self._append([{"plan": plan}])

    def record(self, marks: Iterable[tuple[TensorKey, Mark]]) -> None:
        """Add marks; the bytes they describe must be durable by now."""
        entries = [
            {"file": file, "tensor": name, "bytes": mark.n_bytes, "sha256": mark.sha256}
            | ({"source": mark.source} if mark.source else {})
            for (file, name), mark in marks
        ]
        if entries:
            self._append(entries)

    def _append(self, entries: Iterable[dict[str, object]]) -> None:
        at = os.fstat(self.descriptor).st_size
        # An incomplete line is ended first, so that new records begin on a line of their own.
        torn = at > 0 and os.pread(self.descriptor, 1, at - 1) != b"\n"
        data = (b"\n" if torn else b"") + b"".join(_line(entry) for entry in entries)
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, at)
            view, at = view[written:], at + written
        os.fsync(self.descriptor)

    def remove(self) -> None:
        """Delete the journal, and with it the lock."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        os.close(self.descriptor)

    def close(self) -> None:
        """Release the lock; an empty journal is removed."""
        if os.fstat(self.descriptor).st_size == 0:
            self.remove()
        else:
            os.close(self.descriptor)


def open_journal(path: Path) -> Journal:
    """Open or create a journal and lock it.

    Raises
    ------
    ConversionError
        If another run holds the lock, or the name belongs to something that is not a file.
    OSError
        If the file cannot be created.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            _lock(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        # The run that held the lock may have removed the file meanwhile; then a new one must be created.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return Journal(path, descriptor)
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        shown = printable(str(path)).removesuffix(".part.journal")
        raise ConversionError(
            f"another run is writing {shown}", hint="wait for it, or give this one another name"
        ) from None
    except OSError as error:
        # Some network file systems have no locks.
        if error.errno not in _NO_LOCKS:
            raise


def _line(entry: dict[str, object]) -> bytes:
    text = json.dumps(entry, sort_keys=True).encode("ascii")
    return text + b" " + _check(text) + b"\n"


def _check(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_CHECK_DIGITS].encode("ascii")


def _parse(line: bytes) -> dict[str, object]:
    """The object of a line; empty for a damaged line."""
    text, _, check = line.rpartition(b" ")
    if not text or check != _check(text):
        return {}
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _add_mark(recorded: Recorded, entry: dict[str, object]) -> None:
    file, name, n_bytes, sha256 = (entry.get(key) for key in ("file", "tensor", "bytes", "sha256"))
    if (
        isinstance(file, int)
        and isinstance(name, str)
        and isinstance(n_bytes, int)
        and isinstance(sha256, str)
    ):
        source = entry.get("source", "")
        mark = Mark(n_bytes, sha256, source if isinstance(source, str) else "")
        recorded.marks.setdefault((file, name), []).append(mark)


def _pread_all(descriptor: int, size: int) -> bytes:
    parts = []
    at = 0
    while at < size and (part := os.pread(descriptor, size - at, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)
