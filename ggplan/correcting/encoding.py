"""Which tensors of a plan are corrected, and the blocks of corrected weights.

They are encoded by second moments where the type has a search for them, else by best.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggplan.errors import ConversionError
from ggplan.ggml_types import GgmlType
from ggplan.planning import Plan, PlannedTensor
from ggplan.planning.importance import importance_of
from ggplan.quants import encode_into
from ggplan.quants.feedback import encode_with_moments, takes_moments
from ggplan.quants.linear_algebra import Moments
from ggplan.quants.prepared import LAMBDA, Prepared, prepare
from ggplan.quants.searches.row_tiles import TILE
from ggplan.sources.files import shown

F32Array = NDArray[np.float32]
ENCODED_WEIGHTS = 1 << 18
"""Weights that are encoded at a time, or sixteen rows."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the matrices of an input are encoded for.

    Attributes
    ----------
    importance
        float32 (n,): the mean squares of the inputs; None where no token was seen.
    prepared
        Their second moments, for the types that have a search for them; None where no type has.
    method
        As of `encode_with_moments`.
    """

    importance: F32Array | None = None
    prepared: Prepared | None = None
    method: str = "feedback"


def target_of(
    moments: Moments | None,
    types: Iterable[GgmlType],
    *,
    lam: float = LAMBDA,
    method: str = "feedback",
    threads: int = 1,
) -> Target:
    """What the matrices of an input, of some types, are encoded for.

    The moments are regularized and factored here, in their own memory, once for all matrices and all runs of
    their rows.
    """
    if moments is None:
        return Target(method=method)
    importance, prepared = moments.matrix.diagonal().copy(), None
    if any(takes_moments(type_) for type_ in types):
        prepared = prepare(moments, lam, threads, overwrite=True)
    return Target(importance, prepared, method)


def require_correctable(plan: Plan) -> None:
    """Raise ConversionError unless the plan is of a checkpoint that transformers can run as it is."""
    model = plan.model
    if model.kind != "hf" or model.converter:
        raise ConversionError(
            f"{shown(model.path)} is no Hugging Face folder that ggplan reads itself, and correction runs "
            "the checkpoint",
            hint="give the checkpoint's folder, or leave --correct out",
        )
    if model.reshaped.get("mtp") == "only":
        raise ConversionError(
            "the layers that predict further tokens are not run, and the plan has no others",
            hint="leave --correct out",
        )
    for key, what in (
        ("kept_experts", "all experts, and --keep-experts leaves some out"),
        ("pruned_layers", "all layers, and --prune-layers leaves some out"),
        ("fold", "the weights as they are, and --fold changes them"),
    ):
        if key in model.reshaped:
            raise ConversionError(
                f"correction runs the checkpoint with {what}",
                hint="leave --correct out: --calibration alone takes the inputs that it has",
            )


def tensors_of_layer(plan: Plan, layer: int) -> dict[str, PlannedTensor]:
    """The quantized tensors of a layer that are encoded, by their names without `blk.N.`.

    Those whose stored bytes go to the output are what they were, without an error.
    """
    prefix = f"blk.{layer}."
    return {t.name.removeprefix(prefix): t for t in plan.tensors if t.name.startswith(prefix) and _errs(t)}


def unrun(plan: Plan, n_layers: int) -> list[PlannedTensor]:
    """The same of the layers behind these, which transformers does not have."""
    return [
        t
        for t in plan.tensors
        if t.name.startswith("blk.") and int(t.name.split(".")[1]) >= n_layers and _errs(t)
    ]


def _errs(planned: PlannedTensor) -> bool:
    return planned.type.is_quantized and not planned.is_copied and len(planned.tensor.shape) > 1


def fixed_names(plan: Plan) -> set[str]:
    """The names in a layer of tensors that keep their weights in all layers."""
    of_layers = [(t.name.split(".", 2)[2], t) for t in plan.tensors if t.name.startswith("blk.")]
    encoded = {name for name, t in of_layers if t.type.is_quantized and not t.is_copied}
    return {name for name, _ in of_layers} - encoded


def encode_target(
    plan: Plan, planned: PlannedTensor, slice_: int, wanted: F32Array, target: Target
) -> NDArray[np.uint8]:
    """The blocks (m, row bytes) of rows (m, n) of one slice of a tensor.

    Without moments the imatrix's importance is used, if the plan has one.
    """
    type_ = planned.type
    n_columns = planned.tensor.n_columns
    out = np.empty((len(wanted), type_.row_bytes(n_columns)), np.uint8)
    importance = target.importance
    if importance is None:
        found = importance_of(planned.tensor, type_, plan.imatrix, "best")
        importance = None if found is None else found[slice_ if len(found) > 1 else 0]
    step = max(TILE, ENCODED_WEIGHTS // n_columns // TILE * TILE)
    for first in range(0, len(wanted), step):
        rows, blocks = np.ascontiguousarray(wanted[first : first + step]), out[first : first + step]
        if target.prepared is not None and takes_moments(type_):
            encode_with_moments(rows, type_, target.prepared, blocks, method=target.method)
        else:
            encode_into(rows, type_, importance, blocks, "best" if type_.best_encoder else "default")
    return out
