"""What may lie where a file should: a Git LFS pointer, or the page that a server sent instead of the file.

A pointer is a text of at most 1,024 bytes that a clone without LFS leaves in the place of each large file
(git-lfs, `docs/spec.md`). Every reader of files asks this before it says that a file is damaged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ggplan.text import printable

START = 1024
"""The most bytes that a pointer has."""

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
