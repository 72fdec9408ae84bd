"""Which function writes and which reads each ggml type.

Functions are named, not imported: encoders bring LLVM with them, which costs a tenth of a second, so each is
brought in when a tensor first needs it.

    encoder    encode(rows, importance, out)    rows (n, columns), out (n, row bytes) uint8
    decoder    decode(blocks, out)              blocks (n, block bytes) uint8, out (n, block size) float32

Rows are float32; to types with blocks they may also be the bits of bfloat16, which is how checkpoints store
them: what lays weights into vectors widens them, and nothing after it knows. All arrays are C-contiguous,
shapes fit, weights are finite: the callers in `ggplan.quants` see to it. `importance` is (columns,) float32
or None, and ignored by the types that have no use for it.

Most types have a second encoder, for `effort="best"`: the same blocks, in the same layout, with less error
than ggml's (see `best`). It has a use for an importance whatever the type.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Rows = NDArray[np.float32 | np.uint16]
"""Weights as encoders take them: float32 or, for types with blocks, the bits of bfloat16 in uint16."""
Encode = Callable[[Rows, F32Array | None, Bytes], None]
Decode = Callable[[Bytes, F32Array], None]

ENCODERS = {
    "f32": "floats:encode_f32",
    "f16": "floats:encode_f16",
    "bf16": "floats:encode_bf16",
    "q4_0": "blocks32:encode_q4_0",
    "q4_1": "blocks32:encode_q4_1",
    "q5_0": "blocks32:encode_q5_0",
    "q5_1": "blocks32:encode_q5_1",
    "q8_0": "blocks32:encode_q8_0",
    "q2_K": "q2_k:encode",
    "q3_K": "q3_k:encode",
    "q4_K": "q45_k:encode_q4_k",
    "q5_K": "q45_k:encode_q5_k",
    "q6_K": "q6_k:encode",
    "iq4_nl": "iq4_nl:encode",
    "iq4_xs": "iq4_xs:encode",
    "iq3_s": "encode_grids:encode_iq3_s",
    "iq3_xxs": "encode_grids:encode_iq3_xxs",
    "iq2_s": "encode_grids:encode_iq2_s",
    "iq2_xs": "encode_grids:encode_iq2_xs",
    "iq2_xxs": "encode_grids:encode_iq2_xxs",
    "iq1_m": "iq1_m:encode",
    "iq1_s": "iq1_s:encode",
    "mxfp4": "fp4:encode_mxfp4",
    "nvfp4": "fp4:encode_nvfp4",
    "tq1_0": "ternary:encode_tq1_0",
    "tq2_0": "ternary:encode_tq2_0",
    "q1_0": "bits:encode_q1_0",
    "q2_0": "bits:encode_q2_0",
}

BEST_ENCODERS = {
    "q4_0": "best_blocks:encode_q4_0",
    "q4_1": "best_minimum:encode_q4_1",
    "q5_0": "best_blocks:encode_q5_0",
    "q5_1": "best_minimum:encode_q5_1",
    "q8_0": "best_blocks:encode_q8_0",
    "q2_K": "best_affine:encode_q2_k",
    "q3_K": "best_symmetric:encode_q3_k",
    "q4_K": "best_affine:encode_q4_k",
    "q5_K": "best_affine:encode_q5_k",
    "q6_K": "best_symmetric:encode_q6_k",
    "iq4_nl": "best_blocks:encode_iq4_nl",
    "iq4_xs": "best_symmetric:encode_iq4_xs",
    "iq3_s": "best_grids:encode_iq3_s",
    "iq3_xxs": "best_grids:encode_iq3_xxs",
    "iq2_s": "best_grids:encode_iq2_s",
    "iq2_xs": "best_grids:encode_iq2_xs",
    "iq2_xxs": "best_grids:encode_iq2_xxs",
    "iq1_m": "best_grids:encode_iq1_m",
    "iq1_s": "best_grids:encode_iq1_s",
    "mxfp4": "best_fp4:encode_mxfp4",
    "nvfp4": "best_fp4:encode_nvfp4",
    "tq1_0": "best_blocks:encode_tq1_0",
    "tq2_0": "best_blocks:encode_tq2_0",
    "q1_0": "best_blocks:encode_q1_0",
    "q2_0": "best_blocks:encode_q2_0",
}

DECODERS = {
    "f32": "floats:decode_f32",
    "f16": "floats:decode_f16",
    "bf16": "floats:decode_bf16",
    "q4_0": "decode:decode_q4_0",
    "q4_1": "decode:decode_q4_1",
    "q5_0": "decode:decode_q5_0",
    "q5_1": "decode:decode_q5_1",
    "q8_0": "decode:decode_q8_0",
    "q2_K": "decode:decode_q2_k",
    "q3_K": "decode:decode_q3_k",
    "q4_K": "decode:decode_q4_k",
    "q5_K": "decode:decode_q5_k",
    "q6_K": "decode:decode_q6_k",
    "iq4_nl": "decode:decode_iq4_nl",
    "iq4_xs": "decode:decode_iq4_xs",
    "iq3_s": "decode_grids:decode_iq3_s",
    "iq3_xxs": "decode_grids:decode_iq3_xxs",
    "iq2_s": "decode_grids:decode_iq2_s",
    "iq2_xs": "decode_grids:decode_iq2_xs",
    "iq2_xxs": "decode_grids:decode_iq2_xxs",
    "iq1_m": "decode_grids:decode_iq1_m",
    "iq1_s": "decode_grids:decode_iq1_s",
    "mxfp4": "decode:decode_mxfp4",
    "nvfp4": "decode:decode_nvfp4",
    "tq1_0": "decode:decode_tq1_0",
    "tq2_0": "decode:decode_tq2_0",
    "q1_0": "decode:decode_q1_0",
    "q2_0": "decode:decode_q2_0",
}


@cache
def encoder(type_name: str, effort: str = "default") -> Encode:
    """The encoder of an encodable type, by ggml's spelling of its name; the default where it has no other."""
    best = BEST_ENCODERS.get(type_name) if effort == "best" else None
    return cast(Encode, _find(best or ENCODERS[type_name]))


@cache
def decoder(type_name: str) -> Decode:
    """The decoder of a decodable type, by ggml's spelling of its name."""
    return cast(Decode, _find(DECODERS[type_name]))


def _find(place: str) -> Any:
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(f"ggplan.quants.{module}"), function)
