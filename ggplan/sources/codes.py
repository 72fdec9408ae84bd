"""The codes of a checkpoint's integers in ggml's blocks of 32, from the type that holds them in a wider one.

    q4_0   d:f16 16 bytes             d (q - 8)     byte j: weight j, weight j + 16 << 4
    q4_1   d:f16 m:f16 16 bytes       d q + m       the same
    q5_0   d:f16 high:u32 16 bytes    d (q - 16)    the same; bit i of `high` is the fifth of weight i
    q8_0   d:f16 32 bytes             d q           signed bytes

(llama.cpp b11434, `ggml/src/ggml-common.h`.) d is the checkpoint's scale in every one of them, so 4-bit codes
are exact in q5_0 and 5-bit codes in q8_0: only the offset of the integers differs.

q4_1 holds 16 neighbouring integers from any one on, which 4-bit codes with a zero point are; but the first of
them becomes m = f16(d * first), which is rounded: a relative error (RMSE) of 1e-4 to 5e-4 in published
checkpoints, a hundredth of what encoding the weights anew as a 4-bit type adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import Levels, RowSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Q4_0, Q4_1, Q5_0, Q8_0 = (parse_type(name) for name in ("q4_0", "q4_1", "q5_0", "q8_0"))
WIDER: dict[GgmlType, tuple[GgmlType, ...]] = {Q4_0: (Q4_1, Q5_0, Q8_0), Q5_0: (Q8_0,)}
"""The types that hold the integers of a type exactly, besides itself; q4_1 if it has room for all minima."""
HALVES = {Q4_0: 8, Q5_0: 16, Q8_0: 128}
"""Of types of integers, which are `-half` up to `half - 1`, the half."""
_LARGEST = 65504  # of float16
_ROWS = 1 << 20  # weights that are looked at together
_BLOCK = 32
# The integers of q5_0, those whose odd factor is the largest first.
_BY_DIGITS = sorted(range(-16, 16), key=lambda n: -(abs(n) // (n & -n)) if n else 0)


def widened(source: RowSource, type_: GgmlType) -> RowSource:
    """Rows of integer codes in a wider type, exactly; `type_` is one of `WIDER` of theirs, or theirs."""
    if type_ == source.dtype:
        return source
    if type_ == Q4_1:
        return nearly_q4_1(source)
    assert type_ in WIDER[source.dtype]

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        scales, integers = _unpacked(source.read(start, stop), source.dtype)
        return blocks_of(scales, integers, type_).reshape(stop - start, -1)

    return RowSource(type_, source.shape, read, source.fault)


def holding(lowest: int, highest: int) -> GgmlType | None:
    """The type of the fewest bits that holds all integers from one to another; None if none does."""
    able = (type_ for type_, half in HALVES.items() if -half <= lowest and highest < half)
    return next(able, None)


def widest(types: Iterable[GgmlType]) -> GgmlType:
    """The one of q4_0, q5_0 and q8_0, of which there is at least one, that holds what the others hold."""
    return max(types, key=HALVES.__getitem__)


def joined_levels(parts: Sequence[Callable[[], Levels]]) -> Levels:
    """The levels of several matrices as those of one; told by the one that needs the widest type."""
    found = [read() for read in parts]
    for one in found:
        if one.why_not or holding(one.lowest, one.highest) is None:
            return one
    most = max(found, key=lambda one: max(-one.lowest, one.highest + 1))
    return replace(most, lowest=min(o.lowest for o in found), highest=max(o.highest for o in found))


def widened_experts(types: Sequence[GgmlType]) -> str:
    """How many of stacked experts take the wider type of others, in words; "" where all are of one type."""
    top = max(types, key=lambda type_: (type_.bits_per_weight, type_.name))
    need = [number for number, type_ in enumerate(types) if type_ == top]
    if len(need) == len(types):
        return ""
    others = " and ".join(sorted({type_.name for type_ in types} - {top.name}))
    plural = "s" * (len(need) > 1)
    return (
        f"{len(types) - len(need):,} of {len(types):,} experts widened from {others} to {top}, which "
        f"expert{plural} {', '.join(map(str, need[:3]))}{', …' if len(need) > 3 else ''} "
        f"need{'' if plural else 's'}"
    )


def nearly_q4_1(source: RowSource, largest: Callable[[], float] | None = None) -> RowSource:
    """Rows of q4_0, or of q5_0 that hold 4-bit codes with zero points, in q4_1.

    Exact but for the rounding of m. Rows raise CheckpointError when they are read and the integers of a block
    are more than 15 apart, or m is no finite float16; the `fault` is that of the source, or tells of this.

    Parameters
    ----------
    largest
        Reads the largest scale, by which most often no m is too large; without it all rows are read for that.
    """
    assert source.dtype in (Q4_0, Q5_0)

    def fault() -> str:
        found = source.fault()
        if found or (largest is not None and largest() * HALVES[source.dtype] <= _LARGEST):
            return found
        step = max(1, _ROWS // max(1, source.n_columns))
        try:
            for start in range(0, source.n_rows, step):
                read(start, min(start + step, source.n_rows))
        except CheckpointError as error:
            return error.message
        return ""

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        import numpy as np

        scales, integers = _unpacked(source.read(start, stop), source.dtype)
        least = _bases(integers)
        codes = (integers - least).astype(np.uint8)
        with np.errstate(over="ignore", invalid="ignore"):
            minima = (scales.view("<f2").astype(np.float32) * least).astype("<f2")
        if codes.size and int(codes.max()) > 15:
            raise CheckpointError("the codes of a block span more than 4 bits, so q4_1 does not hold them")
        if not np.isfinite(minima).all():
            raise CheckpointError("the minimum of a block is too large for q4_1", hint="write `keep`")
        packed = _joined(scales, minima.view("u1"), _nibbles(codes))
        return packed.reshape(stop - start, -1)

    return RowSource(Q4_1, source.shape, read, fault)


def _bases(integers: NDArray[np.int8]) -> NDArray[np.int8]:
    """For each block the integer that q4_1 counts from: (blocks, 1).

    Of those that leave no integer out, the one with the fewest binary digits, times which d needs the fewest.
    """
    import numpy as np

    highest = integers.min(axis=1, keepdims=True)
    lowest = integers.max(axis=1, keepdims=True) - np.int8(15)
    found: NDArray[np.int8] = highest.copy()
    for base in _BY_DIGITS:
        found[(lowest <= base) & (base <= highest)] = base
    return found


def _unpacked(rows: NDArray[np.uint8], type_: GgmlType) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """The scales of rows, (blocks, 2) bytes, and their integers, (blocks, 32)."""
    import numpy as np

    blocks = rows.reshape(-1, type_.block_bytes)
    packed = blocks[:, -_BLOCK // 2 :]
    codes = np.concatenate((packed & 15, packed >> 4), axis=1)
    offset = np.uint8(8)
    if type_ == Q5_0:
        codes |= np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little") << 4
        offset = np.uint8(16)
    return np.ascontiguousarray(blocks[:, :2]), (codes - offset).view(np.int8)


def _nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The lower four bits of 32 codes in 16 bytes."""
    import numpy as np

    half = _BLOCK // 2
    return (codes[:, :half] & 15 | (codes[:, half:] & 15) << 4).astype(np.uint8, copy=False)


def blocks_of(scales: NDArray[np.uint8], integers: NDArray[np.int8], type_: GgmlType) -> NDArray[np.uint8]:
    """Blocks of q4_0, q5_0 or q8_0, one a row: of scales, (blocks, 2) bytes, and integers, (blocks, 32)."""
    import numpy as np

    if type_ == Q8_0:
        return _joined(scales, integers.view(np.uint8))
    codes = (integers + np.int8(8 if type_ == Q4_0 else 16)).view(np.uint8)
    if type_ == Q4_0:
        return _joined(scales, _nibbles(codes))
    return _joined(scales, np.packbits(codes >> 4, axis=1, bitorder="little"), _nibbles(codes))


def _joined(*parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import numpy as np

    return np.ascontiguousarray(np.concatenate(parts, axis=1))
