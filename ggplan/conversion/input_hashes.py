"""The hashes of the inputs of a plan, filled into its metadata when its file is written.

    ggplan.inputs        array of strings, `SHA-256 NAME`, in the order of the names
    ggplan.plan.sha256   the SHA-256 of the output's header without this key and `ggplan.version`

Planning does not read the inputs and only leaves room for these hashes (see `ggplan.planning.provenance`).
Small inputs are hashed whole, and so is the imatrix. For the weights only what is known without reading them
is hashed here: `tensors`, the names, shapes and types. That does not depend on how a checkpoint is cut into
files, and neither does the output. The weights themselves are hashed when they are read, into the manifest
beside the output.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.metadata import Metadata, MetadataType, array, string
from ggplan.model import Model
from ggplan.planning import Plan
from ggplan.planning.layout import encode_header
from ggplan.planning.provenance import (
    CONVERTER,
    IMATRIX,
    INPUTS,
    METADATA,
    NOT_HASHED,
    PLAN,
    TENSORS,
    VERSION,
    input_names,
)
from ggplan.sources.files import file_size, read_at, shown

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

_LAYOUT = ("general.alignment", "split.")
_PIECE = 1 << 20


def input_hashes(model: Model, imatrix: Imatrix | None, names: Iterable[str] | None = None) -> dict[str, str]:
    """The SHA-256 of each input, in hex digits, in the order of the names.

    Parameters
    ----------
    names
        Which inputs; by default all.

    Raises
    ------
    CheckpointError
        If a file can no longer be read.
    """
    wanted = input_names(model, imatrix) if names is None else names
    return {name: _input_sha256(name, model, imatrix) for name in wanted}


def with_input_hashes(plan: Plan) -> Plan:
    """The plan with the hashes of its inputs, and its own, in the metadata; unchanged if it has them.

    Neither sizes nor places change.

    Raises
    ------
    CheckpointError
        If an input can no longer be read.
    """
    if plan.metadata.get(PLAN) != string(NOT_HASHED):
        return plan
    names = recorded_inputs(plan.metadata) or {}
    lines = [f"{digest} {name}" for name, digest in input_hashes(plan.model, plan.imatrix, names).items()]
    metadata = {**plan.metadata, INPUTS: array(MetadataType.STRING, lines)}
    bare = {key: value for key, value in metadata.items() if key not in (PLAN, VERSION)}
    records = [(t.name, t.tensor.shape, t.type.id, t.offset) for t in plan.tensors]
    metadata[PLAN] = string(hashlib.sha256(encode_header(bare, records)).hexdigest())
    return dataclasses.replace(plan, metadata=metadata)


def recorded_inputs(metadata: Metadata) -> dict[str, str] | None:
    """The hashes in `ggplan.inputs` of an output, by name; None if the key is missing or damaged."""
    value = metadata.get(INPUTS)
    if value is None or value.item_type is not MetadataType.STRING:
        return None
    pairs = [str(line).partition(" ") for line in value.decode_items(value.length)]
    return {name: digest for digest, _, name in pairs}


def _input_sha256(name: str, model: Model, imatrix: Imatrix | None) -> str:
    if name == TENSORS:
        return _tensors_sha256(model)
    if name == CONVERTER and model.converter:
        return model.converter
    if name == METADATA and model.kind != "hf":
        return _metadata_sha256(model.metadata)
    if name == IMATRIX and imatrix is not None:
        return _file_sha256(imatrix.path)
    return _file_sha256(model.path / name)


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
    try:
        mtime_ns = os.stat(path).st_mtime_ns
    except OSError as error:
        raise CheckpointError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    return _sha256(path, size, mtime_ns)


@functools.lru_cache(64)
def _sha256(path: Path, size: int, _mtime_ns: int) -> str:
    """The hash of a file, cached as long as its size and time are the same."""
    digest = hashlib.sha256()
    for at in range(0, size, _PIECE):
        digest.update(read_at(path, at, min(_PIECE, size - at)))
    return digest.hexdigest()
