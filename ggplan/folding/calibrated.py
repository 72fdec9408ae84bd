"""The calibration of a folded model: inputs x become x / s, so H becomes H / (s s^T)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggplan.imatrix.entries import Imatrix, ImatrixEntry, ReadOnDemand
from ggplan.quants.linear_algebra import Moments

if TYPE_CHECKING:
    from ggplan.calibration import Calibration
    from ggplan.calibration.inputs import Input
    from ggplan.model import Model

F32Array = NDArray[np.float32]
_ROWS = 256  # of a matrix that are scaled at a time


@dataclass(frozen=True)
class FoldedCalibration:
    """A calibration, for `ggplan.planning.Feedback`, of a model whose columns were multiplied by scales.

    Attributes
    ----------
    original
        The calibration on disk, whose path and digest it keeps.
    scales
        By the name of each matrix the scales of its columns, float32 (slices, n) or (1, n).
    """

    original: Calibration
    scales: Mapping[str, F32Array]

    @property
    def path(self) -> Path:
        """The folder."""
        return self.original.path

    @property
    def digest(self) -> str:
        """The identity of what is in the folder."""
        return self.original.digest

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What it was made of."""
        return self.original.provenance

    @cached_property
    def imatrix(self) -> Imatrix:
        """The mean squares of the inputs that the folded matrices have."""
        own = self.original.imatrix
        readers = {
            name: partial(_entry, own.entries, name, self.scales[name])
            if name in self.scales
            else partial(own.entries.__getitem__, name)
            for name in own.entries
        }
        return replace(own, entries=ReadOnDemand(readers))

    def for_model(self, model: Model) -> FoldedCalibration:
        """The calibration for a model: the folded one that it was made for."""
        return self

    def tokens(self, tensor: str) -> tuple[int, ...]:
        """How many tokens each slice of a tensor saw."""
        return self.original.tokens(tensor)

    def input_of(self, tensor: str) -> Input | None:
        """The input of a tensor. Those that share one share its scales, so they share it still."""
        return self.original.input_of(tensor)

    def moments(self, tensor: str, slice: int = 0) -> Moments | None:
        """The second moments of a slice, as `Calibration.moments`."""
        return self._folded(self.original.moments(tensor, slice), tensor, slice)

    def layer_moments(self, tensor: str) -> Moments | None:
        """Those of all tokens of the layer, as `Calibration.layer_moments`."""
        return self._folded(self.original.layer_moments(tensor), tensor, 0)

    def verify(self) -> None:
        """Check every file."""
        self.original.verify()

    def tokens_of_run(self) -> NDArray[np.int32]:
        """The tokens that were run."""
        return self.original.tokens_of_run()

    def _folded(self, moments: Moments | None, tensor: str, slice_: int) -> Moments | None:
        scales = self.scales.get(tensor)
        if moments is None or scales is None:
            return moments
        s = scales[slice_ if len(scales) > 1 else 0]
        for first in range(0, len(s), _ROWS):
            of_rows = slice(first, first + _ROWS)
            moments.matrix[of_rows] /= np.multiply.outer(s[of_rows], s)
        return moments


def _entry(entries: Mapping[str, ImatrixEntry], name: str, scales: F32Array) -> ImatrixEntry:
    entry = entries[name]
    values = entry.values.reshape(-1, scales.shape[1])
    folded = values / (scales * scales)
    if len(entry.counts) == len(values):  # where there are no data, all columns count alike as before
        unseen = list(entry.matrices_without_data)
        folded[unseen] = values[unseen]
    return replace(entry, values=folded.astype(np.float32).reshape(entry.values.shape))
