"""What one model said of every scored token, beside what the base said of it.

The sums are llama-perplexity's (b11434): float32 logits, sums in double, base log-probabilities as its file
keeps them, the divergence taken over the tokens to which the base gives more than e^-16.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggplan.errors import MeasureError
from ggplan.measure.base_logits import log_probs
from ggplan.text import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NEGLIGIBLE = np.float32(-16)
_PIECE = 1 << 22


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model beside the base, per scored token; arrays (n_chunks, n_scored).

    Attributes
    ----------
    nll_base
        -ln p of the token that came, as the base has it, nats; float32.
    kld
        KL divergence of the model's distribution from the base's, nats; float32.
    delta_p
        p of the token that came, minus the base's; float32.
    same_top
        Whether the most likely token is the base's; bool.
    """

    nll_base: NDArray[np.float32]
    kld: NDArray[np.float32]
    delta_p: NDArray[np.float32]
    same_top: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TokenScores:
    """-ln p of every token that came, (n_chunks, n_scored) float32, and the comparison with a base."""

    nll: NDArray[np.float32]
    comparison: Comparison | None = None

    def save(self, path: str | Path) -> None:
        """Keep the scores, compressed (.npz)."""
        arrays: dict[str, Any] = {"nll": self.nll}
        if self.comparison is not None:
            arrays |= {f.name: getattr(self.comparison, f.name) for f in fields(Comparison)}
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **arrays)

    @staticmethod
    def load(path: str | Path) -> TokenScores:
        """Read kept scores.

        Raises
        ------
        MeasureError
            If the file holds none.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as kept:
                arrays = dict(kept)
            nll = arrays.pop("nll")
            return TokenScores(nll, Comparison(**arrays) if arrays else None)
        except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
            raise MeasureError(f"{printable(str(path))} holds no scores of tokens: {error}") from error


def score_chunk(
    logits: NDArray[np.float32],
    targets: NDArray[np.int32],
    base: NDArray[np.uint16] | None,
    *,
    normalized: bool = False,
) -> TokenScores:
    """The scores of one chunk, arrays (1, n_scored).

    Parameters
    ----------
    logits
        (n_scored, n_vocab).
    normalized
        The logits are log-probabilities as the file of the base keeps them. What is cut off there makes them
        sum to a little more than 1, so they must not be normalized again.
    targets
        (n_scored,), the tokens that came.
    base
        The base's rows (n_scored, row codes) of its file, or None.
    """
    step = max(1, _PIECE // logits.shape[1])
    pieces = [slice(i, i + step) for i in range(0, len(logits), step)]
    return join(
        [_score(logits[p], targets[p], None if base is None else base[p], normalized) for p in pieces], axis=1
    )


def join(parts: Sequence[TokenScores], axis: int = 0) -> TokenScores:
    """Scores of several chunks (axis 0), or of several pieces of one chunk (axis 1), as one."""
    nll = np.concatenate([p.nll for p in parts], axis)
    compared = [p.comparison for p in parts if p.comparison is not None]
    if not compared:
        return TokenScores(nll)
    return TokenScores(
        nll,
        Comparison(
            **{
                f.name: np.concatenate([getattr(c, f.name) for c in compared], axis)
                for f in fields(Comparison)
            }
        ),
    )


def _score(
    logits: NDArray[np.float32],
    targets: NDArray[np.int32],
    base: NDArray[np.uint16] | None,
    normalized: bool,
) -> TokenScores:
    rows = np.arange(len(logits))
    total = np.zeros((len(logits), 1), np.float32)
    if not normalized:
        top = logits.max(axis=1, keepdims=True)
        sums = np.exp(logits - top).sum(axis=1, keepdims=True, dtype=np.float64)
        total = top + np.log(sums).astype(np.float32)
    nll = (total[:, 0] - logits[rows, targets]).astype(np.float32)
    if base is None:
        return TokenScores(nll[None])
    p_base = log_probs(base, logits.shape[1])
    nll_base = -p_base[rows, targets]
    terms = np.exp(p_base) * (p_base - logits + total)
    kld = np.where(p_base > _NEGLIGIBLE, terms, 0).sum(axis=1, dtype=np.float64).astype(np.float32)
    same_top = logits.argmax(axis=1) == p_base.argmax(axis=1)
    return TokenScores(
        nll[None],
        Comparison(nll_base[None], kld[None], (np.exp(-nll) - np.exp(-nll_base))[None], same_top[None]),
    )
