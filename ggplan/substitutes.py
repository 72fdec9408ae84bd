"""What may lie where a file should: a Git LFS pointer, or the page that a server sent instead of the file.

A pointer is a text of at most 1,024 bytes that a clone without LFS leaves in the place of each large file
(git-lfs, `docs/spec.md`). Every reader of files asks this before it says that a file is damaged; those of
small files read them here as a whole.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
from dataclasses import dataclass
from pathlib import Path

from ggplan.errors import Error
from ggplan.text import printable

START = 1024
"""The most bytes that a pointer has."""

WAIT_FOR_WRITER = 5.0
"""Seconds that a pipe with a name is waited for until something begins to write into it."""

# The second is of the versions before the first release.
_POINTER = re.compile(rb"version https://(?:git-lfs\.github|hawser\.github)\.com/spec/v\d+\r?\n")
_POINTER_SIZE = re.compile(rb"^size (\d{1,19})\r?$", re.MULTILINE)
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html[\s>])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Substitute:
    """`what` continues a sentence that begins `FILE is`; `hint` says how to get the file."""

    what: str
    hint: str


def find_substitute(start: bytes, path: str | Path) -> Substitute | None:
    """What a file is instead, by its first `START + 1` bytes or more; None for any other file."""
    pointer = _POINTER.match(start) if len(start) <= START else None
    if pointer is not None:
        stated = _POINTER_SIZE.search(start)
        of_size = f" of {int(stated[1]):,} bytes" if stated else ""
        return Substitute(
            f"a Git LFS pointer, not the file{of_size} itself",
            f"run `git lfs pull` in {printable(str(Path(path).parent))}",
        )
    if _PAGE.match(start[:256]):
        return Substitute(
            "a web page (HTML), not the file of this name",
            "the server may want a login: download the file again with `hf download`",
        )
    return None


def read_limited(path: str | Path, limit: int, what: str, error: type[Error]) -> bytes:
    """All bytes of a file, or of a pipe that has a name, such as the shell's `<(command)`.

    Parameters
    ----------
    limit
        The most bytes that it may have.
    what
        What it is read as, for the message about a larger one: `record`, `table of sensitivities`.

    Raises
    ------
    error
        If it cannot be read, has more than `limit` bytes, nothing writes into the pipe that it is
        (`WAIT_FOR_WRITER`), or a Git LFS pointer or a web page is in its place.
    """
    shown = printable(str(path))
    try:
        raw = _start_of(path, limit + 1)
    except IsADirectoryError:
        raise error(f"{shown} is a folder", hint=f"give the path of a {what} in it") from None
    except (OSError, ValueError) as failure:  # a NUL in the name
        reason = failure.strerror if isinstance(failure, OSError) else failure
        raise error(f"cannot read {shown}: {reason}") from failure
    if len(raw) > limit:
        raise error(f"{shown} is larger than any {what} ({limit >> 20} MiB)")
    if (found := find_substitute(raw, path)) is not None:
        raise error(f"{shown} is {found.what}", hint=found.hint)
    return raw


def _start_of(path: str | Path, n_bytes: int) -> bytes:
    """The first bytes of a file or pipe, all of them if it has no more."""
    # Without O_NONBLOCK, opening a pipe would wait for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        start = _awaited(descriptor) if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else b""
        os.set_blocking(descriptor, True)
        return start + file.read(n_bytes - len(start))


def _awaited(pipe: int) -> bytes:
    """Wait until something writes into a pipe: what was read meanwhile.

    A writer that is there may take its time, as standard input's may.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN | select.POLLHUP)
    if poll.poll(1000 * WAIT_FOR_WRITER):
        return b""
    try:
        start = os.read(pipe, 1)
    except BlockingIOError:
        return b""
    if not start:
        raise OSError(errno.ETIMEDOUT, "it is a named pipe, and nothing writes into it")
    return start
