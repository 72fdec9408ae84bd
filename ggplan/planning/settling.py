"""settle: which codes are moved and into which type, where only the data says so.

Integers may have zero points, by which they need a wider type. The config says for all tensors at once that
they have none in truth (all in the middle), or leaves it open; what decides is the zero points themselves, of
each tensor and each expert, and for asymmetric integers of 8 bits the integers.

The scale of a block is a float16 in ggml's integer types. A checkpoint's scales may be bfloat16 or float32,
and one that float16 does not hold exactly would change weights: then the whole tensor is decoded. And a
scale of a whole tensor that is 1 has no tensor in the file, as llama.cpp's converter leaves it out. Headers
tell neither, so the scales of a checkpoint that is there are read once, here; for an inventory, or files
that are cut short, codes count as moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ggplan.errors import TruncatedError
from ggplan.ggml_types import GgmlType
from ggplan.model import Codes, Integers, Levels, Model, TensorInfo
from ggplan.planning.assignment import Assignment, Decision
from ggplan.planning.decisions import decide
from ggplan.planning.protection import kept_type, protection_of
from ggplan.sources.codes import Q4_0, Q4_1, Q5_0, holding, widened_experts, widest
from ggplan.sources.remote import each, is_remote

Progress = Callable[[int, int], None]
"""Called with the number of tensors that are settled, and of all that must be."""
_WEIGHTS_OF_A_SCALE = 16  # of NVFP4, whose scales are bytes; others have fewer of them
_NEAR_ONE = 1e-6  # `_scale_is_trivial`, `conversion/base.py` of llama.cpp b11434


def settle(model: Model, progress: Progress | None = None) -> Model:
    """The model, with every tensor decoded whose codes have a scale that their type does not hold.

    Raises
    ------
    CheckpointError
        If a file cannot be read.
    """
    work = _open(model)
    if not work:
        return model
    done: dict[str, TensorInfo] = {}

    def settle_one(tensor: TensorInfo) -> None:
        done[tensor.name] = _settled(tensor)
        if progress is not None:
            progress(len(done), len(work))

    each(work, settle_one, parallel=any(is_remote(path) for path in model.files))
    return replace(model, tensors=tuple(done.get(t.name, t) for t in model.tensors))


def count_open(model: Model) -> int:
    """How many tensors `settle` reads scales of."""
    return len(_open(model))


def bytes_to_read(model: Model) -> int:
    """About how many bytes `settle` reads: scales and zero points."""
    return sum(_n_bytes(tensor) for tensor in _open(model))


def _open(model: Model) -> list[TensorInfo]:
    """The tensors of which it is yet to be read what becomes of their codes."""
    if model.kind != "hf" or isinstance(model.obstacle, TruncatedError):
        return []
    return [tensor for tensor in model.tensors if _is_open(tensor)]


def _n_bytes(tensor: TensorInfo) -> int:
    integers = None if tensor.codes is None else tensor.codes.integers
    return tensor.n_weights // _WEIGHTS_OF_A_SCALE if integers is None else integers.n_bytes


def _is_open(tensor: TensorInfo) -> bool:
    codes = tensor.codes
    if codes is None or codes.settled:
        return False
    return tensor.stored is not None or codes.integers is not None


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
    if codes.integers is not None:
        return _of_integers(tensor, codes, codes.integers)
    assert stored is not None
    if fault := stored.fault():
        return tensor.without_codes(f"{tensor.type} does not hold a scale of it exactly: {fault}")
    companions = tuple(companion for companion in codes.companions if not _is_one(companion))
    return replace(tensor, codes=replace(codes, companions=companions, settled=True))


def _of_integers(tensor: TensorInfo, codes: Codes, integers: Integers) -> TensorInfo:
    """The tensor in the type that holds its integers, whatever the config says of them, or decoded."""
    levels = [read() for read in integers.levels]
    if why := _why_not(levels):
        return _decoded(tensor, why)
    types = [type_ for of in levels if (type_ := holding(of.lowest, of.highest)) is not None]
    type_ = widest(types)
    stored = integers.rows_in(type_)
    if fault := stored.fault():
        return _decoded(tensor, f"{type_} does not hold a scale of it exactly: {fault}")
    nearly = integers.rows_in(Q4_1) if type_ in (Q4_0, Q5_0) and integers.bits <= 4 else None
    too_large = nearly is not None and bool(nearly.fault())
    settled = replace(
        codes,
        why_decoded="",
        nearly=None if too_large or type_ == Q4_0 else nearly,
        settled=True,
        widened=_widened(types, levels, codes.are_moved and type_ != tensor.type),
        too_large_for_q4_1=too_large,
    )
    return replace(tensor, type=type_, stored=stored, codes=settled)


def _decoded(tensor: TensorInfo, why: str) -> TensorInfo:
    made = tensor.without_codes(why)
    assert made.codes is not None
    return replace(made, codes=replace(made.codes, settled=True))


def _why_not(levels: Sequence[Levels]) -> str:
    """Why no type holds the integers of all experts; what is true of this tensor alone after ": "."""
    for number, of in enumerate(levels):
        which = f"expert {number}, " if len(levels) > 1 else ""
        if of.why_not:
            why, _, detail = of.why_not.partition(": ")
            return f"{why}: {which}{detail}"
        if holding(of.lowest, of.highest) is None:
            return f"its integers are outside of q8_0's -128 to 127: {which}{of.told}"
    return ""


def _widened(types: Sequence[GgmlType], levels: Sequence[Levels], is_other: bool) -> str:
    """What makes the type wider than the config lets expect, or than most experts need."""
    most = types.index(widest(types))
    if found := widened_experts(types):
        return f"{found}: {levels[most].told}"
    if is_other and types[0] != Q4_0:
        return f"which is not symmetric and needs {types[0]}: {levels[most].told}"
    return ""


def _is_one(companion: TensorInfo) -> bool:
    if companion.rows is None:
        return False
    return bool((abs(companion.rows.read_float32(0, companion.n_rows) - 1) < _NEAR_ONE).all())
