"""What `effort="feedback"` chooses blocks by: a calibration, and how it is used.

A calibration has the second moments of the inputs of every matrix, and an imatrix beside them (see
`ggplan.calibration`, which this part does not import). The output records in its metadata

    ggplan.effort                feedback
    ggplan.calibration.sha256    the calibration's digest
    ggplan.calibration.texts     array of strings, `SHA-256 NAME`: the texts it was made of
    ggplan.calibration.tokens    how many tokens it was made of
    ggplan.calibration.method    feedback, gptq or gptq:act-order
    ggplan.calibration.lam       the damping, a decimal number
    ggplan.calibration.corrected true, where each layer was encoded for what the layers before it give
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from ggplan.errors import ImatrixError, PlanError
from ggplan.metadata import Metadata, MetadataType, array, boolean, string, uint32
from ggplan.planning.embedding import EmbeddingReader
from ggplan.text import printable

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix
    from ggplan.model import Model, TensorInfo

Method = Literal["feedback", "gptq", "gptq:act-order"]
"""How moments are used: error feedback and descent, or error feedback alone, perhaps by importance."""

LAMBDA, BROAD_LAMBDA = 0.1, 0.3
"""The damping by default, which is that of `quants.prepared`, and for uses that the texts do not cover."""

CALIBRATED_MEMORY = 8 << 30
"""Bytes that making and using a calibration may take, unless more or less are given."""

DIGEST = "ggplan.calibration.sha256"
_KEY = "ggplan.calibration."


class SecondMoments(Protocol):
    """A calibration, as far as a plan and its conversion need it."""

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def digest(self) -> str:
        """The identity of all that is in it."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What it was made of, with "texts" and "tokens"."""

    @property
    def imatrix(self) -> Imatrix:
        """The diagonals."""

    def verify(self) -> None:
        """Check every file of it, before hours of work; raises an Error that names one that is damaged."""

    def for_model(self, model: Model) -> SecondMoments:
        """The calibration under the names of a model, which may have been reshaped."""

    def tokens(self, tensor: str) -> tuple[int, ...]:
        """The tokens that each slice of a tensor saw; empty for a tensor it does not have."""

    def input_of(self, tensor: str) -> Any:
        """What is equal, and has the same hash, for tensors with the same input; None for others."""

    def moments(self, tensor: str, slice: int = 0) -> Any:
        """`quants.linear_algebra.Moments` of a slice, or None."""

    def tokens_of_run(self) -> Any:
        """The tokens that were run: (chunks, n_ctx) int32."""

    def layer_moments(self, tensor: str) -> Any:
        """Those of all tokens at the input of an expert tensor, where experts share it; else None."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """How a plan's blocks are chosen by a calibration.

    Attributes
    ----------
    calibration
        Its imatrix is the plan's.
    method
        How moments are used.
    lam
        The damping of the moments, in parts of the mean of their diagonal.
    corrected
        Whether weights are first corrected for what the quantized layers before them give.
    embedding
        What reads the token embedding, which has no input in a calibration; found when a plan is made. Empty
        where that is not known.
    """

    calibration: SecondMoments
    method: Method = "feedback"
    lam: float = LAMBDA
    corrected: bool = False
    embedding: tuple[EmbeddingReader, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise PlanError(
                f"method cannot be {printable(str(self.method))}",
                hint=f"choose from {', '.join(get_args(Method))}",
            )
        if self.corrected and self.method == "gptq:act-order":
            raise PlanError(
                "corrected targets are encoded in the order of columns, not by their importance",
                hint="leave out --correct, or take the method gptq",
            )
        if not (math.isfinite(self.lam) and self.lam > 0):
            raise PlanError(f"the damping lam must be a number above 0, not {self.lam}")


def readings_of_embedding(feedback: Feedback) -> Iterator[tuple[Any, ...]]:
    """For each matrix that reads the embedding what `quants.matrix_moments.Reading` is made of.

    A stack of experts, of which each sees other tokens, has the moments of all tokens of the layer; where
    these are not known, the mean of what its experts saw.
    """
    calibration = feedback.calibration
    for reader in feedback.embedding:
        name, runs = reader.tensor.name, reader.runs()
        is_stack = math.prod(reader.tensor.shape[:-2]) > 1
        yield (
            name,
            [partial(reader.read, run) for run in runs],
            sum(end - start for start, end in runs),
            reader.gamma(),
            (is_stack, calibration.input_of(name)),
            partial(calibration.layer_moments, name) if is_stack else partial(calibration.moments, name, 0),
            [(n, partial(calibration.moments, name, k)) for k, n in enumerate(calibration.tokens(name)) if n],
        )


def require_fitting(feedback: Feedback, tensors: Sequence[TensorInfo], imatrix: Imatrix) -> None:
    """Refuse a calibration of matrices with other sizes; better now than hours into the work.

    Raises
    ------
    PlanError
        Naming the first tensor.
    """
    for tensor in tensors:
        entry = imatrix.entries.get(tensor.name) if feedback.calibration.tokens(tensor.name) else None
        if entry is None:
            continue
        try:
            entry.for_tensor(tensor.shape)
        except ImatrixError:
            has = f"{entry.values.size:,} columns for '{printable(tensor.name)}'"
            n = math.prod(tensor.shape[:-2])
            needs = f"{tensor.n_columns:,}" if n == 1 else f"{n:,} x {tensor.n_columns:,}"
            raise PlanError(
                f"{printable(str(feedback.calibration.path))} is the calibration of another model: it has "
                f"{has}, which has {needs}",
                hint="use a calibration of this very model",
            ) from None


def feedback_metadata(feedback: Feedback) -> Metadata:
    """The keys that the output records, without the effort."""
    made_of = feedback.calibration.provenance
    texts = [
        f"{text.get('sha256', '')} {text.get('name', '')}"
        for text in made_of.get("texts", ())
        if isinstance(text, Mapping)
    ]
    found: Metadata = {DIGEST: string(feedback.calibration.digest)}
    if texts:
        found[_KEY + "texts"] = array(MetadataType.STRING, texts)
    if isinstance(tokens := made_of.get("tokens"), int) and 0 <= tokens < 1 << 32:
        found[_KEY + "tokens"] = uint32(tokens)
    found[_KEY + "method"] = string(feedback.method)
    found[_KEY + "lam"] = string(repr(float(feedback.lam)))
    if feedback.corrected:
        found[_KEY + "corrected"] = boolean(True)
    return found


def feedback_as_recorded(
    metadata: Metadata, calibration: SecondMoments | None, shown: str
) -> Feedback | None:
    """The choices that a file records, with the calibration it was made with; None for other efforts.

    Raises
    ------
    PlanError
        If the file was made with a calibration and none is given or another one, or was made with none.
    """
    digest = _text(metadata, DIGEST)
    if digest is None:
        if calibration is not None:
            raise PlanError(f"{shown} was not made with a calibration", hint="leave out --calibration")
        return None
    if calibration is None:
        raise PlanError(
            f"{shown} was made with the calibration of SHA-256 {printable(digest[:16])}...",
            hint="give its folder with --calibration",
        )
    if calibration.digest != digest:
        raise PlanError(
            f"{shown} was made with the calibration {printable(digest[:16])}..., and "
            f"{printable(str(calibration.path))} is {calibration.digest[:16]}...",
            hint="give the folder it was made with; one made again has the same digest on the same machine "
            "and builds alone",
        )
    method = _text(metadata, _KEY + "method")
    try:
        lam = float(_text(metadata, _KEY + "lam") or "")
    except ValueError:
        lam = math.nan
    if method not in get_args(Method) or not lam > 0:
        raise PlanError(f"{shown} does not say how its calibration was used")
    return Feedback(calibration, method, lam, corrected=_KEY + "corrected" in metadata)  # type: ignore[arg-type]


def _text(metadata: Metadata, key: str) -> str | None:
    value = metadata.get(key)
    decoded = value.decode() if value is not None and value.item_type is None else None
    return decoded if isinstance(decoded, str) else None
