"""The tokenizer of a Hugging Face folder as GGUF keys: `tokenizer.ggml.*` and the chat template.

Supported is the kind that nearly all of today's models have: byte-level BPE in tokenizer.json, which
llama.cpp calls "gpt2". The vocabulary is tokenizer.json's, changed by tokenizer_config.json as transformers
does: added tokens get the latter's flags, and tokens that only it knows are added. Ids without a token, up to
the rows of the embedding, become `[PADn]`. Each token has a type: 1 normal, 3 control (never shown, never
typed), 4 user-defined (found in text before merging), 5 unused.

The `tokenizers` library, the one behind transformers, does the reading and the encoding that recognises the
pre-tokenizer. `get_vocab_base` and `_set_vocab_*` in `conversion/base.py` of llama.cpp b11434.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ggplan.arch.architecture import TokenizerRules
from ggplan.arch.pretokenizers import encoded, recognise_pretokenizer
from ggplan.arch.special_tokens import Json, chat_templates, normalizer_flags, read_special_tokens
from ggplan.errors import CheckpointError, SubstituteError, TokenizerError
from ggplan.metadata import Metadata, MetadataType, array, boolean, string
from ggplan.sources.files import shown
from ggplan.sources.huggingface import HfCheckpoint

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
# Normalizers that cannot make a short text long. Byte-level BPE does not need others.
_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Sequence"}
_OTHER_KINDS = {
    "tokenizer.model": "a sentencepiece tokenizer (tokenizer.model)",
    "tekken.json": "a tekken tokenizer (tekken.json)",
    "tiktoken.model": "a tiktoken tokenizer (tiktoken.model)",
}


def tokenizer_metadata(
    checkpoint: HfCheckpoint, vocab_size: int, rules: TokenizerRules, pre: str | None
) -> tuple[Metadata, TokenizerError | None]:
    """The keys of the checkpoint's tokenizer, and why they cannot be written, if so.

    Then the keys are those that are known, which is none for a tokenizer of another kind.

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
        unknown = _write_keys(keys, checkpoint, vocab_size, rules, pre)
    except TokenizerError as error:
        return keys, error
    except SubstituteError as error:
        return keys, TokenizerError(error.message, hint=error.hint)
    return keys, unknown


def _write_keys(
    keys: Metadata, checkpoint: HfCheckpoint, vocab_size: int, rules: TokenizerRules, pre: str | None
) -> TokenizerError | None:
    """Write the keys, in the converter's order; the error for an unknown pre-tokenizer, which has no key."""
    document = _read_document(checkpoint, rules)
    where = shown(checkpoint.path / "tokenizer.json")
    settings = checkpoint.read_json("tokenizer_config.json")
    if rules.llama_style and isinstance(prefix := (settings or {}).get("add_prefix_space"), bool):
        keys["tokenizer.ggml.add_space_prefix"] = boolean(prefix)
    with _guarded(where):
        tokenizer = _open(checkpoint, settings or {})
        name = pre or recognise_pretokenizer(tokenizer, settings or {})
        tokens, types = _tokens(tokenizer, vocab_size, where)
        added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    keys["tokenizer.ggml.model"] = string("gpt2")
    if name is not None:
        keys["tokenizer.ggml.pre"] = string(name)
    keys["tokenizer.ggml.tokens"] = array(MetadataType.STRING, tokens)
    keys["tokenizer.ggml.token_type"] = array(MetadataType.INT32, types)
    if merges := _merges(document, checkpoint, where):
        keys["tokenizer.ggml.merges"] = array(MetadataType.STRING, merges)
    special = read_special_tokens(document, settings, checkpoint)
    for kind, text in rules.special_tokens.items():
        if text not in added:
            raise CheckpointError(
                f"{where} lacks the token '{text}', which marks {kind} in models of this family"
            )
        special.set_id(kind, added[text], where)
    keys |= special.metadata()
    keys |= chat_templates(checkpoint, settings)
    keys |= normalizer_flags(document)
    if rules.llama_style and vocab_size == 49152:
        keys["tokenizer.ggml.add_bos_token"] = boolean(False)
    return None if name is not None else _unknown(where)


def _unknown(where: str) -> TokenizerError:
    return TokenizerError(
        f"{where}: llama.cpp does not know this tokenizer, so its pre-tokenizer cannot be recognised",
        hint="name it with --pre NAME, e.g. glm4, qwen2, llama-bpe, deepseek-v3: the model whose tokenizer "
        "splits text alike",
    )


def _read_document(checkpoint: HfCheckpoint, rules: TokenizerRules) -> Json:
    """tokenizer.json, parsed and checked to be byte-level BPE."""
    folder = checkpoint.path
    others = [kind for name, kind in _OTHER_KINDS.items() if (folder / name).exists()]
    document = checkpoint.read_json("tokenizer.json")
    if document is None or (rules.sentencepiece and (folder / "tokenizer.model").exists()):
        if not others:
            raise TokenizerError(
                f"{shown(folder)} holds no tokenizer.json", hint="download the tokenizer's files as well"
            )
        raise TokenizerError(
            f"{shown(folder)} has {others[0]}, which ggplan does not read yet",
            hint="make a GGUF of it with llama.cpp's convert_hf_to_gguf.py and give ggplan that",
        )
    model = document.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(kind, str):
        raise CheckpointError(f"{shown(folder / 'tokenizer.json')} has no kind of model, but '{shown(kind)}'")
    if kind != "BPE" or model.get("byte_fallback"):
        what = "sentencepiece BPE" if kind == "BPE" else f"'{shown(kind)}'"
        raise TokenizerError(
            f"{shown(folder / 'tokenizer.json')} is {what}; ggplan reads byte-level BPE",
            hint="make a GGUF of it with llama.cpp's convert_hf_to_gguf.py and give ggplan that",
        )
    _check_parts(document, shown(folder / "tokenizer.json"))
    return document


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
def _guarded(where: str) -> Iterator[None]:
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


def _open(checkpoint: HfCheckpoint, settings: Json) -> Tokenizer:
    """tokenizer.json as the library opens it, with the tokens and flags of tokenizer_config.json."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(checkpoint.read_text("tokenizer.json") or "")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    present = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([token for token in _configured_tokens(settings) if repr(token) not in present])
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([token for token in _named_tokens(settings) if token.content not in added])
    return tokenizer


def _configured_tokens(settings: Json) -> list[AddedToken]:
    """The tokens of `added_tokens_decoder`, by id."""
    decoder = settings.get("added_tokens_decoder")
    tokens = decoder if isinstance(decoder, dict) else {}
    numbered = sorted((int(k), v) for k, v in tokens.items() if k.isdecimal() and isinstance(v, dict))
    return [token for _, value in numbered if (token := _added_token(value))]


def _named_tokens(settings: Json) -> list[AddedToken]:
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
        text, kind = by_id.get(number), _NORMAL
        if text is None:
            text, kind = f"[PAD{number}]", _UNUSED
        elif number in added:
            text, kind = _added_text(added[number], found)
        tokens.append(text)
        types.append(kind)
    return tokens, types


def _added_text(token: AddedToken, found: Mapping[str, str]) -> tuple[str, int]:
    """The text and the type of an added token; llama.cpp wants it as `found` in normalized text."""
    text = token.content if token.normalized else found[token.content]
    if token.special or _looks_special(text):
        return text, _CONTROL
    return text.replace("▁", " "), _USER_DEFINED


def _looks_special(text: str) -> bool:
    """Whether a token must be a control token whatever its flags say; some models forget the flag."""
    brackets = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    known = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    return text in known or any(text.startswith(a) and text.endswith(b) for a, b in brackets)


def _merges(document: Json, checkpoint: HfCheckpoint, where: str) -> list[str]:
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
