"""reshape: the steps, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ggplan.metadata import string
from ggplan.model import Model, require_model
from ggplan.reshaping.blocks import mtp_alone, mtp_blocks, without_mtp
from ggplan.reshaping.experts import with_experts
from ggplan.reshaping.fusing import cut, fused
from ggplan.reshaping.pruning import pruned
from ggplan.reshaping.wishes import Reshaping, recorded_reshaping

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix


def forms_of(model: Model) -> Callable[[Model], Model]:
    """What joins and cuts the tensors of a checkpoint as those of a model that was made of it are."""
    done = {f"ggplan.{key}": string(model.reshaped.get(key, "")) for key in ("fused", "split")}
    wishes = recorded_reshaping(done)
    return lambda opened: reshape(opened, wishes)[0]


def reshape(model: Model, wishes: Reshaping, imatrix: Imatrix | None = None) -> tuple[Model, Imatrix | None]:
    """The model as it is to be written, and the imatrix under its names.

    Parameters
    ----------
    model
        The checkpoint as it was opened.
    wishes
        What is to be done. Layers and experts have their numbers in `model`.
    imatrix
        An imatrix of `model`; of experts and layers that stay, its values stay.

    Raises
    ------
    PlanError
        If it cannot be done to this model.
    """
    require_model(model)
    if wishes.is_nothing:
        return model, imatrix
    dropped = mtp_blocks(model) if wishes.mtp == "drop" else range(0)
    if wishes.mtp == "drop":
        model = without_mtp(model)
    elif wishes.mtp == "only":
        model = mtp_alone(model)
    if wishes.keep_experts is not None:
        model, imatrix = with_experts(
            model, wishes.keep_experts, imatrix, gone={*dropped, *wishes.prune_layers}
        )
    if wishes.prune_layers:
        model, imatrix = pruned(model, wishes.prune_layers, imatrix)
    for form in wishes.split:
        model, imatrix = cut(model, form, imatrix)
    for form in wishes.fuse:
        model, imatrix = fused(model, form, imatrix)
    return model, imatrix
