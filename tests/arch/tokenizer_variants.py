"""Tokenizers as folders on the hub have them: each function changes the files of a small one."""

import json
from collections.abc import Callable
from pathlib import Path

Json = dict


def _change(folder: Path, name: str, change: Callable[[Json], None]) -> None:
    path = folder / name
    document = json.loads(path.read_text()) if path.exists() else {}
    change(document)
    path.write_text(json.dumps(document))


def _tokenizer(folder: Path, **parts: object) -> None:
    _change(folder, "tokenizer.json", lambda document: document.update(parts))


def _settings(folder: Path, **settings: object) -> None:
    _change(folder, "tokenizer_config.json", lambda document: document.update(settings))


def _template(single: str, pair: str, *names: str) -> Json:
    """A TemplateProcessing from texts such as `<sop> A <eop>`; ids are those of the small tokenizer."""
    ids = {"<sop>": 304, "<eop>": 305, "[MASK]": 301, "<|endoftext|>": 300}

    def items(text: str) -> list[Json]:
        return [
            {"Sequence": {"id": word, "type_id": 0}}
            if word in ("A", "B")
            else {"SpecialToken": {"id": word, "type_id": 0}}
            for word in text.split()
        ]

    special = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names}
    return {
        "type": "TemplateProcessing",
        "single": items(single),
        "pair": items(pair),
        "special_tokens": special,
    }


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def begins(folder: Path) -> None:
    """Llama 3: byte level, then a template that puts BOS first."""
    template = _template("<sop> A", "<sop> A <sop> B", "<sop>")
    _tokenizer(folder, post_processor={"type": "Sequence", "processors": [BYTE_LEVEL, template]})
    _settings(folder, bos_token="<sop>")


def begins_unnamed(folder: Path) -> None:
    _tokenizer(folder, post_processor=_template("<sop> A", "<sop> A B", "<sop>"))


def begins_and_ends(folder: Path) -> None:
    """The template's last token is not the EOS of the settings, which becomes the EOT."""
    _tokenizer(folder, post_processor=_template("<sop> A <eop>", "<sop> A <eop> B <eop>", "<sop>", "<eop>"))
    _settings(folder, bos_token="<sop>", add_bos_token=True, add_eos_token=False)


def separates(folder: Path) -> None:
    _tokenizer(
        folder, post_processor=_template("<sop> A", "<sop> A <|endoftext|> B", "<sop>", "<|endoftext|>")
    )
    _settings(folder, cls_token="<sop>", mask_token="[MASK]")


def separates_twice(folder: Path) -> None:
    pair = "<sop> A <|endoftext|> <|endoftext|> B <|endoftext|>"
    post = _template("<sop> A <|endoftext|>", pair, "<sop>", "<|endoftext|>")
    _tokenizer(folder, post_processor=post)
    _settings(folder, bos_token="<sop>", sep_token="<|endoftext|>")


def roberta(folder: Path) -> None:
    post = {"type": "RobertaProcessing", "sep": ["<eop>", 305], "cls": ["<sop>", 304]}
    _tokenizer(folder, post_processor=post | {"trim_offsets": True, "add_prefix_space": False})


def tokens_as_objects(folder: Path) -> None:
    """DeepSeek: AddedToken objects, and flags that the post-processor contradicts."""
    token = {
        "__type": "AddedToken",
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
    _settings(
        folder,
        bos_token=token | {"content": "<sop>"},
        eos_token=token | {"content": "<eop>"},
        unk_token=None,
        add_bos_token=True,
        add_eos_token=False,
    )


def other_flags(folder: Path) -> None:
    """tokenizer_config.json knows better: <think> is special, [MASK] is not, and two tokens are new."""

    def token(content: str, *, special: bool = False, normalized: bool = False) -> Json:
        flags = {"lstrip": False, "rstrip": False, "single_word": False}
        return flags | {"content": content, "special": special, "normalized": normalized}

    decoder = {
        "301": token("[MASK]"),
        "310": token("<think>", special=True),
        "312": token("<|tool|>"),
        "313": token("▁▁two▁words", normalized=True),
    }
    _settings(folder, added_tokens_decoder=decoder, additional_special_tokens=["<|user|>", "<|new|>"])


def roles_of_plain_tokens(folder: Path) -> None:
    _settings(folder, eos_token="e", pad_token="<newpad>", unk_token="the")


def ids_in_config(folder: Path) -> None:
    _settings(folder, eos_token=None, pad_token=None)
    _change(
        folder,
        "config.json",
        lambda c: c.update(
            bos_token_id=304, eos_token_id=[300, 305], pad_token_id=None, sep_token_id=7, unk_token_id=0
        ),
    )


def named_templates(folder: Path) -> None:
    templates = [{"name": "default", "template": "{{ a }}"}, {"name": "tool use", "template": "{{ b }}"}]
    _settings(folder, chat_template=templates)


def template_file(folder: Path) -> None:
    _change(folder, "tokenizer_config.json", lambda settings: settings.pop("chat_template"))
    (folder / "chat_template.jinja").write_text("{{ messages }} ü\n")


def template_json(folder: Path) -> None:
    _change(folder, "tokenizer_config.json", lambda settings: settings.pop("chat_template"))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))


def further_templates(folder: Path) -> None:
    template_file(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")


def merges_as_text(folder: Path) -> None:
    def change(document: Json) -> None:
        document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
        document["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}

    _change(folder, "tokenizer.json", change)


def truncates(folder: Path) -> None:
    """Limits in tokenizer.json, which must not touch the text that recognises the tokenizer."""
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    _tokenizer(folder, truncation=truncation)


BASE = "mistral"  # the case whose tokenizer is varied
VARIANTS = (
    begins,
    begins_unnamed,
    begins_and_ends,
    separates,
    separates_twice,
    roberta,
    tokens_as_objects,
    other_flags,
    roles_of_plain_tokens,
    ids_in_config,
    named_templates,
    template_file,
    template_json,
    further_templates,
    merges_as_text,
    truncates,
)
