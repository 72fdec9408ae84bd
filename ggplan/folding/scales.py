"""Which scales are folded.

    awq      s = rms(x)^alpha                                    AWQ (Lin et al., 2023), section 3.2
    smooth   s = max|x|^alpha / max|W|^(1 - alpha)               SmoothQuant (Xiao et al., 2022), equation 4

for each column, over the tokens of a calibration and all rows that are multiplied by s; then divided by their
geometric mean. A column without energy counts as one with a thousandth of the mean. An expert that saw no
token has scales of 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ggplan.errors import PlanError
from ggplan.folding.sites import Site
from ggplan.ggml_types import GgmlType
from ggplan.model import TensorInfo
from ggplan.quants import dequantize, quantize
from ggplan.quants.linear_algebra import Moments, regularized, times
from ggplan.text import printable

if TYPE_CHECKING:
    from ggplan.calibration import Calibration

F32Array = NDArray[np.float32]
F64Array = NDArray[np.float64]

GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The exponents that are tried for AWQ."""
_SMOOTH = 0.5
_FORM = re.compile(r"(awq|smooth)(?::(\d*\.?\d+))?", re.ASCII)
_FLOOR = 1e-3
_ROWS = 32  # of a matrix that the search encodes
_EXPERTS = 4  # of a tensor that it looks at
_PIECE = 1 << 22  # weights that are read at a time


@dataclass(frozen=True, slots=True)
class Fold:
    """What is folded.

    Attributes
    ----------
    method
        Whose scales.
    alpha
        Their exponent, above 0 and up to 1. None: 0.5 for smooth; for awq, in each place, the one with the
        least error of the products.
    """

    method: Literal["awq", "smooth"]
    alpha: float | None = None

    def __str__(self) -> str:
        if self.alpha is None:
            return self.method
        return f"{self.method}:{np.format_float_positional(self.alpha, trim='-')}"  # every digit of it


def parse_fold(text: str) -> Fold:
    """`awq`, `awq:0.25`, `smooth`, `smooth:0.5`.

    Raises
    ------
    PlanError
        If it is none of these.
    """
    found = _FORM.fullmatch(text)
    alpha = float(found[2]) if found is not None and found[2] else None
    if found is None or (alpha is not None and not 0 < alpha <= 1):
        raise PlanError(
            f"{printable(text)!r} is no fold",
            hint="write awq, awq:ALPHA, smooth or smooth:ALPHA; ALPHA is above 0, up to 1",
        )
    return Fold("awq" if found[1] == "awq" else "smooth", alpha)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The scales of a place.

    Attributes
    ----------
    alpha
        Their exponent.
    scales
        float32 (slices, n): of the norm's columns, one slice; of down's columns, one slice for each expert.
    by_rms
        Whether the root mean square had to stand for the largest input.
    """

    alpha: float
    scales: F32Array
    by_rms: bool = False


def choose(
    site: Site, fold: Fold, calibration: Calibration, types: Mapping[str, GgmlType], lam: float
) -> Chosen | None:
    """The scales of a place; None if the calibration does not have its input or none are better.

    Parameters
    ----------
    types
        The type that each tensor will have.
    lam
        The damping of the moments in the search.

    Raises
    ------
    CalibrationError, CheckpointError, ImatrixError
        If the calibration or weights cannot be read, or the calibration is of another model.
    """
    energy = _energy(site, calibration)
    if energy is None or not any(types[t.name].is_quantized for t in site.multiplied):
        return None
    if fold.method == "smooth":
        return _smooth(site, calibration, energy, _SMOOTH if fold.alpha is None else fold.alpha)
    if fold.alpha is not None:
        return Chosen(fold.alpha, _powers(energy, fold.alpha / 2))
    samples = _samples(site, calibration, types, lam)
    candidates = [Chosen(alpha, _powers(energy, alpha / 2)) for alpha in GRID]
    errors = [math.fsum(sample.error(each.scales) for sample in samples) for each in candidates]
    best = candidates[errors.index(min(errors))]
    return best if best.alpha else None


def _energy(site: Site, calibration: Calibration) -> F64Array | None:
    """The mean square of each column, (slices, n): of experts that share a norm over all their tokens."""
    entries = calibration.imatrix.entries
    for tensor in site.multiplied:
        if tensor.name not in entries:
            continue
        entry = entries[tensor.name]
        values: F64Array = entry.for_tensor(tensor.shape).astype(np.float64)
        counts = np.maximum(entry.counts, 0).astype(np.float64)
        if len(counts) != len(values):
            counts = np.ones(len(values))
        if not site.is_norm:
            values[counts <= 0] = 0  # for an expert without tokens an entry has ones
            return values
        if counts.sum() > 0:
            pooled: F64Array = counts[None] @ values / counts.sum()
            return pooled
    return None


def _powers(values: F64Array, exponent: float) -> F32Array:
    return _centred(_above(values, _FLOOR**2) ** exponent)


def _above(values: F64Array, part: float) -> F64Array:
    """The values, none below this part of their mean; a slice of zeros becomes one of ones."""
    mean = values.mean(axis=1, keepdims=True)
    raised: F64Array = np.where(mean > 0, np.maximum(values, part * mean), 1.0)
    return raised


def _centred(values: F64Array) -> F32Array:
    centred: F32Array = (values / np.exp(np.log(values).mean(axis=1, keepdims=True))).astype(np.float32)
    return centred


def _smooth(site: Site, calibration: Calibration, energy: F64Array, alpha: float) -> Chosen:
    weights = np.zeros(energy.shape, np.float64)
    for tensor in site.multiplied:
        np.maximum(weights, _largest_weights(tensor, len(energy)), out=weights)
    inputs = _largest_inputs(site, calibration, energy)
    seen = energy.any(axis=1, keepdims=True)
    top = _above(np.sqrt(energy) if inputs is None else inputs, _FLOOR)
    scales = np.where(seen, top**alpha / _above(weights, _FLOOR) ** (1 - alpha), 1.0)
    return Chosen(alpha, _centred(scales), by_rms=inputs is None)


def _largest_weights(tensor: TensorInfo, n_slices: int) -> F64Array:
    """The largest magnitude of each column, (n_slices, n)."""
    assert tensor.rows is not None
    found = np.zeros((n_slices, tensor.n_columns), np.float64)
    of_slice = tensor.n_rows // n_slices
    step = max(1, _PIECE // tensor.n_columns)
    for slice_ in range(n_slices):
        for at in range(slice_ * of_slice, (slice_ + 1) * of_slice, step):
            rows = tensor.rows.read_float32(at, min(at + step, (slice_ + 1) * of_slice))
            np.maximum(found[slice_], np.abs(rows).max(axis=0), out=found[slice_])
    return found


def _largest_inputs(site: Site, calibration: Calibration, energy: F64Array) -> F64Array | None:
    """The largest magnitude of each column of the inputs, (slices, n); None if the inputs are not kept."""
    from ggplan.quants.floats import widened

    found = np.zeros(energy.shape, np.float64)
    for tensor in site.multiplied:
        tokens = calibration.tokens(tensor.name)
        if len(tokens) != len(found):
            continue
        for slice_ in range(len(tokens)):
            rows = calibration.rows(tensor.name, slice_)
            if rows is None:
                return None
            if len(rows):
                found[slice_] = np.abs(widened(rows)).max(axis=0)
        return found
    return None


@dataclass(frozen=True, slots=True)
class _Sample:
    """Some rows of a matrix, the moments of their inputs, and how many rows they stand for."""

    rows: F32Array
    hessian: F32Array
    slice: int
    type: GgmlType
    weight: float

    def error(self, scales: F32Array) -> float:
        """The mean square of the products' errors, times the weight, if columns are multiplied by scales."""
        s = scales[self.slice if len(scales) > 1 else 0]
        importance = self.hessian.diagonal() / (s * s)
        blocks = quantize(self.rows * s, self.type, importance)
        errors = np.ascontiguousarray(dequantize(blocks, self.type) / s - self.rows)
        products = times(errors, self.hessian)
        return self.weight * math.fsum((errors.astype(np.float64) * products).sum(axis=1).tolist())


def _samples(
    site: Site, calibration: Calibration, types: Mapping[str, GgmlType], lam: float
) -> Sequence[_Sample]:
    found = []
    made: dict[object, F32Array] = {}
    for tensor in site.multiplied:
        assert tensor.rows is not None
        tokens, type_ = calibration.tokens(tensor.name), types[tensor.name]
        if not type_.is_quantized or len(tokens) != math.prod(tensor.shape[:-2]):
            continue
        of_slice = tensor.n_rows // len(tokens)
        used = [each for each in sorted(range(len(tokens)), key=lambda e: (-tokens[e], e)) if tokens[each]]
        for slice_ in used[:_EXPERTS]:
            key = calibration.input_of(tensor.name), slice_
            if key not in made:
                moments: Moments | None = calibration.moments(tensor.name, slice_)
                assert moments is not None
                made[key] = regularized(moments, lam)
            step = max(1, of_slice // _ROWS)
            numbers = range(slice_ * of_slice, (slice_ + 1) * of_slice, step)[:_ROWS]
            rows = np.concatenate([tensor.rows.read_float32(n, n + 1) for n in numbers])
            share = tokens[slice_] / sum(tokens[each] for each in used[:_EXPERTS])
            found.append(_Sample(rows, made[key], slice_, type_, share * of_slice / len(numbers)))
    return found
