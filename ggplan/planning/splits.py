"""A plan in several files: llama.cpp's split sets, `NAME-00001-of-00003.gguf`.

Each file of a set is a complete GGUF with its own tensors and offsets, so here it is a plan of its own.
The first carries the model's metadata; all carry `split.no` (from 0), `split.count` and
`split.tensors.count`, which counts the tensors of the whole set. Tensors are distributed as by the program
that users would run:

    by size     a file is closed where the next tensor would make it larger than the limit. Tensors count
                with their padding, headers do not; a tensor larger than the limit has a file of its own
    by number   a file is closed after so many tensors
    like        every tensor goes to the file it is in elsewhere, in that file's order
    by names    as the caller says

llama.cpp b11434: `tools/gguf-split/gguf-split.cpp` (size and number; where the *first* tensor is larger than
the limit it stops, ggplan continues), `src/llama-quant.cpp` (`--keep-split`), `llama_split_path` in
`src/llama.cpp`. The two write the three keys in different orders; so does this module.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ggplan.errors import PlanError
from ggplan.metadata import Metadata, MetadataType, scalar
from ggplan.model import Model, TensorInfo
from ggplan.planning.layout import padded, place
from ggplan.planning.plan import Plan, PlannedTensor
from ggplan.text import printable

MAX_FILES = 65535
"""`split.no` and `split.count` are 16-bit numbers."""

_SPLIT_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}(\.gguf)?", re.DOTALL | re.ASCII)
_BY_SPLITTER = ("split.no", "split.tensors.count", "split.count")
_BY_QUANTIZER = ("split.no", "split.count", "split.tensors.count")


def split_plan(
    plan: Plan, *, max_bytes: int | None = None, max_tensors: int | None = None, like: Model | None = None
) -> tuple[Plan, ...]:
    """The plans of the files of a set, in order; the plan itself if no split is asked for.

    Parameters
    ----------
    max_bytes, max_tensors
        The most bytes of tensors, or tensors, in one file.
    like
        A model with the same tensors whose files are imitated; one file stays one file.

    Raises
    ------
    PlanError
        If more than one way is asked for, `like` lacks a tensor, or the files are too many.
    """
    if sum(way is not None for way in (max_bytes, max_tensors, like)) > 1:
        raise PlanError("a model is split by size, by number of tensors or like another, not by two of these")
    keys = _BY_SPLITTER
    if max_bytes is not None:
        groups = _by_size(plan.tensors, max_bytes)
    elif max_tensors is not None:
        groups = [
            list(plan.tensors[at : at + max_tensors]) for at in range(0, len(plan.tensors), max_tensors)
        ]
    elif like is not None and len(like.files) > 1:
        groups, keys = _like(plan.tensors, like), _BY_QUANTIZER
    else:
        return (plan,)
    groups = groups or [[]]
    if len(groups) > MAX_FILES:
        raise PlanError(f"{len(groups):,} files are more than the {MAX_FILES:,} a set may have")
    return tuple(_file(plan, number, group, len(groups), keys) for number, group in enumerate(groups))


def split_by_names(plan: Plan, groups: Sequence[Sequence[str]]) -> tuple[Plan, ...]:
    """The plans of the files of a set, each with the tensors of a group; the first has those of none too.

    Sets of one model in these groups have files that can stand for one another.

    Raises
    ------
    PlanError
        If a group names no tensor of the plan, one is in two groups, or the files are too many.
    """
    number = {name: at for at, group in enumerate(groups) for name in group}
    if len(number) < sum(map(len, groups)) or not number.keys() <= {t.name for t in plan.tensors}:
        raise PlanError("each tensor of a group of a set must be one of the plan, and in no other group")
    if len(groups) > MAX_FILES:
        raise PlanError(f"{len(groups):,} files are more than the {MAX_FILES:,} a set may have")
    parts: list[list[PlannedTensor]] = [[] for _ in groups]
    for tensor in plan.tensors:
        parts[number.get(tensor.name, 0)].append(tensor)
    return tuple(_file(plan, at, part, len(parts), _BY_SPLITTER) for at, part in enumerate(parts))


def split_path(output: Path, number: int, count: int) -> Path:
    """The path of file `number` (from 0) of a set that the user calls `output`, with or without `.gguf`."""
    return output.with_name(f"{_stem(output)}-{number + 1:05d}-of-{count:05d}.gguf")


def set_path(output: Path) -> Path:
    """The name of a set as a whole, for the files that belong to all of it: `NAME.gguf`."""
    return output.with_name(_stem(output) + ".gguf")


def _stem(output: Path) -> str:
    named = _SPLIT_NAME.fullmatch(output.name)
    return named[1] if named else output.name.removesuffix(".gguf")


def _by_size(tensors: Iterable[PlannedTensor], max_bytes: int) -> list[list[PlannedTensor]]:
    groups: list[list[PlannedTensor]] = []
    filled = 0
    for tensor in tensors:
        size = padded(tensor.n_bytes)
        if not groups or filled + size > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    return groups


def _like(tensors: Sequence[PlannedTensor], like: Model) -> list[list[PlannedTensor]]:
    numbers = {file.name: number for number, file in enumerate(like.files)}
    places = {tensor.name: (_number(tensor, numbers), at) for at, tensor in enumerate(like.tensors)}
    groups: list[list[PlannedTensor]] = [[] for _ in like.files]
    for tensor in tensors:
        if tensor.name not in places:
            raise PlanError(
                f"{printable(str(like.path))} has no tensor {printable(tensor.name)}, "
                "so its files do not say where that goes"
            )
        groups[places[tensor.name][0]].append(tensor)
    for group in groups:
        group.sort(key=lambda tensor: places[tensor.name])
    # A shard of a checkpoint may hold only experts of a tensor that is counted in an earlier shard.
    return groups if like.kind == "gguf" else [group for group in groups if group]


def _number(tensor: TensorInfo, numbers: dict[str, int]) -> int:
    """The number of a tensor's file; the first of several for stacked experts, 0 for computed tensors."""
    return numbers.get(tensor.origin.partition(" and ")[0], 0)


def _file(plan: Plan, number: int, tensors: Sequence[PlannedTensor], count: int, keys: Sequence[str]) -> Plan:
    values = {
        "split.no": scalar(MetadataType.UINT16, number),
        "split.count": scalar(MetadataType.UINT16, count),
        "split.tensors.count": scalar(MetadataType.INT32, len(plan.tensors)),
    }
    own: Metadata = dict(plan.metadata) if number == 0 else {}
    offsets, data_bytes = place(tensor.n_bytes for tensor in tensors)
    placed = [dataclasses.replace(t, offset=offset) for t, offset in zip(tensors, offsets, strict=True)]
    return dataclasses.replace(
        plan,
        tensors=tuple(placed),
        metadata={**own, **{key: values[key] for key in keys}},
        data_bytes=data_bytes,
    )
