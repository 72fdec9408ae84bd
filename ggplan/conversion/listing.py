"""Which files of a manifest are these? A file is known by its hashes, so it may have another name by now.

The files of a manifest are taken set by set (a file that is not split is a set of its own). The set that a
GGUF file or split set was listed as is the one with, in this order,

    the name of a file that it has too       what is listed by this name is what was meant
    the hash of a header that it has too     types, shapes and metadata are the same
    the most bytes of tensors with the same hash
    the most tensors of the same name

Within it a tensor is found by its name. A file whose tensors are those of one listed file is that file,
under whatever name. Where they are those of several, or a listed file's tensors are in several, the set was
split or merged since: then headers cannot be compared, but tensors can.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggplan.conversion.manifest import FileHashes, Manifest, manifest_path, read_manifest
from ggplan.errors import CheckpointError
from ggplan.sources.files import file_size, read_at
from ggplan.sources.gguf_header import GgufHeader
from ggplan.text import printable

_PIECE = 1 << 20
_MOST = 0.9


@dataclass(frozen=True, slots=True)
class Hashed:
    """A GGUF file or split set and its hashes (hex digits).

    Attributes
    ----------
    headers
        Its files.
    header_hashes
        Of all bytes before the data, by the name of the file.
    tensor_hashes
        By the name of the tensor; those that were not read are missing.
    """

    headers: Sequence[GgufHeader]
    header_hashes: Mapping[str, str]
    tensor_hashes: Mapping[str, str] = field(default_factory=dict)

    def sizes(self) -> dict[str, int]:
        """The bytes of each tensor, by its name."""
        return {record.name: record.n_bytes for header in self.headers for record in header.tensors}


@dataclass(frozen=True, slots=True)
class Listing:
    """What a manifest says of a GGUF file or split set.

    Attributes
    ----------
    files
        The listed file that each file is, by its name now; without those that were split or merged since.
    tensors
        The listed file that has each tensor, by the tensor's name; without those that are not listed.
    missing
        Tensors that are listed and not there, each with the name of the file that should have it.
    """

    manifest: Manifest
    files: Mapping[str, FileHashes]
    tensors: Mapping[str, FileHashes]
    missing: tuple[tuple[str, str], ...]

    @property
    def renamed(self) -> dict[str, str]:
        """The listed names of files that have another name now."""
        return {now: was.file for now, was in self.files.items() if base_name(was.file) != printable(now)}

    @property
    def regrouped(self) -> tuple[str, ...]:
        """The listed files that were split or merged since."""
        paired = {listed.file for listed in self.files.values()}
        return tuple(dict.fromkeys(f.file for f in self.tensors.values() if f.file not in paired))


def hashed(headers: Sequence[GgufHeader]) -> Hashed:
    """Hash the headers, and no tensors yet."""
    return Hashed(headers, {header.path.name: header_sha256(header) for header in headers})


def header_sha256(header: GgufHeader) -> str:
    """The hash of all bytes before the data, padding included."""
    return _sha256_of(header.path, 0, min(header.data_at, file_size(header.path)))


def whole_sha256(path: Path) -> str:
    """The hash of all bytes of a file."""
    return _sha256_of(path, 0, file_size(path))


def base_name(listed: str) -> str:
    """The name of a listed file without the folder that it was hashed in, on any system."""
    return listed.replace("\\", "/").rpartition("/")[2]


def list_files(manifest: Manifest, found: Hashed) -> Listing:
    """Find out as which files of a manifest a file or split set is listed."""
    sizes = found.sizes()
    open_names = {printable(name): name for name in sizes}
    sets = manifest.sets()
    by_likeness = _by_likeness(sets, found)
    if not by_likeness and len(sets) == 1 and not any(listed.tensors for listed in sets[0]):
        by_likeness = sets  # the hash of a whole file: nothing else can be meant
    taken: list[FileHashes] = []
    tensors: dict[str, FileHashes] = {}
    for files in by_likeness:
        # A further set is taken only as a whole: with other models, names are the same by chance.
        if taken and not all(listed.tensors.keys() <= open_names.keys() for listed in files):
            continue
        taken += files
        for listed in files:
            for name in listed.tensors.keys() & open_names.keys():
                tensors[open_names.pop(name)] = listed
        if not open_names:
            break
    paired = _paired(taken, found, tensors)
    there = {listed.file: now for now, listed in paired.items()}
    present = {printable(name) for name in sizes}
    missing = [
        (name, there.get(listed.file, found.headers[0].path.name))
        for listed in taken
        for name in listed.tensors
        if name not in present
    ]
    return Listing(manifest, paired, tensors, tuple(missing))


def beside(headers: Sequence[GgufHeader]) -> list[Manifest]:
    """The manifests in the folder of a file or split set, the one that is named after it first.

    Raises
    ------
    CheckpointError
        If the one that is named after it cannot be read. Others that cannot are no manifests.
    """
    own = manifest_path(headers[0].path)
    found = [read_manifest(own)] if own.exists() else []
    for path in sorted(own.parent.glob("*.sha256")):
        if path != own:
            try:
                found.append(read_manifest(path))
            except CheckpointError:
                continue
    return found


def find_by_header(manifests: Sequence[Manifest], found: Hashed) -> Manifest | None:
    """The manifest that lists the header of a file, whatever the name.

    Two models may have one header: fine-tunes of one size. Of several manifests that list it, it is the one
    with the most bytes of tensors of the same hash, and of two alike one whose files are not there any more.
    """
    known = _with_header(manifests, found)
    if len(known) < 2:
        return known[0] if known else None
    sizes = found.sizes()

    def likeness(manifest: Manifest) -> tuple[int, bool]:
        listing = list_files(manifest, found)
        files = {f.file: f for f in [*listing.tensors.values(), *listing.files.values()]}
        return _agreeing(list(files.values()), found, sizes), _is_gone(manifest, files)

    return max(known, key=likeness)  # the first of equals


def tell_apart(manifests: Sequence[Manifest], found: Hashed) -> Hashed:
    """The same with the hashes of as many tensors as tell which of several models with one header it is.

    The smallest are read first. One that was damaged is like no model's, and the next is read.
    """
    hashes = set(found.header_hashes.values())
    models = [files for m in manifests for files in m.sets() if any(f.header in hashes for f in files)]
    stated = [{name: digest for f in files for name, digest in f.tensors.items()} for files in models]
    if len(stated) < 2:
        return found
    digests: dict[str, str] = {}
    records = [(record, header.path) for header in found.headers for record in header.tensors]
    for record, path in sorted(records, key=lambda pair: pair[0].n_bytes):
        name = printable(record.name)
        if len({said.get(name, "") for said in stated}) < 2:
            continue
        try:
            digest = _sha256_of(path, record.offset, record.offset + record.n_bytes)
        except CheckpointError:
            continue
        digests[record.name] = digest
        if any(said.get(name) == digest for said in stated):
            break
    return replace(found, tensor_hashes={**digests, **found.tensor_hashes})


def find_by_tensors(manifests: Sequence[Manifest], found: Hashed) -> Manifest | None:
    """The manifest that lists tensors of these names and hashes, but for a tenth of the bytes at most.

    Quantizations of one model have many tensors in common. So one is not taken that lists files which are
    still there under their names.
    """
    sizes = found.sizes()
    best, most = None, _MOST * sum(sizes.values())
    for manifest in manifests:
        listing = list_files(manifest, found)
        listed = {f.file: f for f in listing.tensors.values()}
        agreeing = _agreeing(list(listed.values()), found, sizes)
        if (
            _is_gone(manifest, listed)
            and len(listing.tensors) == len(sizes)
            and not listing.missing
            and agreeing > most
        ):
            best, most = manifest, float(agreeing)
    return best


def _with_header(manifests: Sequence[Manifest], found: Hashed) -> list[Manifest]:
    hashes = set(found.header_hashes.values())
    return [m for m in manifests if any(f.header in hashes for f in m.files.values())]


def _is_gone(manifest: Manifest, names: Iterable[str]) -> bool:
    """Whether none of these listed files is there under its name."""
    return not any((manifest.path.parent / base_name(name)).exists() for name in names)


def lists_by_name(manifest: Manifest, found: Hashed) -> bool:
    """Whether a manifest lists one of the files by the name that it has now."""
    own = _own_names(found)
    return any(name in own or base_name(name) in own for name in manifest.files)


def _own_names(found: Hashed) -> set[str]:
    return {printable(name) for name in found.header_hashes} | {str(h.path) for h in found.headers}


def _by_likeness(sets: Sequence[list[FileHashes]], found: Hashed) -> list[list[FileHashes]]:
    """The listed sets that are like the files in any way, those that are most like them first."""
    hashes, own, sizes = set(found.header_hashes.values()), _own_names(found), found.sizes()
    names = {printable(name) for name in sizes}
    digests = {printable(name): (digest, sizes[name]) for name, digest in found.tensor_hashes.items()}

    def likeness(files: Sequence[FileHashes]) -> tuple[int, int, int, int]:
        shared = [(listed, name) for listed in files for name in listed.tensors if name in names]
        return (
            sum(listed.file in own or base_name(listed.file) in own for listed in files),
            sum(listed.header in hashes for listed in files),
            sum(
                digests[name][1]
                for listed, name in shared
                if name in digests and listed.tensors[name] == digests[name][0]
            ),
            len(shared),
        )

    scored = [(likeness(files), files) for files in sets]
    scored.sort(key=lambda pair: pair[0], reverse=True)
    return [files for score, files in scored if any(score)]


def _agreeing(files: Sequence[FileHashes], found: Hashed, sizes: Mapping[str, int]) -> int:
    """The bytes of tensors with a listed hash."""
    stated = {name: digest for listed in files for name, digest in listed.tensors.items()}
    return sum(
        size
        for name, size in sizes.items()
        if name in found.tensor_hashes and stated.get(printable(name)) == found.tensor_hashes[name]
    )


def _paired(
    taken: Sequence[FileHashes], found: Hashed, tensors: Mapping[str, FileHashes]
) -> dict[str, FileHashes]:
    """The listed file that each file is: it has the tensors of no other, and no other has its tensors."""
    lists: dict[str, set[str]] = {
        header.path.name: {tensors[r.name].file for r in header.tensors if r.name in tensors}
        for header in found.headers
    }
    holders: dict[str, set[str]] = {}
    for now, names in lists.items():
        for name in names:
            holders.setdefault(name, set()).add(now)
    by_name = {listed.file: listed for listed in taken}
    pairs = {
        now: by_name[next(iter(names))]
        for now, names in lists.items()
        if len(names) == 1 and holders[next(iter(names))] == {now}
    }
    # Files without a tensor that is listed: the same header, or else the same name, or else the one left.
    for header in found.headers:
        now = header.path.name
        left = [f for f in taken if f.file not in holders and f not in pairs.values()]
        if lists[now] or not left:
            continue
        same = [f for f in left if f.header == found.header_hashes[now]]
        same += [f for f in left if base_name(f.file) == printable(now)]
        if same or (len(left) == 1 and sum(not lists[h.path.name] for h in found.headers) == 1):
            pairs[now] = (same or left)[0]
    return pairs


def _sha256_of(path: Path, start: int, stop: int) -> str:
    digest = hashlib.sha256()
    for at in range(start, stop, _PIECE):
        digest.update(read_at(path, at, min(_PIECE, stop - at)))
    return digest.hexdigest()
