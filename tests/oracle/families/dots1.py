"""Random tiny models: dots.llm1."""

from pathlib import Path

import transformers as tf
from making import MOE, SIZES, hub_style, save

GOLDENS = ("dots1",)
_SIZES = {
    **SIZES,
    **MOE,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "head_dim": 16,
}


def dots1(folder: Path) -> None:
    config = tf.Dots1Config(
        **_SIZES,
        first_k_dense_replace=1,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
        scoring_func="sigmoid",
    )
    save(folder, config, shard="100KB")


def dots1_hub(folder: Path) -> None:
    """All layers with experts, in groups; without `head_dim`."""
    sizes = {key: value for key, value in _SIZES.items() if key != "head_dim"}
    save(folder, tf.Dots1Config(**sizes, n_group=2, topk_group=1))
    hub_style(folder, 10000000, None, scoring_func="sigmoid", sliding_window=None)
