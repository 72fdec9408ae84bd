"""Special tokens: which tokens begin and end a text, and which of them the engine adds by itself.

Three files of a Hugging Face folder have this information, each in its own way, and they do not always agree.
They are read in the order of llama.cpp's converter, with its special cases, since chats depend on the result:

    tokenizer.json          its post-processor shows which tokens are put around a text; it wins over the
                            `add_bos_token` of tokenizer_config.json
    tokenizer_config.json   `bos_token`, `eos_token`, ... by text; the ids come from tokenizer.json's added
                            tokens; the chat template, unless `chat_template.jinja` or `.json` has it
    config.json             `bos_token_id`, ... for kinds that no text named, also in `text_config`; a list of
                            ids is ignored

`SpecialVocab` in `gguf-py/gguf/vocab.py` of llama.cpp b11434.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ggplan.errors import CheckpointError, TokenizerError
from ggplan.metadata import Metadata, MetadataType, array, boolean, string, uint32
from ggplan.sources.files import shown
from ggplan.sources.huggingface import HfCheckpoint

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}
_ADD_KEYS = {"bos": "add_bos_token", "eos": "add_eos_token", "sep": "add_sep_token"}
Json = Mapping[str, object]
_ID = re.compile(r"[0-9]{1,9}", re.ASCII)


@dataclass(slots=True)
class SpecialTokens:
    """The tokens found so far: ids and "add" flags by kind, and the settings after the post-processor.

    `n_vocab` is the number of tokens where ids from there on are left out, which the converter does for
    sentencepiece's.
    """

    settings: dict[str, object]
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    ids: dict[str, int] = field(default_factory=dict)
    n_vocab: int | None = None
    add: dict[str, bool] = field(default_factory=dict)

    def set_id(self, kind: str, number: object, where: str) -> None:
        """Set the id of a kind if it has none yet. A value that is not a number is ignored."""
        if type(number) is int:
            if number < 0:
                raise TokenizerError(
                    f"{where}: the id of the {kind} token is {number}, which no token has",
                    hint=f"llama.cpp's converter refuses it too: set {kind}_token_id to a token's id or null",
                )
            if self.n_vocab is None or number < self.n_vocab:
                self.ids.setdefault(kind, number)

    def metadata(self) -> Metadata:
        """The keys of the ids, then those of the flags."""
        keys: Metadata = {}
        for kind, number in self.ids.items():
            if kind in _ID_KEYS:
                keys[f"tokenizer.ggml.{_ID_KEYS[kind]}"] = uint32(number)
        for kind, value in self.add.items():
            if kind in _ADD_KEYS:
                keys[f"tokenizer.ggml.{_ADD_KEYS[kind]}"] = boolean(value)
        return keys


def read_special_tokens(
    tokenizer: Json,
    settings: Json | None,
    checkpoint: HfCheckpoint,
    *,
    n_vocab: int | None = None,
    kinds: Sequence[str] = KINDS,
) -> SpecialTokens:
    """The special tokens of a folder: its tokenizer.json, tokenizer_config.json (if any) and config.json."""
    found = SpecialTokens(dict(settings or {}), list(kinds), n_vocab=n_vocab)
    _read_post_processor(found, tokenizer, has_settings=bool(settings))
    if settings:
        contents = [token for token in _list(tokenizer.get("added_tokens")) if isinstance(token, dict)]
        for kind in found.kinds:
            stated = found.settings.get(f"add_{kind}_token")
            if isinstance(stated, bool):
                found.add.setdefault(kind, stated)
            text = _content(found.settings.get(f"{kind}_token"))
            if text is not None:
                number = next((t.get("id") for t in contents if t.get("content") == text), None)
                found.set_id(kind, number, shown(checkpoint.path / "tokenizer.json"))
    part = _object(checkpoint.config.get("text_config"))
    for kind in found.kinds:
        number = checkpoint.config.get(f"{kind}_token_id")
        number = part.get(f"{kind}_token_id") if number is None else number
        found.set_id(kind, number, shown(checkpoint.path / "config.json"))
    return found


def _read_post_processor(found: SpecialTokens, tokenizer: Json, *, has_settings: bool) -> None:
    settings = found.settings
    for kind, other in (("bos", "cls"), ("eos", "sep")):
        if not settings.get(f"{kind}_token") and settings.get(f"{other}_token") and has_settings:
            settings[f"{kind}_token"] = settings[f"{other}_token"]
    post = _object(tokenizer.get("post_processor"))
    if not post:
        return
    for processor in _list(post.get("processors")) or [post]:
        processor = _object(processor)
        match processor.get("type"):
            case "ByteLevel":
                found.add.setdefault("bos", False)
                found.add.setdefault("eos", False)
            case "RobertaProcessing":
                found.add.update(bos=True, eos=True, sep=True)
                for kind in ("cls", "sep"):
                    token = _list(processor.get(kind))
                    if not settings.get(f"{kind}_token") and has_settings and token:
                        settings[f"{kind}_token"] = token[0]
            case "TemplateProcessing":
                _read_template(found, processor, has_settings=has_settings)


def _read_template(found: SpecialTokens, processor: Json, *, has_settings: bool) -> None:
    """The tokens a template puts before, after and between texts; only plain templates are understood."""
    settings, first, last = found.settings, None, None
    single, pair = _list(processor.get("single")), _list(processor.get("pair"))
    if len(single) > 1:
        first, last = _special(single[0]), _special(single[-1])
        if first:
            if not has_settings:
                settings["bos_token"] = first
            elif first not in (settings.get("bos_token"), settings.get("cls_token")):
                for kind in ("bos", "cls"):
                    settings[f"{kind}_token"] = settings.get(f"{kind}_token") or first
            found.add["bos"] = first in (settings.get("bos_token"), settings.get("cls_token"))
        if last:
            if has_settings and last != settings.get("eos_token"):
                # The template's token ends a text; the EOS of the settings then ends a turn.
                spare = next((kind for kind in ("eot", "eom") if kind not in found.kinds), None)
                if spare:
                    found.kinds.append(spare)
                    settings[f"{spare}_token"] = settings.get("eos_token")
            settings["eos_token"] = last
            found.add["eos"] = True
    _read_pair(found, pair, first, last, has_settings=has_settings)


def _read_pair(
    found: SpecialTokens, pair: Sequence[object], first: str | None, last: str | None, *, has_settings: bool
) -> None:
    """Whether there is a separator between the two texts of a pair."""
    if not pair:
        return
    start = 1 if first and _special(pair[0]) == first else 0
    stop = len(pair) - 1 if last and _special(pair[-1]) == last else len(pair)
    middle = pair[start:stop]
    if len(middle) < 3 or (_sequence(middle[0]), _sequence(middle[-1])) != ("A", "B"):
        return
    between, settings = [_special(item) for item in middle[1:-1]], found.settings
    separators = (settings.get("sep_token"), settings.get("eos_token"))
    add = bool(between[0]) and between[0] in separators and not last
    if len(between) == 2 and between[1] and between[1] in separators:
        add = True
    found.add["sep"] = add
    if add and not settings.get("sep_token") and has_settings:
        settings["sep_token"] = settings.get("eos_token")


def chat_templates(checkpoint: HfCheckpoint, settings: Json | None) -> Metadata:
    """The keys of the chat template, and of further ones by name."""
    if not settings:
        return {}
    template = settings["chat_template"] if "chat_template" in settings else _template_file(checkpoint)
    if isinstance(template, str):
        return {"tokenizer.chat_template": string(template)} if template else {}
    keys: Metadata = {}
    names: list[str] = []
    default = None
    for choice in map(_object, _list(template)):
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in _text(choice.get("name")) or "")
        text = _text(choice.get("template"))
        if not name or text is None:
            continue
        if name == "default":
            default = text
            continue
        names.append(name)
        if text:
            keys[f"tokenizer.chat_template.{name}"] = string(text)
    if names:
        keys["tokenizer.chat_templates"] = array(MetadataType.STRING, list(dict.fromkeys(names)))
    if default:
        keys["tokenizer.chat_template"] = string(default)
    return keys


def _template_file(checkpoint: HfCheckpoint) -> object:
    main = checkpoint.read_text("chat_template.jinja")
    if main is None:
        return (checkpoint.read_json("chat_template.json") or {}).get("chat_template")
    folder = checkpoint.path / "additional_chat_templates"
    others = sorted(folder.glob("*.jinja")) if folder.is_dir() else []
    if not others:
        return main
    named = [
        {"name": path.stem, "template": checkpoint.read_text(f"{folder.name}/{path.name}")} for path in others
    ]
    return [{"name": "default", "template": main}, *named]


def suppressed_tokens(checkpoint: HfCheckpoint) -> Metadata:
    """The key of the tokens that generation_config.json forbids a model to say; {} where it names none."""
    try:
        stated = (checkpoint.read_json("generation_config.json") or {}).get("suppress_tokens")
    except CheckpointError:  # a note says so
        return {}
    numbers = [number for number in _list(stated) if type(number) is int and 0 <= number < 1 << 31]
    if len(numbers) != len(_list(stated)):
        where = shown(checkpoint.path / "generation_config.json")
        raise CheckpointError(f"{where}: suppress_tokens is not a list of ids of tokens")
    key = "tokenizer.ggml.suppress_tokens"
    return {key: array(MetadataType.INT32, numbers)} if numbers else {}


def configured_tokens(checkpoint: HfCheckpoint, settings: Json) -> dict[int, Json]:
    """The tokens of tokenizer_config.json's `added_tokens_decoder`, with their flags, by id.

    Raises
    ------
    CheckpointError
        If it is no object of objects, or a key of it is no id.
    """
    where = shown(checkpoint.path / "tokenizer_config.json")
    decoder = settings.get("added_tokens_decoder")
    if decoder is not None and not isinstance(decoder, dict):
        raise CheckpointError(f"{where}: its added_tokens_decoder is not an object")
    found = {}
    for key, flags in (decoder or {}).items():
        if not _ID.fullmatch(key):
            raise CheckpointError(
                f"{where}: its added_tokens_decoder has the key {shown(key)}, which is no id"
            )
        if not isinstance(flags, dict):
            raise CheckpointError(f"{where} gives the token {key} no text")
        found[int(key)] = flags
    return dict(sorted(found.items()))


def normalizer_flags(tokenizer: Json) -> Metadata:
    """Whether text is lowercased and stripped of accents before it is tokenized."""
    keys: Metadata = {}
    normalizer = _object(tokenizer.get("normalizer"))
    parts = _list(normalizer.get("normalizers")) if normalizer.get("type") == "Sequence" else [normalizer]
    for kind in (_object(part).get("type") for part in parts):
        if kind == "Lowercase":
            keys["tokenizer.ggml.normalizer.lowercase"] = boolean(True)
        elif kind == "StripAccents":
            keys["tokenizer.ggml.normalizer.strip_accents"] = boolean(True)
    return keys


def _special(item: object) -> str | None:
    return _text(_object(_object(item).get("SpecialToken")).get("id"))


def _sequence(item: object) -> str | None:
    return _text(_object(_object(item).get("Sequence")).get("id"))


def _content(token: object) -> str | None:
    """The text of a token, which is written plainly or as an object."""
    return _text(token.get("content") if isinstance(token, dict) else token)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else []
