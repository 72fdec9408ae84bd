"""The state of the input files: is this still what the plan was made from?

A conversion that is resumed after days must not mix two versions of a checkpoint, and no reader notices that
a file of the same size has other weights. Size, time of change and the hash of the header show it, unless
they are forged, and take milliseconds; hashing 700 GB would take a quarter of an hour. A file on a server has
its hash or ETag instead, and its header is not read again for this.

The length of a safetensors header is in the first eight bytes of the file; of any other file the first 4 MiB
are hashed instead.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ggplan.errors import CheckpointError
from ggplan.planning import Plan
from ggplan.sources.files import file_size, read_at, size_and_version
from ggplan.sources.remote import RemotePath, each

_HEADER_LIMIT = 100_000_000  # of safetensors
_BEGINNING = 4 << 20


@dataclass(frozen=True, slots=True)
class InputState:
    """One file: its size, when it was changed or a server's version, and the SHA-256 of its header."""

    size: int
    version: str
    header: str

    def __str__(self) -> str:
        return f"{self.size} bytes, {self.version}, header {self.header}"


def input_files(plan: Plan) -> tuple[Path, ...]:
    """The files a conversion reads."""
    files = plan.model.files + (() if plan.imatrix is None else (plan.imatrix.path,))
    if plan.feedback is not None:
        # It has the SHA-256 of all other files of the folder, which are checked when they are read.
        files += (plan.feedback.calibration.path / "calibration.json",)
    return files


def input_states(plan: Plan) -> dict[Path, InputState]:
    """The state of each input.

    Raises
    ------
    CheckpointError
        If a file is gone or cannot be read.
    """
    paths = input_files(plan)
    return dict(zip(paths, each(paths, _state), strict=True))


def changed_input(states: dict[Path, InputState]) -> Path | None:
    """The first file whose size or time has changed; None if none has."""
    for path, state in states.items():
        try:
            now = size_and_version(path)
        except CheckpointError:
            return path
        if now != (state.size, state.version):
            return path
    return None


def _state(path: Path) -> InputState:
    file_size(path)  # which refuses what is no such file
    size, version = size_and_version(path)
    if isinstance(path, RemotePath) and path.file().version:
        return InputState(size, version, "not read")
    length = _BEGINNING
    if path.suffix == ".safetensors" and size >= 8:
        length = 8 + min(int.from_bytes(read_at(path, 0, 8), "little"), _HEADER_LIMIT)
    return InputState(size, version, hashlib.sha256(read_at(path, 0, min(length, size))).hexdigest())
