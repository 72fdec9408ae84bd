"""Does an imatrix fit a model: has every matrix an entry, every entry a matrix, of the right size?

llama-quantize leaves out what is not there with a line in its log: a matrix without an entry is encoded
without importance. An entry of another size ends its work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ggplan.imatrix import ImatrixSums
from ggplan.imatrix.coverage import Coverage, coverage_of_entry, is_experts
from ggplan.model import Model
from ggplan.planning.embedding import EMBEDDING
from ggplan.planning.protection import protected_reason
from ggplan.rules import Blocks, roles_of


@dataclass(frozen=True, slots=True)
class ImatrixFit:
    """How an imatrix fits a model.

    Attributes
    ----------
    n_fitting
        Tensors that have their entry.
    missing
        Matrices of layers, which llama-quantize would quantize, without an entry.
    nextn
        Those of nextn blocks, which are not run while an imatrix is collected.
    unknown
        Entries of which the model has no tensor.
    wrong
        Tensors whose entry has another size, with both sizes in words.
    coverage
        Of the entries that fit.
    """

    n_fitting: int
    missing: tuple[str, ...]
    nextn: tuple[str, ...]
    unknown: tuple[str, ...]
    wrong: tuple[str, ...]
    coverage: tuple[Coverage, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, unknown or wrong."""
        return not (self.missing or self.unknown or self.wrong)


def fit_imatrix(imatrix: ImatrixSums, model: Model) -> ImatrixFit:
    """Compare an imatrix with a model; reads the imatrix, and no weight."""
    blocks = Blocks.of(tensor.name for tensor in model.tensors)
    missing: list[str] = []
    nextn: list[str] = []
    wrong: list[str] = []
    coverage: list[Coverage] = []
    for tensor in model.tensors:
        if tensor.name not in imatrix.entries:
            if not tensor.name.startswith("blk.") or protected_reason(tensor.name, len(tensor.shape)):
                continue
            is_nextn = "nextn" in roles_of(tensor.name, blocks)
            (nextn if is_nextn else missing).append(tensor.name)
            continue
        sums = imatrix.entries[tensor.name]
        needed = tensor.n_weights // tensor.shape[-2] if len(tensor.shape) > 1 else tensor.n_weights
        if sums.squares.size != needed and tensor.name != EMBEDDING:
            wrong.append(f"{tensor.name} ({sums.squares.size:,} values, {needed:,} needed)")
            continue
        n_matrices = math.prod(tensor.shape[:-2]) if is_experts(tensor.name) else 1
        coverage.append(coverage_of_entry(tensor.name, sums, n_matrices))
    known = {tensor.name for tensor in model.tensors}
    unknown = [name for name in imatrix.names if name not in known]
    return ImatrixFit(
        len(coverage), tuple(missing), tuple(nextn), tuple(unknown), tuple(wrong), tuple(coverage)
    )
