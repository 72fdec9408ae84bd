"""mxfp4 and nvfp4: four-bit floats (E2M1) under an eight-bit scale.

    mxfp4   e:byte qs:16 bytes       32 weights     scale = 2^(e - 128)
    nvfp4   d:4 bytes qs:32 bytes    4 x 16         scale = d / 2, a UE4M3: 4 bits of exponent, 3 of fraction

A weight is scale x level, and the levels are 0, 1, 2, 3, 4, 6, 8, 12 and their negatives: twice the numbers
of E2M1, which is why the scales are halves. Bit 3 of a level's index, the code, is the sign. Of a scale's
weights, the first half lies in the low four bits of its bytes, the second half in the high ones.

From llama.cpp's `ggml/src/ggml-common.h` (block_mxfp4, block_nvfp4) and `ggml/src/ggml-quants.c`; the formats
are of the OCP's Microscaling Formats 1.0 and of NVIDIA.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ggplan.quants.formats.fields import Blocks, Bytes, F32Array, split_bits
from ggplan.quants.formats.levels import E8M0_HALVES, FP4_LEVELS, UE4M3_HALVES
from ggplan.quants.kernels import inline
from ggplan.quants.memory import load, store
from ggplan.quants.searches import fp4
from ggplan.quants.searches.blocks import Format, finder, functions_of, no_group_step, packer


@inline
def _pack_mxfp4(highest: Any, scales: Any, codes: Any, out: Any) -> None:
    store(out, 1, load(codes, 0, 16) | (load(codes, 16, 16) << 4))
    out[0] = scales[0]


@inline
def _pack_nvfp4(highest: Any, scales: Any, codes: Any, out: Any) -> None:
    store(out, 0, load(scales, 0, 4))
    for i in range(4):
        store(out, 4 + 8 * i, load(codes, 16 * i, 8) | (load(codes, 16 * i + 8, 8) << 4))


def _unpack_mxfp4(blocks: Bytes) -> Blocks:
    return Blocks(blocks[:, :1], split_bits(blocks[:, 1:], 16, 4))


def _unpack_nvfp4(blocks: Bytes) -> Blocks:
    return Blocks(blocks[:, :4], split_bits(blocks[:, 4:], 8, 4))


def _weights(fields: Blocks, out: F32Array, table: F32Array) -> None:
    np.take(FP4_LEVELS, fields.codes, out=out, mode="clip")
    parts = out.reshape((*fields.scales.shape, -1))
    parts *= table[fields.scales][:, :, np.newaxis]


MXFP4 = Format(
    size=32, n_bytes=17, scale=(np.uint8, 1), highest=15,
    plain=finder(no_group_step, fp4.mxfp4, _pack_mxfp4, 32, 1), pack=packer(_pack_mxfp4, 32, 1),
    improve=partial(fp4.improve, table=E8M0_HALVES, largest=fp4.LARGEST_E8M0, reach=2),
    unpack=_unpack_mxfp4, weights=partial(_weights, table=E8M0_HALVES),
)  # fmt: skip
NVFP4 = Format(
    size=64, n_bytes=36, scale=(np.uint8, 4), highest=15,
    plain=finder(no_group_step, fp4.nvfp4, _pack_nvfp4, 64, 4), pack=packer(_pack_nvfp4, 64, 4),
    improve=partial(fp4.improve, table=UE4M3_HALVES, largest=fp4.LARGEST_UE4M3, reach=6),
    unpack=_unpack_nvfp4, weights=partial(_weights, table=UE4M3_HALVES),
)  # fmt: skip

encode_mxfp4, encode_best_mxfp4, decode_mxfp4 = functions_of(MXFP4)
encode_nvfp4, encode_best_nvfp4, decode_nvfp4 = functions_of(NVFP4)
