"""Outlier columns: those whose inputs are far larger than most of their matrix's.

LLM.int8 (Dettmers and others, 2022) found that a few columns of a transformer's activations are many times as
large as the others, and keeps them out of its 8-bit products. Here a column is an outlier if its root mean
square over the tokens is more than tau times the median of the columns of its matrix. The median is of the
columns that carry anything: where most are zero, it would be zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ggplan.calibration.folder import Calibration
from ggplan.imatrix.coverage import FEW_TOKENS, LARGE_SHARE

TAU = 6.0
"""The default; LLM.int8 has 6 for the magnitude of activations, whose usual size is about 1."""
HALF = 0.5
"""The share of the energy from which q8_0 is suggested instead of q6_K."""


@dataclass(frozen=True, slots=True)
class Outliers:
    """The outlier columns of an input of matrices.

    Attributes
    ----------
    tensors
        The GGUF names of the matrices that have the input.
    n_columns
        Its length.
    n_slices
        Its experts, or the matrices of a stack, or 1.
    left_out
        The slices that saw too few tokens to say (fewer than `FEW_TOKENS` a column, or none).
    columns
        For each slice the outlier columns, those with most energy first; none for slices that are left out.
    largest
        The largest root mean square of a column, in medians; 0 if no slice was looked at.
    share
        The part of the energy, the sum of squares over all tokens of the slices that were looked at, which
        the outlier columns have.
    """

    tensors: tuple[str, ...]
    n_columns: int
    n_slices: int
    left_out: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]
    largest: float
    share: float

    @property
    def n_outliers(self) -> int:
        """The outlier columns of all slices."""
        return sum(map(len, self.columns))


def outliers_of(calibration: Calibration, tau: float = TAU) -> list[Outliers]:
    """The outlier columns of every input of a calibration, the largest share of the energy first.

    Raises
    ------
    CalibrationError
        If a file is damaged, or of another calibration.
    ValueError
        If tau is not above 1: half of all columns are above the median.
    """
    if not tau > 1:
        raise ValueError(f"tau is {tau}, and must be above 1")
    found = []
    for file in calibration.layers:
        for which in file.inputs:
            squares, tokens = calibration.squares(file, which)
            found.append(_outliers(which.tensors, squares.astype(np.float64), tokens, tau))
    return sorted(found, key=lambda o: (-o.share, -o.largest))


def _outliers(tensors: tuple[str, ...], squares: np.ndarray, tokens: np.ndarray, tau: float) -> Outliers:
    """Of one input: sums of squares (slices, columns) float64 and the tokens of each slice."""
    n_columns = squares.shape[1]
    left_out: list[int] = []
    columns: list[tuple[int, ...]] = []
    largest = beyond = total = 0.0
    for number, (sums, n_tokens) in enumerate(zip(squares, tokens.tolist(), strict=True)):
        is_seen = n_tokens >= FEW_TOKENS * n_columns and sums.any()
        if not is_seen:
            left_out.append(number)
            columns.append(())
            continue
        sizes = np.sqrt(sums / n_tokens)
        median = np.median(sizes[sizes > 0])
        out = np.flatnonzero(sizes > tau * median)
        largest = max(largest, float(sizes.max() / median))
        beyond += float(sums[out].sum())
        total += float(sums.sum())
        columns.append(tuple(out[np.argsort(-sums[out], kind="stable")].tolist()))
    return Outliers(
        tensors, n_columns, len(columns), tuple(left_out), tuple(columns), largest,
        beyond / total if total else 0.0,
    )  # fmt: skip


def suggested_rules(found: Sequence[Outliers]) -> list[str]:
    """Rules of a recipe that give matrices a finer type: where outliers have a tenth of the energy or more.

    q8_0 where they have half of it, else q6_K with q8_0 for rows that are no whole blocks of 256. They stand
    before the rules of a recipe; the first that matches decides.
    """
    chosen: dict[tuple[str, str], list[int]] = {}
    others: dict[str, str] = {}
    for outliers in found:
        if outliers.share < LARGE_SHARE:
            continue
        chain = "q8_0" if outliers.share >= HALF else "q6_K | q8_0"
        for name in outliers.tensors:
            if layered := re.fullmatch(r"blk\.(\d+)\.(.+)", name):
                chosen.setdefault((layered[2], chain), []).append(int(layered[1]))
            else:
                others[name] = chain
    return [*_in_layers(chosen), *(f"^{_literal(name)}$ = {chain}" for name, chain in others.items())]


def _in_layers(chosen: dict[tuple[str, str], list[int]]) -> Iterator[str]:
    for (kind, chain), layers in sorted(chosen.items()):
        numbers = "|".join(map(str, sorted(layers)))
        which = f"({numbers})" if len(layers) > 1 else numbers
        yield rf"^blk\.{which}\.{_literal(kind)}$ = {chain}"


def _literal(name: str) -> str:
    """A pattern that is found where the name stands; `re.escape` escapes more than recipes allow."""
    return re.sub(r"[.^$*+?{}\[\]\\|()]", lambda found: f"\\{found[0]}", name)
