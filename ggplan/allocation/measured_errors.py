"""The errors of types measured: a sample of each tensor's rows is encoded, decoded and compared.

    error(q) = sum over rows n_e im_j (W - Wq)_j^2 / sum over rows n_e im_j W_j^2

im is the mean square of a column's input, n_e how many tokens the row's expert saw; without an imatrix both
are 1. 64 rows of a tensor, spread evenly over its experts and their rows, give the error of all rows to 1.3 %
(at worst 6 %), and are the same rows in every run. They are encoded as a conversion would, with the same
encoders and importance. What cannot be measured (no weights, a type that ggplan does not write, or cannot
write without an imatrix) is left to the table.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggplan.allocation.type_errors import Errors
from ggplan.ggml_types import GgmlType
from ggplan.model import RowSource, TensorInfo
from ggplan.planning.importance import entry_of, uses_imatrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ggplan.allocation.candidates import TensorChoices
    from ggplan.imatrix import Imatrix

    Floats = NDArray[Any]

SAMPLED_ROWS = 64
"""Of each tensor."""
_GOLDEN = 0.6180339887498949

Progress = Callable[[int, int], None]
"""Called with how many tensors are done, and of how many; from the calling thread."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of a tensor.

    Attributes
    ----------
    parts
        For each slice (expert) that has some: the rows, (m, n) float32, the importance of its columns, (n,)
        float32 or None, and the weight of its errors.
    numbers
        Of the rows in the tensor, part by part.
    """

    parts: tuple[tuple[Floats, Floats | None, float], ...]
    numbers: tuple[tuple[int, ...], ...]


def measured_errors(
    choices: Iterable[TensorChoices],
    imatrix: Imatrix | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Errors:
    """The errors of every type that a tensor may get, from a sample of its rows.

    Parameters
    ----------
    threads
        By default one for each CPU this process may use. A thread has the sample of one tensor in memory.

    Raises
    ------
    CheckpointError
        If rows cannot be read.
    ImatrixError
        If an entry of the imatrix does not have its tensor's size.
    """
    wanted = {c.tensor.name: (c.tensor, _types(c)) for c in choices}
    wanted = {name: (tensor, types) for name, (tensor, types) in wanted.items() if types}
    measured = errors_of_tensors(wanted.values(), imatrix, threads=threads, progress=progress)
    how = "with the imatrix" if imatrix is not None else "without an imatrix"
    source = f"measured on {SAMPLED_ROWS} rows of each of {len(measured):,} tensors, {how}"
    return Errors(source, measured)


def _types(choice: TensorChoices) -> tuple[GgmlType, ...]:
    if choice.fixed in ("protected", "integers", "drafting"):
        return ()
    return tuple(c.type for c in choice.candidates if c.type != choice.tensor.type)


def errors_of_tensors(
    wanted: Iterable[tuple[TensorInfo, Sequence[GgmlType]]],
    imatrix: Imatrix | None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Mapping[str, float]]:
    """By tensor, the error of each of its types by name, of what can be measured.

    Raises as `measured_errors`.
    """
    from ggplan.quants import warm_up

    work = list(wanted)
    if progress is not None:
        progress(0, len(work))  # the encoders may have to be compiled first
    types = dict.fromkeys(t for _, own in work for t in own if t.is_quantized and t.encodable)
    warm_up(
        [t for t in types if imatrix is not None or not t.requires_imatrix], with_imatrix=imatrix is not None
    )
    stop = threading.Event()

    def measure(tensor: TensorInfo, types: Sequence[GgmlType]) -> dict[str, float]:
        if stop.is_set():
            return {}
        sample = sample_of(tensor, imatrix)
        return (
            {} if sample is None else {t.plain.name: e for t in types if (e := _error(sample, t)) is not None}
        )

    found: dict[str, Mapping[str, float]] = {}
    with ThreadPoolExecutor(threads) as pool:
        futures = {pool.submit(measure, *one): one[0].name for one in work}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                if own := future.result():
                    found[futures[future]] = own
                if progress is not None:
                    progress(done, len(work))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return {tensor.name: found[tensor.name] for tensor, _ in work if tensor.name in found}


def sample_of(tensor: TensorInfo, imatrix: Imatrix | None) -> Sample | None:
    """A sample of a tensor's rows that are finite; None if it has no weights, or nothing but zeros.

    Raises as `measured_errors`.
    """
    import numpy as np

    if tensor.rows is None or not tensor.n_rows:
        return None
    rows_per_slice = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    n = min(SAMPLED_ROWS, tensor.n_rows)
    by_slice: dict[int, dict[int, Floats]] = {}
    for i in range(n):
        number = _spread((2 * i + 1) * tensor.n_rows // (2 * n), rows_per_slice)
        row = _row(tensor.rows, number)
        if np.isfinite(row).all():
            by_slice.setdefault(number // rows_per_slice, {})[number] = row
    entry = entry_of(tensor, imatrix) if imatrix is not None else None
    values = None if entry is None else entry.for_tensor(tensor.shape)
    counts = None if entry is None or len(entry.counts) != tensor.n_rows // rows_per_slice else entry.counts
    if counts is not None and not any(counts[s] > 0 for s in by_slice):
        counts = None
    parts, numbers = [], []
    for slice_, rows in by_slice.items():
        weight = 1.0 if counts is None else max(float(counts[slice_]), 0.0)
        importance = None if values is None else np.ascontiguousarray(values[slice_])
        if weight and any(row.any() for row in rows.values()):
            parts.append((np.concatenate(list(rows.values())), importance, weight))
            numbers.append(tuple(rows))
    return Sample(tuple(parts), tuple(numbers)) if parts else None


def _spread(number: int, rows_per_slice: int) -> int:
    """A row of the same slice, turned on by the golden ratio from slice to slice.

    Else it would be the first row of each of 128 experts, the middle one of each of 64.
    """
    slice_, row = divmod(number, rows_per_slice)
    return slice_ * rows_per_slice + (row + int(slice_ * _GOLDEN % 1.0 * rows_per_slice)) % rows_per_slice


def _row(source: RowSource, number: int) -> Floats:
    """One row, (1, n) float32; of types whose rows are interleaved its group is read."""
    start = number - number % source.dtype.row_group
    rows: Floats = source.read_float32(start, start + source.dtype.row_group)
    return rows[number - start : number - start + 1]


def error_between(tensor: TensorInfo, other: RowSource | None, imatrix: Imatrix | None) -> float:
    """The error of other weights of a tensor, from the same sample; 0 if it has none.

    Raises as `measured_errors`.
    """
    import numpy as np

    sample = sample_of(tensor, imatrix)
    if sample is None or other is None:
        return 0.0
    lost = total = 0.0
    for (rows, importance, weight), numbers in zip(sample.parts, sample.numbers, strict=True):
        changed = np.concatenate([_row(other, number) for number in numbers])
        lost += weight * rows_energy(changed - rows, importance)
        total += weight * rows_energy(rows, importance)
    return lost / total if total > 0 and np.isfinite(lost) else 0.0


def _error(sample: Sample, type_: GgmlType) -> float | None:
    """The error of a type; None if it cannot be measured."""
    import numpy as np

    from ggplan.quants import decode_into, encode_into

    plain = type_.plain
    if not (plain.encodable and plain.decodable):
        return None
    lost = total = 0.0
    for rows, importance, weight in sample.parts:
        if plain.requires_imatrix and importance is None:
            return None
        blocks = np.empty((len(rows), plain.row_bytes(rows.shape[1])), np.uint8)
        decoded = np.empty_like(rows)
        encode_into(rows, plain, importance if uses_imatrix(plain) else None, blocks)
        decode_into(blocks, plain, decoded)
        off, own = rows_energy(decoded - rows, importance), rows_energy(rows, importance)
        lost, total = lost + weight * off, total + weight * own
    return lost / total if total > 0 and np.isfinite(lost) else None


def rows_energy(rows: Floats, importance: Floats | None) -> float:
    """The sum of im_j W_ij^2, in float64."""
    import numpy as np

    squares = np.square(rows, dtype=np.float64)
    return float(squares.sum() if importance is None else (squares @ importance.astype(np.float64)).sum())
