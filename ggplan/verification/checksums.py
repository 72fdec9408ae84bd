"""A file's hashes beside those of its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ggplan.conversion.manifest import Manifest, manifest_path, read_manifest
from ggplan.sources.gguf_header import GgufHeader
from ggplan.text import printable
from ggplan.verification.contents import TensorContents, header_sha256
from ggplan.verification.faults import HEADER, Fault


def find_manifest(headers: Sequence[GgufHeader], given: Path | None) -> Manifest | None:
    """The manifest that is given, or else the one that lies beside the file; None where there is none.

    Raises
    ------
    CheckpointError
        If the manifest cannot be read.
    """
    path = given or manifest_path(headers[0].path)
    return read_manifest(path) if given or path.exists() else None


def checksum_faults(
    manifest: Manifest, headers: Sequence[GgufHeader], contents: Sequence[TensorContents]
) -> list[Fault]:
    """What differs from the manifest: headers, tensors, tensors that only one of the two has."""
    faults = []
    for header in headers:
        stated = manifest.header_sha256(_label(manifest, header))
        if stated is not None and stated != header_sha256(header):
            message = "the metadata or the table of tensors is not the one the manifest was made of"
            faults.append(Fault(HEADER, "checksum", message, header.path.name))
        there = {printable(record.name) for record in header.tensors}
        faults += [
            Fault(name, "missing", "the manifest lists it, the file does not have it", header.path.name)
            for name in manifest.tensors_of(_label(manifest, header))
            if name not in there
        ]
    for found in contents:
        stated = manifest.tensor_sha256(_label(manifest, found.header), found.record.name)
        name, file = found.record.name, found.header.path.name
        if stated is None:
            faults.append(Fault(name, "missing", "the manifest does not list it", file))
        elif found.sha256 and stated != found.sha256:
            faults.append(Fault(name, "checksum", "its sha256 is not the manifest's", file))
    return faults


def _label(manifest: Manifest, header: GgufHeader) -> str:
    """What the manifest calls a file: its name, or the path it was hashed by."""
    name = header.path.name
    return (
        name if manifest.tensors_of(name) or not manifest.tensors_of(str(header.path)) else str(header.path)
    )
