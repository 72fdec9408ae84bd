"""Random tiny models: Phi-3, Phi-3.5 and Phi-4."""

import json
import shutil
from pathlib import Path

import transformers as tf
from making import SIZES, hub_style, save
from tiny_checkpoints import DATA
from tokenizer_variants import write_fallback

GOLDENS = ("phi4", "phi4_long", "phi_pieces")


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


def phi_pieces(folder: Path) -> None:
    """Phi-3's tokenizer: sentencepiece, and tokens that tokenizer.json adds, two against others."""
    save(folder, tf.Phi3Config(**_SIZES))
    shutil.copy(DATA / "hf" / "small.model", folder / "tokenizer.model")
    more = [
        {"id": 304, "content": "<|assistant|>", "special": False},
        {"id": 305, "content": "\u2581in", "special": False},
        {"id": 306, "content": "<|end|>"},
        {"id": 259, "content": "replaced"},
    ]
    write_fallback(folder, *more)
    decoder = {
        "307": {"content": "<|user|>", "special": False},
        "306": {"content": "<|fin|>", "special": False},
    }
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "added_tokens.json").write_text(json.dumps({"<|system|>": 308}))
