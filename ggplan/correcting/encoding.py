"""The blocks of corrected weights: by second moments where the type has a search for them, else by best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggplan.planning import Plan, PlannedTensor
from ggplan.planning.importance import importance_of
from ggplan.quants import encode_into
from ggplan.quants.feedback import encode_with_moments, takes_moments
from ggplan.quants.linear_algebra import Moments
from ggplan.quants.prepared import LAMBDA

F32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Target:
    """What weights are encoded for.

    Attributes
    ----------
    moments
        Of the inputs; None where no token was seen.
    lam, method
        As of `encode_with_moments`.
    """

    moments: Moments | None
    lam: float = LAMBDA
    method: str = "feedback"


def encode_target(
    plan: Plan, planned: PlannedTensor, slice_: int, wanted: F32Array, target: Target
) -> NDArray[np.uint8]:
    """The blocks (m, row bytes) of rows (m, n) of one slice of a tensor.

    Without moments the imatrix's importance is used, if the plan has one.
    """
    type_ = planned.type
    out = np.empty((len(wanted), type_.row_bytes(planned.tensor.n_columns)), np.uint8)
    rows = np.ascontiguousarray(wanted)
    if target.moments is not None and takes_moments(type_):
        encode_with_moments(rows, type_, target.moments, out, method=target.method, lam=target.lam)
        return out
    if target.moments is not None:
        importance: F32Array | None = target.moments.matrix.diagonal().copy()
    else:
        found = importance_of(planned.tensor, type_, plan.imatrix, "best")
        importance = None if found is None else found[slice_ if len(found) > 1 else 0]
    encode_into(rows, type_, importance, out, "best" if type_.best_encoder else "default")
    return out
