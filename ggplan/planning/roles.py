"""The role of a tensor, read from its GGUF name.

Roles group tensors as users budget for them; tables call the column "class". They are: what every token reads
(attention, shared experts, dense FFN, norms), what it reads a few of (routed experts), what is read once per
token (embeddings, output), and the extra prediction layer (nextn) that most programs skip. The names are read
by `ggplan.rules.roles`; in which memory a tensor is, `ggplan.planning.devices` says.
"""

from __future__ import annotations

from enum import StrEnum

from ggplan.model import Model
from ggplan.planning.protection import n_dimensions
from ggplan.rules.roles import block_of, named_roles


class Role(StrEnum):
    """The role of a tensor; the order is the order of tables."""

    ATTENTION = "attention"
    SHARED_EXPERTS = "shared experts"
    ROUTED_EXPERTS = "routed experts"
    DENSE_FFN = "dense FFN"
    EMBEDDINGS = "embeddings"
    OUTPUT = "output"
    SMALL = "norms and small"
    NEXTN = "nextn"
    OTHER = "other"


_CLASSES = {
    "attention": Role.ATTENTION,
    "experts.gate": Role.ROUTED_EXPERTS,
    "experts.up": Role.ROUTED_EXPERTS,
    "experts.down": Role.ROUTED_EXPERTS,
    "shared": Role.SHARED_EXPERTS,
    "dense": Role.DENSE_FFN,
    "embeddings": Role.EMBEDDINGS,
    "output": Role.OUTPUT,
    "router": Role.SMALL,
    "norm": Role.SMALL,
    "nextn": Role.NEXTN,
}


def layer_of(name: str) -> int | None:
    """The block number of `blk.N.…`, or None for a tensor outside the blocks."""
    return block_of(name)


def role_of(name: str, n_dimensions: int, nextn_layers: range = range(0)) -> Role:
    """The role of a tensor.

    Parameters
    ----------
    n_dimensions
        Tensors of one dimension are "norms and small", whatever their name.
    nextn_layers
        The blocks that are next-token prediction layers as a whole, from the model's metadata.
    """
    layer = block_of(name)
    if layer is not None and layer in nextn_layers:
        return Role.NEXTN
    roles = named_roles(name)
    if not roles or (n_dimensions < 2 and roles[0] != "nextn"):
        return Role.SMALL if n_dimensions < 2 else Role.OTHER
    return _CLASSES[roles[0]]


def roles_in(model: Model) -> dict[str, Role]:
    """The role of each tensor of a model and each companion, by name."""
    nextn = nextn_layers(model)
    tensors = (*model.tensors, *model.companions)
    return {t.name: role_of(t.name, n_dimensions(t.shape), nextn) for t in tensors}


def nextn_layers(model: Model) -> range:
    """The blocks that only predict further tokens: the last `nextn_predict_layers` of the model."""
    keys = [f"{model.architecture}.{name}" for name in ("block_count", "nextn_predict_layers")]
    values = [model.metadata[key].decode() if key in model.metadata else None for key in keys]
    count, nextn = (value if isinstance(value, int) else 0 for value in values)
    if not nextn:
        # An inventory has no metadata; such a block is recognised by its tensors.
        layers = {
            t.name.split(".")[1] for t in model.tensors if ".nextn." in t.name and t.name.startswith("blk.")
        }
        numbers = [int(layer) for layer in layers if layer.isdecimal() and len(layer) < 9]
        return range(min(numbers), max(numbers) + 1) if numbers else range(0)
    return range(max(0, count - nextn), count)
