"""The weights that a quantized model should have in place of the original's.

Let Xf be what a matrix W is multiplied with in the original model, and Xq in the model that is quantized up
to there, for the same tokens. The product wanted is W Xf, the input at hand Xq. The least squares solution is

    W* = W + W (C - H) (H + lam mean(diag H) I)^-1        H = mean of xq xq^T,  C = mean of xf xq^T

(Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", 2025; here in closed
form, with far more damping, since the tokens are few).

Matrices whose product is added to the stream of hidden states may also make good what the stream itself lacks
there: half of L = mean of (sf - sq) xq^T is added to W (C - H), where sf and sq are the streams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.linear_algebra import Moments, cross_moments, divide, second_moments, times

F32Array = NDArray[np.float32]
DAMPING = 0.05
SHARE_OF_LACK = 0.5


@dataclass(frozen=True, slots=True)
class Correction:
    """What to add to the matrices of an input.

    Attributes
    ----------
    moments
        Of the quantized stream: what the corrected weights are encoded with.
    shift
        C - H, (n, n).
    damped
        H with `DAMPING` of its mean diagonal added to the diagonal.
    lack
        (m, n): what the stream lacks, times `SHARE_OF_LACK`; None where it is not made good.
    """

    moments: Moments
    shift: F32Array
    damped: F32Array
    lack: F32Array | None = None

    def target(self, weights: F32Array, threads: int = 1, *, first_row: int = 0) -> F32Array:
        """The corrected rows of a matrix, from `first_row` on."""
        wanted = times(weights, self.shift, threads)
        if self.lack is not None:
            wanted += self.lack[first_row : first_row + len(weights)]
        wanted = divide(wanted, self.damped, threads)
        wanted += weights
        return wanted

    def as_map(self, threads: int = 1) -> F32Array:
        """M = (C - H)(H + ...)^-1, (n, n): W + W M is the target of every matrix with this input."""
        return divide(self.shift, self.damped, threads)


def correction(
    quantized: F32Array, original: F32Array, lack: F32Array | None = None, threads: int = 1
) -> Correction:
    """The correction of the matrices of an input.

    Parameters
    ----------
    quantized, original
        What they are given in the two models: (tokens, n), the same tokens, at least one.
    lack
        (tokens, m): the original model's stream less the quantized one's, where the matrices' products are
        added to it.
    """
    moments = second_moments(quantized, threads)
    shift = cross_moments(original, quantized, threads)
    shift -= moments
    damped = moments.copy()
    diagonal = moments.diagonal()
    mean = math.fsum(diagonal.tolist()) / len(moments)
    damped.flat[:: len(moments) + 1] = diagonal + np.float32(DAMPING * mean) if mean > 0 else np.float32(1)
    missing = None
    if lack is not None:
        missing = cross_moments(lack, quantized, threads)
        missing *= np.float32(SHARE_OF_LACK)
    return Correction(Moments(moments, len(quantized)), shift, damped, missing)
