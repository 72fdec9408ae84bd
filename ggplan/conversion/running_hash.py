"""The SHA-256 of a tensor whose bytes arrive in pieces, from several threads and in any order.

A hash needs its bytes in order, so a piece that comes early waits for the pieces before it. The thread that
fills the gap hashes all pieces that are now in order; the others continue with their work.
"""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

from ggplan.conversion.journal import Mark

if TYPE_CHECKING:
    from hashlib import _Hash


class RunningHash:
    """The hash of the first `done` bytes of a tensor of `n_bytes`.

    `expected` is the known hash of the whole, in hex digits; no mark is made until the whole has that hash.
    """

    expected: str | None = None

    def __init__(self, n_bytes: int, done: int = 0, kept: _Hash | None = None) -> None:
        self.n_bytes = n_bytes
        self.done = done
        self._hash = kept or hashlib.sha256()
        self._snapshot = self._hash.copy()
        self._marked = done
        self._lock = threading.Lock()
        self._waiting: dict[int, memoryview] = {}
        self._busy = False

    @property
    def complete(self) -> bool:
        """Whether all bytes have been added."""
        return self.done == self.n_bytes

    def add(self, data: memoryview, start: int) -> int:
        """Add the bytes from `start` on; returns how many pieces, also earlier ones, could now be hashed."""
        with self._lock:
            self._waiting[start] = data
            if self._busy:
                return 0
            self._busy = True
        n_pieces = 0
        while True:
            with self._lock:
                piece = self._waiting.pop(self.done, None)
                if piece is None:
                    self._busy = False
                    return n_pieces
            self._hash.update(piece)
            with self._lock:
                self.done += len(piece)
                self._snapshot = self._hash.copy()
            n_pieces += 1

    @property
    def is_wrong(self) -> bool:
        """Whether all bytes have been added, and do not have the expected hash."""
        return self.expected is not None and self.complete and self.mark().sha256 != self.expected

    def mark(self) -> Mark:
        """The number of bytes hashed so far, and their hash."""
        with self._lock:
            done, snapshot = self.done, self._snapshot
        return Mark(done, snapshot.hexdigest())

    def new_mark(self) -> Mark | None:
        """As `mark`, or None if nothing was hashed since the last call."""
        if self.done == self._marked or (self.expected is not None and not self.complete):
            return None
        mark = self.mark()
        if self.expected not in (None, mark.sha256):
            return None
        self._marked = mark.n_bytes
        return mark
