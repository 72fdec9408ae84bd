r"""Roles: what a tensor is for, so that one rule can speak to every architecture.

`@role experts.down = q6_K` means `ffn_down_exps` in every mixture-of-experts model. The words:

    attention      mixes tokens: q, k, v, output, MLA's small matrices, and state-space or linear mixers
    experts.gate   routed experts, nine tenths of a mixture of experts; a fused `ffn_gate_up_exps` is both
    experts.up     gate and up. `experts` alone means all three
    experts.down
    shared         the expert that sees every token
    dense          the plain feed-forward network, and other plain matrices
    embeddings     looked up, not multiplied: tokens, positions
    output         chooses the next token
    router         chooses the experts, with its bias
    norm           norms, biases and other vectors
    nextn          all tensors of the blocks that only predict further tokens (MTP)

Every tensor of such a block is `nextn` and also what its name says (`experts.down`, `norm`), so the rule
that stands first decides. Names: llama.cpp b11434, `gguf-py/gguf/constants.py`, TENSOR_NAMES.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

ROLES = (
    "attention",
    "experts.gate",
    "experts.up",
    "experts.down",
    "shared",
    "dense",
    "embeddings",
    "output",
    "router",
    "norm",
    "nextn",
)
ROLE_GROUPS = {"experts": ("experts.gate", "experts.up", "experts.down")}
"""Words that stand for several roles."""

MAX_BLOCK = 9_999
"""The highest block number a range or a model is believed to have."""

# Tried in order; the first that is found in the name decides. `re` compiles each when it is first tried.
_TABLE: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (pattern, tuple(roles.split()))
    for pattern, roles in (
        (r"\bffn_gate_inp(_shexp)?\b|\bexp_probs_b(_vl)?\b|\bffn_gate_tid2eid\b", "router"),
        # `norm` anywhere, the encoders' ln1, ln_post, ls1 (layer norms and scales), batch norms
        (r"norm|(^|[._])(ln|ls|bn)(\d*|_\w+)\b|(post|pre|ds)_ln\b|time_mix_ln\b|\.bias$", "norm"),
        (r"rope_freqs|rope_factors|attn_sinks|(_|\b)(scale|gamma|std|mean|var)(_\d)?\b", "norm"),
        (r"\bffn_(gate|up|down|gate_up)_shexp\b", "shared"),
        (r"\bffn_gate_up_(ch)?exps\b", "experts.gate experts.up"),
        (r"\bffn_gate_(ch)?exps\b", "experts.gate"),
        (r"\bffn_up_(ch)?exps\b", "experts.up"),
        (r"\bffn_down_(ch)?exps\b", "experts.down"),
        (r"\bffn|\bchannel_mix_|\bmlp\b|vis_(up|down|gate)\b|\bvit_merger\.ds_ffn", "dense"),
        (r"\b(attn|hc_attn|cross_attn|self_attn|vis_attn)(_|\b)|_attn_(q|k|v|o|out|res|pos)\b", "attention"),
        (r"\bssm_|\btime_mix_|\bshortconv\.|\bindexer(\.|_)|resampler\.(attn|kv)\b", "attention"),
        (r"\b(token_embd|token_types|position_embd|per_layer_token_embd|masked_embd_\w+)\b", "embeddings"),
        (r"\b(patch_embd|pos_embd\w*|class_embd|code_embd|embedding|codebook|embd)\b", "embeddings"),
        (r"^(output|cls|dense_[23]|d2t)(\b|_)|^markov_|^selector_|\bembd_to_logits\b|\bhead\b", "output"),
        (r"^[av]\.|^mm\.|^resampler\.|^posnet\.|^convnext\.|^conv1d\b|^dec\.|^enc\.", "dense"),
        (r"^(fc|conf_proj|hrm)\b|altup_|laurel_|\bple_|\bhc_|\.(inp_gate|proj)\b|per_layer_", "dense"),
    )
)
_BLOCK = re.compile(r"^blk\.(\d{1,9})\.", re.ASCII)
_NEXTN_BLOCK = re.compile(r"^blk\.(\d{1,9})\.nextn\.", re.ASCII)


@dataclass(frozen=True, slots=True)
class Blocks:
    """What names tell of a model's blocks: how many there are, and which only predict further tokens."""

    count: int = 0
    nextn: frozenset[int] = frozenset()

    @classmethod
    def of(cls, names: Iterable[str]) -> Blocks:
        """Read them from the tensor names of a whole model."""
        return _blocks_of(tuple(names))


@lru_cache(maxsize=8)  # a check asks for the same model again and again
def _blocks_of(names: tuple[str, ...]) -> Blocks:
    count, nextn = 0, set()
    for name in names:
        block = block_of(name)
        if block is None or block > MAX_BLOCK:
            continue
        count = max(count, block + 1)
        if _NEXTN_BLOCK.match(name):
            nextn.add(block)
    return Blocks(count, frozenset(nextn))


@lru_cache(maxsize=1 << 14)
def block_of(name: str) -> int | None:
    """The block number of `blk.N.…`, or None for a tensor outside the blocks."""
    found = _BLOCK.match(name)
    return int(found[1]) if found else None


@lru_cache(maxsize=1 << 14)
def roles_of(name: str, blocks: Blocks) -> tuple[str, ...]:
    """The roles of a tensor, the one it is counted under first; () for a name no architecture has."""
    named = named_roles(_BLOCK.sub("blk.0.", name))
    if block_of(name) in blocks.nextn or re.match(r"(blk\.\d+\.)?nextn\.", name):
        return ("nextn", *(role for role in named if role != "nextn"))
    return named


@lru_cache(maxsize=1 << 14)
def named_roles(name: str) -> tuple[str, ...]:
    """The roles a name has by itself, whatever block it is in."""
    if re.match(r"(blk\.\d+\.)?nextn\.", name):
        return ("nextn", "norm") if "norm" in name else ("nextn",)
    for pattern, roles in _TABLE:
        if re.search(pattern, name):
            return roles
    return ()


def expand_role(word: str) -> tuple[str, ...] | None:
    """The roles a word of a recipe stands for, or None where it is no role."""
    return ROLE_GROUPS.get(word) or ((word,) if word in ROLES else None)
