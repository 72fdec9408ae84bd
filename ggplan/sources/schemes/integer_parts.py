"""The tensors that integers are made of: experts of a stack, groups of columns, scales and their faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.sources.files import shown
from ggplan.sources.schemes.packed_bits import read_values
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCALE_DTYPES = ("F32", "BF16", "F16")
_RUN = 1 << 18


def slice_of(tensor: StoredTensor, i: int, n_slices: int) -> StoredTensor:
    """Slice `i` of a stacked tensor; a tensor that all slices share, by itself."""
    if not tensor.shape or tensor.shape[0] != n_slices:
        return tensor
    n_bytes = tensor.n_bytes // n_slices
    return replace(tensor, shape=tensor.shape[1:], offset=tensor.offset + i * n_bytes, n_bytes=n_bytes)


def group_indices(tensor: StoredTensor, n_groups: int, unset: int | None = None) -> NDArray[np.intp] | None:
    """The group of each column, as `g_idx` has it; None if one of them is `unset`.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or there is no such group.
    """
    found = indices_of(tensor)
    if unset is not None and (found == unset).any():
        return None
    if fault := _index_fault(tensor, found, n_groups):
        raise CheckpointError(fault, hint="download the file again")
    return found


def index_fault(tensor: StoredTensor, n_groups: int, unset: int | None = None) -> str:
    """The first column of `g_idx` that is in no group; "" if all are in one, or one is `unset`."""
    found = indices_of(tensor)
    if unset is not None and (found == unset).any():
        return ""
    return _index_fault(tensor, found, n_groups)


def indices_of(tensor: StoredTensor) -> NDArray[np.intp]:
    """The contents of `g_idx`, unchecked.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    """
    import numpy as np

    flat = replace(tensor, shape=(tensor.n_weights,))
    return np.asarray(read_values(flat, (0, 1), (0, tensor.n_weights))[0], np.intp)


def _index_fault(tensor: StoredTensor, found: NDArray[np.intp], n_groups: int) -> str:
    wrong = (found < 0) | (found >= n_groups)
    if not wrong.any():
        return ""
    at = int(wrong.argmax())
    return (
        f"'{shown(tensor.name)}' puts column {at:,} into group {found[at]:,} of {n_groups:,} "
        f"({shown(tensor.file.name)})"
    )


def scale_fault(tensor: StoredTensor, what: str = "scale") -> str:
    """How many scales are not finite, and the first; "" if all are. Any sign is right, and so is 0."""
    import numpy as np

    return _first_wrong(tensor, what, "not finite", lambda scales: ~np.isfinite(scales))


def half_fault(tensor: StoredTensor) -> str:
    """How many scales float16 does not hold exactly, and the first; "" if it holds all.

    Scales of F16 are not read: whether they are finite is a question of the weights.
    """
    import numpy as np

    if tensor.dtype == "F16":
        return ""

    def inexact(scales: NDArray[np.float32]) -> NDArray[np.bool_]:
        with np.errstate(over="ignore", invalid="ignore"):
            halves = scales.astype(np.float16).astype(np.float32)
        return np.not_equal(halves, scales) | ~np.isfinite(scales)

    return _first_wrong(tensor, "scale", "not exact in float16", inexact)


def largest_scale(tensor: StoredTensor) -> float:
    """The largest absolute value among scales; infinite if one is not finite."""
    import numpy as np

    largest = 0.0
    for start in range(0, tensor.n_weights, _RUN):
        scales = np.abs(tensor.read_floats(start, min(start + _RUN, tensor.n_weights)))
        largest = max(largest, float(np.nan_to_num(scales, nan=np.inf, posinf=np.inf).max()))
    return largest


def _first_wrong(
    tensor: StoredTensor, what: str, fault: str, is_wrong: Callable[[NDArray[np.float32]], NDArray[np.bool_]]
) -> str:
    import numpy as np

    count, first, value = 0, -1, 0.0
    for start in range(0, tensor.n_weights, _RUN):
        scales = tensor.read_floats(start, min(start + _RUN, tensor.n_weights))
        wrong = is_wrong(scales)
        if first < 0 and wrong.any():
            first = start + int(wrong.argmax())
            value = float(scales[first - start])
        count += int(np.count_nonzero(wrong))
    if not count:
        return ""
    many = f"1 {what} that is" if count == 1 else f"{count:,} {what}s that are"
    return (
        f"'{shown(tensor.name)}' has {many} {fault}, the first {value} at index {first:,} "
        f"({shown(tensor.file.name)})"
    )


def require_dtype(tensor: StoredTensor, what: str, dtypes: Sequence[str]) -> None:
    """Raise CheckpointError unless a tensor has one of some types; `what` says what it is."""
    if tensor.dtype not in dtypes:
        raise CheckpointError(
            f"{shown(tensor.file)}: {what} '{shown(tensor.name)}' are {tensor.dtype}; "
            f"ggplan reads {', '.join(dtypes)}"
        )
