"""Types whose weights are y = (d * scale) * level - dmin * min, as numbers that searches of whole rows move.

A ladder is what a type allows of these numbers (`searches.feedback.Rules`), and how blocks are taken apart
into them and put together again. Types of one scale a block have a scale of 1; those with a minimum have
dmin = -minimum and a min of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.formats import blocks32, iq4, iq4_xs, q2_k, q3_k, q6_k, q45_k
from ggplan.quants.formats.fields import Affine, Blocks, Bytes, F32Array, Symmetric
from ggplan.quants.formats.levels import IQ4_LEVELS
from ggplan.quants.searches.blocks import pack as pack_blocks
from ggplan.quants.searches.feedback import Rules


class Numbers(NamedTuple):
    """What n superblocks are made of, all float32.

    Attributes
    ----------
    d, dmin
        (n,), halves.
    scales, mins
        (n, sub-blocks), whole numbers.
    levels
        (n, weights).
    """

    d: F32Array
    dmin: F32Array
    scales: F32Array
    mins: F32Array
    levels: F32Array


Near = Callable[[Bytes, F32Array, F32Array, Bytes], None]
"""Blocks to begin with, rows, the importance of columns, and where blocks go."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """A type's rules, and its blocks as numbers and back.

    Attributes
    ----------
    level_of
        float32 (256,): the level of each code.
    zero
        The code of level 0, where levels are whole numbers.
    unpack, pack
        The format's: blocks to fields, fields to blocks.
    near
        A short search that begins with blocks found for weights a little different; None for types whose
        search by best effort is short.
    """

    rules: Rules
    level_of: F32Array
    zero: int
    unpack: Callable[[Bytes], Any]
    pack: Callable[[Any, Bytes], None]
    near: Near | None = None

    def numbers(self, blocks: Bytes, *, with_levels: bool = True) -> Numbers:
        """The numbers of blocks (n, bytes); without levels, these are an empty array."""
        fields = self.unpack(blocks)
        n = len(blocks)
        empty = np.empty((0, 0), np.float32)
        levels = np.take(self.level_of, fields.codes) if with_levels else empty
        zeros = np.zeros(n, np.float32)
        match fields:
            case Affine():
                d, dmin, scales, mins = (array.astype(np.float32) for array in fields[:4])
                return Numbers(d, dmin, scales, mins, levels)
            case Symmetric():
                scales = fields.scales.astype(np.float32)
                return Numbers(fields.d.astype(np.float32), zeros, scales, np.zeros_like(scales), levels)
        halves = fields.scales.astype(np.float32)
        ones = np.ones((n, 1), np.float32)
        if halves.shape[1] == 2:
            return Numbers(halves[:, 0].copy(), -halves[:, 1], ones, ones.copy(), levels)
        return Numbers(halves[:, 0].copy(), zeros, ones, zeros.reshape(n, 1), levels)

    def write(self, numbers: Numbers, blocks: Bytes) -> None:
        """Write blocks (n, bytes)."""
        d, dmin = numbers.d.astype(np.float16), numbers.dmin.astype(np.float16)
        codes = self._codes(numbers.levels)
        fields: Any
        if self.rules.size == self.rules.sub:
            halves = [d, -dmin] if self.rules.highest_min else [d]
            fields = Blocks(np.stack(halves, axis=1), codes)
        elif self.rules.highest_min:
            scales, mins = numbers.scales.astype(np.uint8), numbers.mins.astype(np.uint8)
            fields = Affine(d, dmin, scales, mins, codes)
        else:
            fields = Symmetric(d, numbers.scales.astype(np.int8), codes)
        self.pack(fields, blocks)

    def _codes(self, levels: F32Array) -> NDArray[np.uint8]:
        if self.rules.uneven:
            return np.searchsorted(IQ4_LEVELS, levels).astype(np.uint8)
        return (levels + np.float32(self.zero)).astype(np.int16).astype(np.uint8)


def _ladder(
    rules: Rules,
    zero: int,
    unpack: Callable[[Bytes], Any],
    pack: Callable[[Any, Bytes], None],
    near: Near | None = None,
) -> Ladder:
    if rules.uneven:
        level_of = np.resize(IQ4_LEVELS, 256)
    elif zero == 0 and rules.lowest < 0:  # a signed byte
        level_of = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
    else:
        level_of = np.arange(256, dtype=np.float32) - np.float32(zero)
    return Ladder(rules, level_of, zero, unpack, pack, near)


def _of_blocks(format: Any, lowest: int, highest: int, *, uneven: int = 0, highest_min: int = 0) -> Ladder:
    rules = Rules(32, 32, uneven, lowest, highest, 1, 1, highest_min)
    zero = 0 if uneven or format.n_bytes == 34 else -lowest
    near = _as_they_are if uneven else None
    return _ladder(rules, zero, format.unpack, partial(pack_blocks, format), near)


def _as_they_are(found: Bytes, rows: F32Array, importance: F32Array, out: Bytes) -> None:
    """No search at all: the scales of blocks that were found."""
    out[:] = found


_SIXTH = Rules(256, 16, 0, -32, 31, -128, 127, 0)
LADDERS: dict[str, Ladder] = {
    "q2_K": _ladder(Rules(256, 16, 0, 0, 3, 0, 15, 15), 0, q2_k.unpack, q2_k.pack, q2_k.encode_near),
    "q3_K": _ladder(Rules(256, 16, 0, -4, 3, -32, 31, 0), 4, q3_k.unpack, q3_k.pack),
    "q4_K": _ladder(
        Rules(256, 32, 0, 0, 15, 0, 63, 63), 0, q45_k.unpack_q4_k, q45_k.pack, q45_k.encode_near_q4_k
    ),
    "q5_K": _ladder(
        Rules(256, 32, 0, 0, 31, 0, 63, 63), 0, q45_k.unpack_q5_k, q45_k.pack, q45_k.encode_near_q5_k
    ),
    "q6_K": _ladder(_SIXTH, 32, q6_k.unpack, q6_k.pack),
    "iq4_xs": _ladder(Rules(256, 32, 1, -127, 113, -32, 31, 0), 0, iq4_xs.unpack, iq4_xs.pack, _as_they_are),
    "q4_0": _of_blocks(blocks32.Q4_0, -8, 7),
    "q4_1": _of_blocks(blocks32.Q4_1, 0, 15, highest_min=1),
    "q5_0": _of_blocks(blocks32.Q5_0, -16, 15),
    "q5_1": _of_blocks(blocks32.Q5_1, 0, 31, highest_min=1),
    "q8_0": _of_blocks(blocks32.Q8_0, -127, 127),
    "iq4_nl": _of_blocks(iq4.IQ4_NL, -127, 113, uneven=1),
}
