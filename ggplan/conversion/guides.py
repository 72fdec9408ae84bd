"""The second moments that a plan's tensors are encoded with, made when they are needed.

What a matrix is multiplied with is one input for several tensors (q, k and v; the gate and up of an expert).
Its moments are regularized and factored once, and kept while the rows of these tensors are encoded, by
whichever threads (`quants.feedback.Prepared`). A thread whose moments do not fit beside those that others
work with waits for them. An expert that saw no token has the moments of all tokens of its layer, where
experts share an input. The token embedding, whose rows are looked up, has those of the matrices that read it.

A tensor for which there are none, or whose type has no search that uses them, is encoded with best effort and
the calibration's imatrix; `unguided` says which and why.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import starmap
from typing import TYPE_CHECKING

from ggplan.errors import CalibrationError
from ggplan.planning import Feedback, Plan, PlannedTensor
from ggplan.planning.embedding import EMBEDDING
from ggplan.planning.guidance import readings_of_embedding
from ggplan.quants.feedback import goes_by_importance, takes_moments
from ggplan.quants.matrix_moments import Reading, prepared_for
from ggplan.quants.prepared import memory_of, prepare
from ggplan.text import printable

if TYPE_CHECKING:
    from ggplan.quants.linear_algebra import Moments
    from ggplan.quants.prepared import Prepared


def beyond_a_hessian(n_columns: int) -> int:
    """Bytes that the moments of an input take at most besides one matrix (n, n) of float32."""
    return memory_of(n_columns) - 4 * n_columns**2


@dataclass(slots=True)
class _Held:
    """The moments of an input that is worked on, or was last; made by the first thread that needs them."""

    n_bytes: int
    n_users: int = 0
    making: threading.Lock = field(default_factory=threading.Lock)
    made: list[Prepared | None] = field(default_factory=list)


class Guides:
    """The moments that tensors of a plan have; for several threads at once.

    Parameters
    ----------
    n_threads
        The most inputs whose moments are in memory.
    room
        Bytes that these may take besides one Hessian each (`beyond_a_hessian`); one input may take more.
    """

    def __init__(self, feedback: Feedback, n_threads: int, room: int = sys.maxsize) -> None:
        self._feedback = feedback
        self._n_threads, self._room = n_threads, room
        self._changed = threading.Condition()
        self._held: dict[Hashable, _Held] = {}

    @property
    def method(self) -> str:
        """How moments are used."""
        return self._feedback.method

    def guides(self, planned: PlannedTensor) -> bool:
        """Whether any slice of a tensor is encoded with moments."""
        return why_unguided(self._feedback, planned) == ""

    def n_slices(self, planned: PlannedTensor) -> int:
        """The slices (experts) of a tensor."""
        return math.prod(planned.tensor.shape[:-2])

    def rows_per_slice(self, planned: PlannedTensor) -> int:
        """The rows of each."""
        return planned.tensor.n_rows // self.n_slices(planned)

    def groups(self, tensors: Iterable[PlannedTensor]) -> list[list[PlannedTensor]]:
        """Tensors in their order, but those that share moments together."""
        found: dict[Hashable, list[PlannedTensor]] = {}
        for planned in tensors:
            key: Hashable = planned.name
            if self.guides(planned):
                key = self._input(planned), self.n_slices(planned)
            found.setdefault(key, []).append(planned)
        return list(found.values())

    @contextlib.contextmanager
    def prepared(self, planned: PlannedTensor, row: int) -> Iterator[Prepared | None]:
        """What the slice with a row is encoded with, while it is encoded; None if that is an imatrix.

        Raises
        ------
        CalibrationError
            If the calibration is damaged, or is not of this model.
        """
        slice_ = row // self.rows_per_slice(planned)
        by_importance = goes_by_importance(planned.type, self.method)
        held = self._enter((self._input(planned), slice_, by_importance), planned.tensor.n_columns)
        try:
            with held.making:
                if not held.made:
                    held.made.append(self._prepared(planned, slice_, by_importance))
            yield held.made[0]
        finally:
            with self._changed:
                held.n_users -= 1
                self._changed.notify_all()

    def _enter(self, key: Hashable, n_columns: int) -> _Held:
        """The moments of an input, once there is room for them; the oldest that nobody uses give way.

        A thread that waits uses none itself, so the others end sooner or later.
        """
        n_bytes = beyond_a_hessian(n_columns)
        with self._changed:
            while key not in self._held:
                idle = (other for other, held in [*self._held.items()] if not held.n_users)
                while not self._has_room(n_bytes) and (other := next(idle, None)) is not None:
                    del self._held[other]
                if self._has_room(n_bytes):
                    self._held[key] = _Held(n_bytes)
                else:
                    self._changed.wait()
            held = self._held[key]
            held.n_users += 1
            return held

    def _has_room(self, n_bytes: int) -> bool:
        taken = sum(held.n_bytes for held in self._held.values())
        return not self._held or (len(self._held) < self._n_threads and taken + n_bytes <= self._room)

    def _prepared(self, planned: PlannedTensor, slice_: int, by_importance: bool) -> Prepared | None:
        calibration, name = self._feedback.calibration, planned.name
        if is_guided_embedding(self._feedback, planned):
            # The thread that makes it has all threads: the others wait for it.
            return prepared_for(
                name,
                starmap(Reading, readings_of_embedding(self._feedback)),
                planned.tensor.n_columns,
                self._feedback.lam,
                self._n_threads,
                by_importance=by_importance,
            )
        moments: Moments | None = calibration.moments(name, slice_)
        if moments is None:
            moments = calibration.layer_moments(name)
        if moments is None:
            return None
        n = planned.tensor.n_columns
        if moments.matrix.shape != (n, n):
            raise CalibrationError(
                f"{printable(str(calibration.path))} has {len(moments.matrix):,} columns for "
                f"{printable(name)}, which has {n:,}",
                hint="use a calibration of this very model",
            )
        return prepare(moments, self._feedback.lam, by_importance=by_importance, overwrite=True)

    def _input(self, planned: PlannedTensor) -> Hashable:
        """What is the same for tensors with the same input."""
        if is_guided_embedding(self._feedback, planned):
            return planned.name
        found: Hashable = self._feedback.calibration.input_of(planned.name)
        return found


def is_guided_embedding(feedback: Feedback, planned: PlannedTensor) -> bool:
    """Whether a tensor is the token embedding, and what reads it is known."""
    return planned.name == EMBEDDING and bool(feedback.embedding)


def why_unguided(feedback: Feedback, planned: PlannedTensor) -> str:
    """Why a tensor is encoded without moments; "" if it is not."""
    if planned.is_copied or not planned.type.is_quantized:
        return "not encoded"
    if not takes_moments(planned.type):
        return f"no search for {planned.type.name} uses second moments"
    if is_guided_embedding(feedback, planned):
        return ""
    tokens = feedback.calibration.tokens(planned.name)
    if planned.name == EMBEDDING and not tokens:
        return "looked up, and it is the output matrix too or what else reads it is not known"
    if len(tokens) != math.prod(planned.tensor.shape[:-2]):
        return "not in the calibration"
    return "" if any(tokens) else "no token was seen"


def unguided(plan: Plan) -> Mapping[str, list[str]]:
    """The tensors that are not encoded by their own moments, by the reason.

    They have best effort and an imatrix instead. Of a tensor of experts only some may be: these are counted
    in the reason, and have the moments of their layer where there are any.
    """
    found: dict[str, list[str]] = {}
    if plan.feedback is None:
        return found
    for planned in plan.tensors:
        why = why_unguided(plan.feedback, planned)
        if why == "not encoded":
            continue
        if not why:
            tokens = plan.feedback.calibration.tokens(planned.name)
            if n_unseen := sum(not n for n in tokens):
                why = f"{n_unseen} of its {len(tokens)} experts saw no token"
        if why:
            found.setdefault(why, []).append(planned.name)
    return found
