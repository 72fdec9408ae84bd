"""The SHA-256 of a tensor whose bytes arrive in pieces, from several threads and in any order.

A hash must see its bytes in order, so a piece that comes early waits until those before it are in. The thread
that fills the gap hashes all that can be hashed; the others continue with their work.
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

    `expected` is what the whole is known to have, in hex digits: until it has, nothing of it is marked.
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
        """Whether all bytes are in."""
        return self.done == self.n_bytes

    def add(self, data: memoryview, start: int) -> int:
        """Take the bytes from `start` on; returns how many pieces, this or earlier ones, are hashed by it."""
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
        """Whether all bytes are in, and are not those expected."""
        return self.expected is not None and self.complete and self.mark().sha256 != self.expected

    def mark(self) -> Mark:
        """How far the hash is, and what it is there."""
        with self._lock:
            done, snapshot = self.done, self._snapshot
        return Mark(done, snapshot.hexdigest())

    def new_mark(self) -> Mark | None:
        """As `mark`, or None where nothing came in since this was last asked."""
        if self.done == self._marked or (self.expected is not None and not self.complete):
            return None
        mark = self.mark()
        if self.expected not in (None, mark.sha256):
            return None
        self._marked = mark.n_bytes
        return mark
