"""Random tiny models: Hunyuan-A13B, with another tokenizer than its own, which is code."""

from pathlib import Path

import transformers as tf
from making import SIZES, hub_style, save

GOLDENS = ("hunyuan_moe",)
_SIZES = {**SIZES, "num_experts": 4, "head_dim": 16}
_LISTS = {"moe_topk": [2, 2, 2], "moe_intermediate_size": [96, 96, 96], "num_shared_expert": [1, 1, 1]}


def hunyuan_moe(folder: Path) -> None:
    """The base of rotation by `alpha`; tied, though the config may have an output."""
    sizes = _SIZES | {"hidden_size": 256, "num_attention_heads": 2, "head_dim": 128, **_LISTS}
    sizes |= {"max_position_embeddings": 32768, "tie_word_embeddings": True}
    save(folder, tf.HunYuanMoEV1Config(**sizes), shard="400KB")
    scaling = {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "type": "dynamic"}
    hub_style(folder, 10000.0, scaling)


def hunyuan_moe_plain(folder: Path) -> None:
    save(folder, tf.HunYuanMoEV1Config(**_SIZES, **_LISTS))
