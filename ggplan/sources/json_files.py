"""JSON that is not trusted: config.json, tokenizer.json, shard indexes, safetensors headers.

Python's parser is made strict where it is lax (an object may not repeat a key; NaN is no value; a lone
surrogate is no text, since it could never be written again) and bounded where it is not: the bytes, the
number of values and the depth. Infinity stays: configs of Mamba-like models hold it as a limit of time steps.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ggplan.errors import CheckpointError
from ggplan.sources.files import read_whole, shown

# The largest tokenizer.json of today has 35 MB, and a few million values.
SIZE_LIMIT = 256 << 20
_VALUE_LIMIT = 1 << 24
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def load_object(path: Path) -> dict[str, object]:
    """The JSON object that is the whole of a file.

    Raises
    ------
    CheckpointError
        If the file cannot be read, is larger than `SIZE_LIMIT`, or is not a sound JSON object.
    """
    return parse_object(read_whole(path, SIZE_LIMIT), shown(path))


def parse_object(data: bytes, where: str) -> dict[str, object]:
    """Parse a JSON object; `where` names it in errors."""
    # Each value but the first of an object or array follows a comma: an upper bound before any object exists.
    if data.count(b",") + data.count(b"{") + data.count(b"[") > _VALUE_LIMIT:
        raise CheckpointError(f"{where} holds more than {_VALUE_LIMIT:,} JSON values")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise CheckpointError(f"{where} is no sound JSON: it is nested too deeply") from error
    except UnicodeError as error:
        raise CheckpointError(f"{where} is no sound JSON: its text is not UTF-8") from error
    except ValueError as error:
        raise CheckpointError(f"{where} is no sound JSON: {shown(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is no JSON object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{shown(repeated)}' stands twice in one object")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no JSON value")
    return float(name)
