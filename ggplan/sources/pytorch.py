"""PyTorch checkpoints (`pytorch_model.bin`): a zip archive of a pickle and, uncompressed, the weights.

    NAME/data.pkl       which tensors there are: type, shape, strides, and a piece of which storage
    NAME/data/0, 1, ... the storages, little-endian

The pickle is a program and is interpreted only by torch 2.10 or later with `weights_only=True`, in a separate
process (see `pytorch_listing`). The result is a list of places, which is not trusted either: a tensor must be
a run of weights within a storage, and the storage a member of the archive, from its first byte to its last.
After that weights are read by position, like those of safetensors, without torch.

Several tensors may share a storage, or be the same one (tied weights). A tensor whose weights are not stored
in the order of its rows (a transpose) is refused; no published checkpoint is known to have one.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ggplan.errors import CheckpointError
from ggplan.sources.files import read_at, shown
from ggplan.sources.tensors import DTYPE_BITS, StoredTensor
from ggplan.sources.zip_records import ZipRecord, is_zip, read_records

__all__ = ["read_tensors"]

_DTYPES = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0", "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32",
    "int64": "I64", "uint16": "U16", "uint32": "U32", "uint64": "U64", "complex64": "C64",
}  # fmt: skip
# The list of a large model's tensors has some hundred kilobytes.
_PICKLE_LIMIT = 32 << 20
_TENSOR_LIMIT = 1 << 18
_MAX_DIMENSIONS = 8
_TIMEOUT = 300
_INSTALL = "pip install 'ggplan[torch]', or use the model's safetensors"
_SAVE_AGAIN = "use the model's safetensors, or make them: load it with transformers and save_pretrained() it"


def read_tensors(paths: Sequence[Path]) -> list[dict[str, StoredTensor]]:
    """The tensors of each file, by name, in the order of their names.

    Raises
    ------
    CheckpointError
        If torch is missing or too old, a file is damaged, of the old form without an archive, or holds
        anything but tensors.
    """
    records = [_records_of(path) for path in paths]
    listed = _listed_by_torch(paths)
    return [
        _tensors_of(path, members, entries)
        for path, members, entries in zip(paths, records, listed, strict=True)
    ]


def _records_of(path: Path) -> dict[str, ZipRecord]:
    """The members of an archive, after a check of the pickle's size and the byte order."""
    where = shown(path)
    if not is_zip(path):
        raise CheckpointError(
            f"{where} is a bare pickle, as PyTorch saved them before 1.6; ggplan does not open those",
            hint=_SAVE_AGAIN,
        )
    records = read_records(path)
    pickles = [record for name, record in records.items() if name.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].n_bytes > _PICKLE_LIMIT:
        raise CheckpointError(f"{where} is not a PyTorch checkpoint: it must hold one data.pkl of sound size")
    order = records.get(pickles[0].name.removesuffix("data.pkl") + "byteorder")
    if order is not None and read_at(path, order.offset, min(order.n_bytes, 8)) != b"little":
        raise CheckpointError(f"{where} is not little-endian", hint=_SAVE_AGAIN)
    return records


def _listed_by_torch(paths: Sequence[Path]) -> list[list[object]]:
    """The answer of `pytorch_listing` for each file: entries that are not checked yet."""
    program = Path(__file__).with_name("pytorch_listing.py")
    # Not in the working folder, which may be the checkpoint's and contain a torch.py.
    command = [sys.executable, "-P", str(program), *(os.path.abspath(path) for path in paths)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TORCH_")}
    environment |= {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    many = f"{shown(paths[0])}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=os.path.abspath(os.sep),
            env=environment,
            timeout=_TIMEOUT,
            check=False,
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else {"error": "died", "text": ""}
    except (OSError, ValueError, RecursionError, subprocess.TimeoutExpired):
        answer = {"error": "died", "text": ""}
    if (
        isinstance(answer, dict)
        and isinstance(files := answer.get("files"), list)
        and len(files) == len(paths)
    ):
        if all(isinstance(entries, list) and len(entries) <= _TENSOR_LIMIT for entries in files):
            return files
        answer = {}
    raise _failure(answer if isinstance(answer, dict) else {}, many)


def _failure(answer: Mapping[str, object], where: str) -> CheckpointError:
    text = shown(answer.get("text", ""))
    match answer.get("error"):
        case "missing":
            return CheckpointError(f"{where}: reading a .bin checkpoint needs torch", hint=_INSTALL)
        case "old":
            return CheckpointError(
                f"{where}: reading a .bin checkpoint safely needs torch 2.10 or later; {text} is installed",
                hint=_INSTALL,
            )
        case "refused":
            file = shown(answer.get("file", where))
            return CheckpointError(f"{file}: torch refuses its pickle: {text}", hint=_SAVE_AGAIN)
    return CheckpointError(
        f"{where}: torch could not list its tensors within {_TIMEOUT} seconds and 2 GiB; it is damaged or "
        "malicious",
        hint=_SAVE_AGAIN,
    )


def _tensors_of(
    path: Path, records: Mapping[str, ZipRecord], entries: list[object]
) -> dict[str, StoredTensor]:
    storages = {record.offset: record for name, record in records.items() if "/data/" in name}
    tensors: dict[str, StoredTensor] = {}
    for entry in entries:
        tensor = _tensor(path, storages, entry)
        if tensor.name in tensors:
            raise CheckpointError(f"{shown(path)}: tensor '{shown(tensor.name)}' is there twice")
        tensors[tensor.name] = tensor
    return dict(sorted(tensors.items()))


def _tensor(path: Path, storages: Mapping[int, ZipRecord], entry: object) -> StoredTensor:
    if not isinstance(entry, list) or len(entry) != 7 or not isinstance(entry[0], str):
        raise CheckpointError(f"{shown(path)}: torch could not list its tensors")
    name, torch_dtype, shape, stride, first, n_storage, where_it_lies = entry
    where = f"{shown(path)}: tensor '{shown(name)}'"
    dtype = _DTYPES.get(torch_dtype) if isinstance(torch_dtype, str) else None
    if dtype is None:
        raise CheckpointError(f"{where} has the unknown dtype {shown(torch_dtype)}")
    numbers = (first, n_storage, *(shape if isinstance(shape, list) else (None,)))
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers) or len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError(f"{where} has the impossible shape {shown(shape)}")
    size = DTYPE_BITS[dtype] // 8
    n_bytes = math.prod(shape) * size
    if not n_bytes:
        return StoredTensor(name, dtype, tuple(shape), path, 0, 0)
    if not _in_order(shape, stride):
        raise CheckpointError(
            f"{where} does not lie in the order of its rows (shape {shown(shape)}, strides {shown(stride)})",
            hint=_SAVE_AGAIN,
        )
    storage = storages.get(where_it_lies) if type(where_it_lies) is int else None
    if storage is None or storage.n_bytes != n_storage:
        raise CheckpointError(f"{where} has a storage that is not a member of the archive; it is damaged")
    if first * size + n_bytes > storage.n_bytes:
        end = first * size + n_bytes
        raise CheckpointError(
            f"{where} ends at byte {end:,} of a storage of {storage.n_bytes:,}; it is damaged"
        )
    return StoredTensor(name, dtype, tuple(shape), path, storage.offset + first * size, n_bytes)


def _in_order(shape: list[int], stride: object) -> bool:
    """Whether weights are stored in the order of rows; a dimension of 1 may have any stride."""
    if not isinstance(stride, list) or len(stride) != len(shape):
        return False
    due = 1
    for extent, step in zip(reversed(shape), reversed(stride), strict=True):
        if extent != 1 and step != due:
            return False
        due *= extent
    return True
