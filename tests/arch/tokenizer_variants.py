"""Tokenizers as folders on the hub have them: each function changes the files of a small one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tiny_checkpoints import write_tensors

from ggplan.sources.safetensors import read_tensors

Json = dict
DATA = Path(__file__).parent.parent / "data"


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


def _pieces(folder: Path) -> None:
    """sentencepiece's tokenizer.model in place of tokenizer.json, with the settings that Llama 2 has."""
    (folder / "tokenizer.json").unlink()
    shutil.copy(DATA / "hf" / "small.model", folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    settings |= {"unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def roles_in_a_map(folder: Path) -> None:
    """special_tokens_map.json of older folders: it wins, and may name tokens that nothing else has."""
    _settings(folder, bos_token="<sop>", eos_token="<eop>")
    _change(folder, "tokenizer_config.json", lambda settings: settings.pop("added_tokens_decoder", None))
    roles = {"bos_token": "[MASK]", "pad_token": {"content": "<new pad>"}, "unk_token": "the"}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))


def roles_in_a_map_that_is_not_read(folder: Path) -> None:
    _settings(folder, added_tokens_decoder={"300": {"content": "<|endoftext|>", "special": True}})
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<new pad>"}))


def pieces(folder: Path) -> None:
    _pieces(folder)


def pieces_alone(folder: Path) -> None:
    """The original folders: no settings, ids in config.json, one of them beyond the embedding."""
    _pieces(folder)
    (folder / "tokenizer_config.json").unlink()
    _change(folder, "config.json", lambda c: c.update(bos_token_id=1, eos_token_id=2, pad_token_id=320))


def pieces_and_more(folder: Path) -> None:
    """Tokens that were added later, in two files; some replace pieces, one has no row in the embedding."""
    _pieces(folder)
    added = {"<extra>": 304, "plain": 305, "<gone>": 320}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    decoder = {
        "0": {"content": "<unk>", "special": True},
        "1": {"content": "<s>", "special": True},
        "2": {"content": "</s>", "special": True},
        "305": {"content": "\u2581two\u2581words", "special": False},
        "306": {"content": "<|im_end|>", "special": False},
        "307": {"content": "[INST]", "special": True},
        "400": {"content": "<far>", "special": True},
    }
    _settings(folder, added_tokens_decoder=decoder, add_prefix_space=True, chat_template="{{ x }}")


def pieces_beside_json(folder: Path) -> None:
    """Both files, as transformers saves them: ids of special tokens come from tokenizer.json."""
    _pieces(folder)
    write_fallback(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "[PAD]"})
    )


def pieces_of_code_llama(folder: Path) -> None:
    _pieces(folder)
    _change(folder, "config.json", lambda config: config.update(vocab_size=32016))
    path, table = folder / "model.safetensors", {}
    for name, tensor in read_tensors(path).items():
        is_wide = name in ("lm_head.weight", "model.embed_tokens.weight")
        table[name] = (tensor.dtype, [32016, 64] if is_wide else list(tensor.shape))
    write_tensors(path, table)
    _settings(folder, prefix_token="<PRE>", eot_token="<EOT>")


def write_fallback(folder: Path, *more: Json, merges: bool = False) -> None:
    """tokenizer.json as transformers makes it of the pieces: BPE with byte fallback."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    processor.LoadFromFile(str(DATA / "hf" / "small.model"))
    vocab = {processor.IdToPiece(number): number for number in range(processor.GetPieceSize())}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": number, "content": text, **flags} for number, text in enumerate(("<unk>", "<s>", "</s>"))]
    document = {
        "version": "1.0",
        "added_tokens": [*added, *({**flags, **token} for token in more)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "post_processor": _LLAMA_TEMPLATE,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": _merges(vocab) if merges else [],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))


def _merges(vocab: dict[str, int]) -> list[list[str]]:
    """All ways to make a piece of two others, the pieces learnt first first."""
    pieces = [piece for piece in vocab if not piece.startswith("<")]
    halves = [[piece[:k], piece[k:]] for piece in pieces for k in range(1, len(piece))]
    return [pair for pair in halves if all(half in vocab for half in pair)]


_LLAMA_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}


def byte_fallback(folder: Path) -> None:
    """Llama 2 without tokenizer.model."""
    _pieces(folder)
    (folder / "tokenizer.model").unlink()
    write_fallback(folder)


def byte_fallback_and_more(folder: Path) -> None:
    """Tokens added behind those learnt: special by their role, by flag alone, and plain."""
    _pieces(folder)
    (folder / "tokenizer.model").unlink()
    more = [
        {"id": 304, "content": "<|im_end|>"},
        {"id": 305, "content": "<flagged>"},
        {"id": 306, "content": "plain", "special": False},
    ]
    write_fallback(folder, *more)
    settings = {"tokenizer_class": "LlamaTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<new>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<unk>", "bos_token": "plain"}))


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
    roles_in_a_map,
    roles_in_a_map_that_is_not_read,
    pieces,
    pieces_alone,
    pieces_and_more,
    pieces_beside_json,
    pieces_of_code_llama,
    byte_fallback,
    byte_fallback_and_more,
)
