"""The Hessians that `quantize` is given: one for all rows, or one for each matrix of a stack of experts.

Checked here is how many there are; what each of them must be is checked where it is used
(`ggplan.quants.feedback.encode_checked`).
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggplan.errors import QuantizationError
from ggplan.ggml_types import GgmlType
from ggplan.quants.codecs import encoder

F32Array = NDArray[np.float32]
Hessians = ArrayLike | Sequence[ArrayLike | None]
_WHAT = "Hessian's numbers"
_MOST_DAMPING = 1e30  # beyond it float32 has no room for sums
_MOST_TOKENS = 1 << 53  # more change nothing
Tokens = int | Sequence[int] | None


def as_array(values: object, what: str) -> ArrayLike:
    """NumPy's view of a torch tensor on the CPU, types that NumPy lacks widened; anything else as it is."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(values, torch.Tensor):
        return values  # type: ignore[return-value]
    tensor: Any = values
    if tensor.device.type != "cpu":
        raise QuantizationError(f"the {what} are on {tensor.device}", hint="pass a copy on the CPU, .cpu()")
    tensor = tensor.detach()
    known = (torch.float16, torch.float32, torch.float64)
    array: ArrayLike = tensor.float() if tensor.is_floating_point() and tensor.dtype not in known else tensor
    return array


def encode_with_hessians(
    weights: F32Array,
    type: GgmlType,
    hessian: Hessians,
    out: NDArray[np.uint8],
    tokens: Tokens,
    lam: float | None,
    method: str | None,
) -> None:
    """Encode `weights` (..., n) into `out` (..., row bytes), both contiguous, n at least one block.

    Raises
    ------
    QuantizationError
        If there are not as many Hessians, or numbers of tokens, as matrices, or one of them will not do.
    """
    from ggplan.quants.feedback import METHODS, encode_checked
    from ggplan.quants.prepared import LAMBDA

    lam = LAMBDA if lam is None else lam
    method = METHODS[0] if method is None else method
    if not isinstance(lam, SupportsFloat) or np.ndim(lam) or not _is_damping(lam):
        raise QuantizationError(f"lam is the damping, a number above 0, not {repr(lam)[:40]}")
    if not isinstance(method, str) or method not in METHODS:
        raise QuantizationError(f"there is no method {method!r}", hint=f"choose from {', '.join(METHODS)}")
    n = weights.shape[-1]
    try:
        each = _each_of(hessian)
        matrix = np.asarray(as_array(hessian, _WHAT)) if each is None else None
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, QuantizationError):
            raise
        raise QuantizationError(f"the Hessian is no array of numbers: {error}") from error
    if each is None:
        counts = None if tokens is None else _whole(tokens)
        assert matrix is not None
        encode_checked(
            weights.reshape(-1, n), type, matrix, out.reshape(-1, out.shape[-1]), counts, lam, method
        )
        return
    n_matrices = math.prod(weights.shape[:-2])
    if weights.ndim < 3 or len(each) != n_matrices:
        raise QuantizationError(
            f"there are {len(each):,} Hessians for weights of shape {weights.shape}, which are "
            f"{n_matrices if weights.ndim > 2 else 1:,} of {n} columns",
            hint="pass one, (n, n), for all rows, or one for each matrix of weights (matrices, rows, n)",
        )
    counted = _counts(tokens, n_matrices)
    rows = weights.reshape(n_matrices, weights.shape[-2], n)
    blocks = out.reshape(n_matrices, weights.shape[-2], out.shape[-1])
    for k, one in enumerate(each):
        try:
            if one is None:
                _encode_without(rows[k], type, blocks[k])
            else:
                encode_checked(rows[k], type, one, blocks[k], counted[k], lam, method)
        except QuantizationError as error:
            raise QuantizationError(f"matrix {k}: {error.message}", hint=error.hint) from error


def _is_damping(lam: SupportsFloat) -> bool:
    try:
        return 0 < float(lam) <= _MOST_DAMPING
    except (OverflowError, TypeError, ValueError):
        return False


def _each_of(hessian: Hessians) -> list[ArrayLike | None] | None:
    """The Hessians of several matrices; None if there is one."""
    if isinstance(hessian, list | tuple):
        if not any(item is None or np.ndim(as_array(item, _WHAT)) == 2 for item in hessian):
            return None  # rows of numbers
        return [None if item is None else as_array(item, _WHAT) for item in hessian]
    if isinstance(hessian, str | bytes) or np.ndim(hessian) < 3:  # type: ignore[arg-type]
        return None
    stacked = np.asarray(as_array(hessian, _WHAT))
    return list(stacked.reshape(math.prod(stacked.shape[:-2]), *stacked.shape[-2:]))


def _encode_without(rows: F32Array, type: GgmlType, out: NDArray[np.uint8]) -> None:
    """Of an expert that saw no token: with best effort, where the type has that."""
    if type.requires_imatrix:
        raise QuantizationError(
            f"{type} cannot be encoded without an imatrix or a Hessian",
            hint="pass a Hessian for each expert: that of all tokens of its layer for one that saw none",
        )
    if rows.size:
        encoder(type, "best" if type.best_encoder else "default")(rows, None, out)


def _counts(tokens: Tokens, n_matrices: int) -> list[int | None]:
    try:
        several = tokens is not None and np.ndim(tokens) > 0
        found = np.asarray(tokens).reshape(-1).tolist() if several else []
    except (TypeError, ValueError, RuntimeError) as error:
        raise QuantizationError(f"tokens is no whole number, nor an array of them: {error}") from error
    if not several:
        return [None if tokens is None else _whole(tokens)] * n_matrices
    if len(found) != n_matrices:
        raise QuantizationError(
            f"there are {len(found):,} numbers of tokens for {n_matrices:,} matrices",
            hint="pass one for each matrix, or one for all",
        )
    return [_whole(count) for count in found]


def _whole(tokens: object) -> int:
    try:
        count = operator.index(tokens)  # type: ignore[arg-type]
    except TypeError:
        raise QuantizationError(f"tokens is a whole number, not {tokens!r}") from None
    return min(count, _MOST_TOKENS)
