r"""Fused tensors and the rules for their parts: which rule decides `ffn_gate_up_exps`, or `ffn_gate_exps`.

Some files have gate and up, or q, k and v, as one tensor. A recipe that was written for the other form means
the same weights, so its rules apply:

    fused in the model   Each part is decided by the first rule that matches its name or the fused one's. The
                         fused tensor gets their type; where they differ, the one of most bits.
    apart in the model   A rule for the fused name, which matches none of the parts', applies to each part.

A recipe that knows the model's own form is left alone: if a rule matches the fused name and none of its
parts' (`attn_qkv = q8_0`, but not `.*` or `attn_`), the rules for the parts do not apply to it; if one
matches a part's name and not the fused one, those for the fused tensor do not apply to that part. Nor do they
where a model has both forms, in different layers: then each rule means its own.

The forms are those of llama.cpp b11434, `gguf-py/gguf/constants.py`; gate and up of a dense network have no
name of their own when fused: `ffn_up` has twice the rows then (GLM-4, Phi-3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ggplan.model import TensorInfo

FORMS: Mapping[str, tuple[str, ...]] = {
    "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps"),
    "ffn_gate_up_shexp": ("ffn_gate_shexp", "ffn_up_shexp"),
    "ffn_gate_up": ("ffn_gate", "ffn_up"),
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
}
"""The fused tensors of a layer and their parts."""
_DENSE = ("ffn_gate", "ffn_up")
_NAME = re.compile(r"(blk\.\d{1,9}\.)([a-z_]+)(\.(?:weight|bias))", re.ASCII)


@dataclass(frozen=True, slots=True)
class OtherForm:
    """The names that a tensor's weights have in the other form.

    Attributes
    ----------
    names
        Of a fused tensor those of its parts; of a part that of the fused tensor, and then of all its parts.
    is_fused
        Whether the tensor is the fused one.
    """

    names: tuple[str, ...]
    is_fused: bool


def other_forms(tensors: Sequence[TensorInfo]) -> dict[str, OtherForm]:
    """The other names of each tensor of a model that has one of two forms, and not both."""
    split = {t.name: own for t in tensors if (own := _split(t.name)) is not None}
    kinds = {kind for _, kind, _ in split.values()}
    forms: dict[str, tuple[str, ...]] = {}
    known: dict[str, OtherForm] = {}
    for whole, parts in FORMS.items():
        if whole in kinds and kinds.isdisjoint(parts):
            forms[whole] = parts
        elif whole not in kinds:
            forms |= {part: (whole, *parts) for part in parts if kinds.issuperset(parts)}
    fused_up = "ffn_gate" not in kinds and "ffn_up" in kinds
    shapes = {t.name: t.shape for t in tensors} if fused_up else {}
    for name, (block, kind, ending) in split.items():
        if kind == "ffn_up" and fused_up:
            down = shapes.get(f"{block}ffn_down.weight", ())
            if len(down) == 2 and shapes[name][0 if ending == ".weight" else -1] == 2 * down[1]:
                known[name] = OtherForm(tuple(f"{block}{part}{ending}" for part in _DENSE), True)
        elif kind in forms:
            names = tuple(f"{block}{other}{ending}" for other in forms[kind])
            known[name] = OtherForm(names, kind in FORMS)
    return known


@lru_cache(maxsize=1 << 14)
def _split(name: str) -> tuple[str, str, str] | None:
    """The block, the kind and the ending in the name of a layer's tensor."""
    found = _NAME.fullmatch(name)
    return None if found is None else (found[1], found[2], found[3])


def rules_of_parts(own: tuple[int, ...], parts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The rules for each part of a fused tensor; [] where the recipe has none but for the fused name.

    Parameters
    ----------
    own, parts
        The rules that match the fused name, and those that match each part's.
    """
    of_parts = {rule for hits in parts for rule in hits}
    if set(own) - of_parts or not of_parts - set(own):
        return []
    return [tuple(sorted({*own, *hits})) for hits in parts]


def rules_of_part(
    own: tuple[int, ...], whole: tuple[int, ...], parts: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
    """The rules for a tensor that is a part: its own, and those for the fused tensor where they apply.

    Parameters
    ----------
    own, whole, parts
        The rules that match its own name, the fused one's, and those of all parts.
    """
    of_whole = set(whole).difference(*parts)
    if not of_whole or set(own) - set(whole):
        return own
    return tuple(sorted({*own, *of_whole}))
