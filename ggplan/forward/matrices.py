"""Which weights of transformers' modules are which of a GGUF tensor.

Between the two lie the checkpoint's names, transformers' loader (which stacks and fuses experts) and ggplan's
transforms (which take gate and up apart, permute the heads of Q and K, transpose). Instead of knowing all of
them, numbers are sent both ways in place of weights: of every weight its tensor in the checkpoint and its
place there. What comes out as the same number is the same weight.

A matrix of a GGUF has rows and columns that are rows and columns of a parameter, in some order; that is
checked, and what is not so has no place: it is computed, or made of several parameters in another way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ggplan.arch import to_gguf
from ggplan.ggml_types import F32
from ggplan.model import Model, RowSource, TensorInfo
from ggplan.sources.tensors import CheckpointTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggplan.forward.checkpoint_model import CheckpointModel

# Numbers are the bits of a float32, from 1 up to those of the largest finite one: all are only copied.
_LARGEST = 0x7F7FFFFF
_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows of one slice of a GGUF tensor are in a parameter.

    Attributes
    ----------
    parameter
        The parameter's name in the layer: `mlp.experts.gate_up_proj`.
    slice
        Of a parameter of three dimensions, the first index; else 0.
    gguf_rows
        The rows of the GGUF's slice.
    rows, columns
        The rows and columns of the parameter's matrix that are these rows and all columns; where
        `transposed`, its columns and rows.
    transposed
        Whether a row of the GGUF is a column of the parameter.
    """

    parameter: str
    slice: int
    gguf_rows: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    transposed: bool


Places = Mapping[str, tuple[tuple[Place, ...], ...]]
"""By the GGUF's name without `blk.N.`: for each slice the places of its rows; () where there is none."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """Rows of a parameter's matrix that come from one tensor of the checkpoint.

    The place of the weight (r, c) there is `a[r] + b[c]`.
    """

    parameter: str
    slice: int
    rows: NDArray[np.int64]
    a: NDArray[np.int64]
    b: NDArray[np.int64]

    def find(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """The rows (of the parameter) and columns of the weights at these places; None if one is not here."""
        found = _split(self.a, self.b, places)
        if found is None:
            swapped = _split(self.b, self.a, places)
            if swapped is None:
                return None
            found = swapped[1], swapped[0]
        return self.rows[found[0]], found[1]


def _split(
    coarse: NDArray[np.int64], fine: NDArray[np.int64], places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """The indices i and j of places = coarse[i] + fine[j], if `coarse` has steps wider than all of `fine`."""
    import numpy as np

    order_c, order_f = np.argsort(coarse, kind="stable"), np.argsort(fine, kind="stable")
    sorted_c, sorted_f = coarse[order_c], fine[order_f]
    low = sorted_f[0]
    i = np.searchsorted(sorted_c, places - low, side="right") - 1
    if (i < 0).any():
        return None
    rest = places - sorted_c[i]
    j = np.searchsorted(sorted_f, rest)
    if (j >= sorted_f.size).any() or (sorted_f[j] != rest).any():
        return None
    return order_c[i], order_f[j]


def layer_places(model: CheckpointModel, layer: int) -> Places:
    """The places of all GGUF tensors of a layer that have two or more dimensions.

    The layer must be empty, and is empty afterwards.
    """
    names = model.names[layer]
    sources = [model.checkpoint.tensors[name] for name in names]
    positions = _parameters(model, layer, dict(zip(names, map(_positions, sources), strict=True)))
    numbers = _parameters(
        model, layer, {name: _constant(s, k) for k, (name, s) in enumerate(zip(names, sources, strict=True))}
    )
    segments: dict[int, list[_Segment]] = {}
    for name, of_position in positions.items():
        for number, segment in _segments(name, of_position, numbers[name]):
            segments.setdefault(number, []).append(segment)
    by_position = _gguf(model, dict(zip(names, map(_positions, sources), strict=True)))
    by_number = _gguf(
        model,
        {name: _constant(s, k) for k, (name, s) in enumerate(zip(names, sources, strict=True))},
    )
    found: dict[str, tuple[tuple[Place, ...], ...]] = {}
    for tensor, other in zip(by_position.tensors, by_number.tensors, strict=True):
        block = _BLOCK.match(tensor.name)
        if block is None or len(tensor.shape) < 2 or _is_of_others(other):
            continue
        found[tensor.name[block.end() :]] = _places(tensor, other, segments)
    return found


def place_key(model: CheckpointModel, layer: int) -> tuple[object, ...]:
    """Equal for layers whose places are equal."""
    prefix = re.compile(r"\.\d+\.")
    names = [
        (prefix.sub(".N.", name, count=1), model.checkpoint.tensors[name].shape)
        for name in sorted(model.names[layer])
    ]
    parameters = [(n, tuple(p.shape)) for n, p in model.layers[layer].state_dict(keep_vars=True).items()]
    return (*names, *parameters)


def _parameters(
    model: CheckpointModel, layer: int, tensors: Mapping[str, CheckpointTensor]
) -> dict[str, NDArray[np.int64]]:
    """The numbers that transformers' loader puts into each matrix of a layer, as (slices, rows, columns)."""
    import numpy as np

    model.load({name: _Numbers(tensor.rows) for name, tensor in tensors.items() if tensor.rows is not None})
    try:
        found = {}
        for name, parameter in model.layers[layer].named_parameters():
            if parameter.ndim in (2, 3) and not parameter.is_meta:
                values = parameter.detach().numpy().view(np.uint32)
                found[name] = values.reshape((-1, *values.shape[-2:]))  # the module forgets them
        return found
    finally:
        model.empty(layer)


class _Numbers:
    """A tensor of numbers for the loader."""

    def __init__(self, rows: RowSource) -> None:
        self.rows = rows

    def __getitem__(self, index: object) -> Any:
        import torch

        return torch.from_numpy(self.rows.read(0, self.rows.n_rows)).reshape(self.rows.shape)


def _gguf(model: CheckpointModel, numbered: Mapping[str, CheckpointTensor]) -> Model:
    """The GGUF's tensors with numbers as weights; zeros for those of all other layers."""
    tensors = {
        name: numbered.get(name) or _constant(tensor, -1) for name, tensor in model.checkpoint.tensors.items()
    }
    return model.forms(to_gguf(replace(model.checkpoint, tensors=tensors)))


def _is_of_others(tensor: TensorInfo) -> bool:
    """Whether it is made of other layers' tensors: their number is 0."""
    assert tensor.rows is not None
    return tensor.n_rows == 0 or not _bits(tensor.rows, 0, 1)[0, 0]


def _positions(tensor: CheckpointTensor) -> CheckpointTensor:
    """A tensor whose weights are their places in it, from 1 on."""
    import numpy as np

    n_columns = tensor.shape[-1] if tensor.shape else 1

    def read(start: int, stop: int) -> NDArray[Any]:
        found = np.arange(start * n_columns + 1, stop * n_columns + 1, dtype=np.uint32)
        return found.view(np.float32).reshape(stop - start, n_columns)

    return _replaced(tensor, read)


def _constant(tensor: CheckpointTensor, number: int) -> CheckpointTensor:
    """A tensor whose weights are all one number plus 1."""
    import numpy as np

    n_columns = tensor.shape[-1] if tensor.shape else 1

    def read(start: int, stop: int) -> NDArray[Any]:
        return np.full((stop - start, n_columns), number + 1, np.uint32).view(np.float32)

    return _replaced(tensor, read)


def _replaced(tensor: CheckpointTensor, read: Callable[[int, int], NDArray[Any]]) -> CheckpointTensor:
    return CheckpointTensor(tensor.name, tensor.file, "F32", tensor.shape, RowSource(F32, tensor.shape, read))


def _bits(rows: RowSource, start: int, stop: int) -> NDArray[np.int64]:
    import numpy as np

    return rows.read_float32(start, stop).view(np.uint32).astype(np.int64)


def _segments(name: str, positions: NDArray[Any], numbers: NDArray[Any]) -> Iterable[tuple[int, _Segment]]:
    """A parameter's rows by the tensor they come from; none where it is no matrix of weights."""
    import numpy as np

    for slice_ in range(positions.shape[0]):
        place = positions[slice_].astype(np.int64) - 1
        of_row = numbers[slice_][:, 0].astype(np.int64) - 1
        if (numbers[slice_] != numbers[slice_][:, :1]).any():
            continue
        for number in np.unique(of_row):
            rows = np.flatnonzero(of_row == number)
            a = place[rows, 0]
            b = place[rows[0]] - place[rows[0], 0]
            if number >= 0 and (place[rows] == a[:, None] + b).all():
                yield int(number), _Segment(name, slice_, rows, a, b)


def _places(
    positions: TensorInfo, numbers: TensorInfo, segments: Mapping[int, Sequence[_Segment]]
) -> tuple[tuple[Place, ...], ...]:
    """The places of each slice of a GGUF tensor."""
    assert positions.rows is not None
    assert numbers.rows is not None
    n_rows = positions.shape[-2]
    n_slices = positions.n_rows // n_rows
    read = partial(_slice_places, positions.rows, numbers.rows, n_rows, segments)
    return tuple(read(slice_) for slice_ in range(n_slices))


def _slice_places(
    positions: RowSource,
    numbers: RowSource,
    n_rows: int,
    segments: Mapping[int, Sequence[_Segment]],
    slice_: int,
) -> tuple[Place, ...]:
    import numpy as np

    start = slice_ * n_rows
    place = _bits(positions, start, start + n_rows) - 1
    number = _bits(numbers, start, start + n_rows) - 1
    if (number != number[:, :1]).any():
        return ()
    found: list[Place] = []
    for of_tensor in np.unique(number[:, 0]):
        rows = np.flatnonzero(number[:, 0] == of_tensor)
        heads, columns = place[rows, 0], place[rows[0]]
        if (place[rows] != heads[:, None] + columns - columns[0]).any():
            return ()
        done = np.zeros(rows.size, bool)
        for segment in segments.get(int(of_tensor), ()):
            part = _in_segment(segment, rows, heads, columns - columns[0], done)
            found += part
        if not done.all():
            return ()
    return tuple(found)


def _in_segment(
    segment: _Segment,
    rows: NDArray[np.int64],
    heads: NDArray[np.int64],
    steps: NDArray[np.int64],
    done: NDArray[np.bool_],
) -> list[Place]:
    """The place of those rows of a GGUF that are in a segment; they are marked as done."""
    import numpy as np

    here = np.zeros(rows.size, bool)
    low, high = segment.a.min() + segment.b.min(), segment.a.max() + segment.b.max()
    for k in np.flatnonzero(~done & (heads >= low) & (heads <= high)):
        here[k] = segment.find(heads[k : k + 1]) is not None
    chosen = np.flatnonzero(here)
    if not chosen.size:
        return []
    by_row, by_column = segment.find(heads[chosen]), segment.find(heads[chosen[0]] + steps)
    if by_row is None or by_column is None:
        return []
    (r, c), (r2, c2) = by_row, by_column
    if (c == c[0]).all() and (r2 == r2[0]).all():
        done[chosen] = True
        return [Place(segment.parameter, segment.slice, rows[chosen], r, c2, False)]
    if (r == r[0]).all() and (c2 == c2[0]).all():
        done[chosen] = True
        return [Place(segment.parameter, segment.slice, rows[chosen], c, r2, True)]
    return []
