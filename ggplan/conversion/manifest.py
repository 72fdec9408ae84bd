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

The hash of all bytes of a file, as other programs print it, is read too (see `foreign_lists`). So is
llama-gguf-hash's line for a whole file, `sha256  HEX  FILE`: the hash of the data of all its tensors, in
their order.

Control characters in names are escaped, so that a name is always one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from ggplan.conversion.foreign_lists import HINT, whole_file_hashes
from ggplan.errors import CheckpointError
from ggplan.sources.files import read_whole
from ggplan.text import decode_text, printable

_TENSOR, _HEADER = "sha256", "header-sha256"
_SOURCE, _IMPORTANCE, _REVISION = "source-rows", "importance", "best-revision"
_KINDS = (_TENSOR, _HEADER, _SOURCE, _IMPORTANCE)
_REVISION_LINE = rf"{_REVISION}[ \t]+([0-9]{{1,9}})[ \t]+(.+)"
_LINE = rf"({'|'.join(_KINDS)})[ \t]+([0-9a-fA-F]{{64}})[ \t]+(.+)"
_WHOLE = "file"
_SPLIT_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}(\.gguf)", re.DOTALL | re.ASCII)
_SIZE_LIMIT = 64 << 20
_COLONS = 64  # that a label is tried at: a line of nothing else would take the square of its length


@dataclass(frozen=True, slots=True)
class FileHashes:
    """The hashes of one file in a manifest: of its header, and of each tensor by name (hex digits).

    `sources` and `importances` have hashes for tensors that were encoded, `revisions` the revision of the
    search for those that were encoded with best effort. Other programs give `data`, the hash of the data of
    all tensors in their order, without padding, and `whole`, that of all bytes of the file; "" if none did.
    """

    file: str
    header: str
    tensors: Mapping[str, str]
    sources: Mapping[str, str] = field(default_factory=dict)
    importances: Mapping[str, str] = field(default_factory=dict)
    revisions: Mapping[str, int] = field(default_factory=dict)
    data: str = ""
    whole: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that was read: what it lists of each file, by the name (escaped) that it gives the file."""

    path: Path
    files: Mapping[str, FileHashes]

    def sets(self) -> list[list[FileHashes]]:
        """The files, those of a split set together."""
        found: dict[tuple[str, ...], list[FileHashes]] = {}
        for name, listed in self.files.items():
            named = _SPLIT_NAME.fullmatch(name)
            found.setdefault((named[1], named[2]) if named else (name,), []).append(listed)
        return list(found.values())


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
        text = decode_text(read_whole(path, _SIZE_LIMIT))
    except OSError as error:
        raise CheckpointError(f"cannot read {shown}: {error.strerror or error}") from error
    found: dict[str, dict[str, dict[str, str]]] = {kind: {} for kind in (*_KINDS, _REVISION, _WHOLE)}
    lines = [line.rstrip("\r") for line in text.split("\n")]
    own = [_parsed(line) for line in lines]
    parsed = [line for line in own if line is not None]
    headers = {label for kind, _, label in parsed if kind == _HEADER}
    for file, digest in whole_file_hashes(
        [line for line, said in zip(lines, own, strict=True) if said is None], path.stem
    ):
        found[_WHOLE].setdefault(file, {})[""] = digest
    for kind, value, label in parsed:
        file, tensor = _split_label(label, headers) if kind != _HEADER else (label, "")
        found[kind].setdefault(file, {})[tensor] = value
    if not (found[_TENSOR] or found[_HEADER] or found[_WHOLE]):
        raise CheckpointError(
            f"{shown} is not a manifest: no line gives a SHA-256 of a tensor or a file", hint=HINT
        )
    files = {}
    for file in dict.fromkeys(name for kind in (_TENSOR, _HEADER, _WHOLE) for name in found[kind]):
        of = {kind: dict(listed.get(file, {})) for kind, listed in found.items()}
        data = of[_TENSOR].pop("", "")
        header, whole = of[_HEADER].get("", ""), of[_WHOLE].get("", "")
        revisions = {name: int(number) for name, number in of[_REVISION].items()}
        files[file] = FileHashes(
            file, header, of[_TENSOR], of[_SOURCE], of[_IMPORTANCE], revisions, data, whole
        )
    return Manifest(path, files)


def _parsed(line: str) -> tuple[str, str, str] | None:
    """The kind of a line, its hash (or number) and its label; None for a line of an unknown kind."""
    if found := re.fullmatch(_LINE, line):
        return found[1], found[2].lower(), found[3]
    if found := re.fullmatch(_REVISION_LINE, line):
        return _REVISION, found[1], found[2]
    return None


def _split_label(label: str, files: Set[str]) -> tuple[str, str]:
    """The file and the tensor of a label; of a label without a tensor "".

    Both may contain colons. Files that have a line of their own are known; others end in `.gguf`.
    """
    at = label.find(":")
    for _ in range(_COLONS):
        if at < 0:
            break
        if label[:at] in files:
            return label[:at], label[at + 1 :]
        at = label.find(":", at + 1)
    file, suffix, tensor = label.partition(".gguf:")
    if suffix:
        return file + ".gguf", tensor
    if label.endswith(".gguf"):
        return label, ""
    file, _, tensor = label.rpartition(":")
    return file or tensor, tensor if file else ""


def _label(file: str, tensor: str) -> str:
    return f"{printable(file)}:{printable(tensor)}"
