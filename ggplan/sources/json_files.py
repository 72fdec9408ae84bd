"""JSON that is not trusted: config.json, tokenizer.json, shard indexes, safetensors headers.

Python's parser is made stricter (an object may not repeat a key; NaN is not a value; a lone surrogate is not
a text, since it could never be written again) and gets limits: of bytes, of the number of values and of
depth. Infinity is allowed: configs of Mamba-like models have it as a limit of time steps.
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
        If the file cannot be read, is larger than `SIZE_LIMIT`, or is not a valid JSON object.
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
        raise CheckpointError(f"{where} is not valid JSON: it is nested too deeply") from error
    except UnicodeError as error:
        raise CheckpointError(f"{where} is not valid JSON: its text is not UTF-8") from error
    except ValueError as error:
        raise CheckpointError(f"{where} is not valid JSON: {shown(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{shown(repeated)}' occurs twice in one object")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is not a JSON value")
    return float(name)
