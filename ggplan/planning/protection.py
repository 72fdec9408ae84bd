"""The tensors llama-quantize never quantizes, and why: small, sensitive, or not used in a matrix product.

Facts from llama.cpp b11434, `src/llama-quant.cpp`, `tensor_allows_quantization`: everything with fewer
than two dimensions, everything whose name does not end in `weight`, and the names below. A quantized
type there costs quality or makes the file unloadable, and saves almost no bytes.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ggplan.ggml_types import F32, GgmlType
from ggplan.model import TensorInfo

_NAMES = re.compile(
    r"_norm\.weight"
    # routers and their tables
    r"|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight"
    # Gemma 3n's small matrices
    r"|altup|laurel|per_layer_model_proj"
    # convolutions of state-space and Kimi layers
    r"|ssm_conv1d|shortconv\.conv\.weight"
    # MiniMax's indexer
    r"|indexer\.[kq]_proj\.weight"
    # RWKV's small matrices
    r"|time_mix_(first|w[012]|v[012]|a[12]|g[12]|decay_w[12]|lerp_fused)\.weight"
    # relative position bias, vision and audio
    r"|attn_rel_b\.weight"
    r"|\.position_embd|sam\.pos_embd|sam\.neck\.|sam\.net_|\.rel_pos|\.patch_embd|\.patch_merger"
    r"|a\.rvq\.codebook|mm\.a\.code_embd"
)
_WHOLE_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
_OF_SEVERAL = {
    "it has one dimension": "they have one dimension",
    "its name does not end in `weight`": "their names do not end in `weight`",
    "it is a norm": "they are norms",
    "it is the router": "they are routers",
    "llama.cpp reads it as float": "llama.cpp reads them as float",
}


def is_vector_or_norm(name: str, n_dimensions: int) -> bool:
    """Whether the tensor is one that every llama.cpp graph needs in float32."""
    return n_dimensions < 2 or "_norm.weight" in name


@lru_cache(maxsize=1 << 14)
def protected_reason(name: str, n_dimensions: int) -> str | None:
    """Why llama-quantize would not quantize the tensor; None if it would."""
    if n_dimensions < 2:
        return "it has one dimension"
    if not name.endswith("weight"):
        return "its name does not end in `weight`"
    if "_norm.weight" in name:
        return "it is a norm"
    if "ffn_gate_inp" in name:
        return "it is the router"
    if name in _WHOLE_NAMES or _NAMES.search(name):
        return "llama.cpp reads it as float"
    return None


def reason_of(reason: str, n_tensors: int) -> str:
    """What `protected_reason` gave, said of one tensor or of several."""
    return reason if n_tensors == 1 else _OF_SEVERAL[reason]


def protection_of(tensor: TensorInfo) -> str | None:
    """Why llama-quantize would not quantize this tensor; None if it would."""
    return protected_reason(tensor.name, n_dimensions(tensor.shape))


def kept_type(tensor: TensorInfo) -> GgmlType:
    """The type a tensor is written in if nothing chose one: its own, or f32 for norms and vectors."""
    is_plain = tensor.type.decodable and tensor.type.is_float
    return F32 if is_plain and is_vector_or_norm(tensor.name, n_dimensions(tensor.shape)) else tensor.type


@lru_cache(maxsize=4096)
def n_dimensions(shape: tuple[int, ...]) -> int:
    """Dimensions as ggml counts them: leading dimensions of 1 (rows first) do not count."""
    for i, size in enumerate(shape):
        if size > 1:
            return len(shape) - i
    return 1
