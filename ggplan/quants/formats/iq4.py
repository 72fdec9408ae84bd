"""iq4_nl: 32 weights under one scale, as indices of sixteen uneven levels, weight = d IQ4_LEVELS[code].

    0   d   half
    2   qs  byte j holds the code of weight j in its lower half and of weight j + 16 in its upper half

From llama.cpp's `ggml/src/ggml-common.h` (block_iq4_nl, kvalues_iq4nl).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.formats.fields import Blocks, Bytes, F32Array, halves_at, split_bits
from ggplan.quants.formats.levels import IQ4_LEVELS
from ggplan.quants.kernels import inline
from ggplan.quants.memory import load, shorts_at, store, store_bytes
from ggplan.quants.searches import best_scale, iq4
from ggplan.quants.searches.best_scale import ScaleTrials, improver
from ggplan.quants.searches.blocks import Format, finder, functions_of, packer


@inline
def _pack_iq4_nl(highest: Any, scales: Any, codes: Any, out: Any) -> None:
    store(out, 2, load(codes, 0, 16) | (load(codes, 16, 16) << 4))
    store_bytes(out, 0, shorts_at(scales, 0)[0], 2)


def _unpack_iq4_nl(blocks: Bytes) -> Blocks:
    return Blocks(halves_at(blocks, 0), split_bits(blocks[:, 2:], 16, 4))


def _weights_iq4_nl(fields: Blocks, out: F32Array) -> None:
    np.take(IQ4_LEVELS, fields.codes, out=out, mode="clip")
    out *= fields.scales.astype(np.float32)


_FIND_IQ4_NL = finder(iq4.iq4_nl, iq4.iq4_nl_codes, _pack_iq4_nl, 32, 2)
IQ4_NL = Format(
    size=32, n_bytes=18, scale=(np.float16, 1), highest=15,
    plain=_FIND_IQ4_NL, with_importance=_FIND_IQ4_NL, pack=packer(_pack_iq4_nl, 32, 2),
    improve=improver(best_scale.iq4, -127, 113, ScaleTrials(100.0, 2.5, 18)),
    unpack=_unpack_iq4_nl, weights=_weights_iq4_nl,
)  # fmt: skip

encode_iq4_nl, encode_best_iq4_nl, decode_iq4_nl = functions_of(IQ4_NL)
