"""Which importance values an encoder gets for a tensor, by llama-quantize's rules.

llama.cpp b11434, `src/llama-quant.cpp`: a tensor without an entry is encoded without weights; an entry
of the wrong size is an error, but for `token_embd.weight`, where it is ignored. Types whose row in
`ggplan.ggml_types` says that they ignore an imatrix get none, unless encoded with best effort.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggplan.errors import ImatrixError, PlanError
from ggplan.ggml_types import GgmlType
from ggplan.model import TensorInfo
from ggplan.planning.embedding import EMBEDDING
from ggplan.planning.plan import Coverage, Effort, Plan
from ggplan.rules import Blocks, roles_of
from ggplan.stock import needs_imatrix
from ggplan.text import names_in_words, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggplan.imatrix import Imatrix, ImatrixEntry


def uses_imatrix(type_: GgmlType, effort: Effort = "default") -> bool:
    """Whether the encoder of this type weighs its errors by an imatrix; with more effort, all do."""
    return type_.uses_imatrix if effort == "default" else type_.is_quantized


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
        if tensor.name == EMBEDDING:
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


OUTSIDE_HINT = (
    "output.weight has an entry where the imatrix or calibration was made with --process-output; embeddings, "
    "which are looked up and not multiplied, have none"
)
"""What to do about tensors outside of the layers."""


def nextn_hint(order: str = "first") -> str:
    """What to do about nextn blocks, whose tensors no imatrix has an entry for.

    They are not run while an imatrix is collected. `order` is the recipe's; "" where a mix decides.
    """
    why = "no imatrix has data for nextn blocks, which are not run while it is collected"
    if not order:
        return f"{why}: write the mix as a recipe with `ggplan rules from --mix`, and a rule for them in it"
    where = "above" if order == "first" else "below"
    return f"{why}: write a rule for them {where} the others, such as `@role nextn = q8_0`"


def importance_refusal(plan: Plan) -> PlanError | None:
    """Why a plan cannot be carried out for want of importance; None if it can.

    Some types ggml cannot encode without. Others llama-quantize refuses to, and so does a plan of one of its
    mixes, which promises llama-quantize's file.
    """
    lacking = [
        t
        for t in plan.tensors
        if t.type != t.tensor.type and (t.coverage is None or not t.coverage.n_matrices)
    ]
    mix = plan.assignment.mix
    impossible = [t for t in lacking if t.type.requires_imatrix]
    refused = [t for t in lacking if mix is not None and needs_imatrix(mix, t.name, t.type)]
    found = impossible or refused
    if not found:
        return None
    names, types = [t.name for t in found], ", ".join(sorted({t.type.name for t in found}))
    what = f"{types} cannot be encoded" if impossible else f"llama-quantize refuses {types}"
    blocks, recipe = Blocks.of(t.name for t in plan.tensors), plan.assignment.recipe
    only_nextn = all("nextn" in roles_of(name, blocks) for name in names)
    for_nextn = nextn_hint("" if recipe is None else recipe.order)
    if plan.imatrix is None:
        message = f"{names_in_words(names)}: {what} without an imatrix"
        hint = for_nextn if only_nextn else "give one with --imatrix, or choose a type of more bits"
        return PlanError(message, hint=hint)
    message = (
        f"{names_in_words(names)}: no entry in {printable(plan.imatrix.path.name)}; {what} without importance"
    )
    hint = for_nextn if only_nextn else "collect an imatrix of this very model, or choose a type of more bits"
    return PlanError(message, hint=hint)


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
