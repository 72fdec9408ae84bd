"""Reshaping: what is to be done to a model, and its form in the keys of the output.

ggplan.mtp            drop
ggplan.pruned_layers  3,7
ggplan.kept_experts   1: 0 2 5-7        a line for each layer, by its number before pruning
ggplan.fused          gate-up,qkv
ggplan.split          gate-up,qkv
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ggplan.errors import PlanError
from ggplan.metadata import Metadata
from ggplan.reshaping.blocks import ranges
from ggplan.sources.files import read_whole
from ggplan.text import nearest, printable

Mtp = Literal["keep", "drop", "only"]
Form = Literal["gate-up", "qkv"]
_LONGEST = 1 << 24  # characters of a recorded list
_MOST_EXPERTS = 1 << 20  # in all layers together


@dataclass(frozen=True, slots=True)
class Reshaping:
    """What is to be done to a model.

    Attributes
    ----------
    mtp
        What becomes of the blocks that only predict further tokens.
    prune_layers
        The blocks that are taken out.
    keep_experts
        By layer, the experts that stay, ascending; or how many, by the counts of an imatrix. None for all.
    fuse, split
        The forms that are joined, and those that are cut apart.
    """

    mtp: Mtp = "keep"
    prune_layers: tuple[int, ...] = ()
    keep_experts: Mapping[int, tuple[int, ...]] | int | None = None
    fuse: tuple[Form, ...] = ()
    split: tuple[Form, ...] = ()

    def __post_init__(self) -> None:
        if self.mtp not in get_args(Mtp):
            raise PlanError(
                f"mtp cannot be {printable(str(self.mtp))}", hint="choose from keep, drop and only"
            )
        for form in (*self.fuse, *self.split):
            if form not in get_args(Form):
                near = nearest(str(form), get_args(Form))
                hint = f"the nearest is {near}" if near else "there are gate-up and qkv"
                raise PlanError(f"there is no fused form {printable(str(form))}", hint=hint)
        if both := set(self.fuse) & set(self.split):
            raise PlanError(f"{', '.join(sorted(both))} cannot be fused and split at once")
        if self.mtp == "only" and (self.prune_layers or self.keep_experts is not None):
            raise PlanError(
                "a file of MTP blocks alone has no layers to prune and no experts to leave out",
                hint="make two files: one with `--mtp only`, one with `--mtp drop` and the pruning",
            )

    @property
    def is_nothing(self) -> bool:
        """Whether the model stays as it is."""
        return self == Reshaping()


def recorded_reshaping(metadata: Metadata) -> Reshaping:
    """What an output says was done to its model.

    Raises
    ------
    PlanError
        If the keys are damaged.
    """

    def text(key: str) -> str:
        value = metadata.get(f"ggplan.{key}")
        decoded = value.decode() if value is not None and value.item_type is None else ""
        return decoded if isinstance(decoded, str) and len(decoded) <= _LONGEST else ""

    try:
        experts = parse_experts(text("kept_experts")) if text("kept_experts") else None
        return Reshaping(
            text("mtp") or "keep",  # type: ignore[arg-type]
            tuple(int(n) for n in text("pruned_layers").split(",") if n),
            experts,
            tuple(f for f in text("fused").split(",") if f),  # type: ignore[misc]
            tuple(f for f in text("split").split(",") if f),  # type: ignore[misc]
        )
    except (ValueError, PlanError) as error:
        raise PlanError(f"what the file records of its making is damaged: {printable(str(error))}") from None


def load_experts(path: str) -> dict[int, tuple[int, ...]]:
    """A file that lists the experts to keep: `LAYER: 0 2 5-7` line by line, or JSON, `{"1": [0, 2, 5]}`.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    PlanError
        If it is no such list; the message names the line or the layer.
    """
    data = read_whole(Path(path), _LONGEST)
    shown = printable(path)
    try:
        text = data.decode("utf-8-sig")
        found = _experts_of_json(text) if text.lstrip()[:1] in ("{", "[") else parse_experts(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(
            f"{shown}: {printable(str(error))}",
            hint='write a line for each layer, `1: 0 2 5-7`, or JSON, `{"1": [0, 2, 5]}`',
        ) from None
    if not found:
        raise PlanError(f"{shown} lists no experts")
    return found


def _experts_of_json(text: str) -> dict[int, tuple[int, ...]]:
    content = json.loads(text, object_pairs_hook=_once)
    if not isinstance(content, dict):
        raise ValueError("it is JSON, but no object of layers")
    found = {}
    for layer, experts in content.items():
        if not _is_number(layer):
            raise ValueError(f"{layer[:40]!r} is no layer's number")
        if not isinstance(experts, list) or not all(type(e) is int for e in experts):
            raise ValueError(f"layer {layer} has no list of experts' numbers")
        if int(layer) in found:
            raise ValueError(f"layer {int(layer)} is there twice")
        found[int(layer)] = tuple(experts)
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON, of which a second value under one key would silently take the place of the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        raise ValueError(f"layer {twice[:40]} is there twice")
    return found


def parse_experts(text: str) -> dict[int, tuple[int, ...]]:
    """Lists of experts, a line for each layer: `1: 0 2 5-7`. `#` begins a comment.

    Raises
    ------
    ValueError
        If a line is none of these; the message names it.
    """
    found: dict[int, tuple[int, ...]] = {}
    room = _MOST_EXPERTS
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        layer, colon, rest = line.partition(":")
        if not colon or not _is_number(layer.strip()):
            raise ValueError(f"line {number} is not `LAYER: EXPERT EXPERT-EXPERT ...`")
        if int(layer) in found:
            raise ValueError(f"line {number} is a second one for layer {int(layer)}")
        found[int(layer)] = _experts_of(rest.replace(",", " ").split(), f"line {number}", room)
        room -= len(found[int(layer)])
    return found


def _experts_of(words: list[str], where: str, room: int) -> tuple[int, ...]:
    experts: list[int] = []
    for word in words:
        low, dash, high = word.partition("-")
        if not _is_number(low) or (dash and not _is_number(high)):
            raise ValueError(f"{where}: {word[:40]!r} is no expert's number")
        first, last = int(low), int(high) if dash else int(low)
        if last < first:
            raise ValueError(f"{where}: {word} counts down")
        if len(experts) + last + 1 - first > room:
            raise ValueError(f"{where}: there are more than {_MOST_EXPERTS:,} experts")
        experts += range(first, last + 1)
    return tuple(experts)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 6


def experts_text(experts: Mapping[int, tuple[int, ...]]) -> str:
    """The text that `parse_experts` reads, runs of numbers as ranges."""
    return "\n".join(f"{layer}: {' '.join(ranges(kept))}" for layer, kept in sorted(experts.items()))
