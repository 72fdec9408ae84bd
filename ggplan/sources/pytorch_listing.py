"""A separate program: list the tensors of PyTorch checkpoints as JSON, without their weights.

    python -P pytorch_listing.py FILE...

A pickle is a program. torch (2.10 or later) interprets it with `weights_only=True`, which lets it build
tensors and plain containers and nothing else. It runs here, in a process with little memory and time and
whose answer is not trusted, so that a pickle which breaks its interpreter affects only this process. No
module of ggplan is imported. With `map_location="meta"` the weights are not read; torch keeps the place of
each storage in the file.

It prints one JSON object: `{"files": [[entry, ...], ...]}` with entries `[name, dtype, shape, stride, first
weight in the storage, bytes of the storage, where it lies]`, or `{"error": kind, "text": what}`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
from typing import Any

_MEMORY = 2 << 30  # besides torch's own memory
_SECONDS = 60
_OLDEST = (2, 10)


def main() -> None:
    """List the files that are named on the command line."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        _answer(error="missing", text=str(error))
        return
    version = re.match(r"(\d+)\.(\d+)", str(torch.__version__))
    if version is None or (int(version[1]), int(version[2])) < _OLDEST:
        _answer(error="old", text=str(torch.__version__))
        return
    _limit_resources()
    files = []
    for path in sys.argv[1:]:
        try:
            loaded = torch.load(path, map_location="meta", weights_only=True)
            files.append([_entry(torch, name, value) for name, value in _items(loaded)])
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            _answer(error="refused", text=first[:300], file=path)
            return
    _answer(files=files)


def _items(loaded: object) -> list[tuple[str, Any]]:
    if not isinstance(loaded, dict):
        raise TypeError(f"it holds a {type(loaded).__name__}, not tensors by name")
    if not all(type(name) is str for name in loaded):
        raise TypeError("it holds tensors whose names are not strings")
    return list(loaded.items())


def _entry(torch: Any, name: str, value: Any) -> list[object]:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name!r:.200} is not a tensor but a {type(value).__name__}")
    if value.layout is not torch.strided or value.is_quantized or value.dim() > 8:
        raise TypeError(f"{name!r:.200} is a sparse, quantized or otherwise special tensor")
    storage = value.untyped_storage()
    where = storage._checkpoint_offset
    dtype = str(value.dtype).removeprefix("torch.")
    shape = [int(extent) for extent in value.shape]
    stride = [int(step) for step in value.stride()]
    return [name, dtype, shape, stride, int(value.storage_offset()), int(storage.nbytes()), where]


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:
        return
    used = 0
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    seconds = int(sum(os.times()[:2])) + _SECONDS
    limits = [(resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)]
    if used:
        limits.append((resource.RLIMIT_AS, used + _MEMORY))
    for kind, value in limits:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))


def _answer(**answer: object) -> None:
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
