"""The speed that stands under every plan: routed experts in RAM, all else on one GPU.

That is `-ngl 99 --cpu-moe`, as `ggplan.planning.devices` counts RAM and GPU, with an empty context. The
machine is the user's own where a machine's file says its bandwidth, else an example, which is said: RAM at
80 GB/s (two channels of fast DDR5) and an RTX 3090. Whether it fits, and what a better placement gives, is
for `placing.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ggplan.errors import MachineError
from ggplan.offload.active import ActiveBytes, active_bytes
from ggplan.offload.allocation import HOST
from ggplan.offload.cards import cards_of
from ggplan.offload.completing import completed
from ggplan.offload.dimensions import dimensions_of
from ggplan.offload.header import Header
from ggplan.offload.machine import Gpu, Machine
from ggplan.offload.machine_file import default_path, read_machine
from ggplan.offload.profiles import LLAMA_CPP
from ggplan.offload.settings import Override, Settings
from ggplan.offload.speed import Rate, generation
from ggplan.offload.weights import place_weights
from ggplan.text import printable

BANDWIDTH = 80e9
"""Bytes per second of RAM where nobody says otherwise."""
CARD = "RTX 3090"
"""The GPU where nobody says otherwise."""

_EXPERTS = Override(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU")  # --cpu-moe
_SETTINGS = Settings(overrides=(_EXPERTS,), context=4096, flash_attention="on")


@dataclass(frozen=True, slots=True)
class UsualMachine:
    """What a speed is stated for.

    Attributes
    ----------
    machine
        One GPU, and a bandwidth of RAM.
    source
        The file that says so, or "" for the example.
    note
        Why a file that is there is not used, or "".
    """

    machine: Machine
    source: str = ""
    note: str = ""

    @property
    def bandwidths(self) -> tuple[float, float]:
        """Bytes per second of RAM and of the GPU."""
        machine = self.machine
        return machine.bandwidth or BANDWIDTH, machine.gpus[0].bandwidth or _card().bandwidth or 0.0


def example(
    bandwidth: float | None = None, gpu_bandwidth: float | None = None, cores: int | None = None
) -> Machine:
    """The example machine, with what is stated in place of its parts."""
    card = _card()
    gpu = replace(card, bandwidth=gpu_bandwidth or card.bandwidth)
    return Machine((gpu,), None, bandwidth or BANDWIDTH, cores)


def usual_machine(environment: Mapping[str, str] = os.environ) -> UsualMachine:
    """The user's machine, by its file; the example where there is none, or none that says a bandwidth."""
    path = default_path(environment)
    if not path.is_file():
        return UsualMachine(example())
    shown = printable(str(path))
    try:
        machine = read_machine(path)
    except (MachineError, OSError) as error:
        return UsualMachine(example(), note=f"{shown} is not used: {printable(str(error))}")
    if machine.bandwidth is None:
        return UsualMachine(example(), note=f"{shown} is not used: it has no bandwidth of RAM")
    known = next((gpu for gpu in machine.gpus if gpu.bandwidth), None)
    return UsualMachine(replace(machine, gpus=(known or _card(),)), shown)


def usual_rate(header: Header, machine: Machine) -> Rate:
    """Tokens per second into an empty context, with the routed experts in RAM and all else on one GPU.

    Raises
    ------
    CheckpointError
        If the header lacks what the engine needs.
    """
    return generation(usual_reads(header), machine, LLAMA_CPP, _SETTINGS)


def usual_reads(header: Header) -> ActiveBytes:
    """What a token reads then.

    Raises
    ------
    CheckpointError
        If the header lacks what the engine needs.
    """
    header = completed(header)
    dimensions = dimensions_of(header)
    weights = place_weights(header, dimensions, _SETTINGS, (_card(),))
    return active_bytes(weights, dimensions, _SETTINGS)


def rate_of_sizes(reads: ActiveBytes, ram: float, gpu: float, machine: Machine) -> Rate:
    """The same for a file of which only sums of bytes are known: what a token reads of RAM and of the GPU.

    Parameters
    ----------
    reads
        Of a file with the same tensors; its types do not matter where the machine's cores are not known.
    """
    devices = {}
    for name, of in reads.devices.items():
        n_bytes = ram if name == HOST else gpu
        scale = n_bytes / of.weight_bytes if of.weight_bytes else 0.0
        devices[name] = replace(of, weights={kind: n * scale for kind, n in of.weights.items()})
    return generation(replace(reads, devices=devices), machine, LLAMA_CPP, _SETTINGS)


def _card() -> Gpu:
    return cards_of(CARD)[0]
