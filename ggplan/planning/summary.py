"""Where the bytes are: a plan summed up by role, by type and by memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ggplan.ggml_types import TYPES
from ggplan.planning.devices import Memory, memory_of
from ggplan.planning.plan import Plan, PlannedTensor
from ggplan.planning.roles import Role


@dataclass(frozen=True, slots=True)
class Share:
    """One line of a summary: a role or type, how many tensors, weights and bytes, and which types."""

    label: str
    n_tensors: int
    n_weights: int
    n_bytes: int
    types: tuple[str, ...]

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of this share."""
        return 8 * self.n_bytes / self.n_weights if self.n_weights else 0.0


def by_role(plan: Plan) -> tuple[Share, ...]:
    """One share for each role that has tensors, in the order of `Role`."""
    order = {role.value: i for i, role in enumerate(Role)}
    return _shares(plan, lambda t: t.role.value, lambda label: order[label])


def by_type(plan: Plan) -> tuple[Share, ...]:
    """One share for each type in use, in the order of the type table."""
    order = {entry.name: i for i, entry in enumerate(TYPES)}
    return _shares(plan, lambda t: t.type.name, lambda label: order[label])


def in_memory(plan: Plan) -> Memory:
    """How much of the output is in RAM and on the GPU when llama.cpp runs it."""
    return memory_of(plan.model, {t.name: t.n_bytes for t in plan.tensors})


def _shares(
    plan: Plan, label_of: Callable[[PlannedTensor], str], order: Callable[[str], int]
) -> tuple[Share, ...]:
    groups: dict[str, list[PlannedTensor]] = {}
    for tensor in plan.tensors:
        groups.setdefault(label_of(tensor), []).append(tensor)
    return tuple(
        Share(
            label=label,
            n_tensors=len(groups[label]),
            n_weights=sum(t.tensor.n_weights for t in groups[label]),
            n_bytes=sum(t.n_bytes for t in groups[label]),
            types=_by_size(groups[label]),
        )
        for label in sorted(groups, key=order)
    )


def _by_size(tensors: list[PlannedTensor]) -> tuple[str, ...]:
    """The types of these tensors, the one with the most bytes first."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.n_bytes
    return tuple(sorted(sizes, key=lambda name: (-sizes[name], name)))
