"""What becomes of weights that are not finite, or too large for their type.

NaN and infinity in a checkpoint mean damage or a training that overflowed; one of them makes its block
useless, or in a norm the whole model. So they are refused, with the tensor's name, unless the plan says
otherwise (`Plan.nonfinite`):

    refuse    an error that names the tensor, counts them and gives the first place
    zero      each becomes 0; a finite weight too large for f16 becomes its largest number, 65504, and one
              too large for bf16 the largest of that
    keep      f32, f16 and bf16 take them as they are, and infinity for what is too large for f16; no type
              with blocks can hold them, so for these they are still refused

Floats in copied bytes are treated in the same way. The weights of a copied block whose scale is not finite
are lost: the block is refused, or with `zero` becomes a block of zero bytes, weights of 0. A finite weight so
large that its block's scale overflows is always refused: the tensor needs another type.

Scales of fp8 weights must be positive and finite. With `zero` and `keep` they are used as they are, and the
products are checked like any weight; so a scale of zero gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ggplan.errors import ConversionError
from ggplan.ggml_types import BF16, F16, F32, GgmlType
from ggplan.model import TensorInfo
from ggplan.planning import Nonfinite, Plan, PlannedTensor
from ggplan.quants import first_nonfinite
from ggplan.quants.codecs import Rows
from ggplan.quants.floats import widened
from ggplan.quants.soundness import is_checkable, unsound_blocks
from ggplan.sources.remote import each, is_remote
from ggplan.text import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RUN_WEIGHTS = 1 << 18
# From here on a weight is rounded to infinity.
_TOO_LARGE = {type_: np.float32(type_.overflows_at) for type_ in (F16, BF16)}
# Norms, biases and routers; larger tensors are checked when they are encoded.
_SMALL_WEIGHTS = 1 << 21


def rows_by_policy(
    rows: NDArray[np.float32], tensor: TensorInfo, type_: GgmlType, policy: Nonfinite
) -> NDArray[np.float32]:
    """`rows`, known to hold NaN or infinity, changed by the policy; encode `keep` with `keep_into`.

    Raises
    ------
    ConversionError
        If the policy, or the type, refuses them.
    """
    if policy == "zero":
        return np.where(np.isfinite(rows), rows, np.float32(0))
    if policy == "keep" and type_.is_float:
        return rows
    raise _not_finite(tensor, type_, policy)


def keep_into(rows: NDArray[np.float32], type_: GgmlType, out: NDArray[np.uint8]) -> None:
    """Put the NaNs of `rows` into their encoding as ggml's conversions do: quiet NaNs with the sign kept.

    The encoders handle finite numbers and infinities, but not NaNs.
    """
    if type_ == F32:
        return
    bits = rows.view(np.uint32).reshape(-1)
    at = np.flatnonzero((bits & 0x7FFFFFFF) > 0x7F800000)
    upper = bits[at] >> 16
    out.view(np.uint16).reshape(-1)[at] = upper & 0x8000 | 0x7E00 if type_ == F16 else upper | 0x40


def overflow_by_policy(
    rows: Rows,
    tensor: TensorInfo,
    start: int,
    type_: GgmlType,
    policy: Nonfinite,
    out: NDArray[np.uint8],
) -> None:
    """Refuse or replace finite weights that became infinite in `out`: in f16, or as a block's scale.

    `rows` are those of `tensor` from row `start` on, as they were encoded.
    """
    if type_ in (F32, tensor.type) or not is_checkable(type_):
        return
    found = unsound_blocks(out.reshape(-1, type_.block_bytes), type_)
    if not found.any():
        return
    if type_.is_float and policy != "refuse":
        if policy == "zero":
            halves = out.view(np.uint16).reshape(-1)
            halves[found] = halves[found] & 0x8000 | type_.exponent - 1
        return
    if type_.is_float:
        raise _overflow(tensor, type_)
    block = int(found.argmax())
    magnitudes = np.abs(widened(rows.reshape(-1, type_.block_size)[block]))
    at = start * tensor.n_columns + block * type_.block_size + int(magnitudes.argmax())
    row, column = divmod(at, tensor.n_columns)
    largest = float(magnitudes.max())
    raise ConversionError(
        f"{printable(tensor.name)} holds {largest:g} at row {row:,}, column {column:,}, too "
        f"{'large' if largest > 1 else 'small'} for {type_.name}: the scale of its block is not finite",
        hint="give this tensor bf16 or f32",
    )


def bytes_by_policy(data: memoryview, tensor: TensorInfo, start: int, policy: Nonfinite) -> memoryview:
    """Bytes that are copied, rows of `tensor` from row `start` on, changed by the policy.

    Raises
    ------
    ConversionError
        If they hold a float or a scale that is not finite, and the policy or the type refuses it.
    """
    type_ = tensor.type
    if not is_checkable(type_):
        return data
    blocks = np.frombuffer(data, np.uint8).reshape(-1, type_.block_bytes)
    found = unsound_blocks(blocks, type_)
    if not found.any() or (policy == "keep" and type_.is_float):
        return data
    if policy == "zero":
        cleared = blocks.copy()
        cleared[found] = 0
        return cleared.data.cast("B")
    if type_.is_float:
        raise _not_finite(tensor, type_, policy)
    first = start * (tensor.n_columns // type_.block_size) + int(found.argmax())
    row, block = divmod(first, tensor.n_columns // type_.block_size)
    raise ConversionError(
        f"{printable(tensor.name)} has a block of {type_.name} whose scale is not finite, at row {row:,}, "
        f"block {block:,} ({printable(tensor.origin)})",
        hint="the file is damaged; download it again, or make such blocks zeros with --nonfinite zero",
    )


def check_early(plan: Plan) -> None:
    """Find before hours of work what can be found in seconds, such as damaged scales.

    Raises
    ------
    CheckpointError
        If the source cannot be read.
    ConversionError
        If the plan refuses a weight of a tensor with up to 2 Mi weights, or the row source of any tensor
        reports a fault.
    """
    if plan.nonfinite == "zero":
        return
    over_network = any(is_remote(path) for path in plan.model.files)
    each(plan.tensors, lambda planned: _check_tensor_early(planned, plan.nonfinite), parallel=over_network)


def _check_tensor_early(planned: PlannedTensor, policy: Nonfinite) -> None:
    tensor = planned.tensor
    rows = tensor.rows
    fault = rows.fault() if rows is not None and policy == "refuse" else ""
    if fault:
        raise ConversionError(
            f"{printable(tensor.name)}: {fault}",
            hint="the checkpoint is damaged; download it again, or take the scales as they are with "
            "--nonfinite zero",
        )
    unsettled = planned.is_copied and tensor.codes is not None and not tensor.codes.settled
    if unsettled and tensor.stored is not None and (fault := tensor.stored.fault()):
        raise ConversionError(
            f"{printable(tensor.name)}: its codes cannot be moved to {tensor.type}: {fault}",
            hint="plan with ggplan.make_plan, which decodes such a tensor",
        )
    if tensor.n_weights > _SMALL_WEIGHTS:
        return
    if planned.is_copied and tensor.stored is not None:
        bytes_by_policy(tensor.stored.read_bytes(0, tensor.n_rows), tensor, 0, policy)
        return
    if rows is None or (policy == "keep" and planned.type.is_float):
        return
    weights = rows.read_float32(0, tensor.n_rows)
    if first_nonfinite(weights) >= 0:
        raise _not_finite(tensor, planned.type, policy)
    limit = _TOO_LARGE.get(planned.type)
    if limit is not None and planned.type != tensor.type and (np.abs(weights) >= limit).any():
        raise _overflow(tensor, planned.type)


def _not_finite(tensor: TensorInfo, type_: GgmlType, policy: Nonfinite) -> ConversionError:
    """The error that counts all of a tensor's weights that are not finite."""
    hint = "the checkpoint is damaged or was trained to overflow; download it again, or give --nonfinite zero"
    if policy == "keep":
        hint = f"{type_.name} cannot hold them: give this tensor f32, f16 or bf16, or give --nonfinite zero"
    return _counted(tensor, "not finite", lambda rows: ~np.isfinite(rows), hint)


def _overflow(tensor: TensorInfo, type_: GgmlType) -> ConversionError:
    """The error that counts all of a tensor's weights that are too large for a float type."""
    limit = _TOO_LARGE[type_]
    hint = "give this tensor bf16 or f32, or cut such weights down with --nonfinite zero"
    return _counted(tensor, f"too large for {type_.name}", lambda rows: np.abs(rows) >= limit, hint)


def _counted(
    tensor: TensorInfo,
    what: str,
    wrong: Callable[[NDArray[np.float32]], NDArray[np.bool_]],
    hint: str,
) -> ConversionError:
    """The error for wrong weights: reads the whole tensor, so that threads do not matter."""
    assert tensor.rows is not None
    count, first, value = 0, 0, 0.0
    step = max(1, _RUN_WEIGHTS // max(1, tensor.n_columns))
    for start in range(0, tensor.n_rows, step):
        rows = tensor.rows.read_float32(start, min(start + step, tensor.n_rows)).reshape(-1)
        found = wrong(rows)
        if not count and found.any():
            at = int(found.argmax())
            first, value = start * tensor.n_columns + at, float(rows[at])
        count += int(np.count_nonzero(found))
    row, column = divmod(first, max(1, tensor.n_columns))
    many = "1 weight that is" if count == 1 else f"{count:,} weights that are"
    return ConversionError(
        f"{printable(tensor.name)} has {many} {what}, the first {value:g} at row {row:,}, "
        f"column {column:,} ({printable(tensor.origin)})",
        hint=hint,
    )
