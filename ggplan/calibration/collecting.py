"""What an engine hands over while it runs the model is added up here, and written when a layer is finished.

An engine first says what inputs a layer has (`Activation`), by which it is decided how each is kept: as
second moments or as rows, whichever takes fewer bytes for the number of tokens (see
`ggplan.calibration.inputs`). Then it adds the inputs batch by batch; how they are parted makes no difference
to the moments.

The rows are rounded to bfloat16 for second moments too, so both forms give the same moments. The sums of
squares, which go into the imatrix, are of the values before rounding.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggplan.calibration.folder import sha256_of_file
from ggplan.calibration.index import SCHEMA, TOKENS, LayerFile, layer_file
from ggplan.calibration.inputs import Form, Input, input_from_json
from ggplan.errors import CalibrationError, CheckpointError
from ggplan.imatrix import Sums
from ggplan.quants.floats import narrowed
from ggplan.quants.linear_algebra import PANEL, MomentSums
from ggplan.sources.files import read_at, shown
from ggplan.sources.json_files import parse_object
from ggplan.sources.safetensors import library_io_errors, read_metadata, read_tensors

F32Array = NDArray[np.float32]
Taken = Sequence[Sequence[int]]
"""The numbers of the chunks that are run, of each text."""
Tokens = TypeVar("Tokens", bound=NDArray[Any])
_METADATA = "ggplan"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PIECE = 1 << 22
_SHARED_WORK = 1024  # columns from which threads are worth their start


def chunks_of(texts: Sequence[Tokens], taken: Taken, n_ctx: int) -> Tokens:
    """Chunks of texts, given as their tokens, by their numbers: (n, n_ctx)."""
    parts = [
        tokens[: len(tokens) // n_ctx * n_ctx].reshape(-1, n_ctx)[list(numbers)]
        for tokens, numbers in zip(texts, taken, strict=True)
    ]
    return np.concatenate(parts)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Activation:
    """An input of matrices, before it is known what it holds.

    Attributes
    ----------
    name
        What it is, in the engine's words. Unique in its layer.
    n_columns
        Its length.
    tensors
        The GGUF names of the matrices that every row of it goes to.
    expert_tensors
        The GGUF names of stacked experts that have it.
    n_slices
        Experts; where there are none, the matrices of a stack, or 1.
    n_routes
        How many experts a token goes to; 0 without experts.
    has_own_rows
        Whether each row belongs to one slice: every expert (or matrix of a stack) has an input of its own.
        Else every row goes to `tensors`, and by routes to the experts.
    rows_per_token
        How many rows a token has: more than 1 only with rows of their own.
    """

    name: str
    n_columns: int
    tensors: tuple[str, ...] = ()
    expert_tensors: tuple[str, ...] = ()
    n_slices: int = 1
    n_routes: int = 0
    has_own_rows: bool = False
    rows_per_token: int = 1

    def bytes_as_rows(self, n_tokens: int) -> int:
        """Bytes of its rows and routes."""
        routes = 4 * self.n_routes if self.expert_tensors and not self.has_own_rows else 0
        return n_tokens * (self.rows_per_token * 2 * self.n_columns + routes)

    def bytes_as_moments(self) -> int:
        """Bytes of its second moments."""
        plain = bool(self.tensors) and not self.has_own_rows
        sliced = self.has_own_rows or bool(self.expert_tensors)
        return 4 * self.n_columns**2 * (plain + sliced * self.n_slices)

    def is_kept_as_rows(self, n_tokens: int) -> bool:
        """Whether rows take fewer bytes than moments."""
        return self.bytes_as_rows(n_tokens) <= self.bytes_as_moments()

    def memory(self, n_tokens: int) -> int:
        """Bytes that collecting it takes, and writing it."""
        own = 2 if self.has_own_rows else 1  # rows are sorted by slice into a copy
        if self.is_kept_as_rows(n_tokens):
            return own * self.bytes_as_rows(n_tokens)
        parts = self.bytes_as_moments() // (4 * self.n_columns**2)
        return 2 * self.bytes_as_moments() + parts * PANEL * 2 * self.n_columns


class _Group:
    """The slices of one kind of use, plain or by experts: sums, and moments if these are kept."""

    def __init__(
        self, tensors: Sequence[str], n_slices: int, n_columns: int, moments: bool, threads: int
    ) -> None:
        self.tensors = tuple(tensors)
        self.squares = np.zeros((n_slices, n_columns))
        self.sums = np.zeros((n_slices, n_columns))
        self.tokens = np.zeros(n_slices, np.int64)
        threads = threads if n_columns >= _SHARED_WORK else 1
        self.moments = [MomentSums(n_columns, threads) for _ in range(n_slices)] if moments else []

    def add(self, slice: int, x: F32Array, bits: NDArray[np.uint16]) -> None:
        self.squares[slice] += np.einsum("ij,ij->j", x, x, dtype=np.float64)
        self.sums[slice] += x.sum(axis=0, dtype=np.float64)
        self.tokens[slice] += len(x)
        if self.moments:
            self.moments[slice].add(bits)

    def means(self) -> F32Array:
        return (self.sums / np.maximum(self.tokens, 1)[:, None]).astype(np.float32)

    def stacked_moments(self) -> F32Array:
        """The moments of all slices, (slices, n, n); nothing can be added after."""
        n = self.squares.shape[1]
        stacked = np.empty((len(self.moments), n, n), np.float32)
        for matrix, sums in zip(stacked, self.moments, strict=True):
            matrix[:] = sums.finished().matrix
        return stacked


class _Collected:
    """One input while it is collected."""

    def __init__(self, activation: Activation, n_tokens: int, keep: bool, threads: int) -> None:
        a = self.activation = activation
        self.by_rows = keep and a.is_kept_as_rows(n_tokens)
        moments = keep and not self.by_rows
        names = a.expert_tensors if a.expert_tensors else a.tensors
        is_sliced = a.has_own_rows or bool(a.expert_tensors)
        self.plain = None
        if a.tensors and not a.has_own_rows:
            self.plain = _Group(a.tensors, 1, a.n_columns, moments, threads)
        self.sliced = _Group(names, a.n_slices, a.n_columns, moments, threads) if is_sliced else None
        n_rows = n_tokens * a.rows_per_token if self.by_rows else 0
        self.rows = np.empty((n_rows, a.n_columns), np.uint16)
        n_routes = a.n_routes if not a.has_own_rows and self.by_rows else 1
        self.routes = np.empty((n_rows if is_sliced else 0, n_routes), np.int32)
        self.n_rows = 0
        # Rows for experts alone, which stand after all others.
        self.late: list[tuple[NDArray[np.uint16], NDArray[np.int32] | None]] = []

    def keep(self, bits: NDArray[np.uint16], routes: NDArray[np.int32] | None, *, late: bool = False) -> None:
        if late:
            self.late.append((bits, None if routes is None else routes.copy()))
            return
        end = self.n_rows + len(bits)
        if end > len(self.rows):
            raise CalibrationError(
                f"the engine gave {end:,} rows of the input '{shown(self.activation.name)}', and "
                f"{len(self.rows):,} were expected"
            )
        self.rows[self.n_rows : end] = bits
        if routes is not None:
            self.routes[self.n_rows : end] = routes.reshape(len(bits), -1)
        self.n_rows = end


class LayerCollector:
    """The inputs of one layer while an engine runs the model.

    Parameters
    ----------
    layer
        Its number; None for what is outside the layers.
    activations
        Its inputs.
    n_tokens
        How many tokens will be run, all together.
    keep
        Whether second moments are wanted; else only what an imatrix needs.
    threads
        Threads that share the sums of wide inputs. The sums are the same.
    """

    def __init__(
        self,
        layer: int | None,
        activations: Sequence[Activation],
        n_tokens: int,
        *,
        keep: bool = True,
        threads: int = 1,
    ) -> None:
        self.layer = layer
        self.keep = keep
        self._inputs = {a.name: _Collected(a, n_tokens, keep, threads) for a in activations}

    def add(
        self,
        name: str,
        x: F32Array,
        routes: NDArray[np.int32] | None = None,
        *,
        only_experts: bool = False,
    ) -> None:
        """Add rows (m, n_columns) of an input that all its matrices share.

        Parameters
        ----------
        routes
            (m, k), for each row the experts that it goes to; needed where there are any.
        only_experts
            Add them for the experts, and not for the matrices that every row goes to.
        """
        found = self._inputs[name]
        bits = self._bits(x)
        if found.plain is not None and not only_experts:
            found.plain.add(0, x, bits)
        if found.sliced is not None:
            assert routes is not None
            for expert in np.unique(routes).tolist():
                chosen = (routes == expert).any(axis=1)
                found.sliced.add(expert, x[chosen], bits[chosen])
        if found.by_rows:
            found.keep(bits, routes, late=only_experts)

    def add_own(self, name: str, x: F32Array, slices: NDArray[np.int32]) -> None:
        """Add rows (m, n_columns) each of which belongs to one slice, given by `slices` (m,)."""
        found = self._inputs[name]
        assert found.sliced is not None
        bits = self._bits(x)
        for slice in np.unique(slices).tolist():
            chosen = slices == slice
            found.sliced.add(slice, x[chosen], bits[chosen])
        if found.by_rows:
            found.keep(bits, slices)

    def sums(self) -> dict[str, Sums]:
        """For each tensor, what its imatrix entry is made of."""
        return {
            name: imatrix_sums(group.squares.astype(np.float32), group.tokens, is_expert)
            for found in self._inputs.values()
            for group, is_expert in _groups(found)
            for name in group.tensors
        }

    def write(self, folder: Path, run: str) -> LayerFile:
        """Write the layer's file, whole under another name and then renamed.

        Parameters
        ----------
        run
            The digest of the run, which the file keeps in its metadata.

        Raises
        ------
        CalibrationError
            If an input is not finite, or the file cannot be written.
        """
        tensors: dict[str, NDArray[Any]] = {}
        inputs: list[Input] = []
        for found in self._inputs.values():
            inputs += self._described(found, tensors, len(inputs))
        path = folder / layer_file(self.layer)
        _write(path, tensors, run, inputs)
        return LayerFile(path.name, sha256_of_file(path), tuple(inputs))

    def _described(self, found: _Collected, tensors: dict[str, NDArray[Any]], first_key: int) -> list[Input]:
        """The inputs of one activation, and their data added to `tensors`."""
        a, rows = found.activation, ""
        late, found.late = found.late, []
        for bits, routes in late:
            found.keep(bits, routes)
        made: list[Input] = []
        form: Form
        for group, is_expert in _groups(found):
            key = str(first_key + len(made))
            if not (np.isfinite(group.squares).all() and np.isfinite(group.sums).all()):
                raise CalibrationError(
                    f"the inputs of '{shown(group.tensors[0])}' are not finite",
                    hint="run a model that does not overflow (bf16 instead of f16)",
                )
            tensors[f"{key}.squares"] = group.squares.astype(np.float32)
            tensors[f"{key}.mean"] = group.means()
            form, data = "rows", rows or f"{key}.rows"
            if not found.by_rows:
                form, data = "h", f"{key}.h"
                tensors[data] = group.stacked_moments()
            elif group is found.plain:
                tensors[data] = found.rows[: found.n_rows]
            elif a.has_own_rows:
                order = np.argsort(found.routes[: found.n_rows, 0], kind="stable")
                tensors[data] = found.rows[: found.n_rows][order]
            else:
                form = "routed"
                tensors[data] = found.rows[: found.n_rows]
                tensors[f"{key}.routes"] = found.routes[: found.n_rows]
            rows = data
            counts = tuple(group.tokens.tolist())
            made.append(Input(key, a.name, group.tensors, a.n_columns, is_expert, form, data, counts))
        return made

    def _bits(self, x: F32Array) -> NDArray[np.uint16]:
        return narrowed(x) if self.keep else np.empty((len(x), 0), np.uint16)


def _groups(found: _Collected) -> list[tuple[_Group, bool]]:
    """The groups of an input, and whether its slices are experts."""
    both = [(found.plain, False), (found.sliced, bool(found.activation.expert_tensors))]
    return [(group, is_expert) for group, is_expert in both if group is not None]


def imatrix_sums(squares: F32Array, tokens: NDArray[np.int64], experts: bool) -> Sums:
    """An imatrix entry's sums: experts have a count each, the matrices of another stack one for all."""
    if experts:
        return Sums(squares, tokens)
    return Sums(squares.reshape(1, -1), tokens[:1])


def write_tokens(folder: Path, tokens: NDArray[np.int32], run: str) -> None:
    """Write the tokens of a run, (chunks, n_ctx).

    Raises
    ------
    CalibrationError
        If the file cannot be written.
    """
    _write(folder / TOKENS, {"tokens": tokens.astype(np.int32)}, run)


def _write(path: Path, tensors: Mapping[str, NDArray[Any]], run: str, inputs: Sequence[Input] = ()) -> None:
    """Write a safetensors file, whole under another name and then renamed.

    The metadata is one string: of several the library would choose the order by chance.
    """
    part = path.with_name(f"{path.name}.part")
    data = hashlib.sha256()
    for name in sorted(tensors):
        data.update(name.encode("utf-8"))
        data.update(np.ascontiguousarray(tensors[name]).data)
    kept = {
        "schema": SCHEMA, "run": run, "data": data.hexdigest(), "inputs": [i.to_json() for i in inputs],
    }  # fmt: skip
    try:
        with library_io_errors():
            _serialize(tensors, part, {_METADATA: json.dumps(kept, ensure_ascii=True)})
        os.replace(part, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> CalibrationError:
    """The error of a file or folder of a calibration that cannot be written."""
    room = "free some space there: " if error.errno in _FULL else ""
    return CalibrationError(
        f"cannot write {shown(path)}: {error.strerror or error}",
        hint=f"{room}finished layers are kept, and the same call makes the others",
    )


def is_of_run(path: Path, run: str) -> bool:
    """Whether a file is there, this run has written it, and no bit of it has changed since."""
    try:
        kept, stored = _kept(path), read_tensors(path)
        if kept.get("run") != run:
            return False
        data = hashlib.sha256()
        for name in sorted(stored):
            data.update(name.encode("utf-8"))
            for at in range(0, stored[name].n_bytes, _PIECE):
                n_bytes = min(_PIECE, stored[name].n_bytes - at)
                data.update(read_at(path, stored[name].offset + at, n_bytes))
        return kept.get("data") == data.hexdigest()
    except CheckpointError:
        return False


def _kept(path: Path) -> dict[str, object]:
    """What a file of a run says of itself."""
    return parse_object(read_metadata(path).get(_METADATA, "{}").encode("utf-8"), shown(path))


def _serialize(tensors: Mapping[str, NDArray[Any]], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file; arrays of uint16 are the bits of bfloat16, which NumPy does not have."""
    from safetensors import TensorSpec, serialize_file

    arrays = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    names = {"uint16": "bfloat16", "float32": "float32", "int32": "int32"}
    specs = {
        name: TensorSpec(dtype=names[a.dtype.name], shape=a.shape, data_ptr=a.ctypes.data, data_len=a.nbytes)
        for name, a in arrays.items()
    }
    serialize_file(specs, str(path), metadata)
    mask = os.umask(0o022)
    os.umask(mask)
    with path.open("rb+") as file:
        os.fchmod(file.fileno(), 0o666 & ~mask)  # the library makes files for their owner alone
        os.fsync(file.fileno())


def layer_of_run(path: Path, run: str) -> LayerFile | None:
    """A layer's file that this run has written; None if it is another's, damaged or not there."""
    try:
        if not is_of_run(path, run):
            return None
        listed = _kept(path).get("inputs")
        if not isinstance(listed, list) or not listed:
            return None
        inputs = tuple(input_from_json(value, shown(path)) for value in listed)
        return LayerFile(path.name, sha256_of_file(path), inputs)
    except (CheckpointError, CalibrationError):
        return None
