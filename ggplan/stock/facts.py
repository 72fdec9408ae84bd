"""What a mix needs to know about a model besides its tensors: layers, experts, heads per key-value head.

llama.cpp b11434 reads these from the file's metadata (`src/llama-model.cpp`, `load_hparams`). An inventory of
names and shapes has no metadata; then the shapes of tensors give the same numbers: experts are the slices of
a stacked expert tensor, and the number of heads per key-value head is the columns of attention's output
divided by the rows of its value projection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ggplan.metadata import Metadata
from ggplan.model import Model, TensorInfo

_LAYER = re.compile(r"^blk\.(\d{1,9})\.")
_EXPERTS = re.compile(r"^blk\.\d{1,9}\.ffn_(?:gate_up|gate|up|down)_exps\.weight$")

# Architectures, and the number of layers at which llama.cpp calls a model of theirs a 70B
# (`src/models/*.cpp`); the mixes give its attn_v, shared by eight heads, more bits.
_LAYERS_OF_70B = {"llama": 80, "llama-embed": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


@dataclass(frozen=True, slots=True)
class Facts:
    """What a mix needs to know about a model.

    Attributes
    ----------
    architecture
        GGUF's `general.architecture`, or "".
    n_layers
        Blocks, next-token prediction layers included.
    n_experts
        Routed experts of a layer, 0 for a dense model.
    heads_per_kv_head
        Query heads that share one key-value head in the first layer; 0 where that has no attention.
    is_70b
        Whether llama.cpp calls the model a 70B.
    """

    architecture: str
    n_layers: int
    n_experts: int
    heads_per_kv_head: int
    is_70b: bool


def facts_of(model: Model) -> Facts:
    """Read a model's facts from its metadata, and what is missing there from its tensors."""
    arch, metadata = model.architecture, model.metadata
    layers = _number(metadata, f"{arch}.block_count")
    experts = _number(metadata, f"{arch}.expert_count")
    heads = _number(metadata, f"{arch}.attention.head_count")
    kv_heads = _number(metadata, f"{arch}.attention.head_count_kv")
    if layers is None:
        numbers = [int(found[1]) for t in model.tensors if (found := _LAYER.match(t.name))]
        layers = max(numbers, default=-1) + 1
    if pruned := model.reshaped.get("pruned_layers"):  # llama-quantize counts the layers of its input
        layers += len(pruned.split(","))
    if experts is None:
        # If there is metadata but no count of experts, the model has none.
        experts = 0 if heads is not None else _experts_in(model.tensors)
    if heads is None:
        shared = _heads_per_kv_head_in(model.tensors)
    elif kv_heads is None:
        shared = 1
    else:
        shared = heads // kv_heads if kv_heads > 0 else 0
    is_70b = _LAYERS_OF_70B.get(arch) == layers
    if arch in ("llama", "llama-embed"):
        is_70b = is_70b and shared != 1 and experts != 8
    return Facts(arch, layers, experts, shared, is_70b)


def _number(metadata: Metadata, key: str) -> int | None:
    """A number of the metadata; of an array, as hybrid models have them, the first layer's."""
    if key not in metadata:
        return None
    value = metadata[key]
    decoded = (value.decode_items(1) or [0])[0] if value.item_type is not None else value.decode()
    return decoded if isinstance(decoded, int) else None


def _experts_in(tensors: Sequence[TensorInfo]) -> int:
    return max((t.shape[0] for t in tensors if len(t.shape) == 3 and _EXPERTS.match(t.name)), default=0)


def _heads_per_kv_head_in(tensors: Sequence[TensorInfo]) -> int:
    """Heads per key-value head of the first block that has attention."""
    shapes = {t.name: t.shape for t in tensors if t.name.startswith("blk.")}
    for name, output in shapes.items():
        if not name.endswith(".attn_output.weight"):
            continue
        block = name.removesuffix("attn_output.weight")
        if (absorbed := shapes.get(f"{block}attn_k_b.weight")) and len(absorbed) == 3:
            return absorbed[0]  # multi-head latent attention: all heads share one latent key
        n_out = output[-1]
        if fused := shapes.get(f"{block}attn_qkv.weight"):
            n_value = (fused[0] - n_out) // 2
        else:
            n_value = shapes.get(f"{block}attn_v.weight", (n_out,))[0]
        return n_out // n_value if n_value > 0 else 0
    return 0
