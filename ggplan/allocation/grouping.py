r"""Groups: the tensors that get one type together, so that the answer is a recipe one can read.

A chain is one kind of tensor (`ffn_down_exps`) along the layers, a group a band of it. Where gate and up are
kept alike ("harmonised"), as engines that multiply both at once want it, they are one kind, which costs
nothing that can be measured.

Tensors of a kind that may not get the same types (other row lengths, other types in the source) are in chains
of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ggplan.allocation.candidates import TensorChoices
from ggplan.allocation.patterns import split_name
from ggplan.ggml_types import GgmlType
from ggplan.planning.layout import padded


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


@dataclass(frozen=True, slots=True)
class Chain:
    """The tensors of one kind, layer by layer.

    Attributes
    ----------
    layers
        A group of each layer that has the kind, in order; of a kind outside the layers one group.
    """

    layers: tuple[Group, ...]


def chains_of(choices: Sequence[TensorChoices], *, harmonised: Sequence[Sequence[str]]) -> tuple[Chain, ...]:
    """The chains of all tensors that may get several types.

    Parameters
    ----------
    harmonised
        Sets of words, such as ("gate", "up"): kinds that differ by such a word alone are one.
    """
    kinds: dict[tuple[str, tuple[GgmlType, ...]], dict[int, list[TensorChoices]]] = {}
    for choice in choices:
        if choice.fixed:
            continue
        _, layer, _ = split_name(choice.tensor.name)
        types = tuple(c.type for c in choice.candidates)
        key = joined_kind(choice.tensor.name, harmonised), types
        kinds.setdefault(key, {}).setdefault(-1 if layer is None else layer, []).append(choice)
    return tuple(
        Chain(tuple(_group(tuple(layers[layer]), types) for layer in sorted(layers)))
        for (_, types), layers in kinds.items()
    )


def joined(groups: Sequence[Group]) -> Group:
    """Groups of one kind as one."""
    return _group(tuple(m for group in groups for m in group.members), groups[0].types)


def _group(members: tuple[TensorChoices, ...], types: tuple[GgmlType, ...]) -> Group:
    return Group(
        members,
        types,
        tuple(sum(padded(m.candidates[i].n_bytes) for m in members) for i in range(len(types))),
        tuple(sum(m.candidates[i].damage for m in members) for i in range(len(types))),
    )


def without_effect(names: Iterable[str], harmonised: Iterable[Sequence[str]]) -> list[str]:
    """The harmonised words that are in no tensor's kind."""
    kinds = {split_name(name)[2] for name in names}
    words = dict.fromkeys(word for several in harmonised for word in several)
    return [word for word in words if not any(_word(word).search(kind) for kind in kinds)]


def _word(*words: str) -> re.Pattern[str]:
    any_word = f"(?:{'|'.join(map(re.escape, words))})"
    return re.compile(rf"(?<=_){any_word}(?:_{any_word})*(?=_|\.|$)")


def joined_kind(name: str, harmonised: Iterable[Sequence[str]]) -> str:
    """The kind of a tensor, with harmonised words as one: `ffn_gate+up_exps.weight`.

    Words that follow one another are one too: `ffn_gate_up_exps` is gate and up in one tensor.
    """
    prefix, layer, kind = split_name(name)
    kind = kind if prefix == "blk." or layer is None else f"{prefix}{kind}"
    for words in harmonised:
        kind = _word(*words).sub("+".join(words), kind)
    return kind
