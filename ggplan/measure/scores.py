"""The probabilities that a model gives every scored token, beside those of the base.

The sums are llama-perplexity's (b11434): float32 logits, sums in double, base log-probabilities as its file
keeps them, the divergence taken over the tokens to which the base gives more than e^-16.
"""

from __future__ import annotations

import io
import zipfile
import zlib
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
class TokenComparison:
    """A model beside the base, per scored token; arrays (n_chunks, n_scored).

    Attributes
    ----------
    nll_base
        -ln p of the token of the text by the base, nats; float32.
    kld
        KL divergence of the model's distribution from the base's, nats; float32.
    delta_p
        p of the token of the text, minus the base's; float32.
    same_top
        Whether the most likely token is the base's; bool.
    """

    nll_base: NDArray[np.float32]
    kld: NDArray[np.float32]
    delta_p: NDArray[np.float32]
    same_top: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TokenScores:
    """-ln p of every token of the text, (n_chunks, n_scored) float32, and the comparison with a base.

    If the model or its base computes no number for a token, there is a NaN or an infinity here; see `finite`.
    """

    nll: NDArray[np.float32]
    comparison: TokenComparison | None = None

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether all scores of a token are finite numbers, (n_chunks, n_scored); only these are averaged."""
        finite = np.isfinite(self.nll)
        if self.comparison is not None:
            for values in (self.comparison.nll_base, self.comparison.kld, self.comparison.delta_p):
                finite &= np.isfinite(values)
        return finite

    def to_bytes(self, key: str = "") -> bytes:
        """The scores, compressed (.npz), with a key that says what they belong to."""
        arrays: dict[str, Any] = {"nll": self.nll, "key": np.array(key)}
        if self.comparison is not None:
            arrays |= {f.name: getattr(self.comparison, f.name) for f in fields(TokenComparison)}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()

    def save(self, path: str | Path, key: str = "") -> None:
        """Write the scores to a file."""
        Path(path).write_bytes(self.to_bytes(key))

    @staticmethod
    def load(path: str | Path, key: str | None = None) -> TokenScores:
        """Read kept scores.

        Parameters
        ----------
        key
            The key they must have; None for any.

        Raises
        ------
        MeasureError
            If the file holds none, or belongs to something else.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as kept:
                arrays = dict(kept)
            nll, found = arrays.pop("nll"), str(arrays.pop("key", ""))
            scores = TokenScores(nll, TokenComparison(**arrays) if arrays else None)
        except (OSError, ValueError, TypeError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise MeasureError(f"{printable(str(path))} holds no scores of tokens: {error}") from error
        if any(a.shape != nll.shape or a.ndim != 2 for a in arrays.values()):
            raise MeasureError(f"{printable(str(path))} holds no scores of tokens: its arrays do not agree")
        if key is not None and found != key:
            raise MeasureError(f"the scores in {printable(str(path))} belong to another file or text")
        return scores


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
        The logits are log-probabilities as the file of the base keeps them. Since small ones are cut off
        there, the probabilities sum to a little more than 1, and must not be normalized again.
    targets
        (n_scored,), the tokens of the text.
    base
        The base's rows (n_scored, row codes) of its file, or None.
    """
    step = max(1, _PIECE // logits.shape[1])
    pieces = [slice(i, i + step) for i in range(0, len(logits), step)]
    return join_scores(
        [_score(logits[p], targets[p], None if base is None else base[p], normalized) for p in pieces], axis=1
    )


def join_scores(parts: Sequence[TokenScores], axis: int = 0) -> TokenScores:
    """Scores of several chunks (axis 0), or of several pieces of one chunk (axis 1), as one."""
    nll = np.concatenate([p.nll for p in parts], axis)
    compared = [p.comparison for p in parts if p.comparison is not None]
    if not compared:
        return TokenScores(nll)
    return TokenScores(
        nll,
        TokenComparison(
            **{
                f.name: np.concatenate([getattr(c, f.name) for c in compared], axis)
                for f in fields(TokenComparison)
            }
        ),
    )


@np.errstate(invalid="ignore", over="ignore")  # of what is not finite, which is counted later
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
        TokenComparison(nll_base[None], kld[None], (np.exp(-nll) - np.exp(-nll_base))[None], same_top[None]),
    )
