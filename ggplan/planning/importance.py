"""Which importance values an encoder gets for a tensor, by llama-quantize's rules.

llama.cpp b11434, `src/llama-quant.cpp`: a tensor without an entry is encoded without weights; an entry
of the wrong size is an error, but for `token_embd.weight`, where it is ignored. Types whose row in
`ggplan.ggml_types` says that they ignore an imatrix get none, unless encoded with best effort.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggplan.errors import ImatrixError
from ggplan.ggml_types import GgmlType
from ggplan.model import TensorInfo
from ggplan.planning.plan import Coverage, Effort

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggplan.imatrix import Imatrix, ImatrixEntry


def uses_imatrix(type_: GgmlType, effort: Effort = "default") -> bool:
    """Whether the encoder of this type weighs its errors by an imatrix; with best effort, all do."""
    return type_.is_quantized if effort == "best" else type_.uses_imatrix


def entry_of(tensor: TensorInfo, imatrix: Imatrix) -> ImatrixEntry | None:
    """The imatrix's entry for a tensor, or None where llama-quantize would do without one.

    A look-up reads the imatrix file.

    Raises
    ------
    ImatrixError
        If the entry does not have the tensor's size.
    """
    entry = imatrix.entries.get(tensor.name)
    if entry is None:
        return None
    try:
        entry.for_tensor(tensor.shape)
    except ImatrixError:
        if tensor.name == "token_embd.weight":
            return None
        raise
    return entry


def coverage_of(tensor: TensorInfo, type_: GgmlType, imatrix: Imatrix | None) -> Coverage | None:
    """What the imatrix knows of a tensor; None without one, and for types that have no use for it.

    Raises
    ------
    ImatrixError
        If the entry does not have the tensor's size; better now than hours into the work.
    """
    if imatrix is None or not uses_imatrix(type_):
        return None
    entry = entry_of(tensor, imatrix)
    if entry is None:
        return Coverage(0)
    return Coverage(len(entry.values), len(entry.matrices_without_data))


def importance_of(
    tensor: TensorInfo, type_: GgmlType, imatrix: Imatrix | None, effort: Effort = "default"
) -> NDArray[np.float32] | None:
    """Importance of each column, one row for each slice (expert) of the tensor: (n_slices, n_columns).

    None where the tensor is encoded without weights. Raises as `entry_of`.
    """
    if imatrix is None or not uses_imatrix(type_, effort):
        return None
    entry = entry_of(tensor, imatrix)
    return None if entry is None else entry.for_tensor(tensor.shape)
