"""What if: the same model with other types of one part, and what sets variants apart.

A part is a role of the recipe language (`experts.down`, `attention`, `shared`) or what tensors of blocks are
called (`attn_q`, `ffn_down_exps`, or `down_exps` for short). A type whose blocks do not divide a row gives
way to what llama-quantize would write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType
from ggplan.offload.active import active_bytes
from ggplan.offload.dimensions import dimensions_of
from ggplan.offload.header import Header
from ggplan.offload.machine import Machine
from ggplan.offload.placement import Placement, Wishes
from ggplan.offload.placing import place
from ggplan.offload.profiles import LLAMA_CPP, Profile
from ggplan.offload.speed import Rate, generation
from ggplan.offload.weights import place_weights
from ggplan.planning.fallback import fallback_type
from ggplan.rules.roles import ROLE_GROUPS, ROLES, Blocks, expand_role, roles_of
from ggplan.text import nearest, printable


@dataclass(frozen=True, slots=True)
class Variant:
    """One of several ways to have a model.

    Attributes
    ----------
    labels
        What sets it apart, by what it is: `recipe`, `file`, a part of the model, `KV`, `context`.
    header, wishes
        What is placed, and what is asked for.
    """

    labels: tuple[tuple[str, str], ...]
    header: Header
    wishes: Wishes


@dataclass(frozen=True, slots=True)
class Compared:
    """A variant and its placement."""

    variant: Variant
    placement: Placement


def compare(
    variants: Sequence[Variant], machine: Machine, profile: Profile = LLAMA_CPP
) -> tuple[Compared, ...]:
    """Each variant placed on the same machine.

    Raises
    ------
    CheckpointError, PlanError
        As `place` does.
    """
    return tuple(Compared(v, place(v.header, machine, v.wishes, profile)) for v in variants)


def with_part_in(header: Header, part: str, type_: GgmlType) -> tuple[Header, tuple[str, ...]]:
    """The header with all matrices of a part in one type, and notes on what the type gave way to.

    Raises
    ------
    PlanError
        If the model has no such part, or a type of rows that do not fit has no fallback.
    """
    meant = members(header, part)
    tensors = []
    instead: dict[tuple[int, str], list[str]] = {}
    for tensor in header.tensors:
        if tensor.name in meant:
            columns = tensor.shape[0]
            found = type_ if type_.fits(columns) else fallback_type(type_, columns, "llama.cpp")
            if found is not type_:
                instead.setdefault((columns, found.name), []).append(tensor.name)
            tensor = replace(tensor, type=found)
        tensors.append(tensor)
    notes = tuple(
        f"{len(names)} tensors of {part} have rows of {columns}, which {type_.name} does not divide: {name}"
        for (columns, name), names in instead.items()
    )
    return replace(header, tensors=tuple(tensors)), notes


def members(header: Header, part: str) -> frozenset[str]:
    """The names of the matrices of a part.

    Raises
    ------
    PlanError
        If there are none.
    """
    matrices = [t.name for t in header.tensors if len(t.shape) > 1]
    roles = expand_role(part)
    if roles is not None:
        blocks = Blocks.of(t.name for t in header.tensors)
        found = frozenset(n for n in matrices if not set(roles).isdisjoint(roles_of(n, blocks)))
    else:
        wanted = {f"{part}.weight", f"ffn_{part}.weight"}
        found = frozenset(n for n in matrices if n.startswith("blk.") and n.split(".", 2)[2] in wanted)
    if found:
        return found
    known = [
        *ROLES,
        *ROLE_GROUPS,
        *{n.split(".", 2)[2].removesuffix(".weight") for n in matrices if "blk." in n},
    ]
    meant = nearest(part, known)
    hint = (
        f"the nearest is {printable(meant)}"
        if meant
        else f"the roles are {', '.join((*ROLES, *ROLE_GROUPS))}"
    )
    raise PlanError(f"{printable(header.name)} has no matrices of {printable(part)[:60]}", hint=hint)


def rates_by_depth(placement: Placement, depths: Sequence[int]) -> tuple[Rate, ...]:
    """Tokens per second that a placement writes with so many tokens in the cache before."""
    dimensions, machine = dimensions_of(placement.header), placement.machine
    weights = place_weights(placement.header, dimensions, placement.settings, machine.gpus)
    given = machine, placement.profile, placement.settings
    return tuple(
        generation(active_bytes(weights, dimensions, placement.settings, depth=depth), *given)
        for depth in depths
    )
