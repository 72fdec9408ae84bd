"""Metadata that an inventory does not have, read off the shapes of its tensors.

An inventory lists tensors and the few keys that a recipe needs. What fitting needs beside them stands in the
shapes: the size of a head in `attn_k`, the ranks of latent attention in its projections, which blocks are
dense. Keys that are there stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ggplan.metadata import uint32
from ggplan.offload.header import Header, HeaderTensor

# What all models of an architecture have and no shape shows: the window of gpt-oss is 128 tokens.
_OF_ALL = {"gpt-oss": {"attention.sliding_window": 128}}
_LATENT = ("attn_kv_a_mqa.weight", "attn_kv_a_norm.weight", "attn_k_b.weight", "attn_v_b.weight")


def completed(header: Header) -> Header:
    """The header with the keys that its tensors tell, where they are missing."""
    named = header.metadata.get("general.architecture")
    architecture = "" if named is None else str(named.decode())
    first: dict[str, HeaderTensor] = {}
    for tensor in header.tensors:
        if tensor.name.startswith("blk."):
            first.setdefault(tensor.name.split(".", 2)[2], tensor)
    kv_heads = _number(header, f"{architecture}.attention.head_count_kv")
    told = dict(_told(first, header, kv_heads)) | _OF_ALL.get(architecture, {})
    missing = {
        f"{architecture}.{key}": uint32(value)
        for key, value in told.items()
        if value > 0 and f"{architecture}.{key}" not in header.metadata
    }
    return replace(header, metadata={**header.metadata, **missing}) if missing else header


def _number(header: Header, key: str) -> int:
    found = header.metadata.get(key)
    value = None if found is None else found.decode()
    return value if isinstance(value, int) else 0


def _told(first: Mapping[str, HeaderTensor], header: Header, kv_heads: int) -> Iterator[tuple[str, int]]:
    latent = [first[name].shape for name in _LATENT if name in first]
    if len(latent) == len(_LATENT):
        mqa, norm, k_b, v_b = latent
        rank, rope = norm[0], mqa[1] - norm[0]
        yield "attention.kv_lora_rank", rank
        yield "rope.dimension_count", rope
        yield "attention.key_length", rank + rope
        yield "attention.value_length", rank
        yield "attention.key_length_mla", k_b[0] + rope
        yield "attention.value_length_mla", v_b[1]
        if "attn_q_a.weight" in first:
            yield "attention.q_lora_rank", first["attn_q_a.weight"].shape[1]
    elif kv_heads:
        for key, name in (("key", "attn_k.weight"), ("value", "attn_v.weight")):
            if name in first and len(first[name].shape) > 1:
                yield f"attention.{key}_length", first[name].shape[1] // kv_heads
    for name in ("ffn_gate.weight", "ffn_up.weight"):
        if name in first and len(first[name].shape) > 1:
            yield "feed_forward_length", first[name].shape[1]
            break
    routed = [t.name.split(".")[1] for t in header.tensors if ".ffn_down_exps.weight" in t.name]
    if routed:
        yield "leading_dense_block_count", min(map(int, routed))
