"""What assertions about a machine are held against: does the plan fit, and how fast is it there.

`fits(...)` is what `ggplan fit` says for that machine and those wishes, with llama.cpp: 1 GiB of each GPU
and 4 GiB of RAM stay free. RAM that is not stated has no end. `tokens_per_second` is the likely figure,
written into an empty context: where `vram` or `ram` is stated, as placed by `ggplan fit`; else as under every
plan, with all routed experts in RAM and all else on one GPU. What is not stated is an example: RAM at
80 GB/s, an RTX 3090's memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ggplan.errors import Error
from ggplan.linting.case import Case
from ggplan.rules import Assertion
from ggplan.rules.conditions import Conditions
from ggplan.text import format_bytes

if TYPE_CHECKING:
    from ggplan.offload.header import Header
    from ggplan.offload.placement import Placement

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class MachineFact:
    """What is so on the machine of an assertion.

    Attributes
    ----------
    value
        1 if it fits, else 0; tokens per second; None where it cannot be told.
    told
        The same in words, with what is short or left.
    instead
        Conditions under which it fits; "" if none are found.
    """

    value: float | None
    told: str
    instead: str = ""


def fact_of(case: Case, promise: Assertion) -> MachineFact:
    """What is so of `fits(...)` or `tokens_per_second`."""
    conditions = promise.conditions or Conditions()
    try:
        if promise.quantity == "fits":
            return _fits(_header(case), conditions)
        return _speed(_header(case), conditions)
    except Error as error:
        return MachineFact(None, f"that cannot be told: {error.message}")


def _header(case: Case) -> Header:
    """The header of the file as the case has it."""
    from ggplan.offload.completing import completed
    from ggplan.offload.header import Header, HeaderTensor

    tensors = tuple(HeaderTensor(f.tensor.name, f.type, f.tensor.shape[::-1]) for f in case.fitted)
    header = Header(case.model.path.name, case.model.metadata, tensors)
    return completed(header) if case.model.kind == "inventory" else header


def _fits(header: Header, conditions: Conditions) -> MachineFact:
    from ggplan.offload.placement import describe_shortage
    from ggplan.offload.promised import placed_as

    placement = placed_as(header, conditions)
    if placement.fits:
        return MachineFact(1.0, f"it fits, with {_left(placement)}")
    told = "; ".join(describe_shortage(s) for s in placement.shortages)
    return MachineFact(0.0, told, _larger(header, conditions, placement))


def _speed(header: Header, conditions: Conditions) -> MachineFact:
    from ggplan.offload.placement import describe_shortage
    from ggplan.offload.promised import placed_as
    from ggplan.offload.usual import example, usual_rate

    if conditions.vram or conditions.ram is not None:
        placement = placed_as(header, conditions)
        if not placement.fits:
            told = "; ".join(describe_shortage(s) for s in placement.shortages)
            return MachineFact(0.0, f"0, as it does not fit: {told}")
        rate = placement.generation
    else:
        machine = example(conditions.bandwidth, conditions.vram_bandwidth, conditions.cores)
        rate = usual_rate(header, machine)
    return MachineFact(rate.likely, f"{rate.likely:.2f} (from {rate.low:.1f} to {rate.high:.1f})")


def _left(placement: Placement) -> str:
    machine, devices = placement.machine, placement.reckoning.devices
    free = [
        f"{format_bytes(gpu.memory - machine.gpu_margin - device.total)} of {device.name}"
        for gpu, device in zip(machine.gpus, devices, strict=False)
    ]
    if machine.ram is not None:
        free.append(f"{format_bytes(machine.ram - machine.ram_margin - devices[-1].total)} of RAM")
    return f"{' and '.join(free)} left"


def _larger(header: Header, conditions: Conditions, placement: Placement) -> str:
    """The conditions with memory, in whole GiB, in which it does fit."""
    from ggplan.offload.promised import placed_as

    vram, ram = list(conditions.vram), conditions.ram
    for shortage in placement.shortages:
        if shortage.device == "host":
            ram = _whole(shortage.needed + placement.machine.ram_margin)
        else:
            vram[int(shortage.device.removeprefix("CUDA"))] = _whole(
                shortage.needed + placement.machine.gpu_margin
            )
    larger = replace(conditions, vram=tuple(vram), ram=ram)
    return str(larger) if placed_as(header, larger).fits else ""


def _whole(n_bytes: int) -> int:
    return math.ceil(n_bytes / _GIB) * _GIB
