"""Profiles: the rules of one build of an engine, where builds and engines differ.

What is the same in all of them (sizes of types, blocks counted from the end, overrides in order) is in the
modules that do it; what changed from one build to the next is named here, so that a new build is a new value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ggplan.ggml_types import Engine
from ggplan.offload.settings import Settings


@dataclass(frozen=True, slots=True)
class Profile:
    """One build.

    Attributes
    ----------
    name
        As messages and `Reckoning.engine` have it.
    engine
        `llama.cpp` or `ik_llama.cpp`.
    limits_outputs
        Whether the server keeps the logits of one token a slot, and not of all.
    has_streams
        Whether slots may have caches of their own, and sliding windows short ones; else all share one of the
        whole context, and the server has one slot unless told otherwise.
    rotates_cache
        Whether a quantized cache is rotated (Hadamard) without being asked.
    offload_batch
        Tokens of a batch from which weights in RAM are copied to a GPU.
    offload_per_expert
        Whether that is tokens for each expert: tokens × used ≥ batch × experts.
    pipelines
        Whether several GPUs work one behind the other, with copies of inputs for each micro-batch on the way.
    is_general
        Whether a graph takes embeddings as well as tokens, picks the outputs' rows even if all are wanted,
        and keeps what a draft head could start from.
    fuses_experts
        Whether up, gate and activation are one operation, and weighing and summing experts another.
    adds_experts_first
        Whether experts are added to what came before them, and only then the shared one.
    keeps_fused
        Whether a GPU's buffer has room for what it runs as one operation: sources that it keeps to the end,
        and attention's own copies.
    compares_latent_types
        Whether keys and values of a latent cache must be of one type; else that of values is not read.
    exact
        Whether compute buffers are reckoned by the build's own graph; else by its relative's.
    """

    name: str
    engine: Engine
    limits_outputs: bool = True
    has_streams: bool = True
    rotates_cache: bool = True
    offload_batch: int = 32
    offload_per_expert: bool = False
    pipelines: bool = True
    is_general: bool = True
    fuses_experts: bool = False
    adds_experts_first: bool = False
    keeps_fused: bool = True
    compares_latent_types: bool = True
    exact: bool = True

    def as_run(self, settings: Settings) -> Settings:
        """The settings as this engine takes them."""
        if self.has_streams:
            return settings
        return replace(settings, slots=settings.slots or 1, unified_cache=True, full_window=True)


LLAMA_CPP = Profile("llama.cpp b11434", "llama.cpp")
IK_LLAMA_CPP = Profile(
    "ik_llama.cpp 8337e4c",
    "ik_llama.cpp",
    limits_outputs=False,
    has_streams=False,
    rotates_cache=False,
    offload_per_expert=True,
    pipelines=False,
    is_general=False,
    fuses_experts=True,
    adds_experts_first=True,
    keeps_fused=False,
    compares_latent_types=False,
    exact=False,
)
PROFILES: Mapping[str, Profile] = {profile.engine: profile for profile in (LLAMA_CPP, IK_LLAMA_CPP)}
"""By engine, the newest build that is known."""
