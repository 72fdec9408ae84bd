"""Conditions: the machine that an assertion is about, and how a model is loaded on it.

    fits(vram=24G+12G, ram=110G, ctx=32k, kv=q8_0, ub=2048, slots=2)
    tokens_per_second(bandwidth=80G, vram_bandwidth=936G, cores=16) >= 8

All of it stands in the recipe, or is a default that the documentation says, so that a recipe promises the
same on every machine. Memory counts in powers of 1024 (`24G` is 24 GiB), bandwidth in powers of 1000, and
tokens in powers of 1024, as the options of `ggplan fit` do. Several GPUs, and the types of keys and of values
where they differ, have `+` between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from ggplan.errors import TypeNameError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.text import has_unit, nearest, parse_bytes

_MOST_BYTES = 1 << 50
_LEAST_SPEED, _MOST_SPEED = 10**9, 10**14
_MOST_GPUS = 16
_TOKENS = re.compile(r"(\d{1,9})([kM]?)", re.ASCII | re.IGNORECASE)
_PIECE = re.compile(r"[ \t]*([^=,]*?)[ \t]*=[ \t]*([^,]*?)[ \t]*", re.ASCII)


class ConditionError(ValueError):
    """A condition that cannot be understood.

    Attributes
    ----------
    message, help
        What is wrong, and what to write.
    span
        Where, in characters of the text.
    """

    def __init__(self, message: str, help: str, span: tuple[int, int]) -> None:
        super().__init__(message)
        self.message, self.help, self.span = message, help, span


@dataclass(frozen=True, slots=True)
class Conditions:
    """A machine and how a model is loaded on it; None and () where nothing is said.

    Attributes
    ----------
    vram
        Bytes of each GPU.
    ram
        Bytes of RAM.
    ctx
        Tokens of context, of all slots together.
    kv
        Types of keys and of values.
    ub
        Tokens of a prompt at a time.
    slots
        Sequences at once.
    bandwidth, vram_bandwidth
        Bytes per second that are read from RAM, and of each GPU's memory as its maker states it.
    cores
        Physical cores.
    """

    vram: tuple[int, ...] = ()
    ram: int | None = None
    ctx: int | None = None
    kv: tuple[GgmlType, GgmlType] | None = None
    ub: int | None = None
    slots: int | None = None
    bandwidth: int | None = None
    vram_bandwidth: int | None = None
    cores: int | None = None

    def __str__(self) -> str:
        """The text that reads as the same conditions, spelt in one way."""
        said = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{word}={_SHOWN[word](value)}" for word, value in said if value not in (None, ()))


FITS = ("vram", "ram", "ctx", "kv", "ub", "slots")
"""Words that `fits` takes."""
SPEED = ("bandwidth", "vram_bandwidth", "cores", *FITS)
"""Words that `tokens_per_second` takes."""


def parse_conditions(text: str, words: tuple[str, ...]) -> Conditions:
    """What stands between the parentheses of a condition.

    Raises
    ------
    ConditionError
        If a word is not one of `words`, stands twice, or has a value that is none.
    """
    found = Conditions()
    seen: set[str] = set()
    at = 0
    for piece in text.split(",") if text.strip(" \t") else ():
        span = _trimmed(piece, at)
        at += len(piece) + 1
        match = _PIECE.fullmatch(piece)
        if match is None:
            raise ConditionError(
                f"`{piece.strip()[:40]}` is no condition", "write `ctx=32k`; several GPUs are `24G+12G`", span
            )
        word, value = match[1], match[2]
        if word not in words:
            known = ", ".join(f"`{w}`" for w in words)
            meant = _MEANT.get(word.lower().replace("-", "_").lstrip("_"), nearest(word, words))
            help = f"the nearest is `{meant}`" if meant in words else f"the conditions are {known}"
            raise ConditionError(f"unknown condition `{word[:40]}`", help, span)
        if word in seen:
            raise ConditionError(f"`{word}` stands twice", "keep one of them", span)
        seen.add(word)
        read = _READ[word](value)
        if read is None:
            raise ConditionError(f"`{value[:40]}` is no value of {word}", f"write `{_EXAMPLES[word]}`", span)
        found = replace(found, **{word: read})
    return found


def _trimmed(piece: str, at: int) -> tuple[int, int]:
    start = at + len(piece) - len(piece.lstrip(" \t"))
    return start, max(at + len(piece.rstrip(" \t")), start)


def _count(text: str, kilo: int) -> int | None:
    """Bytes of a text with a unit; None if it is none."""
    if re.fullmatch(r"\d{1,16}B", text, re.ASCII):
        return int(text[:-1])
    return parse_bytes(text, kilo) if has_unit(text) else None


def _bytes(text: str) -> int | None:
    n = _count(text.strip(), 1024)
    return n if n is not None and 0 < n <= _MOST_BYTES else None


def _gpus(text: str) -> tuple[int, ...] | None:
    sizes = [_bytes(part) for part in text.split("+")]
    known = tuple(n for n in sizes if n is not None)
    return known if len(known) == len(sizes) <= _MOST_GPUS else None


def _speed(text: str) -> int | None:
    n = _count(re.sub(r"/s$", "", text.strip()), 1000)
    return n if n is not None and _LEAST_SPEED <= n <= _MOST_SPEED else None


def _tokens(text: str) -> int | None:
    found = _TOKENS.fullmatch(text.strip())
    n = int(found[1]) * {"": 1, "k": 1024, "m": 1024**2}[found[2].lower()] if found else 0
    return n if 0 < n < 1 << 31 else None


def _number(most: int) -> Callable[[str], int | None]:
    def read(text: str) -> int | None:
        n = int(text) if re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII) else 0
        return n if 0 < n <= most else None

    return read


def _types(text: str) -> tuple[GgmlType, GgmlType] | None:
    names = [name.strip() for name in text.split("+")]
    try:
        types = [parse_type(name) for name in names]
    except TypeNameError:
        return None
    return (types[0], types[-1]) if len(types) <= 2 else None


_BINARY = ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"))
_DECIMAL = ((10**12, "T"), (10**9, "G"), (10**6, "M"))


def _shown_bytes(n: int) -> str:
    return _in_units(n, (*_BINARY, *((size, f"{letter}B") for size, letter in _DECIMAL), (1 << 10, "K")))


def _shown_speed(n: int) -> str:
    binary = ((size, f"{letter}iB") for size, letter in _BINARY)
    return _in_units(n, (*_DECIMAL[1:], *binary, (10**3, "K")))


def _in_units(n: int, units: Iterable[tuple[int, str]]) -> str:
    """A whole number of the first unit that has one."""
    return next((f"{n // size}{letter}" for size, letter in units if n % size == 0), f"{n}B")


def _shown_tokens(n: int) -> str:
    return f"{n // 1024}k" if n % 1024 == 0 else str(n)


def _shown_types(types: tuple[GgmlType, GgmlType]) -> str:
    return "+".join(dict.fromkeys(t.name for t in types))


_READ: dict[str, Callable[[str], Any]] = {
    "vram": _gpus, "ram": _bytes, "ctx": _tokens, "kv": _types, "ub": _number(65_536), "slots": _number(256),
    "bandwidth": _speed, "vram_bandwidth": _speed, "cores": _number(8192),
}  # fmt: skip
_SHOWN: dict[str, Callable[[Any], str]] = {
    "vram": lambda sizes: "+".join(map(_shown_bytes, sizes)), "ram": _shown_bytes, "ctx": _shown_tokens,
    "kv": _shown_types, "ub": str, "slots": str, "bandwidth": _shown_speed, "vram_bandwidth": _shown_speed,
    "cores": str,
}  # fmt: skip
_EXAMPLES = {
    "vram": "vram=24G` or `vram=24G+12G", "ram": "ram=110G", "ctx": "ctx=32k",
    "kv": "kv=q8_0` or `kv=q8_0+f16", "ub": "ub=2048", "slots": "slots=2", "bandwidth": "bandwidth=80G",
    "vram_bandwidth": "vram_bandwidth=936G", "cores": "cores=16",
}  # fmt: skip
# What the options of `ggplan fit` and of llama.cpp are called.
_MEANT = {
    "gpu": "vram", "gpus": "vram", "c": "ctx", "context": "ctx", "ctx_size": "ctx", "kv_type": "kv",
    "ctk": "kv", "ctv": "kv", "cache": "kv", "ubatch": "ub", "ubatch_size": "ub", "micro_batch": "ub",
    "np": "slots", "parallel": "slots", "threads": "cores", "t": "cores", "memory": "ram", "cpu": "ram",
}  # fmt: skip
