"""Layers that are taken out, the others numbered anew without gaps.

As `llama-quantize --prune-layers` (`src/llama-quant.cpp`, remap_layer): the blocks' tensors go, the others
are numbered anew, and `block_count` is their number. llama-quantize changes no other key, so that what keys
and numbers say of a layer is wrong, or the file does not load. Here arrays with an item for each block lose
those of the pruned ones, counts of leading dense layers and of MTP blocks shrink, what numbers tell is
written (see `layer_kinds`), and matrices with a part for each layer lose theirs: Gemma's
`per_layer_token_embd` columns, `per_layer_model_proj` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggplan.errors import PlanError
from ggplan.model import Model, RowSource, TensorInfo
from ggplan.reshaping.blocks import (
    BLOCK,
    block_of,
    mtp_blocks,
    n_blocks,
    numbered,
    of_blocks,
    sizes_of,
    with_extras,
)
from ggplan.reshaping.experts import picked
from ggplan.reshaping.layer_kinds import keys_of_kinds, notes_on_kinds, refuse_mixed_up, shared_kv
from ggplan.text import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ggplan.imatrix import Imatrix

_COLUMNS_OF_LAYERS = "per_layer_token_embd.weight"
_ROWS_OF_LAYERS = "per_layer_model_proj.weight"


def pruned(model: Model, layers: Sequence[int], imatrix: Imatrix | None) -> tuple[Model, Imatrix | None]:
    """The model without some layers, the others numbered anew; the imatrix under the new names.

    Raises
    ------
    PlanError
        If there is no such layer, none is left, or those that are left would not load.
    """
    from ggplan.reshaping.importance import renamed

    count = n_blocks(model)
    gone = sorted(set(layers))
    if wrong := [n for n in gone if not 0 <= n < count]:
        raise PlanError(f"there is no layer {wrong[0]} to prune: the model has layers 0 to {count - 1}")
    kept = [n for n in range(count) if n not in set(gone)]
    nextn = mtp_blocks(model)
    if not set(kept) - set(nextn):
        raise PlanError("no layer is left once these are pruned")
    at = {old: new for new, old in enumerate(kept)}
    names: dict[str, str] = {}  # new ones by the old
    for tensor in (*model.tensors, *model.companions):
        block = block_of(tensor.name)
        if block is None or block >= count:
            names[tensor.name] = tensor.name
        elif block in at:
            names[tensor.name] = BLOCK.sub(f"blk.{at[block]}.", tensor.name)
    lost = [t for t in model.tensors if t.name not in names]
    told = f"{numbered('layer', gone)} {'is' if len(gone) == 1 else 'are'} pruned"
    notes = [f"{told}: {sizes_of(lost)}; {len(kept):,} are left, numbered anew"]
    metadata = of_blocks(model, kept)
    metadata |= keys_of_kinds(model, kept) | shared_kv(model, kept)
    refuse_mixed_up(model, kept, metadata)
    notes += notes_on_kinds(model, kept)
    counted = f"{model.architecture}.block_count"
    changed = [
        key
        for key in (*metadata, *(key for key in model.metadata if key not in metadata))
        if metadata.get(key) != model.metadata.get(key) and key != counted
    ]
    if changed:
        notes.append(
            f"written for the layers that are left: {', '.join(changed)}; llama-quantize leaves such keys as "
            "they were"
        )
    metadata = with_extras(
        replace(model, metadata=metadata), lambda name: (names[name],) if name in names else ()
    ).metadata
    of_layers = [n for n in kept if n not in nextn]
    tensors = tuple(
        _of_layers(_renamed(t, names), of_layers, count - len(nextn))
        for t in model.tensors
        if t.name in names
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


def _renamed(tensor: TensorInfo, names: Mapping[str, str]) -> TensorInfo:
    codes = tensor.codes
    if codes is not None and codes.companions:
        companions = tuple(replace(c, name=names[c.name]) for c in codes.companions)
        codes = replace(codes, companions=companions)
    return replace(tensor, name=names[tensor.name], codes=codes)


def _of_layers(tensor: TensorInfo, kept: Sequence[int], n: int) -> TensorInfo:
    """A matrix that has a part for each of `n` layers, with those of the layers that are left."""
    if tensor.name not in (_COLUMNS_OF_LAYERS, _ROWS_OF_LAYERS) or len(kept) == n or len(tensor.shape) != 2:
        return tensor
    n_rows, n_columns = tensor.shape
    size = n_columns if tensor.name == _COLUMNS_OF_LAYERS else n_rows
    if size % n:
        raise PlanError(
            f"{printable(tensor.name)} has a side of {size:,}, which is no part for each of {n:,} layers"
        )
    take: Callable[[RowSource], RowSource]
    if tensor.name == _ROWS_OF_LAYERS:
        shape = (len(kept) * (size // n), n_columns)

        def take(source: RowSource) -> RowSource:
            stacked = replace(source, shape=(n, size // n, n_columns))
            return replace(picked(stacked, kept), shape=shape)

    else:
        shape = (n_rows, len(kept) * (size // n))
        if tensor.is_quantized and size // n % tensor.type.block_size:
            raise PlanError(
                f"{printable(tensor.name)} in {tensor.type} has blocks of {tensor.type.block_size} weights, "
                f"a layer {size // n:,} columns, which cannot be cut out",
                hint="start from the original weights",
            )

        def take(source: RowSource) -> RowSource:
            return _columns(source, kept, n, shape)

    codes = tensor.codes
    if codes is not None and codes.nearly is not None:
        codes = replace(codes, nearly=take(codes.nearly))
    return replace(
        tensor,
        shape=shape,
        rows=None if tensor.rows is None else take(tensor.rows),
        stored=None if tensor.stored is None else take(tensor.stored),
        codes=codes,
    )


def _columns(source: RowSource, kept: Sequence[int], n: int, shape: tuple[int, ...]) -> RowSource:
    """Of `n` equal parts of each row those that are kept."""
    numbers = list(kept)

    def read(start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        rows = source.read(start, stop)
        parts = rows.reshape(len(rows), n, -1)[:, numbers]
        return np.ascontiguousarray(parts).reshape(len(rows), -1)

    return RowSource(source.dtype, shape, read, source.fault)
