"""The tokenizer of a Hugging Face folder as GGUF keys: `tokenizer.ggml.*` and the chat template.

    tokenizer.json     byte-level BPE (`byte_level`), or sentencepiece's BPE with byte fallback
    tokenizer.model    sentencepiece (`sentencepiece`)
    tiktoken.model     byte-level BPE as ranks (`tiktoken`)

Where a folder has several, the family decides as its class in llama.cpp's converter does. Other kinds are
refused by name. `_set_vocab_*` in `conversion/base.py` of llama.cpp b11434.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ggplan.arch import sentencepiece, tiktoken
from ggplan.arch.architecture import TokenizerRules
from ggplan.arch.byte_level import byte_level_vocabulary
from ggplan.arch.special_tokens import (
    KINDS,
    Json,
    SpecialTokens,
    chat_templates,
    normalizer_flags,
    read_special_tokens,
)
from ggplan.arch.vocabulary import Vocabulary
from ggplan.errors import CheckpointError, SubstituteError, TokenizerError
from ggplan.metadata import Metadata, boolean, uint32
from ggplan.sources.files import shown
from ggplan.sources.huggingface import HfCheckpoint

_OTHER_KINDS = {
    sentencepiece.FILE: "a sentencepiece tokenizer",
    "tekken.json": "a tekken tokenizer",
    tiktoken.FILE: "a tiktoken tokenizer",
    "hy.tiktoken": "a tiktoken tokenizer",
}
_BY_LLAMA_CPP = "let llama.cpp's converter read it: `--converter DIR`, where DIR is a tree of llama.cpp"
# The sizes by which llama.cpp's converter tells two models whose tokenizers it completes.
_CODE_LLAMA, _GRANITE = 32016, 49152
_CODE_LLAMA_EOT = 32010  # the tokens before it, which fill in the middle, have no keys any more


@dataclass(frozen=True, slots=True)
class TokenizerKeys:
    """The keys of a tokenizer.

    Attributes
    ----------
    keys
        Those that are known: all, or none for a tokenizer of a kind that ggplan does not read.
    obstacle
        Why they cannot be written, or None.
    notes
        What of the tokenizer was left out.
    """

    keys: Metadata
    obstacle: TokenizerError | None = None
    notes: tuple[str, ...] = ()


def tokenizer_metadata(
    checkpoint: HfCheckpoint, vocab_size: int, rules: TokenizerRules, pre: str | None
) -> TokenizerKeys:
    """The keys of the checkpoint's tokenizer.

    Parameters
    ----------
    checkpoint
        The opened folder.
    vocab_size
        Rows of the embedding.
    rules
        The special rules of the family.
    pre
        The pre-tokenizer's name, or None to recognise it.

    Raises
    ------
    CheckpointError
        If the tokenizer is damaged or another model's.
    """
    keys: Metadata = {}
    try:
        vocabulary = _write_keys(keys, checkpoint, vocab_size, rules, pre)
    except TokenizerError as error:
        return TokenizerKeys(keys, error)
    except SubstituteError as error:
        return TokenizerKeys(keys, TokenizerError(error.message, hint=error.hint))
    unknown = None if vocabulary.pre is not None else _unknown(shown(checkpoint.path / vocabulary.file))
    return TokenizerKeys(keys, unknown, tuple(vocabulary.notes))


def _write_keys(
    keys: Metadata, checkpoint: HfCheckpoint, vocab_size: int, rules: TokenizerRules, pre: str | None
) -> Vocabulary:
    """Write the keys, in the converter's order."""
    settings = checkpoint.read_json("tokenizer_config.json")
    if rules.llama_style and isinstance(prefix := (settings or {}).get("add_prefix_space"), bool):
        keys["tokenizer.ggml.add_space_prefix"] = boolean(prefix)
    document = checkpoint.read_json("tokenizer.json") or {}
    roles = _with_roles(checkpoint, settings or {})
    vocabulary = _vocabulary(checkpoint, document, roles, vocab_size, rules, pre)
    keys |= vocabulary.metadata()
    n_vocab = len(vocabulary.tokens) if vocabulary.is_scored else None
    no_pad = rules.ends_by_config and _is_negative(checkpoint.config.get("pad_token_id"))
    kinds = [kind for kind in KINDS if not (no_pad and kind == "pad")]
    special = read_special_tokens(document, settings, checkpoint, n_vocab=n_vocab, kinds=kinds)
    _set_family_tokens(special, rules, vocabulary, shown(checkpoint.path / "tokenizer.json"))
    keys |= special.metadata()
    keys |= chat_templates(checkpoint, settings)
    keys |= normalizer_flags(document)
    if rules.ends_by_config:
        keys |= _ends(checkpoint)
    if rules.fixed_ids:
        more = read_special_tokens(document, settings, checkpoint, kinds=tuple(rules.fixed_ids))
        more.ids = {kind: more.ids.get(kind, number) for kind, number in rules.fixed_ids.items()}
        keys |= more.metadata()
    if vocabulary.is_scored and rules.space_prefix is not None:
        keys["tokenizer.ggml.add_space_prefix"] = boolean(rules.space_prefix)
    if rules.prefix_last and isinstance(prefix := (settings or {}).get("add_prefix_space"), bool):
        keys["tokenizer.ggml.add_space_prefix"] = boolean(prefix)
    if vocabulary.model == "gemma4":
        keys["tokenizer.ggml.add_space_prefix"] = boolean(False)
        keys["tokenizer.ggml.add_bos_token"] = boolean(True)
    if rules.llama_style and vocab_size == _CODE_LLAMA:
        more = read_special_tokens(document, settings, checkpoint, kinds=("eot",))
        more.set_id("eot", _CODE_LLAMA_EOT, shown(checkpoint.path))
        keys |= more.metadata()
    if rules.llama_style and vocab_size == _GRANITE:
        keys["tokenizer.ggml.add_bos_token"] = boolean(False)
    if rules.needs_bos and (settings or {}).get("add_bos_token") is not True:
        note = _without_bos(shown(checkpoint.path / "tokenizer_config.json"))
        return replace(vocabulary, notes=[*vocabulary.notes, note])
    return vocabulary


def _is_negative(number: object) -> bool:
    return type(number) is int and number < 0


def _ends(checkpoint: HfCheckpoint) -> Metadata:
    """The ends of a text and of a turn, where the configs have them in these places."""
    keys: Metadata = {}
    end = checkpoint.config.get("eod_token_id")
    if type(end) is int and 0 <= end < 1 << 32:
        keys["tokenizer.ggml.eos_token_id"] = uint32(end)
    ends = (checkpoint.read_json("generation_config.json") or {}).get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1 and type(ends[0]) is int and 0 <= ends[0] < 1 << 32:
        keys["tokenizer.ggml.eot_token_id"] = uint32(ends[0])
    return keys


def _with_roles(checkpoint: HfCheckpoint, settings: Json) -> Json:
    """The settings with the special tokens of special_tokens_map.json, which transformers reads in folders
    without `added_tokens_decoder`; there it wins.
    """
    if "added_tokens_decoder" in settings:
        return settings
    return {**settings, **(checkpoint.read_json("special_tokens_map.json") or {})}


def _set_family_tokens(
    special: SpecialTokens, rules: TokenizerRules, vocabulary: Vocabulary, where: str
) -> None:
    for kind, text in rules.special_tokens.items():
        if text not in vocabulary.added:
            raise CheckpointError(
                f"{where} lacks the token '{text}', which marks {kind} in models of this family"
            )
        special.set_id(kind, vocabulary.added[text], where)


def _vocabulary(
    checkpoint: HfCheckpoint,
    document: Json,
    settings: Json,
    vocab_size: int,
    rules: TokenizerRules,
    pre: str | None,
) -> Vocabulary:
    """The vocabulary of the file that the family's class in the converter takes."""
    folder = checkpoint.path
    is_byte_level = rules.added_by_json and settings.get("tokenizer_class") == "GPT2Tokenizer"
    if rules.sentencepiece and not is_byte_level and (folder / sentencepiece.FILE).exists():
        added = document.get("added_tokens", []) if rules.added_by_json else None
        return sentencepiece.sentencepiece_vocabulary(checkpoint, settings, vocab_size, added)
    if document:
        if rules.byte_fallback and sentencepiece.is_byte_fallback(document):
            return sentencepiece.byte_fallback_vocabulary(checkpoint, settings)
        if rules.gemma4 and sentencepiece.is_byte_fallback(document):
            return sentencepiece.gemma4_vocabulary(checkpoint, document, settings)
        _require_byte_level(document, shown(folder / "tokenizer.json"))
        return byte_level_vocabulary(checkpoint, document, settings, vocab_size, pre)
    if rules.tiktoken and (folder / tiktoken.FILE).exists():
        return tiktoken.tiktoken_vocabulary(checkpoint, settings, vocab_size, pre)
    for name, kind in _OTHER_KINDS.items():
        if (folder / name).exists():
            raise TokenizerError(
                f"{shown(folder)} has {kind} ({name}), which ggplan does not read for this architecture",
                hint=f"download its tokenizer.json as well, or {_BY_LLAMA_CPP}",
            )
    raise TokenizerError(
        f"{shown(folder)} holds no tokenizer.json", hint="download the tokenizer's files as well"
    )


def _require_byte_level(document: Json, where: str) -> None:
    model = document.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(kind, str):
        raise CheckpointError(f"{where} has no kind of model, but '{shown(kind)}'")
    if kind != "BPE" or model.get("byte_fallback"):
        what = "sentencepiece BPE" if kind == "BPE" else f"'{shown(kind)}'"
        raise TokenizerError(f"{where} is {what}; ggplan reads byte-level BPE", hint=_BY_LLAMA_CPP)


def _without_bos(where: str) -> str:
    return (
        f"{where}: add_bos_token is not true, so llama.cpp's converter refuses the folder: texts of this "
        "model begin with BOS; set it to true"
    )


def _unknown(where: str) -> TokenizerError:
    return TokenizerError(
        f"{where}: llama.cpp does not know this tokenizer, so its pre-tokenizer cannot be recognised",
        hint="name it with --pre NAME, e.g. glm4, qwen2, llama-bpe, deepseek-v3: the model whose tokenizer "
        "splits text alike",
    )
