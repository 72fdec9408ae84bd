"""Placements: what is asked of a machine, how a model is loaded on it then, and what is short.

`placing.py` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ggplan.ggml_types import F16, GgmlType
from ggplan.offload.allocation import HOST
from ggplan.offload.header import Header
from ggplan.offload.machine import Gpu, Machine
from ggplan.offload.profiles import Profile
from ggplan.offload.reckoning import DeviceBytes, Reckoning
from ggplan.offload.settings import Override, Settings
from ggplan.offload.speed import Rate
from ggplan.text import format_bytes


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked for; what is None is chosen.

    Attributes
    ----------
    context
        Tokens of all slots together; None is what the model was trained with, at most 32,768.
    cache_k, cache_v
        Types of keys and values.
    micro_batch
        Tokens of a prompt at a time; None is 2048 where experts in RAM are streamed and that costs at most
        3 % of generation, else 512.
    slots
        Sequences at once.
    gpu_layers
        Layers on the GPUs, counted from the end; None is all, or as many as fit of a model without experts.
    pins
        Tensors by regex and the device where they must be: `CPU`, `CUDA0`, ...
    threads
        None is one a core.
    """

    context: int | None = None
    cache_k: GgmlType = F16
    cache_v: GgmlType = F16
    micro_batch: int | None = None
    slots: int = 1
    gpu_layers: int | None = None
    pins: tuple[Override, ...] = ()
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Shortage:
    """A device that is too small.

    Attributes
    ----------
    device
        `CUDA0` or `host`.
    needed, available
        Bytes; available is without the margin.
    """

    device: str
    needed: int
    available: int

    @property
    def short(self) -> int:
        """Bytes that are missing."""
        return self.needed - self.available


@dataclass(frozen=True, slots=True)
class Placement:
    """A model on a machine.

    Attributes
    ----------
    header, machine, profile, wishes
        What it was made from.
    settings
        How the engine is started.
    reckoning
        What it allocates then.
    devices
        Device of each tensor that is loaded; that of a tied output as `output.weight`.
    shortages
        Devices that are too small; () if it fits.
    in_ram
        Blocks whose routed experts are in RAM, all or in part.
    generation, generation_full, prompt
        Tokens per second: written into an empty context, into a full one, and read.
    notes
        What was chosen for the user, and what may be otherwise.
    """

    header: Header
    machine: Machine
    profile: Profile
    wishes: Wishes
    settings: Settings
    reckoning: Reckoning
    devices: Mapping[str, str]
    shortages: tuple[Shortage, ...]
    in_ram: tuple[int, ...]
    generation: Rate
    generation_full: Rate
    prompt: Rate
    notes: tuple[str, ...] = ()

    @property
    def tokens_of_slot(self) -> int:
        """The context that one conversation has."""
        return (self.settings.context or 0) // max(self.settings.slots or 1, 1)

    @property
    def fits(self) -> bool:
        """Whether every device is large enough."""
        return not self.shortages


def shortages(reckoning: Reckoning, machine: Machine) -> tuple[Shortage, ...]:
    """The devices of a machine that are too small for what is reckoned."""
    found = []
    for device, gpu in zip(reckoning.devices[:-1], machine.gpus, strict=True):
        available = gpu.memory - machine.gpu_margin
        if device.total > available and device.total:
            found.append(Shortage(device.name, device.total, max(available, 0)))
    host = reckoning.devices[-1]
    if machine.ram is not None and host.total > machine.ram - machine.ram_margin:
        found.append(Shortage(HOST, host.total, max(machine.ram - machine.ram_margin, 0)))
    return tuple(found)


def left_of(device: DeviceBytes, gpu: Gpu, machine: Machine) -> int:
    """Bytes of a GPU that stay free beside the margin."""
    return gpu.memory - machine.gpu_margin - device.total


def free_of_gpus(reckoning: Reckoning, machine: Machine) -> int:
    """Bytes that stay free of all GPUs together."""
    pairs = zip(reckoning.devices[:-1], machine.gpus, strict=True)
    return sum(max(left_of(device, gpu, machine), 0) for device, gpu in pairs)


def placed_memory(placement: Placement) -> tuple[int | None, ...]:
    """Bytes of each device without its margin, in the order of the reckoning; None where it is unknown."""
    machine = placement.machine
    ram = None if machine.ram is None else machine.ram - machine.ram_margin
    return (*(gpu.memory - machine.gpu_margin for gpu in machine.gpus), ram)


def describe_shortage(shortage: Shortage) -> str:
    """One sentence: what is short by how much."""
    where = "RAM" if shortage.device == HOST else shortage.device
    return (
        f"{where} is short of {format_bytes(shortage.short)}: {format_bytes(shortage.needed)} are needed, "
        f"{format_bytes(shortage.available)} are there beside the margin"
    )
