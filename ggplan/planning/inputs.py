"""What a plan was made of, as it is recorded in the output: a hash for each input, and one for the plan.

    ggplan.inputs        array of strings, `SHA-256 NAME`, in the order of the names
    ggplan.plan.sha256   the SHA-256 of the output's header without this key and `ggplan.version`

Inputs are hashed whole where they are small, and the imatrix too. Of the weights stands here what can be
known without reading them all: `tensors`, the hash of their names, shapes and types. It does not depend on
how a checkpoint is cut into files, and neither does the output. The weights themselves are hashed when they
are read, into the manifest beside the output.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.metadata import Metadata, MetadataType, array, string
from ggplan.model import Model
from ggplan.planning.layout import TensorRecord, encode_header
from ggplan.sources.files import file_size, read_at

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

INPUTS, PLAN, VERSION = "ggplan.inputs", "ggplan.plan.sha256", "ggplan.version"
TENSORS, METADATA, IMATRIX = "tensors", "metadata", "imatrix"

_SETTINGS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_LAYOUT = ("general.alignment", "split.")
_PIECE = 1 << 20


def input_hashes(model: Model, imatrix: Imatrix | None) -> dict[str, str]:
    """The SHA-256 of each input, in hex digits.

    Raises
    ------
    CheckpointError
        If a file cannot be read any more.
    """
    hashes = {TENSORS: _tensors_sha256(model)}
    if model.kind == "hf":
        files = {name: model.path / name for name in _SETTINGS}
        hashes |= {name: _file_sha256(path) for name, path in files.items() if path.is_file()}
    else:
        hashes[METADATA] = _metadata_sha256(model.metadata)
    if imatrix is not None:
        hashes[IMATRIX] = _file_sha256(imatrix.path)
    return dict(sorted(hashes.items()))


def with_provenance(
    metadata: Metadata, model: Model, imatrix: Imatrix | None, tensors: list[TensorRecord]
) -> Metadata:
    """`metadata` with the hashes of the inputs and of the plan; an inventory has neither."""
    if model.kind == "inventory":
        return metadata
    lines = [f"{digest} {name}" for name, digest in input_hashes(model, imatrix).items()]
    metadata = {**metadata, INPUTS: array(MetadataType.STRING, lines)}
    bare = {key: value for key, value in metadata.items() if key != VERSION}
    metadata[PLAN] = string(hashlib.sha256(encode_header(bare, tensors)).hexdigest())
    return metadata


def recorded_inputs(metadata: Metadata) -> dict[str, str] | None:
    """What `ggplan.inputs` of an output says, by name; None where the key is missing or damaged."""
    value = metadata.get(INPUTS)
    if value is None or value.item_type is not MetadataType.STRING:
        return None
    pairs = [str(line).partition(" ") for line in value.decode_items(value.length)]
    return {name: digest for digest, _, name in pairs}


def _tensors_sha256(model: Model) -> str:
    lines = sorted(f"{t.name}\t{'x'.join(map(str, t.shape))}\t{t.stored_as}\n" for t in model.tensors)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _metadata_sha256(metadata: Metadata) -> str:
    digest = hashlib.sha256()
    for key, value in metadata.items():
        if not key.startswith(_LAYOUT):
            digest.update(f"{key}\n".encode("utf-8", "surrogatepass"))
            digest.update(value.encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    size = file_size(path)
    return _sha256(path, size, os.stat(path).st_mtime_ns)


@functools.lru_cache(64)
def _sha256(path: Path, size: int, _mtime_ns: int) -> str:
    """The hash of a file; asked again for the same file as it was, it is not read again."""
    digest = hashlib.sha256()
    for at in range(0, size, _PIECE):
        digest.update(read_at(path, at, min(_PIECE, size - at)))
    return digest.hexdigest()
