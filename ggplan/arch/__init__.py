"""Hugging Face checkpoints as GGUF models: names, layouts, metadata and tokenizer of each architecture.

The result is that of llama.cpp's `convert_hf_to_gguf.py`: the same tensors in the same order, equal byte for
byte in bf16 and f32, and the same keys. The tests compare both on random models of each architecture.

A family of models is a small module in `families`, which says which tensors it has and what its keys are;
`names` and `layout` make the GGUF's names and the shapes of them, `tensors` the tensors, `metadata` the keys
that all share. To add one, write such a module: see `docs/models.md`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.families import architecture_of, architectures
from ggplan.arch.general_keys import general_keys, quantization_version
from ggplan.arch.metadata import Keys, rope_parameters
from ggplan.arch.moving import activation_keys
from ggplan.arch.multimodal import is_multimodal, is_of_another_part, model_class, text_values
from ggplan.arch.pretokenizers import require_pretokenizer
from ggplan.arch.special_tokens import suppressed_tokens
from ggplan.arch.tensors import convert_tensors
from ggplan.arch.tokenizer import tokenizer_metadata
from ggplan.errors import CheckpointError
from ggplan.model import Model
from ggplan.sources.files import shown
from ggplan.sources.huggingface import HfCheckpoint
from ggplan.sources.json_files import load_object
from ggplan.sources.tensors import CheckpointTensor

_BY_LLAMA_CPP = "let llama.cpp's converter read it: `--converter DIR`, where DIR is a tree of llama.cpp"
_BODY = ("model.", "lm_head.")
# Keys of config.json that announce biases, and what the names of such tensors contain.
_NORMALIZES = {
    **dict.fromkeys(("qwen3moe", "qwen3vlmoe", "qwen3next", "qwen35moe"), True),
    **dict.fromkeys(("qwen2moe", "olmoe"), False),
}
"""Whether llama.cpp divides the chances of the experts that are used by their sum."""
_BY_HEADS = {"gemma2": 46, "gemma3": 62}
"""Layers of the models whose products of q and k llama.cpp divides by the root of columns a head."""
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
    values = text_values(checkpoint.config)
    config = Config(shown(checkpoint.path / "config.json"), values, len(checkpoint.tensors))
    architecture = architecture.variant(config) or architecture
    config = config.with_defaults(**architecture.defaults)
    stored, left_out = _by_known_names(checkpoint, where, partial(architecture.rename, config))
    stated, counted = config, architecture.counted(config, stored.keys())
    config = replace(config, values={**config.values, **counted})
    table = architecture.table(config, {name: tensor.shape for name, tensor in stored.items()})
    tensors = convert_tensors(stored, table, where, is_whole=not checkpoint.lacks_shards)
    companions = [c for tensor in tensors if tensor.codes is not None for c in tensor.codes.companions]
    keys = Keys(architecture.name)
    architecture.write_keys(keys, config)
    if architecture.suppresses:
        keys.values |= suppressed_tokens(checkpoint)
    tokenizer = tokenizer_metadata(checkpoint, config.count("vocab_size"), architecture.tokenizer, pre)
    general = general_keys(checkpoint, architecture.name, [*tensors, *companions])
    metadata = {
        "general.architecture": general["general.architecture"],
        **keys.early,
        **general,
        **keys.values,
        **quantization_version(),
        **activation_keys(tensors),
        **tokenizer.keys,
    }
    notes = (
        *checkpoint.notes,
        *_miscounted(stated, counted),
        *_notes(config, [*stored, *(t.name for t in tensors)], left_out),
        *_computed_otherwise(architecture.name, config),
        *_unreadable(checkpoint),
        *tokenizer.notes,
    )
    return Model(
        checkpoint.path,
        "hf",
        architecture.name,
        metadata,
        tensors,
        checkpoint.files,
        notes,
        checkpoint.truncated or tokenizer.obstacle,
    )


def is_known(folder: Path) -> bool:
    """Whether a folder's config.json names an architecture that ggplan reads itself."""
    return architecture_of(load_object(folder / "config.json")) is not None


def _by_known_names(
    checkpoint: HfCheckpoint, where: str, rename: Callable[[str], str]
) -> tuple[dict[str, CheckpointTensor], list[CheckpointTensor]]:
    """The tensors by the names that a causal language model has, and those of the parts that see and hear.

    A model saved without its head (`LlamaModel`) has names without `model.`, one saved as a part of a larger
    model has `language_model.` in them.
    """
    found: dict[str, CheckpointTensor] = {}
    left_out = []
    has_other_parts = is_multimodal(checkpoint.config)
    for stated, tensor in checkpoint.tensors.items():
        if has_other_parts and is_of_another_part(stated):
            left_out.append(tensor)
            continue
        name = stated.replace("language_model.", "")
        name = name if name.startswith(_BODY) else f"model.{name}"
        name = rename(name.removeprefix("model.") if name.startswith("model.lm_head.") else name)
        if name in found:
            raise CheckpointError(
                f"{where} holds one tensor under two names, '{shown(found[name].name)}' and '{shown(stated)}'"
            )
        found[name] = tensor
    return found, left_out


def _notes(config: Config, names: Collection[str], left_out: Sequence[CheckpointTensor]) -> tuple[str, ...]:
    """What config.json says and the tensors do not, or llama.cpp does not use."""
    notes = []
    if left_out:
        n_weights = sum(math.prod(tensor.shape) for tensor in left_out)
        n, s, are, them = len(left_out), "s", "are", "them"
        if n == 1:
            s, are, them = "", "is", "it"
        notes.append(
            f"{n:,} tensor{s} of the parts that see or hear ({n_weights:,} weights, e.g. "
            f"{shown(left_out[0].name)}) {are} left out: llama.cpp keeps {them} in another file, which its "
            "convert_hf_to_gguf.py makes with --mmproj"
        )
    if config.values.get("tie_word_embeddings") is False and "lm_head.weight" not in names:
        notes.append(
            f"{config.where} says tie_word_embeddings false, but there is no lm_head.weight: llama.cpp uses "
            "the embedding as output"
        )
    for key, part in _BIAS_KEYS.items():
        if config.values.get(key) is True and not any(n.endswith(".bias") and part in n for n in names):
            notes.append(f"{config.where} says {key}, but the checkpoint has no such bias")
    rope = rope_parameters(config)
    has_factors = any(name.startswith("rope_factors_") for name in names)
    if rope.values.get("rope_type") in ("longrope", "su") and not has_factors:
        notes.append(
            f"{rope.where}: llama.cpp uses no longrope factors with this architecture, so a context longer "
            "than the original one gives wrong results"
        )
    return tuple(notes)


def _computed_otherwise(architecture: str, config: Config) -> list[str]:
    """Notes about what config.json says and llama.cpp, which has no key for it, computes in one way only.

    `src/models` of llama.cpp b11434: what `build_moe_ffn` is told, and Gemma's `f_attention_scale`.
    """
    values = config.values
    right: dict[str, object] = {}
    if architecture in _NORMALIZES:
        right["norm_topk_prob"] = _NORMALIZES[architecture]
    if architecture in _BY_HEADS:
        head, width, heads = (values.get(k) for k in ("head_dim", "hidden_size", "num_attention_heads"))
        if values.get("num_hidden_layers") == _BY_HEADS[architecture]:
            head = width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None
        right["query_pre_attn_scalar"] = head
    return [
        f"{config.where} says {key} {shown(json.dumps(values[key])[:40])}, but llama.cpp computes this "
        f"architecture with {json.dumps(value)}: its results are not the model's"
        for key, value in right.items()
        if value is not None and values.get(key) not in (None, value)
    ]


def _miscounted(config: Config, counted: Mapping[str, object]) -> list[str]:
    """Notes about counts in config.json that the tensors contradict."""
    return [
        f"{config.where} says {key} {shown(stated)}, but the checkpoint has {value}: that is written"
        for key, value in counted.items()
        if (stated := config.values.get(key)) not in (None, value)
    ]


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
    found = architecture_of(checkpoint.config)
    if found is None:
        name, known = model_class(checkpoint.config), architectures()
        if name is None:
            raise CheckpointError(
                f"{shown(checkpoint.path / 'config.json')} has no list `architectures` of the model's class, "
                "so its architecture is not known",
                hint="take config.json from the model's page again; it begins with this list",
            )
        what = f"the architecture '{shown(name)}'"
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        nearest = f"; the nearest of the {len(known)} that ggplan reads: {', '.join(near)}" if near else ""
        raise CheckpointError(
            f"{shown(checkpoint.path)} has {what}, which ggplan does not read{nearest}", hint=_BY_LLAMA_CPP
        )
    return found
