"""Hugging Face checkpoints as GGUF models: names, layouts, metadata and tokenizer of each architecture.

The result is that of llama.cpp's `convert_hf_to_gguf.py`: the same tensors in the same order, equal byte for
byte in bf16 and f32, and the same keys. The tests compare both on random models of each architecture.

An architecture is a small module (`llama`, `qwen3`, `glm4moe`, `deepseek2`) with a table of tensors and a
function for its keys; shared code is in `architecture`, `tensors`, `transforms` and `metadata`.
To add one, write such a module and name it in `ARCHITECTURES`.
"""

from __future__ import annotations

import re

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.deepseek2 import DEEPSEEK_V2, DEEPSEEK_V3
from ggplan.arch.general_keys import general_keys, quantization_version
from ggplan.arch.glm4moe import GLM4_MOE
from ggplan.arch.llama import LLAMA, MISTRAL, MIXTRAL
from ggplan.arch.metadata import Keys
from ggplan.arch.qwen3 import QWEN3, QWEN3_MOE
from ggplan.arch.tensors import convert_tensors
from ggplan.arch.tokenizer import tokenizer_metadata
from ggplan.errors import CheckpointError
from ggplan.model import Model
from ggplan.sources.files import shown
from ggplan.sources.huggingface import HfCheckpoint

# By the first of `architectures` in config.json.
ARCHITECTURES: dict[str, Architecture] = {
    "DeepseekV2ForCausalLM": DEEPSEEK_V2,
    "DeepseekV3ForCausalLM": DEEPSEEK_V3,
    "Glm4MoeForCausalLM": GLM4_MOE,
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "MixtralForCausalLM": MIXTRAL,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
}
_BY_LLAMA_CPP = "make a GGUF of it with llama.cpp's convert_hf_to_gguf.py and give ggplan that"
_PRE = re.compile(r"[A-Za-z0-9._-]{1,64}")


def to_gguf(checkpoint: HfCheckpoint, *, pre: str | None = None) -> Model:
    """The model of a Hugging Face checkpoint; no weight is read.

    Parameters
    ----------
    checkpoint
        The opened folder.
    pre
        llama.cpp's name of the pre-tokenizer, for a tokenizer that is not recognised.

    Raises
    ------
    CheckpointError
        If the architecture is not supported, or config, tensors and tokenizer do not fit together.
    """
    if pre is not None and not _PRE.fullmatch(pre):
        raise CheckpointError(
            f"'{shown(pre)}' is not the name of a pre-tokenizer",
            hint="such names are glm4, qwen2, llama-bpe, deepseek-v3",
        )
    where = shown(checkpoint.path)
    architecture = _architecture(checkpoint)
    _refuse_embedders(checkpoint)
    config = Config(shown(checkpoint.path / "config.json"), checkpoint.config, len(checkpoint.tensors))
    config = config.with_defaults(**architecture.defaults)
    tensors = convert_tensors(
        checkpoint.tensors, architecture.table(config, checkpoint.tensors.keys()), where
    )
    keys = Keys(architecture.name)
    architecture.write_keys(keys, config)
    metadata = {
        **general_keys(checkpoint, architecture.name, tensors),
        **keys.values,
        **quantization_version(),
        **tokenizer_metadata(checkpoint, config.count("vocab_size"), architecture.tokenizer, pre),
    }
    return Model(checkpoint.path, "hf", architecture.name, metadata, tensors, checkpoint.files)


def _refuse_embedders(checkpoint: HfCheckpoint) -> None:
    """Refuse models that give vectors or ranks: they have the architectures of text models but other keys."""
    names = f"{checkpoint.path.name} {checkpoint.config.get('_name_or_path')}".lower()
    if (checkpoint.path / "modules.json").exists() or "qwen3-reranker" in names:
        raise CheckpointError(
            f"{shown(checkpoint.path)} is a model of embeddings or ranks, which ggplan does not support",
            hint=_BY_LLAMA_CPP,
        )


def _architecture(checkpoint: HfCheckpoint) -> Architecture:
    stated = checkpoint.config.get("architectures")
    name = stated[0] if isinstance(stated, list) and stated else None
    if not isinstance(name, str) or name not in ARCHITECTURES:
        what = f"the architecture '{shown(name)}'" if isinstance(name, str) else "no architecture"
        raise CheckpointError(
            f"{shown(checkpoint.path)} has {what}; supported are {', '.join(ARCHITECTURES)}",
            hint=_BY_LLAMA_CPP,
        )
    return ARCHITECTURES[name]
