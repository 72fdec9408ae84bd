"""Encode float32 weights to ggml's types and decode them again: arrays in, bytes out.

    blocks = quantize(rows, "q4_K", imatrix=importance)     (..., n) float32 -> (..., row bytes) uint8
    rows = dequantize(blocks, "q4_K")                       (..., row bytes) uint8 -> (..., n) float32
    quantize_error(rows, "q4_K").relative                   0.071
    blocks = quantize(rows, "q4_K", effort="best")          as many bytes, less error, more time
    blocks = quantize(rows, "q4_K", hessian=moments)        the least error of products with such inputs

The bytes are those of ggml's `ggml_quantize_chunk`, built for x86-64 as llama.cpp builds it by default, and
the weights those of its `dequantize_row_*`, bit for bit, on every machine.

With `effort="best"` blocks have the same layout and never more error than ggml's, nearly always less: the
sum of importance * error^2, or of error^2 without an imatrix. That takes up to ten times as long.
`efforts_of` tells which types have a search for it; the others are written as by default.

`quantize` and `dequantize` check what they are given. `encode_into` and `decode_into` check nothing, allocate
nothing that grows with the input, and run most of their time without the GIL: they are for code that streams
rows through its own buffers from several threads, after `first_nonfinite` has passed the rows.

Nothing here knows of files, models or rules. A kernel is compiled, which takes some tenths of a second, or
loaded from disk, which takes milliseconds, when the first rows of a type arrive; `warm_up` does so ahead of
time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggplan.errors import QuantizationError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.quants.codecs import Rows, decoder, encoder
from ggplan.quants.deviation import Deviation, deviation
from ggplan.quants.finite import count_nonfinite, first_nonfinite
from ggplan.quants.hessians import Hessians, Tokens, as_array, encode_with_hessians

if TYPE_CHECKING:
    F32Array = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

__all__ = [
    "EFFORTS",
    "Deviation",
    "decode_into",
    "dequantize",
    "efforts_of",
    "encode_into",
    "first_nonfinite",
    "quantize",
    "quantize_error",
    "require_effort",
    "warm_up",
]

EFFORTS = ("default", "best")

# Decoders make temporary arrays as large as their input: pieces of this many weights keep them in the cache.
_DECODE_PIECE = 64 * 1024


def quantize(
    rows: ArrayLike,
    type: str | GgmlType,
    imatrix: ArrayLike | None = None,
    *,
    effort: str | None = None,
    hessian: Hessians | None = None,
    tokens: Tokens = None,
    lam: float | None = None,
    method: str | None = None,
) -> Bytes:
    """Encode rows of weights.

    Parameters
    ----------
    rows
        Weights (..., n), of a type that float32 can take; n must be whole blocks of `type`. A torch tensor
        or parameter on the CPU will do, bf16 too.
    type
        A ggml type that ggplan can write, or its name in any case.
    imatrix
        The importance of each column (n,), non-negative; None for the types' plain encoders. Types without
        such a choice (floats, q8_0, the ternary and the smallest types) ignore it, as ggml does; iq2_xxs,
        iq2_xs and iq1_s have no plain encoder.
    effort
        "default" for ggml's bytes, "best" for less error in as many bytes and up to ten times the time; that
        uses an imatrix for every type. A type without such a search is written as by default. "feedback", the
        default with a Hessian, is for the least error of products; no row has more than by "best".
    hessian
        The second moments (n, n) of the inputs that the weights are multiplied with: the mean of x x^T over
        tokens. An array or a torch tensor on the CPU. For weights (experts, rows, n) one for all of them, or
        one for each: (experts, n, n), or a list in which None stands for an expert that saw no token, which
        is encoded with best effort.
    tokens
        How many tokens the Hessian is the mean of, or each of several: of few of them less is believed. By
        default enough.
    lam
        The damping, in parts of the mean of the Hessian's diagonal: 0.1 by default, 0.3 for uses that its
        tokens do not cover.
    method
        "feedback", by default; "gptq" (error feedback alone), "gptq:act-order" (the same in the order of
        importance) or "descent" (from best effort's blocks).

    Returns
    -------
    The blocks (..., row bytes), uint8.

    Raises
    ------
    QuantizationError
        If n is not whole blocks, a weight is NaN or infinite, the imatrix or the Hessian does not fit, the
        type cannot be written or has no search that uses a Hessian, or there is no such effort. It is a
        ValueError too.
    TypeNameError
        If `type` names no ggml type.
    """
    target = _as_type(type)
    if hessian is not None and imatrix is not None:
        raise QuantizationError(
            "a Hessian has an imatrix in it, its diagonal, and another is given", hint="pass one of the two"
        )
    if hessian is not None and effort not in (None, "feedback"):
        raise QuantizationError(f"a Hessian is for effort feedback, not {effort}", hint="leave out effort=")
    if hessian is None:
        of_moments = {"tokens": tokens, "lam": lam, "method": method}
        given = [f"{name}=" for name, value in of_moments.items() if value is not None]
        if effort == "feedback" or given:
            what = "effort feedback goes by" if effort == "feedback" else f"{given[0]} is for"
            raise QuantizationError(
                f"{what} second moments, and there are none", hint="pass hessian=, (n, n)"
            )
    if not target.encodable:
        raise QuantizationError(
            f"ggplan cannot write {target.described}", hint="`ggplan types` lists the types it can"
        )
    if hessian is None:
        _require_imatrix(target, imatrix)
        require_effort("default" if effort is None else effort)
    weights = _as_float32(as_array(rows, "weights"), "weights")
    if weights.ndim == 0:
        raise QuantizationError(
            "a single number is not a row of weights", hint="pass an array of shape (..., n)"
        )
    n = weights.shape[-1]
    if not target.fits(n):
        raise QuantizationError(
            f"a row of {n} weights is not whole blocks of {target}:"
            f" {n} % {target.block_size} = {n % target.block_size}"
        )
    _require_finite(weights, "weights")
    importance = None if imatrix is None else _as_importance(imatrix, n)
    blocks = np.empty((*weights.shape[:-1], target.row_bytes(n)), np.uint8)
    if n == 0:
        return blocks
    flat, flat_blocks = weights.reshape(-1, n), blocks.reshape(-1, blocks.shape[-1])
    if hessian is not None:
        encode_with_hessians(weights, target, hessian, blocks, tokens, lam, method)
    elif weights.size:
        encode_into(flat, target, importance, flat_blocks, effort or "default")
    return blocks


def dequantize(blocks: ArrayLike, type: str | GgmlType) -> F32Array:
    """Decode rows of blocks.

    Parameters
    ----------
    blocks
        Bytes (..., row bytes), uint8; a row must be whole blocks of `type`.
    type
        A ggml type that ggplan can read, or its name in any case.

    Returns
    -------
    The weights (..., n), float32.

    Raises
    ------
    QuantizationError
        If the rows are not whole blocks, not bytes, or of a type that cannot be read. It is a ValueError too.
    TypeNameError
        If `type` names no ggml type.
    """
    source = _as_type(type)
    if not source.decodable:
        raise QuantizationError(
            f"ggplan cannot read {source.described}", hint="`ggplan types` lists the types it can"
        )
    data = np.asarray(blocks)
    if data.dtype != np.uint8:
        raise QuantizationError(f"blocks are bytes (uint8), not {data.dtype}")
    if data.ndim == 0:
        raise QuantizationError(
            "a single byte is not a row of blocks", hint="pass an array of shape (..., row bytes)"
        )
    row_bytes = data.shape[-1]
    n_blocks, rest = divmod(row_bytes, source.block_bytes)
    if rest:
        raise QuantizationError(
            f"a row of {row_bytes} bytes is not whole blocks of {source}:"
            f" {row_bytes} % {source.block_bytes} = {rest}"
        )
    weights = np.empty((*data.shape[:-1], n_blocks * source.block_size), np.float32)
    if weights.size:
        data = np.ascontiguousarray(data).reshape(-1, row_bytes)
        decode_into(data, source, weights.reshape(-1, weights.shape[-1]))
    return weights


def quantize_error(
    rows: ArrayLike,
    type: str | GgmlType,
    imatrix: ArrayLike | None = None,
    *,
    effort: str = "default",
) -> Deviation:
    """How far weights move when they are encoded and decoded again.

    Parameters
    ----------
    rows, type, imatrix, effort
        As of `quantize`; at least one weight, and a type that ggplan can read too.

    Returns
    -------
    The error over all rows and of the worst one; with an imatrix also the weighted error.

    Raises
    ------
    QuantizationError, TypeNameError
        As `quantize` and `dequantize`, and for no weights at all.
    """
    weights = _as_float32(as_array(rows, "weights"), "weights")
    if not weights.size:
        raise QuantizationError("there are no weights to compare")
    decoded = dequantize(quantize(weights, type, imatrix, effort=effort), type)
    n = weights.shape[-1]
    importance = None if imatrix is None else _as_importance(imatrix, n)
    return deviation(weights.reshape(-1, n), decoded.reshape(-1, n), importance)


def efforts_of(type: GgmlType) -> tuple[str, ...]:
    """The efforts that make a difference to a type: all of `EFFORTS`, or "default" alone."""
    return EFFORTS if type.best_encoder else EFFORTS[:1]


def require_effort(effort: str) -> None:
    """Raise QuantizationError unless `effort` is one of `EFFORTS`."""
    if effort not in EFFORTS:
        raise QuantizationError(f"there is no effort {effort!r}", hint=f"choose from {', '.join(EFFORTS)}")


def encode_into(
    rows: Rows, type: GgmlType, imatrix: F32Array | None, out: Bytes, effort: str = "default"
) -> None:
    """Encode contiguous finite `rows` (m, n) into contiguous `out` (m, row bytes), unchecked.

    To a type with blocks the rows may also be the bits of bfloat16, as uint16; the bytes are the same.

    Raises
    ------
    QuantizationError
        If the type cannot be encoded without an imatrix and there is none.
    """
    _require_imatrix(type, imatrix)
    encoder(type, effort)(rows, imatrix, out)


def decode_into(blocks: Bytes, type: GgmlType, out: F32Array) -> None:
    """Decode contiguous `blocks` (m, row bytes) into contiguous `out` (m, n), unchecked."""
    decode = decoder(type)
    data = blocks.reshape(-1, type.block_bytes)
    weights = out.reshape(-1, type.block_size)
    step = max(1, _DECODE_PIECE // type.block_size)
    with np.errstate(all="ignore"):  # an infinite scale in a damaged block gives the infinity and NaN of ggml
        for start in range(0, len(data), step):
            decode(data[start : start + step], weights[start : start + step])


def warm_up(
    types: Iterable[GgmlType], *, with_imatrix: bool, effort: str = "default", bf16: bool = False
) -> None:
    """Compile the encoders of `types`, or load them from disk, by encoding one row of zeros.

    Safe to call from any thread. An encoder with an imatrix and without are two kernels; only the one
    asked for is compiled. What cannot be encoded without one is always compiled with it. Rows of float32 and,
    with `bf16`, of its bits are two kernels likewise.
    """
    for type in types:
        n = type.block_size
        importance = np.ones(n, np.float32) if with_imatrix or type.requires_imatrix else None
        rows = np.zeros((1, n), np.uint16 if bf16 else np.float32)
        encode_into(rows, type, importance, np.empty((1, type.row_bytes(n)), np.uint8), effort)


def _require_imatrix(type: GgmlType, imatrix: ArrayLike | None) -> None:
    if type.requires_imatrix and imatrix is None:
        raise QuantizationError(
            f"{type} cannot be encoded without an imatrix", hint="pass imatrix=, one importance per column"
        )


def _as_type(type: str | GgmlType) -> GgmlType:
    return parse_type(type) if isinstance(type, str) else type


def _as_float32(values: ArrayLike, what: str) -> F32Array:
    given = np.asarray(values)
    if not np.can_cast(given.dtype, np.float32, "same_kind"):
        raise QuantizationError(f"the {what} are of type {given.dtype}, which float32 cannot take")
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused as such
        return np.require(given, np.float32, ("C", "A"))


def _as_importance(imatrix: ArrayLike, n: int) -> F32Array:
    importance = _as_float32(as_array(imatrix, "imatrix values"), "imatrix values")
    if importance.shape != (n,):
        raise QuantizationError(
            f"the imatrix has shape {importance.shape}, but rows of {n} weights need {(n,)}",
            hint="pass one importance per column",
        )
    _require_finite(importance, "imatrix values")
    if (importance < 0).any():
        at = int((importance < 0).argmax())
        raise QuantizationError(f"the importance of column {at} is negative ({importance[at]})")
    return importance


def _require_finite(values: F32Array, what: str) -> None:
    first = first_nonfinite(values)
    if first >= 0:
        at = tuple(int(i) for i in np.unravel_index(first, values.shape))
        raise QuantizationError(
            f"{count_nonfinite(values)} of {values.size} {what} are NaN or infinite; the first is"
            f" {values.flat[first]} at {list(at)}"
        )
