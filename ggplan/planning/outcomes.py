"""Outcomes: what becomes of the codes of a quantized checkpoint, tensor by tensor and summed up.

moved from int4 group 128                                  copied into the type that holds them
moved from int4 asymmetric group 64, minima rounded ...    `keep(q4_1)`
int4 group 128, encoded anew                               a rule gave another type
int4, decoded (its columns are out of order), encoded anew the same, of codes that no type holds
decoded: group_size 16 is no multiple of 32                no type holds them
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ggplan.ggml_types import BF16, F16, F32, GgmlType
from ggplan.model import Model, TensorInfo
from ggplan.planning.plan import PlannedTensor

_TOO_LARGE = "a scale of which is too large for q4_1"
_ROUNDED = "minima rounded to float16 (relative error 1e-4 to 5e-4)"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One outcome, the type that the tensors get, and how many they are.

    Attributes
    ----------
    alone
        Of one tensor: its name, and what is true of it alone, such as the scale that is too small; else "".
    may_round
        Whether weights that the type need not hold are rounded to it.
    """

    words: str
    type: GgmlType
    n_tensors: int
    n_bytes: int
    alone: str = ""
    may_round: bool = False

    @property
    def line(self) -> str:
        """In one line: `96 tensors in q4_0: moved from int4 group 128`."""
        many = "1 tensor" if self.n_tensors == 1 else f"{self.n_tensors:,} tensors"
        return f"{many} in {self.type}: {self.words}"

    @property
    def told(self) -> str:
        """The line with all that is known, for people."""
        rounded = f"; rounded to {self.type} where it is not exact" if self.may_round else ""
        return f"{self.line}{rounded}{self.alone and f' ({self.alone})'}"


def outcome_of(planned: PlannedTensor) -> str:
    """What becomes of a tensor's codes; "" for a tensor that has none."""
    codes, keep = planned.tensor.codes, planned.decision.keep
    if codes is None:
        return ""
    if planned.type != planned.tensor.type and codes.are_moved:
        return f"{codes.form}, encoded anew"
    if planned.type.is_quantized and not codes.are_moved:
        return f"{codes.form}, decoded ({codes.why_in_short}), encoded anew"
    if keep is None or keep.nearly is None:
        return codes.outcome
    if planned.type == keep.nearly and codes.nearly is not None:
        return f"moved from {codes.form}, {_ROUNDED}"
    return f"{codes.outcome}, {_TOO_LARGE}" if codes.too_large_for_q4_1 else codes.outcome


def outcomes(tensors: Iterable[PlannedTensor]) -> tuple[Outcome, ...]:
    """The outcomes of the codes of a plan's tensors, the one of most bytes first.

    What is said of one tensor alone, such as the scale that is too small, is left out.
    """
    return _summed((outcome_of(t), t.type, t.tensor) for t in tensors if t.tensor.codes is not None)


def outcomes_in(model: Model) -> tuple[Outcome, ...]:
    """The same for a model without a recipe."""
    return _summed((t.codes.outcome, t.type, t) for t in model.tensors if t.codes is not None)


def _summed(found: Iterable[tuple[str, GgmlType, TensorInfo]]) -> tuple[Outcome, ...]:
    sums: dict[tuple[str, GgmlType], list[tuple[str, TensorInfo]]] = {}
    for words, type_, tensor in found:
        # "decoded: q4_0 does not hold a scale of it exactly: 1e-9 in ...": the last part is of this tensor.
        n_parts = 2 if words.startswith("decoded: ") else 1
        key = ": ".join(words.split(": ")[:n_parts]), type_
        sums.setdefault(key, []).append((words, tensor))
    made = [_outcome(words, type_, members) for (words, type_), members in sums.items()]
    return tuple(sorted(made, key=lambda outcome: (-outcome.n_bytes, outcome.words)))


def _outcome(words: str, type_: GgmlType, members: list[tuple[str, TensorInfo]]) -> Outcome:
    alone = ""
    if len(members) == 1:
        own, tensor = members[0]
        detail = own.removeprefix(words).removeprefix(": ")
        alone = f"{tensor.name}: {detail}" if detail else tensor.name
    may_round = type_ in (BF16, F16) and any(_may_be_rounded(tensor) for _, tensor in members)
    n_bytes = sum(type_.tensor_bytes(tensor.shape) for _, tensor in members)
    return Outcome(words, type_, len(members), n_bytes, alone, may_round)


def _may_be_rounded(tensor: TensorInfo) -> bool:
    """Whether its weights are products in float32; of an inventory that is not known, and taken to be so."""
    return tensor.rows is None or tensor.rows.dtype == F32
