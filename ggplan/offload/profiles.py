"""Profiles: the rules of one build of an engine, where builds and engines differ.

What is the same in all of them (sizes of types, blocks counted from the end, overrides in order) is in the
modules that do it; what changed from one build to the next is named here, so that a new build is a new value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ggplan.ggml_types import Engine


@dataclass(frozen=True, slots=True)
class Profile:
    """One build.

    Attributes
    ----------
    name
        As messages and `Reckoning.engine` have it.
    engine
        `llama.cpp` or `ik_llama.cpp`.
    mask_bytes
        Bytes of a mask's element with flash attention.
    limits_outputs
        Whether the server keeps the logits of one token a slot, and not of all.
    rotates_cache
        Whether a quantized cache is rotated (Hadamard) without being asked.
    offload_batch
        Tokens of a batch from which weights in RAM are copied to a GPU.
    offload_per_expert
        Whether that is tokens for each expert: tokens × used ≥ batch × experts.
    exact
        Whether compute buffers are reckoned by the build's own graph; else by its relative's.
    """

    name: str
    engine: Engine
    mask_bytes: int = 2
    limits_outputs: bool = True
    rotates_cache: bool = True
    offload_batch: int = 32
    offload_per_expert: bool = False
    exact: bool = True


LLAMA_CPP = Profile("llama.cpp b11434", "llama.cpp")
IK_LLAMA_CPP = Profile(
    "ik_llama.cpp 8337e4c",
    "ik_llama.cpp",
    mask_bytes=4,
    limits_outputs=False,
    rotates_cache=False,
    offload_per_expert=True,
    exact=False,
)
PROFILES: Mapping[str, Profile] = {profile.engine: profile for profile in (LLAMA_CPP, IK_LLAMA_CPP)}
"""By engine, the newest build that is known."""
