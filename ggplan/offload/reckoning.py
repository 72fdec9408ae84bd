"""What an engine allocates for a header and its settings, by device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceBytes:
    """One device's share.

    Attributes
    ----------
    name
        `CUDA0`, `CUDA1`, ...; `host` is the CPU.
    weights, context, compute
        Bytes of weights; of KV cache and recurrent state; of the compute buffer.
    rollback
        Bytes of recurrent state that the main context keeps so that drafted tokens can be taken back.
    draft_context, draft_compute
        The context of the blocks that draft tokens (MTP), and its compute buffer.
    """

    name: str
    weights: int
    context: int
    compute: int
    rollback: int = 0
    draft_context: int = 0
    draft_compute: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.whole_context + self.whole_compute

    @property
    def whole_context(self) -> int:
        """Context, with what drafting adds."""
        return self.context + self.rollback + self.draft_context

    @property
    def whole_compute(self) -> int:
        """Compute buffers, with what drafting adds."""
        return self.compute + self.draft_compute


@dataclass(frozen=True, slots=True)
class Reckoning:
    """What is allocated where.

    Attributes
    ----------
    engine
        Name of the profile: `llama.cpp b11434`.
    devices
        The GPUs in order, the host last.
    streamed
        The expert tensor in RAM that is copied to the first GPU for prompts, and its bytes there; None if
        none is.
    notes
        What is not known, and by how much that may matter.
    """

    engine: str
    devices: tuple[DeviceBytes, ...]
    streamed: tuple[str, int] | None
    notes: tuple[str, ...] = ()
