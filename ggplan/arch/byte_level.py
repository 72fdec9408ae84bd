"""Byte-level BPE in tokenizer.json, the kind of tokenizer that nearly all of today's models have.

llama.cpp calls it "gpt2". The vocabulary is tokenizer.json's, changed by tokenizer_config.json as
transformers does: added tokens get the latter's flags, and tokens that only it knows are added. Ids without a
token, up to the rows of the embedding, become `[PADn]`.

The `tokenizers` library, the one behind transformers, does the reading and the encoding that recognises the
pre-tokenizer. `get_vocab_base` in `conversion/base.py` of llama.cpp b11434.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ggplan.arch.pretokenizers import encoded, recognise_pretokenizer
from ggplan.arch.special_tokens import Json, configured_tokens
from ggplan.arch.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary, looks_special
from ggplan.errors import CheckpointError
from ggplan.sources.files import shown
from ggplan.sources.huggingface import HfCheckpoint

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

# Normalizers that cannot make a short text long. Byte-level BPE does not need others.
_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Sequence"}


def byte_level_vocabulary(
    checkpoint: HfCheckpoint, document: Json, settings: Json, vocab_size: int, pre: str | None
) -> Vocabulary:
    """The vocabulary of a tokenizer.json, parsed as `document`.

    Raises
    ------
    CheckpointError
        If it is damaged or another model's.
    """
    where = shown(checkpoint.path / "tokenizer.json")
    _check_parts(document, where)
    with guarded(where):
        tokenizer = opened(checkpoint, settings)
        name = pre or recognise_pretokenizer(tokenizer, settings)
        tokens, types = _tokens(tokenizer, vocab_size, where)
        added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    return Vocabulary("gpt2", name, tokens, types, merges=merges_of(document, checkpoint, where), added=added)


def _check_parts(document: Json, where: str) -> None:
    """Refuse what would make the tokenizers library crash: endless text, tokens without ids."""
    normalizer = document.get("normalizer")
    parts = [normalizer] if isinstance(normalizer, dict) else []
    for part in parts:  # grows while it is walked
        kind = part.get("type")
        if kind not in _NORMALIZERS:
            raise CheckpointError(
                f"{where} has the normalizer '{shown(kind)}', which byte-level BPE has no use for"
            )
        nested = part.get("normalizers")
        parts += [p for p in nested if isinstance(p, dict)] if isinstance(nested, list) else []
    post = document.get("post_processor")
    processors = post.get("processors", [post]) if isinstance(post, dict) else []
    for processor in processors if isinstance(processors, list) else []:
        if not isinstance(processor, dict) or processor.get("type") != "TemplateProcessing":
            continue
        known = processor.get("special_tokens")
        for item in [*_items(processor, "single"), *_items(processor, "pair")]:
            special = item.get("SpecialToken")
            if isinstance(special, dict) and not (isinstance(known, dict) and special.get("id") in known):
                raise CheckpointError(
                    f"{where}: its template names the token '{shown(special.get('id'))}' without an id"
                )


def _items(processor: Mapping[str, object], key: str) -> list[dict[str, object]]:
    items = processor.get(key)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


@contextmanager
def guarded(where: str) -> Iterator[None]:
    """Turn any failure of the tokenizers library into an error; a panic in Rust is not an `Exception`."""
    try:
        with _silenced():
            yield
    except CheckpointError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(f"{where} cannot be used: {shown(error)}") from error
        raise


@contextmanager
def _silenced() -> Iterator[None]:
    """Redirect the process's stderr: a panic in Rust prints itself there, with its stack."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def opened(checkpoint: HfCheckpoint, settings: Json) -> Tokenizer:
    """tokenizer.json as the library opens it, with the tokens and flags of tokenizer_config.json."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(checkpoint.read_text("tokenizer.json") or "")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    present = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    configured = map(_added_token, configured_tokens(checkpoint, settings).values())
    tokenizer.add_tokens([token for token in configured if token and repr(token) not in present])
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([token for token in named_tokens(settings) if token.content not in added])
    return tokenizer


def named_tokens(settings: Json) -> list[AddedToken]:
    """The tokens with a special use: `bos_token`, `eos_token` and so on, and those named special."""
    roles = [settings.get(f"{kind}_token") for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key)
        roles += list(more.values()) if isinstance(more, dict) else more if isinstance(more, list) else []
    return [token for role in roles if (token := _added_token(role, special=True))]


def _added_token(value: object, *, special: bool = False) -> AddedToken | None:
    from tokenizers import AddedToken

    flags = value if isinstance(value, dict) else {"content": value}
    content = flags.get("content")
    if not isinstance(content, str) or not content:
        return None
    special = special or flags.get("special") is True
    return AddedToken(
        content,
        single_word=flags.get("single_word") is True,
        lstrip=flags.get("lstrip") is True,
        rstrip=flags.get("rstrip") is True,
        normalized=flags.get("normalized", not special) is True,
        special=special,
    )


def _tokens(tokenizer: Tokenizer, vocab_size: int, where: str) -> tuple[list[str], list[int]]:
    """The text and the type of each id."""
    by_id = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    if max(by_id, default=0) >= vocab_size:
        raise CheckpointError(
            f"{where} has a token with the id {max(by_id)}, but the model's vocab_size is {vocab_size}",
            hint="the tokenizer may belong to another model",
        )
    added = tokenizer.get_added_tokens_decoder()
    literal = [token.content for token in added.values() if not token.normalized]
    ids = encoded(tokenizer, literal, add_special_tokens=False)
    found = {
        text: tokenizer.decode(i, skip_special_tokens=False) for text, i in zip(literal, ids, strict=True)
    }
    tokens, types = [], []
    for number in range(vocab_size):
        text, kind = by_id.get(number), NORMAL
        if text is None:
            text, kind = f"[PAD{number}]", UNUSED
        elif number in added:
            text, kind = _added_text(added[number], found)
        tokens.append(text)
        types.append(kind)
    return tokens, types


def _added_text(token: AddedToken, found: Mapping[str, str]) -> tuple[str, int]:
    """The text and the type of an added token; llama.cpp wants it as `found` in normalized text."""
    text = token.content if token.normalized else found[token.content]
    if token.special or looks_special(text):
        return text, CONTROL
    return text.replace("▁", " "), USER_DEFINED


def merges_of(document: Json, checkpoint: HfCheckpoint, where: str) -> list[str]:
    """The merges, each two tokens with a space between; a space within a token is written as U+0120."""
    model = document["model"]
    merges = model.get("merges") if isinstance(model, dict) else None
    if not isinstance(merges, list) or not merges:
        return _merges_file(checkpoint)
    if all(isinstance(merge, str) for merge in merges):
        return merges
    texts = []
    for merge in merges:
        if not (isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge)):
            raise CheckpointError(f"{where} has a merge that is not a pair of tokens: {shown(merge)}")
        texts.append(" ".join(part.replace(" ", "\u0120") for part in merge))
    return texts


def _merges_file(checkpoint: HfCheckpoint) -> list[str]:
    """The merges of merges.txt, one a line after an optional comment."""
    lines = (checkpoint.read_text("merges.txt") or "").splitlines()
    pairs = (line.split() for line in (lines[1:] if lines and lines[0].startswith("#") else lines))
    return [" ".join(pair) for pair in pairs if len(pair) == 2]
