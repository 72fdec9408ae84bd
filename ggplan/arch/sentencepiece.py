"""Vocabularies of sentencepiece: `tokenizer.model`, and what transformers makes of one in tokenizer.json.

Llama 1 and 2, Mistral, Mixtral and Gemma have them. Tokens are pieces of text with `▁` for a space and a
score, which is the rank of the merge; text without a token is written in tokens of single bytes. llama.cpp
calls this kind "llama" and needs no merges.

    tokenizer.model         the pieces; `sentencepiece` reads it
    added_tokens.json       tokens added later, by text
    tokenizer_config.json   `added_tokens_decoder`: the same by id, with flags; it wins
    tokenizer.json          read in place of tokenizer.model where that is missing: BPE over characters with
                            byte fallback, which has no scores; all become -1000, as in llama.cpp's converter

`_create_vocab_sentencepiece` in `conversion/base.py` and `LlamaHfVocab` in `gguf-py/gguf/vocab.py` of
llama.cpp b11434.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ggplan.arch.byte_level import guarded, merges_of, named_tokens, opened
from ggplan.arch.special_tokens import Json, configured_tokens
from ggplan.arch.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    looks_special,
)
from ggplan.errors import CheckpointError
from ggplan.sources.files import read_whole, shown
from ggplan.sources.huggingface import HfCheckpoint
from ggplan.sources.json_files import SIZE_LIMIT

FILE = "tokenizer.model"
_ABSENT, _ADDED = -10000.0, -1000.0
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Special tokens of Gemma 4 that llama.cpp must show, for its parser of chats.
_SHOWN = {
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
    '<|"|>',
}


def sentencepiece_vocabulary(
    checkpoint: HfCheckpoint, settings: Json, vocab_size: int, added_by_json: object = None
) -> Vocabulary:
    """The vocabulary of tokenizer.model, with as many tokens as the embedding has rows.

    Parameters
    ----------
    checkpoint, settings
        The folder, and what its tokenizer_config.json says.
    vocab_size
        Rows of the embedding.
    added_by_json
        The `added_tokens` of tokenizer.json for families whose class in the converter takes them; they win,
        and only flags tell which tokens are control tokens. None for all others.

    Raises
    ------
    CheckpointError
        If it is damaged, or a token that was added to it has an impossible id.
    """
    from sentencepiece import SentencePieceProcessor

    path = checkpoint.path / FILE
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(read_whole(path, SIZE_LIMIT))
        n_pieces = processor.GetPieceSize()
        pieces = [processor.IdToPiece(number) for number in range(min(n_pieces, vocab_size))]
    except (RuntimeError, UnicodeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{shown(path)} is no sentencepiece model: {shown(error)}") from error
    pads = range(len(pieces), vocab_size)
    tokens = [*pieces, *(f"[PAD{number}]" for number in pads)]
    scores = [*map(processor.GetScore, range(len(pieces))), *(_ABSENT for _ in pads)]
    types = [*(_type_of(processor, number) for number in range(len(pieces))), *(UNUSED for _ in pads)]
    beyond = max(n_pieces - vocab_size, 0)
    later = [
        *_added_tokens(checkpoint),
        *_configured(checkpoint, settings, by_flag=added_by_json is not None),
    ]
    for text, number, type_ in [*later, *_by_json(checkpoint, added_by_json)]:
        if number >= vocab_size:
            beyond += 1
            continue
        tokens[number], scores[number], types[number] = text, _ADDED, type_
    notes = []
    if beyond:
        notes.append(
            f"{shown(path)}: {beyond:,} token{'s' * (beyond > 1)} with ids from {vocab_size:,} on "
            f"{'are' if beyond > 1 else 'is'} left out, since the embedding has no rows for "
            f"{'them' if beyond > 1 else 'it'}"
        )
    return Vocabulary("llama", "default", tokens, types, scores, notes=notes, file=FILE)


def _type_of(processor: object, number: int) -> int:
    kinds = {"IsUnknown": UNKNOWN, "IsControl": CONTROL, "IsUnused": UNUSED, "IsByte": BYTE}
    return next((type_ for kind, type_ in kinds.items() if getattr(processor, kind)(number)), NORMAL)


def _added_tokens(checkpoint: HfCheckpoint) -> list[tuple[str, int, int]]:
    """The tokens of added_tokens.json: text, id and type."""
    where = shown(checkpoint.path / "added_tokens.json")
    found = checkpoint.read_json("added_tokens.json") or {}
    return [(text, _id(number, text, where), USER_DEFINED) for text, number in found.items()]


def _configured(checkpoint: HfCheckpoint, settings: Json, *, by_flag: bool) -> list[tuple[str, int, int]]:
    """The tokens of `added_tokens_decoder`; with `by_flag` only their flags tell control tokens."""
    where = shown(checkpoint.path / "tokenizer_config.json")
    found = []
    for place, flags in configured_tokens(checkpoint, settings).items():
        text, is_special = _text_and_flag(flags, place, where)
        if is_special or (not by_flag and looks_special(text)):
            found.append((text, place, CONTROL))
        else:
            found.append((text if by_flag else text.replace("▁", " "), place, USER_DEFINED))
    return found


def _by_json(checkpoint: HfCheckpoint, added: object) -> list[tuple[str, int, int]]:
    """The tokens that tokenizer.json adds."""
    where = shown(checkpoint.path / "tokenizer.json")
    found = []
    for flags in added if isinstance(added, list) else ():
        number = flags.get("id") if isinstance(flags, dict) else None
        text, is_special = _text_and_flag(flags, number, where)
        found.append((text, _id(number, text, where), CONTROL if is_special else USER_DEFINED))
    return found


def _text_and_flag(flags: object, number: object, where: str) -> tuple[str, bool]:
    text = flags.get("content") if isinstance(flags, dict) else None
    if not isinstance(flags, dict) or not isinstance(text, str):
        raise CheckpointError(f"{where} gives the token {shown(number)} no text")
    return text, bool(flags.get("special"))


def _id(number: object, text: str, where: str) -> int:
    if type(number) is not int or number < 0:
        raise CheckpointError(f"{where} gives the token '{shown(text)}' the id {shown(number)}")
    return number


def is_byte_fallback(document: Json) -> bool:
    """Whether a tokenizer.json is BPE over characters with byte fallback."""
    model, decoder = document.get("model"), document.get("decoder")
    return (
        isinstance(model, dict)
        and isinstance(decoder, dict)
        and (model.get("type"), decoder.get("type")) == ("BPE", "Sequence")
        and model.get("byte_fallback") is True
    )


def byte_fallback_vocabulary(checkpoint: HfCheckpoint, settings: Json) -> Vocabulary:
    """The vocabulary of a tokenizer.json for which `is_byte_fallback` holds; it is not padded.

    Raises
    ------
    CheckpointError
        If it is damaged, or lacks an id.
    """
    where = shown(checkpoint.path / "tokenizer.json")
    with guarded(where):
        tokenizer = opened(checkpoint, settings)
        by_id = {number: text for text, number in tokenizer.get_vocab(with_added_tokens=True).items()}
        n_learnt = tokenizer.get_vocab_size(with_added_tokens=False)
        added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
        special = {token.content for token in named_tokens(settings)}
    later = sorted(number for number in added.values() if number >= n_learnt)
    if missing := sorted({*range(n_learnt), *later} - by_id.keys()):
        raise CheckpointError(f"{where} has no token with the id {missing[0]:,}")
    tokens, types = [], []
    for number in (*range(n_learnt), *later):
        text = by_id[number]
        tokens.append(text)
        if number < n_learnt and _BYTE.fullmatch(text):
            types.append(BYTE)
        elif text in special:
            types.append(CONTROL)
        else:
            types.append(NORMAL if number < n_learnt else USER_DEFINED)
    return Vocabulary("llama", "default", tokens, types, [_ADDED] * len(tokens), added=added)


def gemma4_vocabulary(checkpoint: HfCheckpoint, document: Json, settings: Json) -> Vocabulary:
    """The same of Gemma 4, with its merges."""
    found = byte_fallback_vocabulary(checkpoint, settings)
    types = [
        USER_DEFINED if t in _SHOWN else type_ for t, type_ in zip(found.tokens, found.types, strict=True)
    ]
    merges = merges_of(document, checkpoint, shown(checkpoint.path / "tokenizer.json"))
    return replace(found, model="gemma4", pre="", types=types, merges=merges)
