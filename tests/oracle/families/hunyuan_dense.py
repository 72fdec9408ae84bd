"""Random tiny models: Hunyuan dense."""

import json
from pathlib import Path

import transformers as tf
from making import SIZES, edit, list_tokens, save

GOLDENS = ("hunyuan_dense",)
_SIZES = {**SIZES, "head_dim": 32, "max_position_embeddings": 32768}


def hunyuan_dense(folder: Path) -> None:
    """The base of rotation from alpha, the ends of a text and a turn, and no padding, as published."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0}
    save(folder, tf.HunYuanDenseV1Config(**_SIZES, rope_parameters=rope, tie_word_embeddings=True))
    list_tokens(folder)
    edit(folder, lambda c: c.update(eod_token_id=301, pad_token_id=-1, num_experts=1))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [302, 301]}))


def hunyuan_dense_plain(folder: Path) -> None:
    save(folder, tf.HunYuanDenseV1Config(**_SIZES), shard="100KB")
    list_tokens(folder)
