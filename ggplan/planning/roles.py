"""What a tensor is for, read from its GGUF name.

The classes are the ones people budget by: what stays on the GPU (attention, shared experts, dense FFN,
norms), what goes to RAM (routed experts), what is read once per token (embeddings, output), and the
extra prediction layer (nextn) that most programs skip. The names are read by `ggplan.rules.roles`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from ggplan.rules.roles import block_of, named_roles


class Role(StrEnum):
    """The class of a tensor; the order is the order of tables."""

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
Device = Literal["gpu", "cpu"]


def layer_of(name: str) -> int | None:
    """The block number of `blk.N.…`, or None for a tensor outside the blocks."""
    return block_of(name)


def role_of(name: str, n_dimensions: int, nextn_layers: range = range(0)) -> Role:
    """The class of a tensor.

    Parameters
    ----------
    n_dimensions
        Vectors are "norms and small" whatever their name.
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


def device_of(name: str) -> Device:
    """Where a tensor is meant to live: routed experts and embeddings in RAM, all else on the GPU.

    What llama.cpp does with `-ngl 99 --cpu-moe`; embeddings are looked up on the CPU in any case.
    """
    roles = named_roles(name)
    return "cpu" if roles and (roles[0].startswith("experts.") or roles[0] == "embeddings") else "gpu"
