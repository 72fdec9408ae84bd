"""Random tiny models: Phi-3, Phi-3.5 and Phi-4."""

import json
from pathlib import Path

import transformers as tf
from making import SIZES, hub_style, save

GOLDENS = ("phi4", "phi4_long")


def _as_phi4(folder: Path) -> None:
    """Byte-level BPE is read of Phi-4 alone, and llama.cpp takes Phi-3's vocabulary by the model's name."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))


_SIZES = {**SIZES, "original_max_position_embeddings": 128}


def phi4(folder: Path) -> None:
    save(folder, tf.Phi3Config(**_SIZES, sliding_window=64), shard="100KB")
    _as_phi4(folder)


def phi4_long(folder: Path) -> None:
    factors = {
        "long_factor": [1.0 + k / 3 for k in range(6)],
        "short_factor": [1.0 + k / 7 for k in range(6)],
    }
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, **factors}
    save(folder, tf.Phi3Config(**_SIZES, rope_parameters=rope))
    _as_phi4(folder)


def phi4_hub(folder: Path) -> None:
    save(folder, tf.Phi3Config(**_SIZES, tie_word_embeddings=True))
    _as_phi4(folder)
    factors = {
        "long_factor": [1.0 + k / 3 for k in range(8)],
        "short_factor": [1.0 + k / 7 for k in range(8)],
    }
    hub_style(folder, 10000.0, {"type": "longrope", **factors}, sliding_window=None)
