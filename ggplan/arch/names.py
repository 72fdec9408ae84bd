"""The GGUF name of a checkpoint's tensor, from the tables of the `gguf` package.

    model.layers.{}.self_attn.q_proj       blk.{}.attn_q           in most architectures
    model.layers.{}.mlp.experts.gate_proj  blk.{}.ffn_gate_exps    the experts of a layer, stacked

The same name may stand for other tensors in other architectures (`post_attention_layernorm`), so the tables
are asked for one. Where they lag behind llama.cpp, the names of a kin architecture are taken (`KIN`); a
tensor that no table has is named in the family's module.

`gguf/tensor_mapping.py` and `gguf/constants.py` of gguf 0.19. The package takes a fifth of a second to
import, so nothing does that before a Hugging Face folder is opened.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import TensorNameMap

# Architectures that gguf 0.19 lacks in whole or in part, and one that has the names they lack.
KIN = {
    "deepseek2": "glm4moe",
    "deepseek32": "glm-dsa",
    "qwen35": "glm4moe",
    "qwen35moe": "glm4moe",
    "qwen3next": "glm4moe",
    "hy_v3": "glm4moe",
    "step35": "glm4moe",
}


def gguf_name(architecture: str, name: str) -> str:
    """The GGUF name of a tensor, with `{}` for the layer.

    Parameters
    ----------
    architecture
        The GGUF's `general.architecture`.
    name
        The checkpoint's name, with `{}` for the layer and without the expert; it may end in `.weight` or
        `.bias`, and then the result does too.

    Raises
    ------
    CheckpointError
        If the tables of the installed gguf package do not have it.
    """
    first = name.replace("{}", "0", 1)
    for kin in (architecture, KIN.get(architecture, "")):
        tables = _tables(kin)
        found = tables.get_name(first, (".weight", ".bias")) if tables is not None else None
        if found is not None:
            return found.replace("blk.0.", "blk.{}.", 1)
    raise CheckpointError(
        f"the installed gguf package has no name for {name} of {architecture}",
        hint="install gguf 0.19 or newer: pip install -U gguf",
    )


@cache
def _tables(architecture: str) -> TensorNameMap | None:
    """The table of names of an architecture, for a model of one layer."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    known = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    return get_tensor_name_map(known[architecture], 1) if architecture in known else None
