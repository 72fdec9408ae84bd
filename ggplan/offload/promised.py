"""The machine and the wishes that the conditions of an assertion stand for: `fits(vram=24G, ram=110G)`.

What they do not say is as in the example under every plan (`usual.py`), and RAM that is not stated has no
end. 1 GiB of each GPU and 4 GiB of RAM stay free.
"""

from __future__ import annotations

from dataclasses import replace

from ggplan.errors import PlanError
from ggplan.offload.header import Header
from ggplan.offload.machine import Machine
from ggplan.offload.placement import Placement, Wishes
from ggplan.offload.placing import place
from ggplan.offload.usual import example
from ggplan.offload.values import BadValue, cache_type
from ggplan.rules.conditions import Conditions


def placed_as(header: Header, conditions: Conditions) -> Placement:
    """A model on the machine of the conditions.

    Raises
    ------
    PlanError
        If a type of the cache is none, and as `place` does.
    CheckpointError
        If the header lacks what the engine needs.
    """
    like = example(conditions.bandwidth, conditions.vram_bandwidth, conditions.cores)
    gpus = tuple(replace(like.gpus[0], memory=n) for n in conditions.vram)
    machine = Machine(gpus, conditions.ram, like.bandwidth, conditions.cores)
    return place(header, machine, _wishes(conditions))


def _wishes(conditions: Conditions) -> Wishes:
    found = Wishes(conditions.ctx, micro_batch=conditions.ub, slots=conditions.slots or 1)
    if conditions.kv is None:
        return found
    try:
        key, value = (cache_type(kind.name, "llama.cpp") for kind in conditions.kv)
    except BadValue as bad:
        raise PlanError(f"kv={conditions.kv[0].name} {bad.message}", hint=bad.hint) from bad
    return replace(found, cache_k=key, cache_v=value)
