r"""Groups: the tensors that get one type together, so that the answer is a recipe one can read.

A group is one kind of tensor (`ffn_down_exps`) in one band of the layers that have it. With three bands each
kind has at most three rules, and the damage is 1 to 4 % above what a type for each tensor would give; where
gate and up are kept alike ("harmonised"), as engines that multiply both at once want it, it is the same
within noise.

Tensors of a kind that may not get the same types (other row lengths, other types in the source) are in groups
of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ggplan.allocation.candidates import TensorChoices
from ggplan.allocation.solving import Item
from ggplan.ggml_types import GgmlType
from ggplan.planning.layout import padded
from ggplan.rules.roles import block_of

_BLOCK = re.compile(r"^blk\.\d+\.", re.ASCII)


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that get one type.

    Attributes
    ----------
    members
        With the same candidates, in the order of the model.
    types
        Those of the candidates.
    n_bytes, damages
        Of all members together, for each type; bytes with what the file pads them to.
    """

    members: tuple[TensorChoices, ...]
    types: tuple[GgmlType, ...]
    n_bytes: tuple[int, ...]
    damages: tuple[float, ...]


def groups_of(
    choices: Sequence[TensorChoices], *, bands: int | None, harmonised: Sequence[Sequence[str]]
) -> tuple[Group, ...]:
    """The groups of all tensors that may get several types.

    Parameters
    ----------
    bands
        Bands of layers for each kind; None for a band of each layer.
    harmonised
        Sets of words, such as ("gate", "up"): kinds that differ by such a word alone are one.
    """
    kinds: dict[tuple[str, tuple[GgmlType, ...]], dict[int, list[TensorChoices]]] = {}
    for choice in choices:
        if choice.fixed:
            continue
        block = block_of(choice.tensor.name)
        types = tuple(c.type for c in choice.candidates)
        key = joined_kind(choice.tensor.name, harmonised), types
        kinds.setdefault(key, {}).setdefault(-1 if block is None else block, []).append(choice)
    found = []
    for (_, types), layers in kinds.items():
        for band in _bands(sorted(layers), bands):
            members = tuple(choice for layer in band for choice in layers[layer])
            found.append(_group(members, types))
    return tuple(found)


def _group(members: tuple[TensorChoices, ...], types: tuple[GgmlType, ...]) -> Group:
    return Group(
        members,
        types,
        tuple(sum(padded(m.candidates[i].n_bytes) for m in members) for i in range(len(types))),
        tuple(sum(m.candidates[i].damage for m in members) for i in range(len(types))),
    )


def joined_kind(name: str, harmonised: Iterable[Sequence[str]]) -> str:
    """The kind of a tensor, with harmonised words as one: `ffn_gate+up_exps.weight`."""
    kind = _BLOCK.sub("", name)
    for words in harmonised:
        any_word = "|".join(re.escape(word) for word in words)
        kind = re.sub(rf"(?<=_)({any_word})(?=_|\.|$)", "+".join(words), kind)
    return kind


def _bands(layers: Sequence[int], bands: int | None) -> list[Sequence[int]]:
    """Layers in order, cut into parts of nearly one length."""
    n = len(layers) if bands is None else min(bands, len(layers))
    cuts = [round(i * len(layers) / n) for i in range(n + 1)]
    return [layers[a:b] for a, b in pairwise(cuts)]


def item_of(group: Group) -> Item:
    """The group for the solver, with the bytes of the file as its one row."""
    return Item(group.damages, (tuple(map(float, group.n_bytes)),))
