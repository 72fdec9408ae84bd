"""The functions that write and read ggml types, found by what a type's row in `ggplan.ggml_types` names.

A row names a function as `module:function`, below `ggplan.quants`. It is imported when a tensor first needs
it: encoders import LLVM, which takes a tenth of a second.

    encoder    encode(rows, importance, out)    rows (n, columns), out (n, row bytes) uint8
    decoder    decode(blocks, out)              blocks (n, block bytes) uint8, out (n, block size) float32

Rows are float32; to types with blocks they may also be the bits of bfloat16, which is how checkpoints store
them: what lays weights into vectors widens them, and nothing after it knows. All arrays are C-contiguous,
shapes fit, weights are finite: the callers in `ggplan.quants` see to it. `importance` is (columns,) float32
or None, and ignored by the types that have no use for it.

Most types have a second encoder, for `effort="best"`: the same blocks, in the same layout, with less error
than ggml's (see `best`). It uses importance for every type.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ggplan.ggml_types import GgmlType

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Rows = NDArray[np.float32 | np.uint16]
"""Weights as encoders take them: float32 or, for types with blocks, the bits of bfloat16 in uint16."""
Encode = Callable[[Rows, F32Array | None, Bytes], None]
Decode = Callable[[Bytes, F32Array], None]


@cache
def encoder(type: GgmlType, effort: str = "default") -> Encode:
    """The encoder of an encodable type for an effort; the default one where the type has no other."""
    best = type.best_encoder if effort == "best" else ""
    return cast(Encode, _find(best or type.encoder))


@cache
def decoder(type: GgmlType) -> Decode:
    """The decoder of a decodable type."""
    return cast(Decode, _find(type.decoder))


def _find(place: str) -> Any:
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(f"ggplan.quants.{module}"), function)
