"""Outcomes: what becomes of the codes of a quantized checkpoint, tensor by tensor and summed up.

moved from int4 group 128                                  copied into the type that holds them
moved from int4 asymmetric group 64, minima rounded ...    `keep(q4_1)`
int4 group 128, encoded anew                               a rule gave another type
decoded: group_size 16 is no multiple of 32                no type holds them
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ggplan.ggml_types import GgmlType
from ggplan.model import Codes, Model
from ggplan.planning.plan import PlannedTensor

_ROUNDED = "minima rounded to float16 (relative error 1e-4 to 4e-4)"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One outcome, the type that the tensors get, and how many they are."""

    words: str
    type: GgmlType
    n_tensors: int
    n_bytes: int

    @property
    def line(self) -> str:
        """In one line: `96 tensors in q4_0: moved from int4 group 128`."""
        many = "1 tensor" if self.n_tensors == 1 else f"{self.n_tensors:,} tensors"
        return f"{many} in {self.type}: {self.words}"


def outcome_of(planned: PlannedTensor) -> str:
    """What becomes of a tensor's codes; "" for a tensor that has none."""
    codes, keep = planned.tensor.codes, planned.decision.keep
    if codes is None:
        return ""
    if planned.type != planned.tensor.type and codes.are_moved:
        return f"{codes.form}, encoded anew"
    is_rounded = keep is not None and planned.type == keep.nearly
    return f"{codes.outcome}, {_ROUNDED}" if is_rounded else codes.outcome


def outcomes(tensors: Iterable[PlannedTensor]) -> tuple[Outcome, ...]:
    """The outcomes of the codes of a plan's tensors, the one of most bytes first.

    What is said of one tensor alone, such as the scale that is too small, is left out.
    """
    return _summed((outcome_of(t), t.type, t.n_bytes) for t in tensors if t.tensor.codes is not None)


def outcomes_in(model: Model) -> tuple[Outcome, ...]:
    """The same for a model without a recipe."""
    return _summed((t.codes.outcome, t.type, t.n_bytes) for t in model.tensors if isinstance(t.codes, Codes))


def _summed(found: Iterable[tuple[str, GgmlType, int]]) -> tuple[Outcome, ...]:
    sums: dict[tuple[str, GgmlType], tuple[int, int]] = {}
    for words, type_, n_bytes in found:
        # "decoded: q4_0 does not hold a scale of it exactly: 1e-9 in ...": the last part is of this tensor.
        key = ": ".join(words.split(": ")[:2]), type_
        n, total = sums.get(key, (0, 0))
        sums[key] = n + 1, total + n_bytes
    ordered = sorted(sums.items(), key=lambda item: (-item[1][1], item[0][0]))
    return tuple(Outcome(words, type_, n, total) for (words, type_), (n, total) in ordered)
