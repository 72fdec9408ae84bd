"""settle: which codes are moved, where only the data says so.

The scale of a block is a float16 in ggml's integer types. A checkpoint's scales may be bfloat16 or float32,
and one that float16 does not hold exactly would change weights: then the whole tensor is decoded. And a
scale of a whole tensor that is 1 has no tensor in the file, as llama.cpp's converter leaves it out. Headers
tell neither, so the scales of a checkpoint that is there are read once, here; for an inventory, or files
that are cut short, codes count as moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ggplan.errors import TruncatedError
from ggplan.model import Model, TensorInfo
from ggplan.planning.assignment import Assignment, Decision
from ggplan.planning.decisions import decide
from ggplan.planning.protection import kept_type, protection_of
from ggplan.sources.remote import each, is_remote

Progress = Callable[[int, int], None]
"""Called with the number of tensors that are settled, and of all that must be."""
_NEAR_ONE = 1e-6  # `_scale_is_trivial`, `conversion/base.py` of llama.cpp b11434


def settle(model: Model, progress: Progress | None = None) -> Model:
    """The model, with every tensor decoded whose codes have a scale that their type does not hold.

    Raises
    ------
    CheckpointError
        If a file cannot be read.
    """
    if model.kind != "hf" or isinstance(model.obstacle, TruncatedError):
        return model
    work = [t for t in model.tensors if t.codes is not None and t.stored is not None and not t.codes.settled]
    if not work:
        return model
    done: dict[str, TensorInfo] = {}

    def settle_one(tensor: TensorInfo) -> None:
        done[tensor.name] = _settled(tensor)
        if progress is not None:
            progress(len(done), len(work))

    each(work, settle_one, parallel=any(is_remote(path) for path in model.files))
    return replace(model, tensors=tuple(done.get(t.name, t) for t in model.tensors))


def settle_assignment(assignment: Assignment, before: Model, after: Model) -> Assignment:
    """An assignment that was made before the model was settled: kept types are those of the tensors now."""
    if assignment.recipe is not None:
        return replace(assignment, decisions=decide(after, assignment.recipe).decisions)
    decisions = dict(assignment.decisions)
    for old, new in zip(before.tensors, after.tensors, strict=True):
        found = decisions.get(old.name)
        if old.type != new.type and found is not None and found.reason == "kept":
            decisions[old.name] = Decision(kept_type(new), "kept", protection_of(new))
    return replace(assignment, decisions=decisions)


def _settled(tensor: TensorInfo) -> TensorInfo:
    codes, stored = tensor.codes, tensor.stored
    assert codes is not None
    assert stored is not None
    if fault := stored.fault():
        return tensor.without_codes(f"{tensor.type} does not hold a scale of it exactly: {fault}")
    companions = tuple(companion for companion in codes.companions if not _is_one(companion))
    return replace(tensor, codes=replace(codes, companions=companions, settled=True))


def _is_one(companion: TensorInfo) -> bool:
    if companion.rows is None:
        return False
    return bool((abs(companion.rows.read_float32(0, companion.n_rows) - 1) < _NEAR_ONE).all())
