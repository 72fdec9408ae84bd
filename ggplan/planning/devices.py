"""In which memory a tensor is: the one definition behind `@assert size(cpu)`, recipe headers and plans.

It is what llama.cpp does with `-ngl 99 --cpu-moe`, held against the buffers of b11434 for the files of 22
models (host: equal to the byte; GPU: apart from padding):

    RAM    routed experts with their biases, by the pattern of `--cpu-moe` (`common/common.h`,
           LLM_FFN_EXPS_REGEX), and the tables that tokens are looked up in (`src/llama-model.cpp`: the
           input layer stays on the CPU)
    GPU    all else; where the file has no `output.weight`, the token embeddings once more, as the output
    none   the blocks that only predict further tokens (nextn): llama.cpp skips them unless it is told to
           draft with them (`--spec-type draft-mtp`); of some architectures it loads a part all the same

A model without experts has in RAM the lookup tables alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ggplan.model import Model
from ggplan.planning.roles import nextn_layers
from ggplan.rules.roles import block_of

Device = Literal["gpu", "cpu"]

# `LLM_FFN_EXPS_REGEX` of llama.cpp's common/common.h: what -cmoe and -ncmoe move.
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
# What llama.cpp loads of nextn blocks without drafting, by architecture: tensors that `src/models/*.cpp` of
# b11434 creates as "not required" but not as "skip".
_EMBEDDINGS_AND_HEAD = r"\.nextn\.(embed_tokens|shared_head_head|shared_head_norm)\."
_ALL_OF_FFN = r"\.(ffn_(gate|up|down)(_exps|_shexp)?|ffn_gate_up_exps|ffn_gate_inp|exp_probs_b)(\.|$)"
_LOADED_OF_NEXTN = {
    "cohere2moe": _EMBEDDINGS_AND_HEAD,
    "deepseek32": r"\.exp_probs_b\.",
    "glm-dsa": r"\.exp_probs_b\.",
    "hy_v3": f"{_ALL_OF_FFN}|{_EMBEDDINGS_AND_HEAD}",
    "step35": rf"{_ALL_OF_FFN}|{_EMBEDDINGS_AND_HEAD}|\.attn_(q_norm|k_norm|gate)\.",
}
# Tables in which a token looks up one row.
LOOKED_UP = ("token_embd.", "per_layer_token_embd.", "token_types.", "position_embd.")


@dataclass(frozen=True, slots=True)
class Memory:
    """Where the bytes of a model are once it is loaded.

    Attributes
    ----------
    ram, gpu
        Bytes in each.
    nextn
        Bytes of the blocks that llama.cpp does not load.
    ram_per_token
        Bytes of routed experts that one token reads; None for a model without experts, or where it does not
        say how many a token is routed to.
    """

    ram: int
    gpu: int
    nextn: int
    ram_per_token: float | None


def devices_in(model: Model) -> dict[str, tuple[Device, ...]]:
    """The devices that hold each tensor: one of them, both for tied embeddings, none for nextn blocks."""
    nextn = nextn_layers(model)
    names = {t.name for t in (*model.tensors, *model.companions)}
    tied = _is_tied(names)
    return {name: _devices(name, model.architecture, nextn, tied=tied) for name in names}


def is_loaded_of_nextn(architecture: str, name: str) -> bool:
    """Whether llama.cpp loads this tensor of a nextn block though it does not draft with the block."""
    pattern = _LOADED_OF_NEXTN.get(architecture)
    return pattern is not None and re.search(pattern, name) is not None


def memory_of(model: Model, n_bytes: Mapping[str, int]) -> Memory:
    """Where the tensors of a model are, with these sizes in bytes by name."""
    devices = devices_in(model)
    loaded = {name: size for name, size in n_bytes.items() if devices[name]}
    nextn = nextn_layers(model)
    experts: dict[float, int] = {}  # bytes by the part of them that one token reads
    for name, size in loaded.items():
        if re.search(EXPERTS, name) and block_of(name) not in nextn:
            share = _share_of_experts(model, block_of(name))
            experts[share] = experts.get(share, 0) + size
    return Memory(
        ram=sum(size for name, size in loaded.items() if "cpu" in devices[name]),
        gpu=sum(size for name, size in loaded.items() if "gpu" in devices[name]),
        nextn=sum(n_bytes.values()) - sum(loaded.values()),
        ram_per_token=sum(size * share for share, size in experts.items()) or None,
    )


def _devices(name: str, architecture: str, nextn: range, *, tied: bool) -> tuple[Device, ...]:
    block = block_of(name)
    is_nextn = (block is not None and block in nextn) or name.startswith("nextn.")
    if is_nextn and not is_loaded_of_nextn(architecture, name):
        return ()
    if re.search(EXPERTS, name):
        return ("cpu",)
    if name.startswith(LOOKED_UP):
        return ("cpu", "gpu") if tied and name == "token_embd.weight" else ("cpu",)
    return ("gpu",)


def _is_tied(names: set[str]) -> bool:
    """Whether the token embeddings are the output matrix too; encoders (`token_types`) have no output."""
    has_norm = not names.isdisjoint(("output_norm.weight", "token_embd_norm.weight"))  # LFM2 has the latter
    return "output.weight" not in names and has_norm and "token_types.weight" not in names


def _share_of_experts(model: Model, block: int | None) -> float:
    """The part of a layer's routed experts that one token reads; 0 where the model does not say."""
    keys = [f"{model.architecture}.{name}" for name in ("expert_used_count", "expert_count")]
    used, count = (model.metadata[key].decode() if key in model.metadata else None for key in keys)
    if isinstance(used, list):  # a number for each layer
        used = used[block] if block is not None and block < len(used) else None
    return used / count if isinstance(used, int) and isinstance(count, int) and count > 0 else 0.0
