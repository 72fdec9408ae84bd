"""The folder that a calibration is kept in.

    calibration.json         what it was made of, and what is in the other files (see `index`); written last
    imatrix.gguf             an ordinary imatrix
    tokens.safetensors       the tokens that were run, i32 (chunks, n_ctx)
    layer-000.safetensors    the inputs of the matrices of a layer (see `ggplan.calibration.inputs`)
    outside.safetensors      those of matrices outside the layers, such as output.weight

Each layer's file says in its metadata of which run it is, so that an unfinished folder is gone on with by the
same run only.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggplan.calibration.index import AGAIN, IMATRIX, INDEX, RUN, TOKENS, LayerFile, is_layer_file, read_index
from ggplan.calibration.inputs import Input
from ggplan.errors import CalibrationError, CheckpointError
from ggplan.imatrix import Imatrix, load_imatrix
from ggplan.quants.in_place import new_matrix
from ggplan.quants.linear_algebra import Moments, MomentSums
from ggplan.sources.files import exists, file_size, read_array, read_at, read_rows, shown
from ggplan.sources.safetensors import StoredTensor, read_tensors
from ggplan.text import nearest, plural

if TYPE_CHECKING:
    from ggplan.calibration.reshaped import ReshapedCalibration
    from ggplan.model import Model

_PIECE = 1 << 20
_MADEAGAIN = "the same `ggplan calibrate` as before makes what is damaged again"
_MAKE = "`ggplan calibrate MODEL --text FILE -o DIR` makes one"


@dataclass(frozen=True)
class Calibration:
    """A calibration on disk. Its data are read when they are asked for, by any number of threads at once.

    Attributes
    ----------
    path
        The folder.
    digest
        The SHA-256 of its index, which is the identity of all that is in it.
    provenance
        The model, the engine, the texts by SHA-256, tokens and chunks; JSON values.
    layers
        Its layers' files.
    weights
        For each tensor a mark of the weights that the model had (see `ggplan.calibration.marks`).
    """

    path: Path
    digest: str
    provenance: Mapping[str, Any]
    layers: tuple[LayerFile, ...]
    weights: Mapping[str, str]
    imatrix_sha256: str
    tokens_sha256: str
    _read: dict[str, dict[str, StoredTensor]] = field(default_factory=dict, repr=False)
    _locks: dict[str, threading.Lock] = field(default_factory=dict, repr=False)

    @cached_property
    def imatrix(self) -> Imatrix:
        """The imatrix.

        Raises
        ------
        CalibrationError
            If the file is not the one that the index has.
        ImatrixError
            If it is damaged.
        """
        self._check(IMATRIX, self.imatrix_sha256)
        return load_imatrix(self.path / IMATRIX)

    @cached_property
    def inputs(self) -> Mapping[str, tuple[LayerFile, Input]]:
        """For each tensor, its input and the file that has it."""
        return {name: (file, i) for file in self.layers for i in file.inputs for name in i.tensors}

    def input_of(self, tensor: str) -> Input | None:
        """The input of a tensor, by its GGUF name; None if there is none."""
        found = self.inputs.get(tensor)
        return found[1] if found is not None else None

    def tokens(self, tensor: str) -> tuple[int, ...]:
        """How many tokens each slice of a tensor saw; empty for a tensor that has no input here."""
        found = self.input_of(tensor)
        return found.tokens if found is not None else ()

    def moments(self, tensor: str, slice: int | None = None, threads: int = 1) -> Moments | None:
        """The second moments of the inputs of one slice of a tensor; None if no token was seen.

        Parameters
        ----------
        tensor
            Its GGUF name.
        slice
            The expert, or the matrix of a stack; not needed where there is one alone.

        Raises
        ------
        CalibrationError
            If it has no such tensor or slice, none of several is named, or the file is damaged, or of
            another calibration.
        """
        file, which, slice = self._slice(tensor, slice)
        n_tokens = which.tokens[slice]
        if not n_tokens:
            return None
        stored = self._tensors(file)
        if which.form == "h":
            n = which.n_columns
            matrix, record = new_matrix(n, n), stored[which.data]
            for first in range(0, n, _ROWS):
                run = matrix[first : first + _ROWS]
                raw = self._data(record, 4 * n * (slice * n + first), run.nbytes)
                run[:] = raw.view("<f4").reshape(run.shape)
            return self._checked(Moments(matrix, n_tokens), file, which)
        sums = MomentSums(which.n_columns, threads)
        for rows in self._rows(stored, which, slice):
            sums.add(rows)
        return self._checked(sums.finished(), file, which)

    def layer_moments(self, tensor: str, threads: int = 1) -> Moments | None:
        """The second moments of all tokens at the input of an expert tensor, whichever experts they went to.

        What an expert without tokens may have instead, where all experts share the layer's own input (gate
        and up). None where each has an input of its own (down).

        Raises
        ------
        CalibrationError
            As `moments`.
        """
        file, which = self._found(tensor)
        for other in file.inputs:
            if other.name == which.name and not other.experts and other.n_slices == 1:
                return self.moments(other.tensors[0], 0, threads)
        if which.form != "routed":
            return None
        record = self._tensors(file)[which.data]
        sums = MomentSums(which.n_columns, threads)
        for at in range(0, record.shape[0], _ROWS):
            sums.add(self._rows_at(record, np.arange(at, min(at + _ROWS, record.shape[0]))))
        return self._checked(sums.finished(), file, which)

    def squares(self, file: LayerFile, which: Input) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The sums of squares of an input, (slices, n_columns) float32, and the tokens of each slice."""
        record = self._tensors(file)[which.squares]
        values = self._data(record, 0, record.n_bytes).view("<f4").reshape(record.shape)
        return values, np.array(which.tokens, np.int64)

    def column_means(self, tensor: str, slice: int | None = None) -> NDArray[np.float32] | None:
        """The mean input of one slice of a tensor, (n_columns,) float32; None if no token was seen."""
        file, which, slice = self._slice(tensor, slice)
        if not which.tokens[slice]:
            return None
        size = 4 * which.n_columns
        return self._data(self._tensors(file)[which.mean], slice * size, size).view("<f4")

    def rows(self, tensor: str, slice: int | None = None) -> NDArray[np.uint16] | None:
        """The inputs of one slice of a tensor, (tokens, n_columns), bits of bfloat16; None if not kept."""
        file, which, slice = self._slice(tensor, slice)
        if which.form == "h":
            return None
        parts = list(self._rows(self._tensors(file), which, slice))
        return np.concatenate(parts) if parts else np.empty((0, which.n_columns), np.uint16)

    def _found(self, tensor: str) -> tuple[LayerFile, Input]:
        """The input of a tensor and the file that has it."""
        found = self.inputs.get(tensor)
        if found is None:
            near = nearest(tensor, self.inputs)
            raise CalibrationError(
                f"{shown(self.path)} has no input of '{shown(tensor)}'",
                hint=f"the nearest name is '{shown(near)}'" if near else "",
            )
        return found

    def _slice(self, tensor: str, slice: int | None) -> tuple[LayerFile, Input, int]:
        """The same, and the number of a slice."""
        file, which = self._found(tensor)
        n = which.n_slices
        if slice is None and n > 1:
            raise CalibrationError(f"'{shown(tensor)}' has {n:,} slices", hint=f"name one, 0 to {n - 1}")
        number = 0 if slice is None else int(slice)
        if not 0 <= number < n:
            raise CalibrationError(
                f"'{shown(tensor)}' has {plural(n, 'slice')}, and slice {number} is none of them",
                hint=f"name one of 0 to {n - 1}" if n > 1 else "name slice 0, or none",
            )
        return file, which, number

    def tokens_of_run(self) -> NDArray[np.int32]:
        """The tokens that were run, (chunks, n_ctx) int32, the first of each chunk as the model got it.

        Raises
        ------
        CalibrationError
            If the file is not the one that the index has.
        """
        self._check(TOKENS, self.tokens_sha256)
        with _told_as_calibration():
            stored = read_tensors(self.path / TOKENS)
        record = stored.get("tokens")
        if record is None or record.dtype != "I32" or len(record.shape) != 2:
            raise CalibrationError(f"{shown(self.path / TOKENS)} holds no tokens", hint=AGAIN)
        return self._data(record, 0, record.n_bytes).view("<i4").reshape(record.shape)

    def for_model(self, model: Model) -> Calibration | ReshapedCalibration:
        """The calibration under the names of a model, which may have been reshaped (`calibration.reshaped`).

        Raises
        ------
        PlanError
            If the keys in which a file says how it was reshaped are damaged.
        """
        from ggplan.calibration.reshaped import of_reshaped

        return of_reshaped(self, model)

    def verify(self) -> None:
        """Check every file against the index.

        Raises
        ------
        CalibrationError
            If one is missing, damaged or not of this calibration.
        """
        self._check(IMATRIX, self.imatrix_sha256)
        self.tokens_of_run()
        with ThreadPoolExecutor(_HASHED_AT_A_TIME) as pool:
            for _ in pool.map(self._tensors, self.layers):
                pass

    def _rows(
        self, stored: Mapping[str, StoredTensor], which: Input, slice: int
    ) -> Iterator[NDArray[np.uint16]]:
        record = stored[which.data]
        if which.form == "rows":
            first = sum(which.tokens[:slice])
            numbers = np.arange(first, first + which.tokens[slice])
        else:
            routes = stored[which.routes]
            sent = self._data(routes, 0, routes.n_bytes).view("<i4").reshape(routes.shape)
            numbers = np.flatnonzero((sent == slice).any(axis=1))
            if len(numbers) != which.tokens[slice]:
                raise CalibrationError(
                    f"{shown(record.file)}: {len(numbers):,} tokens were sent to expert {slice} of "
                    f"'{shown(which.tensors[0])}', and {which.tokens[slice]:,} should be"
                )
        for at in range(0, len(numbers), _ROWS):
            yield self._rows_at(record, numbers[at : at + _ROWS])

    def _rows_at(self, record: StoredTensor, numbers: NDArray[np.int64]) -> NDArray[np.uint16]:
        with _told_as_calibration():
            return read_rows(record.file, record.offset, 2 * record.shape[1], numbers).view("<u2")

    def _data(self, record: StoredTensor, at: int, n_bytes: int) -> NDArray[np.uint8]:
        with _told_as_calibration():
            return read_array(record.file, record.offset + at, n_bytes)

    def _checked(self, moments: Moments, file: LayerFile, which: Input) -> Moments:
        matrix = moments.matrix
        is_finite = all(np.isfinite(matrix[k : k + _ROWS]).all() for k in range(0, len(matrix), _ROWS))
        if not is_finite or (matrix.diagonal() < 0).any():
            raise CalibrationError(
                f"{shown(self.path / file.name)}: the inputs of '{shown(which.tensors[0])}' are not finite",
                hint=AGAIN,
            )
        return moments

    def _tensors(self, file: LayerFile) -> Mapping[str, StoredTensor]:
        """What a layer's file holds, once it is known to be the right file."""
        with self._locks.setdefault(file.name, threading.Lock()):
            if file.name not in self._read:
                self._check(file.name, file.sha256)
                self._read[file.name] = _stored_of(self.path / file.name, file.inputs)
            return self._read[file.name]

    def _check(self, name: str, sha256: str) -> None:
        path = self.path / name
        if not exists(path):
            raise CalibrationError(f"{shown(self.path)} lacks {name}", hint=AGAIN)
        with _told_as_calibration():
            found = sha256_of_file(path)
        if found != sha256:
            raise CalibrationError(
                f"{shown(path)} is damaged or of another calibration: its SHA-256 is not that of {INDEX}",
                hint=_MADEAGAIN,
            )


_ROWS = 512  # rows that are read, or looked at, at a time
_HASHED_AT_A_TIME = 4  # files


def open_calibration(path: str | Path) -> Calibration:
    """Open the folder of a calibration; its layers are read when they are asked for.

    Raises
    ------
    CalibrationError
        If it is none, is not finished, lacks a file, or has the file of a layer that is not its own.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is not a folder" if exists(path) else "does not exist"
        raise CalibrationError(
            f"the calibration {shown(path)} {what}",
            hint=_MAKE,
        )
    if not exists(path / INDEX):
        if exists(path / RUN):
            raise CalibrationError(
                f"the calibration {shown(path)} is not finished",
                hint="the same `ggplan calibrate` goes on with it",
            )
        raise CalibrationError(
            f"{shown(path)} is not a calibration: it has no {INDEX}",
            hint=_MAKE,
        )
    index = read_index(path)
    calibration = Calibration(
        path, index.digest, index.run, index.layers, index.weights, index.imatrix_sha256, index.tokens_sha256
    )
    _check_names(calibration)
    return calibration


def damaged_files(path: Path) -> list[str]:
    """The names of files in a folder that are not as its index has them; none if the index is damaged."""
    try:
        index = read_index(path)
    except CalibrationError:
        return []
    known = {IMATRIX: index.imatrix_sha256, TOKENS: index.tokens_sha256}
    known |= {file.name: file.sha256 for file in index.layers}
    return [n for n, sha256 in known.items() if exists(path / n) and sha256_of_file(path / n) != sha256]


def _check_names(calibration: Calibration) -> None:
    """All files of the index are there and as long as they say, and no other layer's.

    What is in them is compared with the index when it is read.
    """
    there = {entry.name for entry in calibration.path.iterdir()}
    expected = {IMATRIX, TOKENS, *(file.name for file in calibration.layers)}
    for name in sorted(expected - there):
        raise CalibrationError(f"{shown(calibration.path)} lacks {name}", hint=AGAIN)
    for name in sorted(filter(is_layer_file, there - expected)):
        raise CalibrationError(
            f"{shown(calibration.path)} has {shown(name)}, which is of another calibration: {INDEX} does not "
            "list it",
            hint=f"move {shown(name)} out of the folder",
        )
    for file in calibration.layers:
        path = calibration.path / file.name
        try:
            _stored_of(path, file.inputs)
        except CalibrationError as error:
            why = error.message.removeprefix(f"{shown(path)}: ")
            if why != error.message:
                why = f"{shown(path)} is damaged or of another calibration: {why}"
            raise CalibrationError(why, hint=_MADEAGAIN) from error


def _stored_of(path: Path, inputs: tuple[Input, ...]) -> dict[str, StoredTensor]:
    """The tensors of a layer's file, once the inputs have all that they need of the right type and shape."""
    with _told_as_calibration():
        stored = read_tensors(path)
    for i in inputs:
        n, slices = i.n_columns, i.n_slices
        wanted: dict[str, tuple[str, tuple[int, ...] | None]] = {
            i.squares: ("F32", (slices, n)),
            i.mean: ("F32", (slices, n)),
        }
        if i.form == "h":
            wanted[i.data] = ("F32", (slices, n, n))
        elif i.form == "rows":
            wanted[i.data] = ("BF16", (sum(i.tokens), n))
        else:
            wanted[i.data] = ("BF16", None)
            wanted[i.routes] = ("I32", None)
        if i.form == "rows" and i.n_slices == 1 and i.data in stored and stored[i.data].shape[1:] == (n,):
            # Rows that went to experts alone may stand after those of all.
            wanted[i.data] = ("BF16", (max(stored[i.data].shape[0], i.tokens[0]), n))
        for name, (dtype, shape) in wanted.items():
            record = stored.get(name)
            if record is None or record.dtype != dtype or shape not in (None, record.shape):
                raise CalibrationError(
                    f"{shown(path)} does not hold {dtype} '{shown(name)}' for '{shown(i.tensors[0])}'",
                    hint=AGAIN,
                )
        if i.form == "routed":
            data, routes = stored[i.data].shape, stored[i.routes].shape
            if len(data) != 2 or len(routes) != 2 or data[1] != n or data[0] != routes[0]:
                raise CalibrationError(
                    f"{shown(path)}: inputs and routes of '{shown(i.tensors[0])}' do not fit together",
                    hint=AGAIN,
                )
    return stored


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file, read piece by piece.

    Raises
    ------
    CheckpointError
        If it cannot be read.
    """
    digest, size = hashlib.sha256(), file_size(path)
    for at in range(0, size, _PIECE):
        digest.update(read_at(path, at, min(_PIECE, size - at)))
    return digest.hexdigest()


@contextmanager
def _told_as_calibration() -> Iterator[None]:
    """Errors of files inside the block become a `CalibrationError`."""
    try:
        yield
    except CheckpointError as error:
        raise CalibrationError(error.message, hint=error.hint or AGAIN) from error
