"""Random tiny models: MiniMax-M2."""

from pathlib import Path

import transformers as tf
from making import SIZES, hub_style, save

GOLDENS = ("minimax_m2",)
_SIZES = {**SIZES, "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2}


def minimax_m2(folder: Path) -> None:
    save(folder, tf.MiniMaxM2Config(**_SIZES, rotary_dim=16, scoring_func="sigmoid"), shard="100KB")


def minimax_m2_hub(folder: Path) -> None:
    """As published: silent about experts, names of layers for further tokens that are not there."""
    save(
        folder,
        tf.MiniMaxM2Config(**_SIZES | {"num_experts_per_tok": 8, "num_local_experts": 16}, rotary_dim=8),
    )
    hub_style(
        folder, 5000000, None, rotary_dim=8, scoring_func="sigmoid", use_qk_norm=True, num_mtp_modules=3
    )
