"""Blocks, and those that predict further tokens (MTP), which are left out or written alone.

What a model has beside its layers: the last `nextn_predict_layers` of its `block_count` blocks. Without
them the keys are those of a model that never had any; alone they are a draft model, with the tensors outside
the blocks that they share with the model. As `--no-mtp` and `--mtp` of llama.cpp's `convert_hf_to_gguf.py`
(b11434, `conversion/base.py` and `filter_tensors` of each family).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ggplan.errors import PlanError
from ggplan.metadata import Metadata, MetadataType, MetadataValue, array, scalar, string
from ggplan.model import Model, TensorInfo
from ggplan.text import format_bytes

BLOCK = re.compile(r"^blk\.(\d{1,9})\.", re.ASCII)
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


def block_of(name: str) -> int | None:
    """The block number of `blk.N.…`, or None for a tensor outside the blocks."""
    found = BLOCK.match(name)
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
    if gone:
        note = f"{_told(blocks)} left out: {sizes_of(gone)}"
    elif blocks:
        note = (
            f"the checkpoint holds no tensors of {_named(blocks)}: `--mtp drop` changes nothing but the keys"
        )
    else:
        note = "the model has no MTP blocks: `--mtp drop` changes nothing"
        if f"{model.architecture}.nextn_predict_layers" not in model.metadata:
            return replace(model, notes=(*model.notes, note))
        note += " but the key that says so"
    kept = tuple(t for t in model.tensors if block_of(t.name) not in blocks)
    model = with_extras(model, lambda name: () if block_of(name) in blocks else (name,))
    metadata = of_blocks(model, [n for n in range(n_blocks(model)) if n not in blocks])
    metadata.pop(f"{model.architecture}.nextn_predict_layers", None)  # it may say 0
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
    note = f"{_told(blocks)} written alone, as a draft model: {sizes_of(alone)}"
    return relabelled(
        model,
        replace(
            model,
            tensors=alone,
            notes=(*model.notes, note),
            reshaped={**model.reshaped, "mtp": "only"},
        ),
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


def of_blocks(model: Model, kept: Sequence[int]) -> Metadata:
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
        elif key == f"{prefix}nextn_predict_layers" and nextn:
            if not nextn & set(kept):
                continue  # as in a model that never had any
            value = scalar(value.type, len(nextn & set(kept)))
        metadata[key] = value
    return metadata


def _recounted(value: MetadataValue, kept: Sequence[int]) -> MetadataValue:
    first = value.decode()
    return scalar(value.type, sum(n < first for n in kept)) if isinstance(first, int) else value


def _told(blocks: range) -> str:
    return f"{_named(blocks)} {'is' if len(blocks) == 1 else 'are'}"


def _named(blocks: range) -> str:
    return numbered("MTP block", blocks)


def numbered(what: str, numbers: Sequence[int]) -> str:
    """Ascending numbers of layers, runs of them as ranges, for people: `layer 3`, `layers 0, 2, 5-7`."""
    plural = "" if len(numbers) == 1 else "s"
    return f"{what}{plural} {', '.join(ranges(numbers)) or 'none'}"


def ranges(numbers: Iterable[int]) -> list[str]:
    """Ascending numbers, each run of them as one: `0`, `2`, `5-7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [str(low) if low == high else f"{low}-{high}" for low, high in runs]


def sizes_of(tensors: Sequence[TensorInfo]) -> str:
    """How many tensors and bytes these are, for notes."""
    plural = "" if len(tensors) == 1 else "s"
    return f"{len(tensors):,} tensor{plural}, {format_bytes(sum(t.n_bytes for t in tensors))}"
