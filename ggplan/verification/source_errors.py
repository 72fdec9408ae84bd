"""How far a file's weights are from those of the checkpoint it was made from.

Both are read as rows of float32, w of the checkpoint and v of the file, and compared a few rows at a time:

    root mean square error   rmse = sqrt(mean((v - w)^2))
    relative                 rmse / sqrt(mean(w^2))
    cosine                   sum(v w) / sqrt(sum(v^2) sum(w^2)); 1 where both are 0
    worst row                the row whose own relative error is the largest

A tensor `X.scale` of a GGUF, which llama.cpp multiplies into `X.weight` (nvfp4's scale of a whole tensor), is
multiplied in first; in a Hugging Face checkpoint it is part of the weights.

Sums are float64. A row that is zero in the checkpoint and not in the file has an infinite relative error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ggplan.errors import CheckpointError
from ggplan.ggml_types import F32
from ggplan.model import Model, RowSource, TensorInfo
from ggplan.text import printable
from ggplan.verification.faults import Fault
from ggplan.verification.workers import Progress, each

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RUN_WEIGHTS = 1 << 17


@dataclass(frozen=True, slots=True)
class TensorError:
    """How far a tensor is from its source.

    Attributes
    ----------
    name, type, source_type
        The tensor, its type in the file, and how the checkpoint stores it.
    n_weights
        Its size.
    rmse, relative, cosine
        Over all weights.
    largest
        The largest absolute error of one weight.
    worst_row, worst_row_relative
        The row with the largest relative error, and that error.
    """

    name: str
    type: str
    source_type: str
    n_weights: int
    rmse: float
    relative: float
    cosine: float
    largest: float
    worst_row: int
    worst_row_relative: float


def compare_with_source(
    written: Model, source: Model, threads: int | None = None, progress: Progress | None = None
) -> tuple[list[TensorError], list[Fault], list[str]]:
    """Compare every tensor of a file with its source.

    Returns
    -------
    The errors, worst first; tensors that are missing, misshapen or unreadable; and the names of those that
    cannot be compared, because ggplan does not decode their type.
    """
    sources = {tensor.name: tensor for tensor in _scaled(source)}
    companions = {tensor.name: tensor for tensor in source.companions}  # of types that the file may not have
    faults: list[Fault] = []
    skipped: list[str] = []
    pairs: list[tuple[TensorInfo, TensorInfo]] = []
    for tensor in _scaled(written):
        twin = sources.pop(tensor.name, None) or companions.get(tensor.name)
        if twin is None:
            faults.append(Fault(tensor.name, "missing", "the checkpoint has no such tensor", tensor.origin))
        elif not same_shape(twin.shape, tensor.shape):
            shapes = f"{list(tensor.shape)} here and {list(twin.shape)} in the checkpoint"
            faults.append(Fault(tensor.name, "shape", f"its shape is {shapes}", tensor.origin))
        elif tensor.rows is None or twin.rows is None:
            skipped.append(tensor.name)
        else:
            pairs.append((tensor, twin))
    faults += [
        Fault(name, "missing", "it is in the checkpoint, not in the file", written.path.name)
        for name in sources
    ]
    results = list(each(pairs, lambda pair: _compared(*pair, progress), threads))
    errors = [result for result in results if isinstance(result, TensorError)]
    faults += [result for result in results if isinstance(result, Fault)]
    errors.sort(key=lambda error: (-error.relative, error.name))
    return errors, faults, skipped


def _scaled(model: Model) -> Iterator[TensorInfo]:
    """The tensors of a model, those of a GGUF with a scale of their own multiplied by it."""
    names = {t.name: t for t in model.tensors} if model.kind == "gguf" else {}
    for tensor in model.tensors:
        scale = names.get(f"{tensor.name.removesuffix('.weight')}.scale")
        rows, factors = tensor.rows, None if scale is None else scale.rows
        is_one_each = factors is not None and factors.n_columns in (1, math.prod(tensor.shape[:-2]))
        if rows is None or factors is None or not is_one_each or not tensor.name.endswith(".weight"):
            yield tensor
        else:
            yield replace(tensor, rows=_multiplied(rows, factors))


def _multiplied(rows: RowSource, factors: RowSource) -> RowSource:
    """Rows times a number, or times one for each slice."""

    def read(start: int, stop: int) -> NDArray[np.float32]:
        values = factors.read_float32(0, 1).reshape(-1)
        slices = np.arange(start, stop) // max(1, rows.n_rows // values.size)
        return rows.read_float32(start, stop) * values[slices, None]

    return RowSource(F32, rows.shape, read, rows.fault)


def same_shape(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes (rows first) are the same, except for leading ones, which files may drop."""
    longest = max(len(one), len(other))
    return (1,) * (longest - len(one)) + one == (1,) * (longest - len(other)) + other


def _compared(tensor: TensorInfo, source: TensorInfo, progress: Progress | None) -> TensorError | Fault:
    assert tensor.rows is not None
    assert source.rows is not None
    try:
        return _error(tensor, tensor.rows, source, source.rows, progress)
    except CheckpointError as error:
        return Fault(tensor.name, "unreadable", error.message, tensor.origin)


def _error(
    tensor: TensorInfo, rows: RowSource, source: TensorInfo, source_rows: RowSource, progress: Progress | None
) -> TensorError | Fault:
    squares = energy = decoded_energy = product = largest = 0.0
    worst_row, worst = 0, 0.0
    step = max(1, _RUN_WEIGHTS // max(1, tensor.n_columns))
    for start in range(0, tensor.n_rows, step):
        stop = min(start + step, tensor.n_rows)
        v = rows.read_float32(start, stop).astype(np.float64)
        w = source_rows.read_float32(start, stop).astype(np.float64)
        if not (np.isfinite(v).all() and np.isfinite(w).all()):
            whose = "the file" if np.isfinite(w).all() else "the checkpoint"
            message = f"{whose} has weights that are not finite in rows {start:,} to {stop:,}"
            return Fault(tensor.name, "value", message, printable(tensor.origin))
        product += float(np.einsum("ij,ij->", v, w))
        decoded_energy += float(np.einsum("ij,ij->", v, v))
        row_energy = np.einsum("ij,ij->i", w, w)
        v -= w
        row_squares = np.einsum("ij,ij->i", v, v)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.sqrt(np.where(row_squares > 0, row_squares / row_energy, 0))
        if relative.size and float(relative.max()) > worst:
            worst, worst_row = float(relative.max()), start + int(relative.argmax())
        squares += float(row_squares.sum())
        energy += float(row_energy.sum())
        largest = max(largest, float(np.abs(v).max(initial=0)))
        if progress is not None:
            progress(tensor.type.row_bytes(tensor.n_columns) * (stop - start))
    norms = math.sqrt(energy) * math.sqrt(decoded_energy)
    return TensorError(
        name=tensor.name,
        type=tensor.type.name,
        source_type=source.stored_as,
        n_weights=tensor.n_weights,
        rmse=math.sqrt(squares / tensor.n_weights) if tensor.n_weights else 0.0,
        relative=math.sqrt(squares / energy) if energy else math.inf if squares else 0.0,
        cosine=min(1.0, product / norms) if norms else float(energy == decoded_energy),
        largest=largest,
        worst_row=worst_row,
        worst_row_relative=worst,
    )
