"""A machine: memory, bandwidths and cores, and where each number is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes
    ----------
    name
        As the maker calls it; "" if it is not known.
    memory
        Bytes that a program can allocate.
    bandwidth
        Bytes per second of its memory, as the maker states them; None if unknown.
    pcie
        Bytes per second from pinned RAM; None if unknown.
    flops
        Operations per second on half-precision matrices (dense, the fastest accumulation), as the maker
        states them; None if unknown.
    """

    name: str
    memory: int
    bandwidth: float | None = None
    pcie: float | None = None
    flops: float | None = None


@dataclass(frozen=True, slots=True)
class Learned:
    """What a benchmark on the machine taught.

    Attributes
    ----------
    source
        The log.
    generation, prompt
        Time that was measured over time that is reckoned, for a token of generation and for a prompt; None if
        the log has no such figure.
    file_bytes
        Bytes of the model's tensors, by which the same file is known again.
    """

    source: str
    generation: float | None = None
    prompt: float | None = None
    file_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """What a model is to run on.

    Attributes
    ----------
    gpus
        In the order of the engine: `CUDA0` first.
    ram
        Bytes of RAM; None if unknown.
    bandwidth
        Bytes per second that all cores together read from RAM, measured; None if unknown.
    cores
        Physical cores; None if unknown.
    rates
        Bytes of weights that one core decodes and multiplies per second, by ggml type; empty if not measured.
    gpu_margin
        Bytes of each GPU that are left free: the CUDA context, the desktop.
    ram_margin
        Bytes of RAM left free.
    sources
        Where a number is from (`nvidia-smi`, `measured`, `--vram`, a file, `table of cards`), by its name:
        `ram`, `gpu 0 memory`.
    learned
        What a benchmark on the machine taught; None before.
    """

    gpus: tuple[Gpu, ...] = ()
    ram: int | None = None
    bandwidth: float | None = None
    cores: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    gpu_margin: int = 1 << 30
    ram_margin: int = 4 << 30
    sources: Mapping[str, str] = field(default_factory=dict)
    learned: Learned | None = None
