"""Inventories that ship with ggplan: the tensors of public models, to check recipes by without a model.

    >>> inventory("GLM-4.5-Air").architecture
    'glm4moe'

Each is a text file in `data`, made by `tools/make_inventories.py`:

    # zai-org/GLM-4.5-Air; made by tools/make_inventories.py
    architecture glm4moe
    block_count 47                                     metadata, without `glm4moe.` before the key
    also NAME                                          another model with the same tensors

    output.weight bf16 151552 4096                     name, type, shape with rows first
    0..46 attn_q.weight bf16 12288 4096                the same in each of these blocks

Names, types and shapes are those of the GGUF that llama.cpp's converter makes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ggplan.errors import CheckpointError
from ggplan.ggml_types import parse_type
from ggplan.metadata import string, uint32
from ggplan.model import Model, TensorInfo
from ggplan.text import printable

_FOLDER = "data"
_ENDING = ".txt"


def inventories() -> tuple[str, ...]:
    """The names of the shipped inventories, sorted."""
    return tuple(_texts())


def inventory(name: str) -> Model:
    """The shipped inventory of a model, in any case, or of one that has the same tensors.

    Raises
    ------
    CheckpointError
        If there is none of this name.
    """
    known = _names()
    found = known.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower()[:60], known, n=1)
        hint = f"the nearest is {known[near[0]]}" if near else "shipped are " + ", ".join(inventories())
        raise CheckpointError(f"ggplan ships no inventory of {printable(name)}", hint=hint)
    return _read(found)


def inventories_of(architecture: str) -> tuple[str, ...]:
    """The names of the inventories of an architecture, as in GGUF's `general.architecture`."""
    line = f"architecture {architecture}\n"
    return tuple(name for name, text in _texts().items() if line in text)


def names_of_inventories() -> dict[str, str]:
    """Every name that `inventory` knows, as it is written, and the inventory it leads to."""
    found = {name: name for name in inventories()}
    for name, text in _texts().items():
        found |= {line.removeprefix("also "): name for line in text.split("\n") if line.startswith("also ")}
    return found


def is_inventory(name: str) -> bool:
    """Whether `inventory` knows this name, in any case."""
    return name.lower() in _names()


def architecture_of(names: Iterable[str]) -> str:
    """The architecture that has tensors of just these names, or "" where several or none of those shipped do.

    What a model may lack (tied embeddings have no output matrix) does not count, and neither do blocks.
    """
    wanted = _kinds(names)
    found = {inventory(name).architecture for name in inventories() if _kinds_in(name) == wanted}
    return found.pop() if len(found) == 1 else ""


def inventory_with(tensors: Iterable[TensorInfo]) -> str:
    """The name of the shipped inventory that has just these tensors, by name and shape; "" where none has."""
    wanted = {tensor.name: tensor.shape for tensor in tensors}
    for name in inventories():
        model = inventory(name)
        if len(model.tensors) == len(wanted) and {t.name: t.shape for t in model.tensors} == wanted:
            return name
    return ""


def _kinds(names: Iterable[str]) -> frozenset[str]:
    kinds = {re.sub(r"^blk\.\d+\.", "", name) for name in names}
    return frozenset(k for k in kinds if not k.startswith(("output.", "rope_freqs.", "nextn.")))


@cache
def _kinds_in(name: str) -> frozenset[str]:
    return _kinds(tensor.name for tensor in inventory(name).tensors)


@cache
def words() -> frozenset[str]:
    """The words of all these names, such as `ffn_down_exps`: what GGUF has names for."""
    text = "\n".join(_texts().values())
    return frozenset(re.findall(r"[a-z][a-z0-9_]{2,}", re.sub(r"(?m)^(also|#|architecture).*", "", text)))


@cache
def _texts() -> dict[str, str]:
    files = sorted(Path(__file__).with_name(_FOLDER).glob(f"*{_ENDING}"))
    return {file.name.removesuffix(_ENDING): file.read_text("utf-8") for file in files}


@cache
def _names() -> dict[str, str]:
    return {name.lower(): home for name, home in names_of_inventories().items()}


@cache
def _read(name: str) -> Model:
    head, _, body = _texts()[name].partition("\n\n")
    facts = [line.split(" ") for line in head.split("\n") if not line.startswith(("#", "also "))]
    values = dict(fact for fact in facts if len(fact) == 2)
    architecture = values.pop("architecture")
    metadata = {"general.architecture": string(architecture), "general.name": string(name)}
    metadata |= {f"{architecture}.{key}": uint32(int(value)) for key, value in values.items()}
    outside: list[TensorInfo] = []
    blocks: dict[int, list[TensorInfo]] = {}
    for line in body.splitlines():
        words = line.split(" ")
        low, dots, high = words[0].partition("..")
        if not dots:
            outside.append(_tensor(words, ""))
            continue
        for number in range(int(low), int(high) + 1):
            blocks.setdefault(number, []).append(_tensor(words[1:], f"blk.{number}."))
    tensors = (*outside, *(t for number in sorted(blocks) for t in blocks[number]))
    return Model(Path(name), "inventory", architecture, metadata, tensors)


def _tensor(words: list[str], prefix: str) -> TensorInfo:
    name, type_, *shape = words
    return TensorInfo(prefix + name, tuple(map(int, shape)), parse_type(type_), "inventory", type_)
