"""Hugging Face checkpoints as GGUF models: names, layouts, metadata and tokenizer of each architecture.

The result is that of llama.cpp's `convert_hf_to_gguf.py`: the same tensors in the same order, equal byte for
byte in bf16 and f32, and the same keys. The tests compare both on random models of each architecture.

An architecture is a small module (`llama`, `qwen3`, `glm4moe`, `deepseek2`) with a table of tensors and a
function for its keys; shared code is in `architecture`, `tensors`, `transforms` and `metadata`.
To add one, write such a module and name it in `ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.deepseek2 import DEEPSEEK_V2, DEEPSEEK_V3
from ggplan.arch.general_keys import general_keys, quantization_version
from ggplan.arch.glm4moe import GLM4_MOE
from ggplan.arch.llama import LLAMA, MISTRAL, MIXTRAL
from ggplan.arch.metadata import Keys, rope_parameters
from ggplan.arch.moving import activation_keys
from ggplan.arch.pretokenizers import require_pretokenizer
from ggplan.arch.qwen3 import QWEN3, QWEN3_MOE
from ggplan.arch.tensors import convert_tensors
from ggplan.arch.tokenizer import tokenizer_metadata
from ggplan.errors import CheckpointError
from ggplan.model import Model
from ggplan.sources.files import shown
from ggplan.sources.huggingface import HfCheckpoint
from ggplan.sources.tensors import CheckpointTensor

# By the first of `architectures` in config.json.
ARCHITECTURES: dict[str, Architecture] = {
    "DeepseekV2ForCausalLM": DEEPSEEK_V2,
    "DeepseekV3ForCausalLM": DEEPSEEK_V3,
    "Glm4MoeForCausalLM": GLM4_MOE,
    "LLaMAForCausalLM": LLAMA,
    "LlamaForCausalLM": LLAMA,
    "LlamaModel": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "MixtralForCausalLM": MIXTRAL,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3Model": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
}
_BY_LLAMA_CPP = "make a GGUF of it with llama.cpp's convert_hf_to_gguf.py and give ggplan that"
_BODY = ("model.", "lm_head.")
# Keys of config.json that announce biases, and what the names of such tensors contain.
_BIAS_KEYS = {
    "attention_bias": "attn",
    "qkv_bias": "attn",
    "use_qkv_bias": "attn",
    "mlp_bias": "mlp",
    "use_bias": "",
}


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
        If the architecture is not supported, config, tensors and tokenizer do not fit together, or llama.cpp
        knows no pre-tokenizer called `pre`. A tokenizer that is sound, but cannot be written, is the model's
        `obstacle` instead.
    """
    if pre is not None:
        require_pretokenizer(pre)
    where = shown(checkpoint.path)
    architecture = _architecture(checkpoint)
    _refuse_embedders(checkpoint)
    config = Config(shown(checkpoint.path / "config.json"), checkpoint.config, len(checkpoint.tensors))
    config = config.with_defaults(**architecture.defaults)
    stored = _by_known_names(checkpoint, where)
    tensors = convert_tensors(
        stored, architecture.table(config, stored.keys()), where, is_whole=not checkpoint.lacks_shards
    )
    companions = [c for tensor in tensors if tensor.codes is not None for c in tensor.codes.companions]
    keys = Keys(architecture.name)
    architecture.write_keys(keys, config)
    tokenizer, obstacle = tokenizer_metadata(
        checkpoint, config.count("vocab_size"), architecture.tokenizer, pre
    )
    metadata = {
        **general_keys(checkpoint, architecture.name, [*tensors, *companions]),
        **keys.values,
        **quantization_version(),
        **activation_keys(tensors),
        **tokenizer,
    }
    notes = (*checkpoint.notes, *_notes(config, stored), *_unreadable(checkpoint))
    return Model(
        checkpoint.path,
        "hf",
        architecture.name,
        metadata,
        tensors,
        checkpoint.files,
        notes,
        checkpoint.truncated or obstacle,
    )


def _by_known_names(checkpoint: HfCheckpoint, where: str) -> dict[str, CheckpointTensor]:
    """The tensors by the names that a causal language model has.

    A model saved without its head (`LlamaModel`) has names without `model.`, one saved as a part of a larger
    model has `language_model.` in them.
    """
    found: dict[str, CheckpointTensor] = {}
    for stated, tensor in checkpoint.tensors.items():
        name = stated.replace("language_model.", "")
        name = name if name.startswith(_BODY) else f"model.{name}"
        name = name.removeprefix("model.") if name.startswith("model.lm_head.") else name
        if name in found:
            raise CheckpointError(
                f"{where} holds one tensor under two names, '{shown(found[name].name)}' and '{shown(stated)}'"
            )
        found[name] = tensor
    return found


def _notes(config: Config, names: Collection[str]) -> tuple[str, ...]:
    """What config.json says and the tensors do not, or llama.cpp does not use."""
    notes = []
    if config.values.get("tie_word_embeddings") is False and "lm_head.weight" not in names:
        notes.append(
            f"{config.where} says tie_word_embeddings false, but there is no lm_head.weight: llama.cpp uses "
            "the embedding as output"
        )
    for key, part in _BIAS_KEYS.items():
        if config.values.get(key) is True and not any(n.endswith(".bias") and part in n for n in names):
            notes.append(f"{config.where} says {key}, but the checkpoint has no such bias")
    rope = rope_parameters(config)
    if rope.values.get("rope_type") in ("longrope", "su"):
        notes.append(
            f"{rope.where}: llama.cpp uses no longrope factors with this architecture, so a context longer "
            "than the original one gives wrong results"
        )
    return tuple(notes)


def _unreadable(checkpoint: HfCheckpoint) -> list[str]:
    """Notes about files that only add suggestions and names, and cannot be read."""
    notes = []
    for name, read in (("generation_config.json", checkpoint.read_json), ("README.md", checkpoint.read_text)):
        try:
            read(name)
        except CheckpointError as error:
            notes.append(f"{error.message}; what it says is left out")
    return notes


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
