"""The state of the input files: is this still what the plan was made from?

A conversion that is resumed after days must not mix two versions of a checkpoint, and no reader notices that
a file of the same size has other weights. Size, time of change and the hash of the header show it, unless
they are forged, and take milliseconds; hashing 700 GB would take a quarter of an hour.

The length of a safetensors header is in the first eight bytes of the file; of any other file the first 4 MiB
are hashed instead.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ggplan.errors import CheckpointError
from ggplan.planning import Plan
from ggplan.sources.files import file_size, read_at, shown

_HEADER_LIMIT = 100_000_000  # of safetensors
_BEGINNING = 4 << 20


@dataclass(frozen=True, slots=True)
class InputState:
    """One file: its size, when it was changed, and the SHA-256 of its header."""

    size: int
    mtime_ns: int
    header: str

    def __str__(self) -> str:
        return f"{self.size} bytes, changed {self.mtime_ns}, header {self.header}"


def input_files(plan: Plan) -> tuple[Path, ...]:
    """The files a conversion reads."""
    return plan.model.files + (() if plan.imatrix is None else (plan.imatrix.path,))


def input_states(plan: Plan) -> dict[Path, InputState]:
    """The state of each input.

    Raises
    ------
    CheckpointError
        If a file is gone or cannot be read.
    """
    return {path: _state(path) for path in input_files(plan)}


def changed_input(states: dict[Path, InputState]) -> Path | None:
    """The first file whose size or time has changed; None if none has."""
    for path, state in states.items():
        try:
            now = os.stat(path)
        except OSError:
            return path
        if (now.st_size, now.st_mtime_ns) != (state.size, state.mtime_ns):
            return path
    return None


def _state(path: Path) -> InputState:
    size = file_size(path)
    try:
        mtime_ns = os.stat(path).st_mtime_ns
    except OSError as error:
        raise CheckpointError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    length = _BEGINNING
    if path.suffix == ".safetensors" and size >= 8:
        length = 8 + min(int.from_bytes(read_at(path, 0, 8), "little"), _HEADER_LIMIT)
    return InputState(size, mtime_ns, hashlib.sha256(read_at(path, 0, min(length, size))).hexdigest())
