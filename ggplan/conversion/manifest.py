"""The manifest of an output, `OUT.gguf.sha256`: one SHA-256 for each tensor.

The format is that of llama.cpp's `llama-gguf-hash`, so that its `--check` reads the file too:

    sha256    HEX  FILE:TENSOR

(b11434, `examples/gguf-hash/gguf-hash.cpp`: the hash's name padded to eight characters, then the hash of the
tensor's bytes without padding.) One more line for each file, of a kind which that program ignores, has the
hash of all bytes before the data: the metadata and the table of tensors, padding included.

    header-sha256  HEX  FILE

A split set has one manifest, named after the set: `OUT-00001-of-00003.gguf` is listed in `OUT.gguf.sha256`.
The other lines are for `--reuse` (see `reuse`): of each tensor that was encoded, the hash of the
weights, and of their importance where an imatrix was used; with best effort, the revision of the search that
found its blocks (`ggplan.quants.revisions`).

    source-rows  HEX  FILE:TENSOR
    importance  HEX  FILE:TENSOR
    best-revision  NUMBER  FILE:TENSOR

Control characters in names are escaped, so that a name is always one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ggplan.errors import CheckpointError
from ggplan.text import printable

_TENSOR, _HEADER = "sha256", "header-sha256"
_SOURCE, _IMPORTANCE, _REVISION = "source-rows", "importance", "best-revision"
_KINDS = (_TENSOR, _HEADER, _SOURCE, _IMPORTANCE)
_REVISION_LINE = re.compile(rf"{_REVISION}[ \t]+([0-9]{{1,9}})[ \t]+(.+)")
_LINE = re.compile(rf"({'|'.join(_KINDS)})[ \t]+([0-9a-fA-F]{{64}})[ \t]+(.+)")
_SPLIT_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}(\.gguf)", re.DOTALL | re.ASCII)
_SIZE_LIMIT = 64 << 20


@dataclass(frozen=True, slots=True)
class FileHashes:
    """The hashes of one file in a manifest: of its header, and of each tensor by name (hex digits).

    `sources` and `importances` have hashes for tensors that were encoded, `revisions` the revision of the
    search for those that were encoded with best effort.
    """

    file: str
    header: str
    tensors: Mapping[str, str]
    sources: Mapping[str, str] = field(default_factory=dict)
    importances: Mapping[str, str] = field(default_factory=dict)
    revisions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that was read; look-ups take the names in a GGUF file."""

    path: Path
    tensor_lines: Mapping[str, str]
    header_lines: Mapping[str, str]
    making_lines: Mapping[str, Mapping[str, str]]
    revision_lines: Mapping[str, int]

    def tensor_sha256(self, file: str, tensor: str) -> str | None:
        """The hash of a tensor's bytes; None where the manifest does not list it."""
        return self.tensor_lines.get(_label(file, tensor))

    def header_sha256(self, file: str) -> str | None:
        """The hash of all bytes before the data; None where no line gives it (llama-gguf-hash has none)."""
        return self.header_lines.get(printable(file))

    def source_hash(self, file: str, tensor: str) -> str | None:
        """The hash of the weights a tensor was encoded from; None where it was not recorded."""
        return self.making_lines[_SOURCE].get(_label(file, tensor))

    def importance_hash(self, file: str, tensor: str) -> str | None:
        """The hash of the importance a tensor was encoded with; None where there was none."""
        return self.making_lines[_IMPORTANCE].get(_label(file, tensor))

    def best_revision(self, file: str, tensor: str) -> int | None:
        """The revision of the search that found a tensor's blocks; None with default effort."""
        return self.revision_lines.get(_label(file, tensor))

    def tensors_of(self, file: str) -> tuple[str, ...]:
        """The names (escaped) of all tensors that are listed for a file."""
        start = printable(file) + ":"
        return tuple(label.removeprefix(start) for label in self.tensor_lines if label.startswith(start))


def manifest_path(output: Path) -> Path:
    """Where the manifest of a GGUF file lies; all files of a split set share one."""
    named = _SPLIT_NAME.fullmatch(output.name)
    return output.with_name((named[1] + named[2] if named else output.name) + ".sha256")


def format_manifest(files: Iterable[FileHashes]) -> str:
    """The text of a manifest."""
    lines = []
    for hashes in files:
        for name, digest in hashes.tensors.items():
            lines.append(f"{_TENSOR:<8}  {digest}  {_label(hashes.file, name)}")
        lines.append(f"{_HEADER}  {hashes.header}  {printable(hashes.file)}")
        for kind, digests in ((_SOURCE, hashes.sources), (_IMPORTANCE, hashes.importances)):
            lines += [f"{kind}  {digest}  {_label(hashes.file, name)}" for name, digest in digests.items()]
        for name, revision in hashes.revisions.items():
            lines.append(f"{_REVISION}  {revision}  {_label(hashes.file, name)}")
    return "".join(line + "\n" for line in lines)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; lines of unknown kinds are ignored, as llama-gguf-hash does.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or has no SHA-256 in it.
    """
    shown = printable(str(path))
    try:
        if not path.is_file():
            raise CheckpointError(f"there is no manifest {shown}")
        if (size := path.stat().st_size) > _SIZE_LIMIT:
            raise CheckpointError(f"{shown} is not a manifest: it has {size:,} bytes")
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise CheckpointError(f"cannot read {shown}: {error.strerror or error}") from error
    lines: dict[str, dict[str, str]] = {kind: {} for kind in _KINDS}
    revisions: dict[str, int] = {}
    for line in (line.rstrip("\r") for line in text.split("\n")):
        if found := _LINE.fullmatch(line):
            lines[found[1]][found[3]] = found[2].lower()
        elif found := _REVISION_LINE.fullmatch(line):
            revisions[found[2]] = int(found[1])
    if not lines[_TENSOR] and not lines[_HEADER]:
        raise CheckpointError(f"{shown} is not a manifest: no line gives a SHA-256 of a tensor")
    making = {kind: lines[kind] for kind in (_SOURCE, _IMPORTANCE)}
    return Manifest(path, lines[_TENSOR], lines[_HEADER], making, revisions)


def _label(file: str, tensor: str) -> str:
    return f"{printable(file)}:{printable(tensor)}"
