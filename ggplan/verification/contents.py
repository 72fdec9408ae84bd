"""One pass over a file's bytes: padding, scales, floats and checksums, in memory that does not grow.

A tensor is read in pieces of whole blocks; each piece is hashed and its scales are checked, so the disk is
read once. Padding must be zero, so that nothing is hidden in it, and a flipped bit there is found too. The
hashes are compared with those of the manifest that `ggplan convert` writes beside a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggplan.arch.pretokenizers import PRETOKENIZER_NAMES
from ggplan.conversion.listing import Hashed, Listing, whole_sha256
from ggplan.conversion.manifest import FileHashes
from ggplan.errors import CheckpointError
from ggplan.model import Model
from ggplan.quants.soundness import is_checkable, unsound_blocks
from ggplan.sources.files import file_size, read_at
from ggplan.sources.gguf_header import GgufHeader, TensorRecord, padded
from ggplan.text import nearest, printable
from ggplan.verification.faults import HEADER, Fault
from ggplan.verification.workers import Progress

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorContents:
    """The sha256 of one tensor, and its faults."""

    header: GgufHeader
    record: TensorRecord
    sha256: str
    faults: tuple[Fault, ...]


def check_tensor(header: GgufHeader, record: TensorRecord, progress: Progress | None) -> TensorContents:
    """Read a tensor and the padding after it."""
    name = header.path.name
    digest = hashlib.sha256()
    n_unsound = 0
    first = -1
    type_ = record.type
    step = max(1, _PIECE_BYTES // type_.block_bytes) * type_.block_bytes
    checked = is_checkable(type_) and type_.row_extra_bytes == 0
    try:
        for at in range(0, record.n_bytes, step):
            piece = read_at(header.path, record.offset + at, min(step, record.n_bytes - at))
            digest.update(piece)
            if checked:
                blocks = np.frombuffer(piece, np.uint8).reshape(-1, type_.block_bytes)
                unsound = unsound_blocks(blocks, type_)
                count = int(np.count_nonzero(unsound))
                if count and first < 0:
                    first = at // type_.block_bytes + int(unsound.argmax())
                n_unsound += count
            if progress is not None:
                progress(len(piece))
        padding = _padding_fault(header.path, record.offset + record.n_bytes, _end(header, record))
    except CheckpointError as error:
        return TensorContents(header, record, "", (Fault(record.name, "unreadable", error.message, name),))
    faults = []
    if n_unsound:
        what, kind = ("blocks have a scale", "scale") if type_.is_quantized else ("weights are", "value")
        per_row = max(1, record.shape[-1] // type_.block_size)
        row, within = divmod(first, per_row)
        place = f"row {row:,}, {'block' if type_.is_quantized else 'column'} {within:,}"
        not_finite = "that is not finite" if type_.is_quantized else "not finite"
        message = f"{n_unsound:,} {what} {not_finite}, the first at {place}"
        faults.append(Fault(record.name, kind, message, name))  # type: ignore[arg-type]
    if padding:
        faults.append(Fault(record.name, "padding", f"the padding after it is not zero: {padding}", name))
    return TensorContents(header, record, digest.hexdigest(), tuple(faults))


def check_around_tensors(header: GgufHeader) -> list[Fault]:
    """The faults around the tensors: in the padding of the header, and bytes after the last tensor."""
    name, size = header.path.name, file_size(header.path)
    faults = []
    if padding := _padding_fault(header.path, header.end, min(header.data_at, size)):
        faults.append(Fault(HEADER, "padding", f"the padding after the header is not zero: {padding}", name))
    last = header.tensors[-1] if header.tensors else None
    end = padded(last.offset + last.n_bytes, header.alignment) if last else header.data_at
    if size > end:
        faults.append(Fault(HEADER, "header", f"{size - end:,} bytes after the last tensor", name))
    return faults


def unknown_pretokenizer(written: Model) -> Fault | None:
    """The fault of a byte-level BPE whose pre-tokenizer llama.cpp does not know, which it does not load."""
    values = {
        key: value.decode()
        for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre")
        if (value := written.metadata.get(key)) is not None and value.item_type is None
    }
    name = values.get("tokenizer.ggml.pre")
    if values.get("tokenizer.ggml.model") != "gpt2" or name is None or name in PRETOKENIZER_NAMES:
        return None
    near = nearest(str(name), PRETOKENIZER_NAMES)
    said = f"tokenizer.ggml.pre is '{printable(str(name))}', which llama.cpp does not know"
    return Fault(HEADER, "header", said + (f"; the nearest is {near}" if near else ""), written.files[0].name)


def checksum_faults(listing: Listing, found: Hashed) -> list[Fault]:
    """The differences from the manifest: headers, tensors, tensors that only one of the two has."""
    first = found.headers[0].path.name
    shown = printable(listing.manifest.path.name)
    if not listing.tensors and not listing.files:
        others = ", ".join(list(listing.manifest.files)[:3])
        return [Fault(HEADER, "missing", f"{shown} does not list it; it lists {others}", first)]
    faults = []
    for header in found.headers:
        name = header.path.name
        stated = listing.files.get(name)
        if not _is_covered(header, stated, listing):
            what = "does not list it" if stated is None else "has a hash of its header, and none of its data"
            faults.append(Fault(HEADER, "missing", f"{shown} {what}", name))
        if stated is not None and stated.header and stated.header != found.header_hashes[name]:
            message = "the metadata or the table of tensors is not the one the manifest was made of"
            faults.append(Fault(HEADER, "checksum", message, name))
        if stated is not None and stated.whole and stated.whole != whole_sha256(header.path):
            faults.append(Fault(HEADER, "checksum", f"the file's sha256 is not the one in {shown}", name))
        if stated is not None and stated.data and stated.data != data_sha256(header):
            message = f"the sha256 of all tensors is not the one in {shown}"
            faults.append(Fault(HEADER, "checksum", message, name))
    faults += [
        Fault(name, "missing", "the manifest lists it, the file does not have it", file)
        for name, file in listing.missing
    ]
    if not listing.tensors:  # it has the hashes of whole files only
        return faults
    for header in found.headers:
        stated = listing.files.get(header.path.name)
        has_all = stated is not None and bool(stated.whole or stated.data)
        for record in header.tensors:
            listed = listing.tensors.get(record.name)
            digest = found.tensor_hashes.get(record.name)
            if listed is None and not has_all:
                message = "the manifest does not list it"
                faults.append(Fault(record.name, "missing", message, header.path.name))
            elif listed is not None and digest and listed.tensors[printable(record.name)] != digest:
                message = "its sha256 is not the manifest's"
                faults.append(Fault(record.name, "checksum", message, header.path.name))
    return faults


def _is_covered(header: GgufHeader, stated: FileHashes | None, listing: Listing) -> bool:
    """Whether a manifest has a hash of a file's data, or of tensors, which are looked at one by one."""
    if stated is not None and (stated.whole or stated.data):
        return True
    if listing.tensors:
        return True
    return stated is not None and not header.tensors


def data_sha256(header: GgufHeader) -> str:
    """The hash of the data of all tensors of a file, in their order and without padding."""
    digest = hashlib.sha256()
    for record in header.tensors:
        stop = record.offset + record.n_bytes
        for at in range(record.offset, stop, _PIECE_BYTES):
            digest.update(read_at(header.path, at, min(_PIECE_BYTES, stop - at)))
    return digest.hexdigest()


def _end(header: GgufHeader, record: TensorRecord) -> int:
    """Where the padding after a tensor ends; a file may leave out the last padding."""
    return min(padded(record.offset + record.n_bytes, header.alignment), file_size(header.path))


def _padding_fault(path: Path, start: int, stop: int) -> str:
    """The first place where padding is not zero, or ""."""
    for at in range(start, stop, _PIECE_BYTES):
        data = read_at(path, at, min(_PIECE_BYTES, stop - at))
        rest = data.lstrip(b"\0")
        if rest:
            return f"byte {at + len(data) - len(rest):,} of the file is 0x{rest[0]:02x}"
    return ""
