"""The `general.*` keys: name, size, origin and sampling parameters of the model.

Names are guessed from the model card (README.md), config.json and the folder, since no file has them
separately: a hub name like `GLM-4.5-Air` or `Llama-3.1-8B-Instruct` is cut at its hyphens, and each part is a
version, a size, the name of a finetune or a part of the base name. The size label counts weights: `128x9.4B`
means 128 experts, each of which with all shared weights has 9.4 billion.

`Metadata` in `gguf-py/gguf/metadata.py` of llama.cpp b11434, the parts that hub models use.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence

from ggplan.errors import CheckpointError
from ggplan.ggml_types import QUANTIZATION_VERSION
from ggplan.metadata import Metadata, MetadataType, array, scalar, string, uint32
from ggplan.model import TensorInfo
from ggplan.sources.huggingface import HfCheckpoint

_CARD_LIMIT = 1 << 16
_VERSION = re.compile(r"(v|iter)?\d+([.]\d+)*", re.I)
_STORED_TYPE = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.I)
_SIZE = re.compile(r"(A|\d+x)?\d+([._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl", re.I)
_FINETUNE = re.compile(r"chat|instruct|vision|lora", re.I)
_KEEPS_CASE = re.compile(r"v\d+(\.\d+)*$|\d")
_HUB_URL = re.compile(r"https?://huggingface\.co/([^/]+/[^/]+)$")
_UNITS = {"T": 1e-12, "B": 1e-9, "M": 1e-6, "K": 1e-3}
_NAME_KEYS = (
    "name",
    "author",
    "version",
    "organization",
    "finetune",
    "basename",
    "description",
    "size_label",
)
_ANCESTOR_PARTS = (
    "name",
    "author",
    "version",
    "organization",
    "description",
    "url",
    "doi",
    "uuid",
    "repo_url",
)
# Sampling parameters in generation_config.json: its key, GGUF's key and type.
_SAMPLING = (
    ("sequence", "sequence", MetadataType.STRING),
    ("top_k", "top_k", MetadataType.INT32),
    ("top_p", "top_p", MetadataType.FLOAT32),
    ("min_p", "min_p", MetadataType.FLOAT32),
    ("xtc_probability", "xtc_probability", MetadataType.FLOAT32),
    ("xtc_threshold", "xtc_threshold", MetadataType.FLOAT32),
    ("temperature", "temp", MetadataType.FLOAT32),
    ("penalty_last_n", "penalty_last_n", MetadataType.INT32),
    ("repetition_penalty", "penalty_repeat", MetadataType.FLOAT32),
    ("mirostat", "mirostat", MetadataType.INT32),
    ("mirostat_tau", "mirostat_tau", MetadataType.FLOAT32),
    ("mirostat_eta", "mirostat_eta", MetadataType.FLOAT32),
)


def general_keys(checkpoint: HfCheckpoint, architecture: str, tensors: Sequence[TensorInfo]) -> Metadata:
    """The `general.*` keys that open a GGUF: all but the file type and the quantization version."""
    n_weights = sum(tensor.n_weights for tensor in tensors)
    card = _model_card(checkpoint)
    names = _names(checkpoint, card, n_weights)
    names.setdefault("size_label", size_label(tensors))
    licence = card.get("license")
    names["license"] = ",".join(_texts(licence))
    names["license.name"] = ",".join(_texts(card.get("license_name")))
    names["license.link"] = ",".join(_texts(card.get("license_link")))
    keys: Metadata = {
        "general.architecture": string(architecture),
        "general.type": string("model"),
        **_sampling(checkpoint),
    }
    for key in (*_NAME_KEYS, "license", "license.name", "license.link"):
        if text := names.get(key):
            keys[f"general.{key}"] = string(text)
    keys |= _ancestors("base_model", card, ("base_model", "base_models", "base_model_sources"), n_weights)
    keys |= _ancestors("dataset", card, ("datasets", "dataset", "dataset_sources"), n_weights)
    for key, sources in (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language"))):
        if values := [text for source in sources for text in _texts(card.get(source), empty=True)]:
            keys[f"general.{key}"] = array(MetadataType.STRING, values)
    return keys


def quantization_version() -> Metadata:
    """The version of ggml's block formats, which closes the architecture's keys."""
    return {"general.quantization_version": uint32(QUANTIZATION_VERSION)}


def size_label(tensors: Sequence[TensorInfo]) -> str:
    """The size of a model as a label: `27M`, or with experts, each with its shared weights, `16x3.6M`."""
    n_shared = n_expert = n_slices = n_stacks = 0
    for tensor in tensors:
        if "_exps." in tensor.name and len(tensor.shape) >= 3:
            n_expert += tensor.n_weights // tensor.shape[0]
            n_slices += tensor.shape[0]
            n_stacks += 1
        else:
            n_shared += tensor.n_weights
    label = _short_count(n_shared + n_expert)
    return f"{n_slices // n_stacks}x{label}" if n_stacks else label


def _short_count(n: int) -> str:
    """`n` in thousands, millions, ... with at least two digits."""
    unit = next((u for u, scale in _UNITS.items() if n * scale > 1), "K")
    scaled = n * _UNITS[unit]
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{unit}"


def _names(checkpoint: HfCheckpoint, card: Mapping[str, object], n_weights: int) -> dict[str, str]:
    """Names from the card, then from the hub name in config.json, then from the folder's name."""
    names: dict[str, str] = {}
    for key in _NAME_KEYS:
        for source in (key, f"model_{key}"):
            if texts := _texts(card.get(source)):
                names.setdefault(key, texts[0])
    for key, source in (("author", "model_creator"), ("basename", "model_type")):
        if texts := _texts(card.get(source)):
            names.setdefault(key, texts[0])
    hub_name = checkpoint.config.get("_name_or_path")
    hub_names = [hub_name] if isinstance(hub_name, str) and hub_name and hub_name.count("/") <= 1 else []
    for name in (*hub_names, checkpoint.path.name or checkpoint.path.resolve().name):
        parts = _parts_of_name(name, n_weights)
        parts |= {key: _title(parts[key]) for key in ("name", "organization") if key in parts}
        names = {**parts, **names}
    return names


def _parts_of_name(hub_name: str, n_weights: int) -> dict[str, str]:
    """The parts of a hub name such as `org/Base-8B-Instruct-v0.2`, under GGUF's keys."""
    if " " in hub_name:
        return {"name": hub_name}
    organization, _, name = hub_name.rpartition("/")
    found = {"name": name}
    if organization and not organization.startswith("."):
        found["organization"] = organization
    words = [word for word in name.split("-") if word]
    kinds: list[set[str]] = []
    for k, word in enumerate(words):
        kind = _kind_of_word(word, k)
        if kind == "size_label":
            words[k], kind = _size_word(word, n_weights)
        elif kind == "type":
            words[k] = word.upper()
        kinds.append({kind} if kind else set())
    if any(
        "size_label" in kind and any(map(str.isdecimal, word))
        for word, kind in zip(words, kinds, strict=True)
    ):
        for word, marks in zip(words, kinds, strict=True):
            if word.isalpha():
                marks.discard("size_label")
    _find_base_name(words, kinds)

    def those(wanted: str) -> list[str]:
        return [word for word, kind in zip(words, kinds, strict=True) if wanted in kind]

    versions = [
        w for w, kind in zip(words, kinds, strict=True) if "version" in kind and "basename" not in kind
    ]
    rest = {
        "finetune": "-".join(those("finetune")),
        "size_label": "-".join(dict.fromkeys(those("size_label"))),
        "version": "-".join(versions),
    }
    if any(rest.values()):
        found |= {
            key: text for key, text in {**rest, "basename": "-".join(those("basename"))}.items() if text
        }
    return found


def _kind_of_word(word: str, position: int) -> str:
    if _VERSION.fullmatch(word):
        return "version"
    if _STORED_TYPE.fullmatch(word):
        return "type"
    if position and _SIZE.fullmatch(word):
        return "size_label"
    return "finetune" if position and _FINETUNE.fullmatch(word) else ""


def _size_word(word: str, n_weights: int) -> tuple[str, str]:
    """A size in one spelling; a number far from the model's size is taken for a context length."""
    word = word.replace("_", ".")
    if word[-1].isdecimal():  # 7b1 is 7.1b
        word = f"{word[:-2]}.{word[-1]}{word[-2]}"
    if word[-2:-1].isdecimal():
        word = word[:-1] + word[-1].upper()
    try:
        stated = float(word[:-1]) / _UNITS[word[-1]]
    except (ValueError, KeyError):
        return word, "size_label"
    if n_weights and abs(stated - n_weights) > 7 * n_weights // 8:
        return word[:-1] + word[-1].lower(), "finetune"
    return word, "size_label"


def _find_base_name(words: Sequence[str], kinds: Sequence[set[str]]) -> None:
    """Mark the words at the start as base name, except versions at its end, and unknown words as finetune."""
    leading = True
    for word, kind in zip(words, kinds, strict=True):
        leading = leading and ((not kind and word[0].isalpha()) or "version" in kind)
        if leading:
            kind.add("basename")
        elif not kind:
            kind.add("finetune")
    for kind in reversed(kinds):
        if not ("basename" in kind and len(kind) > 1):
            break
        kind.remove("basename")


def _ancestors(key: str, card: Mapping[str, object], sources: Sequence[str], n_weights: int) -> Metadata:
    """The models or datasets this one was made from, by hub name, address or object.

    Every entry counts, also one that says nothing (`base_model: [null]`), and a card that has the key with no
    entry (`datasets: null`) has a count of 0: so does the converter.
    """
    source = next((source for source in sources if source in card), None)
    if source is None:
        return {}
    value = card[source]
    entries = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    keys: Metadata = {f"general.{key}.count": uint32(len(entries))}
    for k, entry in enumerate(entries):
        about = _named_ancestor(entry, n_weights) if isinstance(entry, str) else entry
        if isinstance(about, dict):
            texts = {part: about[part] for part in _ANCESTOR_PARTS if isinstance(about.get(part), str)}
            keys |= {f"general.{key}.{k}.{part}": string(text) for part, text in texts.items() if text}
    return keys


def _named_ancestor(source: str, n_weights: int) -> dict[str, str]:
    """What the hub name or the address of a model or dataset says of it."""
    is_url = source.startswith(("http://", "https://", "ssh://"))
    on_hub = _HUB_URL.match(source)
    parts = {} if is_url and not on_hub else _parts_of_name(on_hub[1] if on_hub else source, n_weights)
    address = f"https://huggingface.co/{source}" if "organization" in parts else ""
    return {
        "name": _title(parts.get("name", "")),
        "version": parts.get("version", ""),
        "organization": _title(parts.get("organization", "")),
        "repo_url": source if is_url else address,
    }


def _title(name: str) -> str:
    """A name with spaces for hyphens, its plain lower-case words capitalised."""
    words = name.replace("-", " ").split()
    return " ".join(w.title() if w.islower() and not _KEEPS_CASE.match(w) else w for w in words)


def _sampling(checkpoint: HfCheckpoint) -> Metadata:
    try:
        settings = checkpoint.read_json("generation_config.json") or {}
    except CheckpointError:
        return {}  # these are only suggestions: an unreadable file is ignored
    keys: Metadata = {}
    for source, target, kind in _SAMPLING:
        value = settings.get(source)
        wanted = {MetadataType.STRING: (str,), MetadataType.INT32: (int,)}.get(kind, (int, float))
        if type(value) in wanted and value != "":
            with contextlib.suppress(CheckpointError):
                keys[f"general.sampling.{target}"] = scalar(kind, value)  # type: ignore[arg-type]
    return keys


def _model_card(checkpoint: HfCheckpoint) -> Mapping[str, object]:
    """The YAML between two lines of three hyphens at the start of README.md; empty if there is none."""
    try:
        lines = (checkpoint.read_text("README.md") or "").splitlines()
    except CheckpointError:
        return {}
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return {}
    text = "\n".join(lines[1 : lines.index("---", 1)])
    # Some published cards contain tabs; an unquoted `no` means Norwegian, not false.
    text = re.sub(r"^(\s*-\s*)no$", r'\1"no"', text.replace("\t", "  "), flags=re.M)
    if len(text) > _CARD_LIMIT:
        return {}
    import yaml  # type: ignore[import-untyped]

    try:
        card = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


def _texts(value: object, *, empty: bool = False) -> list[str]:
    """A text or a list of texts; numbers become texts, other values and empty texts are left out."""
    values = value if isinstance(value, list) else [value]
    return [str(v) for v in values if type(v) in (str, int, float) and (empty or v != "")]
