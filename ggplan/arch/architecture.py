"""The contents of an architecture, and the sizes of its heads.

An architecture is a table of tensors, a function that writes its keys, the defaults of its transformers
class that reach the GGUF, and the special rules of its tokenizer. Each is a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from ggplan.arch.config import Config
from ggplan.arch.metadata import Keys
from ggplan.arch.tensors import Table

LAYER = "model.layers.{}."


@dataclass(frozen=True, slots=True)
class TokenizerRules:
    """The special rules of a family's tokenizers.

    Attributes
    ----------
    sentencepiece
        Whether the converter uses `tokenizer.model` if there is one.
    added_by_json
        Whether it does not if `tokenizer_class` is GPT2Tokenizer, and else lets the tokens that
        tokenizer.json adds win over all others, with their own flags: Phi-3.
    byte_fallback
        Whether it takes a tokenizer.json of BPE over characters, with byte fallback, for sentencepiece's.
    gemma4
        Whether such a tokenizer.json, with its merges, is Gemma 4's, a kind of its own in llama.cpp.
    tiktoken
        Whether it uses `tiktoken.model` where there is no tokenizer.json.
    needs_bos
        Whether the converter refuses a tokenizer that does not begin texts with BOS.
    space_prefix
        The `add_space_prefix` that it writes after a vocabulary of sentencepiece; None for none.
    prefix_last
        Whether it writes `add_space_prefix` after that as tokenizer_config.json's `add_prefix_space` says.
    llama_style
        Whether the converter writes `add_space_prefix`, and no BOS for a vocabulary of 49152 tokens.
    ends_by_config
        Whether the end of a text is config.json's `eod_token_id`, and that of a turn the first of several
        ends in generation_config.json; a negative `pad_token_id` is then none.
    fixed_ids
        Kinds of special tokens and their ids, which the converter writes whatever the vocabulary has there.
    special_tokens
        Kinds of special tokens and their texts, for kinds that neither config names.
    """

    sentencepiece: bool = False
    added_by_json: bool = False
    byte_fallback: bool = False
    gemma4: bool = False
    tiktoken: bool = False
    needs_bos: bool = False
    space_prefix: bool | None = None
    prefix_last: bool = False
    llama_style: bool = False
    ends_by_config: bool = False
    fixed_ids: Mapping[str, int] = field(default_factory=dict)
    special_tokens: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Architecture:
    """One value of `architectures` in config.json.

    Attributes
    ----------
    name
        The GGUF's `general.architecture`.
    table
        The tensors, for a config and the shapes of the tensors that the checkpoint holds, by name. Both are
        made up where only names are wanted, and there are no shapes then.
    write_keys
        Writes the keys of the architecture.
    defaults
        The values that transformers assumes if config.json has none.
    tokenizer
        The special rules of the tokenizer.
    suppresses
        Whether the tokens that generation_config.json suppresses have a key.
    rename
        The name that the table has of a checkpoint's tensor, for names that it would not have otherwise:
        `model.mtp.layers.0.` of a family that keeps such layers after the others.
    published
        The way back: the checkpoint's name of a tensor of the table, for the number of the first layer that
        predicts further tokens.
    counted
        Values that depend on the names of the tensors, those of the table; they replace config.json's.
    variant
        Another architecture that a model of the class has by its config, None for this one. `CLASSES` has it
        too, under the class and a word in brackets.
    """

    name: str
    table: Callable[[Config, Mapping[str, tuple[int, ...]]], Table]
    write_keys: Callable[[Keys, Config], None]
    defaults: Mapping[str, object]
    tokenizer: TokenizerRules = TokenizerRules()
    suppresses: bool = False
    rename: Callable[[Config, str], str] = lambda config, name: name
    published: Callable[[str, int], str] = lambda name, first: name
    counted: Callable[[Config, Collection[str]], Mapping[str, object]] = lambda config, names: {}
    variant: Callable[[Config], Architecture | None] = lambda config: None


def head_width(config: Config) -> int:
    """Columns of one head of attention."""
    stated = config.optional_count("head_dim")
    return stated or max(1, config.count("hidden_size") // config.count("num_attention_heads"))


def heads_kv(config: Config) -> int:
    """Heads of K and V: as many as of Q if config.json says null."""
    return config.optional_count("num_key_value_heads") or config.count("num_attention_heads")
