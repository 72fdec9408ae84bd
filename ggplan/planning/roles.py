"""What a tensor is for, read from its GGUF name.

The classes are the ones people budget by: what stays on the GPU (attention, shared experts, dense FFN,
norms), what goes to RAM (routed experts), what is read once per token (embeddings, output), and the
extra prediction layer (nextn) that most programs skip. Names: llama.cpp b11434, `src/llama-arch.cpp`.
"""

from __future__ import annotations

import re
from enum import StrEnum


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


# Tried in order; the first that is found in the name decides.
_PATTERNS: tuple[tuple[re.Pattern[str], Role], ...] = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (r"\.nextn\.", Role.NEXTN),
        (r"norm|\.bias$|ffn_gate_inp|exp_probs_b|rope_freqs|rope_factors|attn_sinks", Role.SMALL),
        (r"ffn_\w+_shexp\b", Role.SHARED_EXPERTS),
        (r"ffn_\w+_(exps|chexps)\b", Role.ROUTED_EXPERTS),
        (r"ffn_(gate|up|down|gate_up)\b", Role.DENSE_FFN),
        (r"\.(attn_|ssm_|time_mix_|shortconv\.|indexer\.)", Role.ATTENTION),
        (r"(token_embd|token_types|position_embd|per_layer_token_embd)\b", Role.EMBEDDINGS),
        (r"^output\b", Role.OUTPUT),
    )
)
_LAYER = re.compile(r"^blk\.(\d{1,9})\.")


def layer_of(name: str) -> int | None:
    """The block number of `blk.N.…`, or None for a tensor outside the blocks."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def role_of(name: str, n_dimensions: int, nextn_layers: range = range(0)) -> Role:
    """The class of a tensor.

    Parameters
    ----------
    n_dimensions
        Vectors are "norms and small" whatever their name.
    nextn_layers
        The blocks that are next-token prediction layers as a whole, from the model's metadata.
    """
    layer = layer_of(name)
    if layer is not None and layer in nextn_layers:
        return Role.NEXTN
    for pattern, role in _PATTERNS:
        if pattern.search(name):
            return role
    return Role.SMALL if n_dimensions < 2 else Role.OTHER
