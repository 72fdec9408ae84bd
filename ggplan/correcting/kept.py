"""The finished layers of a correction, in a folder beside the output: `OUT.gguf.layers`.

    run.json                   by which the folder is known: the digest of the run
    layer-003.safetensors      the blocks of the layer's tensors, as bytes; in its metadata the digests of the
                               run, of the blocks, and of the states after the layer
    states-004.original.f32    the hidden states that the next layer gets, in the original model
    states-004.quantized.f32   and in the quantized one

A layer's file appears when both files of states after it are complete, and the states before it are removed
then. So a run that was stopped at any moment goes on with the first layer whose file is missing; what it does
again gives the same bytes. A file of another run (another text, recipe, version) or damaged is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.errors import CheckpointError, ConversionError
from ggplan.model import RowSource
from ggplan.planning import PlannedTensor
from ggplan.sources.files import read_rows, rows_in_file, shown
from ggplan.sources.safetensors import read_metadata, read_tensors

F32Array = NDArray[np.float32]
_FORMAT = "ggplan.corrected/1"
_MARKER = "run.json"
_STREAMS = ("original", "quantized")
_PIECE = 1 << 22
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Corrected:
    """The blocks of corrected tensors.

    Attributes
    ----------
    folder
        Where they are, until the output is written.
    run
        The digest of what they depend on.
    blocks
        The rows of each tensor as the output will have them, by name.
    left
        Quantized tensors of the layers whose weights were not corrected, and why.
    notes
        What else is to be said.
    """

    folder: Path
    run: str
    blocks: Mapping[str, RowSource]
    left: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class KeptLayers:
    """The folder while layers are corrected."""

    folder: Path
    run: str
    made: set[str] = field(default_factory=set)

    def open(self, *, restart: bool = False) -> None:
        """Make the folder.

        Raises
        ------
        ConversionError
            If it has another run's work, which may not be discarded, or is somebody else's.
        """
        refuse_foreign(self.folder)
        if restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(exist_ok=True)
        marker = self.folder / _MARKER
        text = json.dumps({"format": _FORMAT, "run": self.run}) + "\n"
        if marker.exists():
            if marker.read_text(encoding="utf-8", errors="replace") != text:
                raise ConversionError(
                    f"{shown(self.folder)} has layers corrected under another plan or for another text",
                    hint="repeat the command it was begun with, or discard it with --restart",
                )
            return
        part = marker.with_name(marker.name + ".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, marker)

    def states(self, layer: int, stream: str) -> Path:
        """The file of the hidden states that a layer gets."""
        return self.folder / f"states-{layer:03}.{stream}.f32"

    def file(self, layer: int) -> Path:
        """A layer's file."""
        return self.folder / f"layer-{layer:03}.safetensors"

    def n_done(self, n_layers: int) -> int:
        """How many layers are finished; 0 if the states after them are not there, or not as they were."""
        done = next((k for k in range(n_layers) if not self.is_done(k)), n_layers)
        if done in (0, n_layers):
            return done
        return done if read_metadata(self.file(done - 1)).get("states") == self._states_digest(done) else 0

    def is_done(self, layer: int) -> bool:
        """Whether a layer's file is there, whole and of this run."""
        try:
            metadata = read_metadata(self.file(layer))
            return metadata.get("run") == self.run and metadata.get("blocks") == self._digest(layer)
        except (CheckpointError, OSError):
            return False

    def finish(
        self, layer: int, blocks: Mapping[str, NDArray[np.uint8]], left: Mapping[str, str] = _NONE
    ) -> None:
        """Write a layer's file, and remove the states before it."""
        from safetensors.numpy import save_file

        digest = hashlib.sha256()
        for name in sorted(blocks):
            digest.update(f"{name} {blocks[name].shape}\n".encode())
            digest.update(np.ascontiguousarray(blocks[name]).data)
        metadata = {
            "ggplan": _FORMAT,
            "run": self.run,
            "blocks": digest.hexdigest(),
            "left": json.dumps(dict(left)),
            "states": self._states_digest(layer + 1),
        }
        path = self.file(layer)
        part = path.with_name(path.name + ".part")
        save_file({name: np.ascontiguousarray(b) for name, b in blocks.items()}, part, metadata)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        for stream in _STREAMS:
            self.states(layer, stream).unlink(missing_ok=True)

    def corrected(self, layers: range, tensors: Mapping[str, PlannedTensor]) -> Corrected:
        """The blocks of all layers."""
        found: dict[str, RowSource] = {}
        left: dict[str, str] = {}
        for layer in layers:
            left |= json.loads(read_metadata(self.file(layer))["left"])
            for name, stored in read_tensors(self.file(layer)).items():
                planned = tensors[name]
                found[name] = rows_in_file(stored.file, stored.offset, planned.type, planned.tensor.shape)
        return Corrected(self.folder, self.run, found, left)

    def _states_digest(self, layer: int) -> str:
        """The digest of the states that a layer gets; "" if they are not there."""
        digest = hashlib.sha256()
        try:
            for stream in _STREAMS:
                with self.states(layer, stream).open("rb") as file:
                    while piece := file.read(_PIECE):
                        digest.update(piece)
        except OSError:
            return ""
        return digest.hexdigest()

    def _digest(self, layer: int) -> str:
        """The digest of the blocks in a layer's file."""
        digest = hashlib.sha256()
        stored = read_tensors(self.file(layer))
        for name in sorted(stored):
            digest.update(f"{name} {stored[name].shape}\n".encode())
            with stored[name].file.open("rb") as file:
                file.seek(stored[name].offset)
                rest = stored[name].n_bytes
                while rest and (piece := file.read(min(rest, _PIECE))):
                    digest.update(piece)
                    rest -= len(piece)
        return digest.hexdigest()


def is_ours(folder: Path) -> bool:
    """Whether a folder is one of kept layers, or has nothing in it."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = {entry.name for entry in folder.iterdir()}
    if names <= {f"{_MARKER}.part"}:
        return True
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        return isinstance(found, dict) and found.get("format") == _FORMAT
    return False


def layer_files(folder: Path) -> list[Path]:
    """The files of finished layers in a folder."""
    return sorted(folder.glob("layer-*.safetensors"))


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that has something else in it: it would be removed when the output is complete.

    Raises
    ------
    ConversionError
        Naming it.
    """
    if os.path.lexists(folder) and not is_ours(folder):
        raise ConversionError(
            f"{shown(folder)} is there, where finished layers are to be kept, and is none of ggplan's",
            hint="move it away, or give the output another name",
        )


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Some rows of a file, read when they are asked for: a mapped file would count as memory.

    Attributes
    ----------
    path, width
        The file, and the numbers of each row in it.
    numbers
        Those of the rows.
    columns
        The columns that are meant; None for all.
    """

    path: Path
    width: int
    numbers: NDArray[np.int64]
    columns: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""
        return len(self.numbers), self.width if self.columns is None else len(self.columns)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, run: slice, /) -> F32Array:
        rows = read_rows(self.path, 0, 4 * self.width, self.numbers[run]).view(np.float32)
        return rows if self.columns is None else np.ascontiguousarray(rows[:, list(self.columns)])

    def only(self, numbers: NDArray[np.int64]) -> KeptRows:
        """Some of the rows, ascending."""
        return replace(self, numbers=self.numbers[numbers])

    def of_columns(self, columns: tuple[int, ...] | None) -> KeptRows:
        """Some of the columns; None for all."""
        return self if columns is None else replace(self, columns=columns)


class Scratch:
    """Rows of inputs on the disk, while a layer is corrected: the folder `inputs` beside the layers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "inputs"
        self.files: dict[str, Any] = {}

    def __enter__(self) -> Scratch:
        self._clear()
        self.folder.mkdir()
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.files):
            self.close(name)
        self._clear()

    def _clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, name: str, rows: F32Array) -> None:
        """Add rows to a file."""
        if name not in self.files:
            self.files[name] = (self.folder / name).open("wb")
        self.files[name].write(np.ascontiguousarray(rows).data)

    def close(self, name: str) -> None:
        """No more rows are added."""
        if (file := self.files.pop(name, None)) is not None:
            file.close()

    def rows(self, name: str, n_columns: int) -> KeptRows:
        """All rows of a file; none if there is no file."""
        path = self.folder / name
        n_rows = path.stat().st_size // (4 * n_columns) if path.exists() else 0
        return KeptRows(path, n_columns, np.arange(n_rows))

    def remove(self, name: str) -> None:
        """Delete a file."""
        (self.folder / name).unlink(missing_ok=True)
