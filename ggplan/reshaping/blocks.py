"""Blocks that are left out: those that predict further tokens (MTP), and layers that are pruned.

MTP. What a model has beside its layers: the last `nextn_predict_layers` of its `block_count` blocks. Without
them the keys are those of a model that never had any; alone they are a draft model, with the tensors outside
the blocks that they share with the model. As `--no-mtp` and `--mtp` of llama.cpp's `convert_hf_to_gguf.py`
(b11434, `conversion/base.py` and `filter_tensors` of each family).

Pruning. As `llama-quantize --prune-layers` (`src/llama-quant.cpp`, remap_layer): the blocks' tensors go, the
others are numbered anew without gaps, and `block_count` is their number. llama-quantize changes no other
key, and its file does not load where one counts layers; so here arrays with an item for each block lose those
of the pruned ones, and counts of leading dense layers and of MTP blocks shrink.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ggplan.errors import PlanError
from ggplan.metadata import Metadata, MetadataType, MetadataValue, array, scalar, string
from ggplan.model import Model, TensorInfo
from ggplan.text import format_bytes, names_in_words

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

_BLOCK = re.compile(r"^blk\.(\d{1,9})\.", re.ASCII)
_MOST_BLOCKS = 9_999
_EXTRA = "general.tensor_extra."
# What a draft model shares with its model; and what the converter computes for every model.
_SHARED = re.compile(r"^(token_embd|output|output_norm|rope_freqs|rope_factors_\w+)\.weight$")
# Arrays of an architecture whose items are not of its layers (b11434, `src/llama-arch.cpp`).
_OF_NO_LAYERS = frozenset({
    "rope.dimension_sections", "classifier.output_labels", "target_layers", "adapters.token_ids_activate",
    "adapters.token_ids_substitute", "ple.head_offsets", "ple.head_vocab_sizes", "ple.layers",
    "ple.layer_multipliers",
})  # fmt: skip
# Keys that tell a layer's kind by its number, which pruning changes.
_BY_NUMBER = (
    "full_attention_interval",
    "interleave_moe_layer_step",
    "attention.sliding_window_pattern",
    "no_rope_layer_step",
)


def block_of(name: str) -> int | None:
    """The block number of `blk.N.…`, or None for a tensor outside the blocks."""
    found = _BLOCK.match(name)
    return int(found[1]) if found else None


def number(model: Model, key: str) -> int | None:
    """The integer under a key of the architecture, or None."""
    value = model.metadata.get(f"{model.architecture}.{key}")
    found = None if value is None or value.item_type is not None else value.decode()
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def n_blocks(model: Model) -> int:
    """How many blocks a model has, by its keys; of an inventory by its names.

    Raises
    ------
    PlanError
        If the key holds no such number.
    """
    count = number(model, "block_count")
    if count is not None:
        if not 0 <= count <= _MOST_BLOCKS:
            raise PlanError(f"{model.architecture}.block_count is {count:,}, which is no number of blocks")
        return count
    return 1 + max((b for t in model.tensors if (b := block_of(t.name)) is not None), default=-1)


def mtp_blocks(model: Model) -> range:
    """The blocks that only predict further tokens: the last ones."""
    count, nextn = n_blocks(model), number(model, "nextn_predict_layers")
    if nextn is None:  # an inventory, which has no keys
        named = [b for t in model.tensors if ".nextn." in t.name and (b := block_of(t.name)) is not None]
        return range(min(named), count) if named else range(0)
    return range(min(max(0, count - nextn), count), count)


def without_mtp(model: Model) -> Model:
    """The model without the blocks that predict further tokens."""
    blocks = mtp_blocks(model)
    gone = [t for t in model.tensors if block_of(t.name) in blocks]
    if not gone:
        found = "; `--mtp drop` changes nothing but the keys" if len(blocks) else ""
        if not found:
            note = "the model has no MTP blocks: `--mtp drop` changes nothing"
            return replace(model, notes=(*model.notes, note))
        note = f"the checkpoint holds no tensors of its {len(blocks)} MTP blocks{found}"
    else:
        note = f"{_told(blocks)} left out: {_sizes(gone)}"
    kept = tuple(t for t in model.tensors if block_of(t.name) not in blocks)
    model = with_extras(model, lambda name: () if block_of(name) in blocks else (name,))
    metadata = _of_blocks(model, [n for n in range(n_blocks(model)) if n not in blocks])
    metadata.pop(f"{model.architecture}.nextn_predict_layers", None)
    return relabelled(
        model,
        replace(
            model,
            tensors=kept,
            metadata=metadata,
            notes=(*model.notes, note),
            reshaped={**model.reshaped, "mtp": "drop"},
        ),
    )


def mtp_alone(model: Model) -> Model:
    """The blocks that predict further tokens, and the tensors outside blocks that they need.

    Raises
    ------
    PlanError
        If the model has none.
    """
    blocks = mtp_blocks(model)
    alone = tuple(t for t in model.tensors if block_of(t.name) in blocks or _SHARED.match(t.name))
    if not any(block_of(t.name) in blocks for t in alone):
        raise PlanError(
            "the model has no MTP blocks to write alone",
            hint="the checkpoint may have been saved without them: `save_pretrained` drops them",
        )
    there = {t.name for t in alone}
    model = with_extras(model, lambda name: (name,) if name in there else ())
    note = f"{_told(blocks)} written alone, as a draft model: {_sizes(alone)}"
    return relabelled(
        model,
        replace(
            model,
            tensors=alone,
            notes=(*model.notes, note),
            reshaped={**model.reshaped, "mtp": "only"},
        ),
    )


def pruned(model: Model, layers: Sequence[int], imatrix: Imatrix | None) -> tuple[Model, Imatrix | None]:
    """The model without some layers, the others numbered anew; the imatrix under the new names.

    Raises
    ------
    PlanError
        If there is no such layer, or none is left.
    """
    from ggplan.reshaping.importance import renamed

    count = n_blocks(model)
    gone = sorted(set(layers))
    if wrong := [n for n in gone if not 0 <= n < count]:
        raise PlanError(f"there is no layer {wrong[0]} to prune: the model has layers 0 to {count - 1}")
    kept = [n for n in range(count) if n not in gone]
    if not set(kept) - set(mtp_blocks(model)):
        raise PlanError("no layer is left once these are pruned")
    names: dict[str, str] = {}  # new ones by the old
    for tensor in (*model.tensors, *model.companions):
        block = block_of(tensor.name)
        if block is None or block >= count:
            names[tensor.name] = tensor.name
        elif block not in gone:
            names[tensor.name] = _BLOCK.sub(f"blk.{kept.index(block)}.", tensor.name)
    tensors = tuple(_renamed(t, names) for t in model.tensors if t.name in names)
    lost = [t for t in model.tensors if t.name not in names]
    listed = ", ".join(map(str, gone))
    told = f"layer {listed} is pruned" if len(gone) == 1 else f"layers {listed} are pruned"
    notes = [
        f"{told}: {_sizes(lost)}; {len(kept):,} are left, numbered anew",
    ]
    notes += _pattern_notes(model, gone)
    metadata = _of_blocks(model, kept)
    changed = [key for key in metadata if metadata[key] != model.metadata[key]]
    metadata = with_extras(
        replace(model, metadata=metadata), lambda name: (names[name],) if name in names else ()
    ).metadata
    others = [key for key in changed if key != f"{model.architecture}.block_count"]
    if others:
        notes.append(
            f"written for the layers that are left: {', '.join(others)}; "
            "llama-quantize leaves such keys as they were, and its file does not load"
        )
    return (
        replace(
            model,
            tensors=tensors,
            metadata=metadata,
            notes=(*model.notes, *notes),
            reshaped={**model.reshaped, "pruned_layers": ",".join(map(str, gone))},
        ),
        None if imatrix is None else renamed(imatrix, {new: old for old, new in names.items()}),
    )


def with_extras(model: Model, new_names: Callable[[str], Sequence[str]]) -> Model:
    """The model with the keys that say something of tensors by their names, under the new names.

    `general.tensor_extra.name` lists tensors, and the other arrays of that beginning what is said of each.
    """
    listed = model.metadata.get(f"{_EXTRA}name")
    if listed is None or listed.item_type is not MetadataType.STRING:
        return model
    pairs: dict[str, int] = {}  # the place of each new name's facts
    for at, old in enumerate(listed.decode_items(listed.length)):
        for name in new_names(str(old)):
            pairs.setdefault(name, at)
    metadata: Metadata = {}
    for key, value in model.metadata.items():
        if key.startswith(_EXTRA) and value.item_type is not None and value.length == listed.length:
            items = value.decode_items(value.length)
            named = sorted(pairs)
            chosen = named if key == f"{_EXTRA}name" else [items[pairs[name]] for name in named]
            if not chosen:
                continue
            value = array(value.item_type, chosen)
        metadata[key] = value
    return replace(model, metadata=metadata)


def relabelled(before: Model, after: Model) -> Model:
    """The model with the label of its size made anew, where the old one counted the tensors it had."""
    from ggplan.arch.general_keys import size_label

    key = "general.size_label"
    stated = before.metadata.get(key)
    if stated is None or stated != string(size_label((*before.tensors, *before.companions))):
        return after
    label = string(size_label((*after.tensors, *after.companions)))
    return replace(after, metadata={**after.metadata, key: label})


def _renamed(tensor: TensorInfo, names: Mapping[str, str]) -> TensorInfo:
    codes = tensor.codes
    if codes is not None and codes.companions:
        companions = tuple(replace(c, name=names[c.name]) for c in codes.companions)
        codes = replace(codes, companions=companions)
    return replace(tensor, name=names[tensor.name], codes=codes)


def _of_blocks(model: Model, kept: Sequence[int]) -> Metadata:
    """The metadata of a model that has only these of its blocks."""
    count, prefix = n_blocks(model), f"{model.architecture}."
    nextn = set(mtp_blocks(model))
    layers = [n for n in kept if n not in nextn]
    # Some arrays have an item for each block, some have none for MTP blocks.
    of_length = {count - len(nextn): layers, count: list(kept)}
    metadata: Metadata = {}
    for key, value in model.metadata.items():
        name = key.removeprefix(prefix)
        is_array = value.item_type is not None and name not in _OF_NO_LAYERS
        if key.startswith(prefix) and is_array and value.length in of_length:
            items = value.decode()
            assert value.item_type is not None
            assert isinstance(items, list)
            value = array(value.item_type, [items[n] for n in of_length[value.length]])
        elif key == f"{prefix}block_count":
            value = scalar(MetadataType.UINT32, len(kept))
        elif name == "leading_dense_block_count" and key.startswith(prefix):
            value = _recounted(value, kept)
        elif name == "nextn_predict_layers" and key.startswith(prefix):
            value = scalar(value.type, len(nextn & set(kept)))
        metadata[key] = value
    return metadata


def _recounted(value: MetadataValue, kept: Sequence[int]) -> MetadataValue:
    first = value.decode()
    return scalar(value.type, sum(n < first for n in kept)) if isinstance(first, int) else value


def _pattern_notes(model: Model, gone: Sequence[int]) -> list[str]:
    """Notes about keys that tell a layer's kind by its number, in a model whose numbers change."""
    found = [key for key in _BY_NUMBER if (number(model, key) or 0) > 1]
    changes = any(block_of(t.name) not in (None, *gone) and (block_of(t.name) or 0) > gone[0] for t in model)
    if not found or not changes:
        return []
    keys = ", ".join(f"{model.architecture}.{key}" for key in found)
    return [f"{keys} tells the kind of a layer by its number: those after layer {gone[0]} may change theirs"]


def _told(blocks: range) -> str:
    one = len(blocks) == 1
    return (
        f"MTP block{'' if one else 's'} {names_in_words([str(n) for n in blocks])} {'is' if one else 'are'}"
    )


def _sizes(tensors: Sequence[TensorInfo]) -> str:
    return f"{len(tensors):,} tensors, {format_bytes(sum(t.n_bytes for t in tensors))}"
