"""The second moments that a plan's tensors are encoded with, made when they are needed.

What a matrix is multiplied with is one input for several tensors (q, k and v; the gate and up of an expert).
Its moments are regularized and factored once, and kept while the rows of these tensors are encoded, by
whichever threads (`quants.feedback.Prepared`). An expert that saw no token has the moments of all tokens of
its layer, where experts share an input.

A tensor for which there are none, or whose type has no search that uses them, is encoded with best effort and
the calibration's imatrix; `unguided` says which and why.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING

from ggplan.errors import CalibrationError
from ggplan.planning import Feedback, Plan, PlannedTensor
from ggplan.quants.feedback import takes_moments
from ggplan.quants.prepared import prepare
from ggplan.text import printable

if TYPE_CHECKING:
    from ggplan.quants.linear_algebra import Moments
    from ggplan.quants.prepared import Prepared

_KEPT = 2  # inputs whose rows are done, in case others come


class Guides:
    """The moments of a plan; for any number of threads at once."""

    def __init__(self, plan: Plan) -> None:
        assert plan.feedback is not None
        self._feedback: Feedback = plan.feedback
        self._plan = plan
        self._lock = threading.Lock()
        self._made: OrderedDict[Hashable, tuple[threading.Lock, list[Prepared | None]]] = OrderedDict()

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

    def groups(self) -> list[list[PlannedTensor]]:
        """The plan's tensors, in the order of the file, but those that share moments together."""
        found: dict[Hashable, list[PlannedTensor]] = {}
        for planned in self._plan.tensors:
            key: Hashable = planned.name
            if self.guides(planned):
                key = self._input(planned), self.n_slices(planned)
            found.setdefault(key, []).append(planned)
        return list(found.values())

    def prepared(self, planned: PlannedTensor, row: int) -> Prepared | None:
        """What the slice with a row is encoded with; None if that is an imatrix.

        Raises
        ------
        CalibrationError
            If the calibration is damaged, or is not of this model.
        """
        slice_ = row // self.rows_per_slice(planned)
        key = self._input(planned), slice_
        with self._lock:
            if key not in self._made:
                self._made[key] = threading.Lock(), []
            self._made.move_to_end(key)
            while len(self._made) > _KEPT:  # threads that work with it have it still
                self._made.popitem(last=False)
            making, made = self._made[key]
        with making:
            if not made:
                made.append(self._prepared(planned, slice_))
            return made[0]

    def _prepared(self, planned: PlannedTensor, slice_: int) -> Prepared | None:
        calibration, name = self._feedback.calibration, planned.name
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
        return prepare(moments, self._feedback.lam)

    def _input(self, planned: PlannedTensor) -> Hashable:
        """What is the same for tensors with the same input."""
        found: Hashable = self._feedback.calibration.input_of(planned.name)
        return found


def why_unguided(feedback: Feedback, planned: PlannedTensor) -> str:
    """Why a tensor is encoded without moments; "" if it is not."""
    if planned.is_copied or not planned.type.is_quantized:
        return "not encoded"
    if not takes_moments(planned.type):
        return f"no search for {planned.type.name} uses second moments"
    tokens = feedback.calibration.tokens(planned.name)
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
