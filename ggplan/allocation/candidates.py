"""Candidates: the types that each tensor may get, and what each costs in bytes and in damage.

A tensor may get

- any allowed type that its rows hold, and where they do not, what the engine's fallback table puts in its
  place (rows of 1408 have no q6_K: q8_0);
- of a source that is quantized, the type that it has, at no damage; and no type of more bits, which would
  only make it larger;
- one type alone: if a pin says so, if llama-quantize never quantizes it (norms, the router), if it is
  integers.

Blocks that only predict further tokens are not judged by the KL divergence of the model, and their drafts are
not accepted below q8_0: they get q8_0, or where types are named without it, the next larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ggplan.allocation.prior import REFERENCE_ERROR
from ggplan.allocation.type_errors import TABLE, Errors
from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import Model, TensorInfo
from ggplan.planning.assignment import Decision
from ggplan.planning.fallback import FallbackTable
from ggplan.planning.fitting import fitted
from ggplan.planning.protection import kept_type, protection_of
from ggplan.planning.roles import Role, roles_in

Fixed = Literal["", "pinned", "protected", "integers", "drafting"]
"""Why a tensor has one candidate: "" where it may have several."""

ENGINE_TYPES: Mapping[str, tuple[str, ...]] = {
    "llama.cpp": (
        "iq2_xxs", "iq2_xs", "iq2_s", "q2_K", "iq3_xxs", "iq3_s", "q3_K", "iq4_xs", "q4_K", "q5_K", "q6_K",
        "q8_0",
    ),
    "ik_llama.cpp": (
        "iq2_xxs", "iq2_ks", "iq2_xs", "iq2_k", "iq2_s", "iq2_kl", "iq3_xxs", "iq3_ks", "iq3_k", "iq4_kss",
        "iq4_ks", "iq4_k", "iq5_ks", "iq5_k", "iq6_k", "q8_0",
    ),
}  # fmt: skip
"""The types that are allowed where none are named. Types of less than two bits have to be asked for."""

DRAFTS = parse_type("q8_0")
"""The least for blocks that only predict further tokens."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A type that a tensor may get.

    Attributes
    ----------
    type
        The type, with everything that shapes do to it.
    n_bytes
        Of the tensor.
    damage
        In nats of KL divergence.
    """

    type: GgmlType
    n_bytes: int
    damage: float


@dataclass(frozen=True, slots=True)
class TensorChoices:
    """A tensor and its candidates, by size."""

    tensor: TensorInfo
    role: Role
    candidates: tuple[Candidate, ...]
    fixed: Fixed = ""


def choices_of(
    model: Model,
    allowed: Sequence[GgmlType],
    sensitivities: Mapping[str, float],
    pinned: Mapping[str, Decision],
    table: FallbackTable,
    *,
    only_allowed: bool = False,
    errors: Errors = TABLE,
    covered: Collection[str] | None = None,
) -> tuple[TensorChoices, ...]:
    """The candidates of each tensor, in the model's order.

    Parameters
    ----------
    sensitivities
        In nats, by tensor; a tensor that is not in it is damaged by nothing.
    pinned
        What was decided for tensors before.
    table
        The fallback table of the engine.
    only_allowed
        Whether a type that the source has must be allowed, too, to be kept.
    errors
        Of the types.
    covered
        The tensors that the imatrix knows. By default all but the embeddings and the output matrix, which
        llama-imatrix leaves out: others do not get types that cannot be encoded without an imatrix.

    Raises
    ------
    PlanError
        If a pinned type does not fit its tensor, or nothing is known of an allowed type.
    """
    roles = roles_in(model)
    ends = (Role.EMBEDDINGS, Role.OUTPUT)
    by_default = {t.name for t in model.tensors if roles[t.name] not in ends}
    plain = [type_ for type_ in allowed if not type_.requires_imatrix] or allowed
    known = by_default if covered is None else covered
    return tuple(
        _choices(
            t,
            roles[t.name],
            allowed if t.name in known else plain,
            pinned.get(t.name),
            table,
            only_allowed,
            partial(_candidate, t, sensitivity=_sensitivity(t, roles, sensitivities), errors=errors),
        )
        for t in model.tensors
    )


def _choices(
    tensor: TensorInfo,
    role: Role,
    allowed: Sequence[GgmlType],
    pin: Decision | None,
    table: FallbackTable,
    only_allowed: bool,
    candidate: Callable[[GgmlType], Candidate],
) -> TensorChoices:
    if tensor.type.kind == "integer":
        return TensorChoices(tensor, role, (candidate(tensor.type),), "integers")
    if pin is not None:
        found = fitted(tensor, pin, table)
        if found.fault is not None:
            raise found.error()
        return TensorChoices(tensor, role, (candidate(found.type),), "pinned")
    if protection_of(tensor) is not None:
        return TensorChoices(tensor, role, (candidate(kept_type(tensor)),), "protected")
    if role is Role.NEXTN:
        # Of the allowed types the smallest that is no less; of a file of bf16 alone that is bf16.
        most = [t for t in allowed if t.bits_per_weight >= DRAFTS.bits_per_weight]
        asked = min(most, key=lambda t: t.bits_per_weight, default=DRAFTS) if only_allowed else DRAFTS
        types = _fitting(tensor, (asked,), table) or [kept_type(tensor)]
        if tensor.type.is_quantized:
            types = [tensor.type]
        return TensorChoices(tensor, role, (candidate(types[0]),), "drafting")
    types = _fitting(tensor, allowed, table)
    if tensor.type.is_quantized:
        smaller = [t for t in types if t.tensor_bytes(tensor.shape) < tensor.n_bytes and t != tensor.type]
        own = [] if only_allowed and tensor.type not in allowed and smaller else [tensor.type]
        types = [*smaller, *own]
    candidates = sorted(map(candidate, types or [kept_type(tensor)]), key=lambda c: (c.n_bytes, c.damage))
    return TensorChoices(tensor, role, tuple(candidates))


def _sensitivity(tensor: TensorInfo, roles: Mapping[str, Role], sensitivities: Mapping[str, float]) -> float:
    """Of a tensor; blocks that only predict further tokens do not change what the model says."""
    return 0.0 if roles[tensor.name] is Role.NEXTN else sensitivities.get(tensor.name, 0.0)


def _candidate(tensor: TensorInfo, type_: GgmlType, *, sensitivity: float, errors: Errors) -> Candidate:
    damage = damage_of(tensor, type_, sensitivity=sensitivity, errors=errors)
    return Candidate(type_, type_.tensor_bytes(tensor.shape), damage)


def damage_of(tensor: TensorInfo, type_: GgmlType, *, sensitivity: float, errors: Errors) -> float:
    """What is lost by a tensor of a type, in nats.

    Raises
    ------
    PlanError
        If the error of the type is not known.
    """
    if type_ == tensor.type or type_.kind == "integer" or not sensitivity:
        return 0.0
    return sensitivity * errors.of(tensor, type_) / REFERENCE_ERROR


def _fitting(tensor: TensorInfo, allowed: Sequence[GgmlType], table: FallbackTable) -> list[GgmlType]:
    """The types that a tensor gets for these, each once; those that the engine would stop at are left out."""
    got: dict[GgmlType, None] = {}
    for type_ in allowed:
        found = fitted(tensor, Decision(type_, "optimiser"), table)
        if found.fault is None:
            got[found.type] = None
    return list(got)


def allowed_types(names: Sequence[str], engine: str, errors: Errors = TABLE) -> tuple[GgmlType, ...]:
    """The types of these names, or where there are none, those of an engine.

    Raises
    ------
    PlanError
        If a type is another engine's, or nothing is known of its error.
    TypeNameError
        If one is none.
    """
    types = [parse_type(name) for name in names or ENGINE_TYPES[engine]]
    for type_ in types:
        errors.of_type(type_)
        if type_.engine == "ik_llama.cpp" and engine != type_.engine:
            raise PlanError(
                f"{type_.name} is a type of ik_llama.cpp, which llama.cpp does not read",
                hint="name the engine with `--engine ik_llama.cpp`",
            )
    return tuple(dict.fromkeys(types))
