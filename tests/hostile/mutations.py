"""Ways to break a file: a bit here, a length there, a value of the wrong kind, a piece too much."""

from __future__ import annotations

import copy
import json
import random
import struct

# Numbers at which sizes, offsets and counts overflow, wrap or become negative.
NUMBERS = (
    *(0, 1, 2, 3, 7, 31, 33, 63, 127, 255, 256, 1 << 15, (1 << 16) - 1, 1 << 20, (1 << 31) - 1, 1 << 31),
    *((1 << 32) - 1, 1 << 32, (1 << 40) + 1, 1 << 62, (1 << 63) - 1, 1 << 63),
    *((1 << 64) - 256, (1 << 64) - 32, (1 << 64) - 1),
)
VALUES: tuple[object, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 1.5, 1e308, -0.0, 1 << 31, 1 << 62, 1 << 64, 10**400),
    *("", "x", "\x1b[2J", "F32", "BF16", "F8_E4M3", "I64", "\u202e", "../x", "é" * 200),
    *([], {}, [[]], [0], [0, 0], [1 << 63, 2], [-1, 4], [0, 1 << 62], {"a": 1}, [None]),
    *("LlamaForCausalLM", "DeepseekV3ForCausalLM", ["MixtralForCausalLM"]),
)


def mutate_bytes(data: bytes, dice: random.Random, head: int) -> bytes:
    """One to four changes, most of them in the first `head` bytes."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        if not out:
            break
        at = dice.randrange(min(head, len(out))) if dice.random() < 0.9 else dice.randrange(len(out))
        kind = dice.randrange(8)
        if kind <= 1:
            out[at] ^= 1 << dice.randrange(8)
        elif kind == 2:
            out[at] = dice.randrange(256)
        elif kind == 3:
            out[at : at + 8] = struct.pack("<Q", dice.choice(NUMBERS))
        elif kind == 4:
            out[at : at + 4] = struct.pack("<I", dice.choice(NUMBERS) & 0xFFFFFFFF)
        elif kind == 5:
            del out[at : at + dice.choice((1, 4, 8, 32, 1000))]
        elif kind == 6:
            start = dice.randrange(len(out))
            out[at:at] = out[start : start + dice.choice((1, 8, 24, 64))]
        else:
            del out[dice.randrange(len(out)) if dice.random() < 0.5 else at :]
    return bytes(out)


def mutate_json(text: bytes, dice: random.Random) -> bytes:
    """An object of which one to three values, keys or members are others."""
    document = json.loads(text)
    for _ in range(dice.choice((1, 1, 2, 3))):
        _change(document, dice)
    return json.dumps(document).encode()


def mutate_safetensors(data: bytes, dice: random.Random) -> bytes:
    """Half of the time the bytes, else the header's JSON, with its length made to fit."""
    length = int.from_bytes(data[:8], "little")
    if dice.random() < 0.5:
        return mutate_bytes(data, dice, length + 64)
    header = mutate_json(data[8 : 8 + length], dice)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _value(dice: random.Random) -> object:
    """A value of its own: the next change may be made inside it."""
    return copy.deepcopy(dice.choice(VALUES))


def _change(document: object, dice: random.Random) -> None:
    """Walk down to some container and change something in it."""
    at = document
    while True:
        if isinstance(at, dict) and at:
            key: object = dice.choice(list(at))
        elif isinstance(at, list) and at:
            key = dice.randrange(len(at))
        else:
            return
        below = at[key]  # type: ignore[index]
        if isinstance(below, dict | list) and below and dice.random() < 0.8:
            at = below
            continue
        kind = dice.randrange(4)
        if kind <= 1:
            at[key] = _value(dice)  # type: ignore[index]
        elif kind == 2:
            del at[key]  # type: ignore[attr-defined]
        elif isinstance(at, dict):
            at[dice.choice(("", "x\x07", "a" * 300, str(key) + "0"))] = at.pop(key)
        else:
            at.append(_value(dice))
        return
