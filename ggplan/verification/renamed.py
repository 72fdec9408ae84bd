"""Files that were renamed since they were hashed, and files of a split set whose names do not fit.

A manifest is named after its file, and so are the files of a split set after each other. All of them may be
renamed, together or not: what belongs together is told by the hashes of headers and tensors (`listing`) and
by what the files of a set say of themselves (`find_set`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggplan.conversion.listing import (
    Hashed,
    Listing,
    beside,
    find_by_header,
    find_by_tensors,
    hashed,
    header_sha256,
    list_files,
    lists_by_name,
)
from ggplan.conversion.manifest import Manifest, manifest_path
from ggplan.errors import CheckpointError
from ggplan.model import Model
from ggplan.sources.files import listed
from ggplan.sources.gguf import find_set, open_gguf, set_names
from ggplan.sources.gguf_header import GgufHeader
from ggplan.text import printable


@dataclass(frozen=True, slots=True)
class OpenedFiles:
    """A GGUF file or split set, and the manifests that may list it.

    Attributes
    ----------
    manifests
        The given one, or those in the folder.
    own
        The manifest that was given, or that is named after the file, or lists it by its name: no other is
        meant, whatever another says of these bytes. None without one.
    notes
        That the names of a split set do not fit.
    """

    headers: Sequence[GgufHeader]
    model: Model
    hashed: Hashed
    manifests: Sequence[Manifest]
    own: Manifest | None
    notes: tuple[str, ...]


def open_files(path: Path, manifest: Manifest | None = None) -> OpenedFiles:
    """Open a file or the split set it belongs to, whatever the names of the set's files are.

    Raises
    ------
    CheckpointError
        If a file is damaged or missing, if several files may be the same part of the set, or if the manifest
        that is named after the file cannot be read.
    """
    candidates = find_set(path)
    manifests = [manifest] if manifest is not None else beside([found[0] for found in candidates])
    headers = _chosen(candidates, manifests)
    found = hashed(headers)
    own = manifest if manifest is not None else _own(manifests, found)
    notes = tuple(_names_notes(headers))
    return OpenedFiles(headers, open_gguf(path, headers), found, manifests, own, notes)


def find_listing(files: OpenedFiles, found: Hashed) -> Listing | None:
    """What a manifest says of the files, whose tensors were hashed; None without a manifest of them."""
    manifest = files.own or find_by_header(files.manifests, found) or find_by_tensors(files.manifests, found)
    return None if manifest is None else list_files(manifest, found)


def other_notes(files: OpenedFiles, found: Hashed) -> list[str]:
    """A sentence where the files are not as their own manifest has them, but as another in the folder has."""
    if files.own is None or find_by_header([files.own], files.hashed) is not None:
        return []
    other = find_by_header(files.manifests, found)
    if other is None:
        return []
    listing = list_files(other, found)
    now, was = next(((now, was.file) for now, was in listing.files.items()), ("", ""))
    if not now:
        return []
    own, name = printable(files.own.path.name), printable(other.path.name)
    return [
        f"{printable(now)} has the header of {was} in {name}: if it was renamed, rename {own} with it, and "
        "if it was copied over the file that was meant, make that again"
    ]


def _own(manifests: Sequence[Manifest], found: Hashed) -> Manifest | None:
    """The manifest that is named after the file, or else one that lists it by the name it has now."""
    named = manifest_path(found.headers[0].path)
    own = next((manifest for manifest in manifests if manifest.path == named), None)
    if own is not None:
        return own
    listing = [manifest for manifest in manifests if lists_by_name(manifest, found)]
    return find_by_header(listing, found) or next(iter(listing), None)


def listing_notes(listing: Listing) -> list[str]:
    """Sentences about other names in the manifest; one for all files."""
    shown = printable(listing.manifest.path.name)
    notes = []
    if renamed := listing.renamed:
        now, was = next(iter(renamed.items()))
        more = (
            f", and {len(renamed) - 1} more of its files have other names there" if len(renamed) > 1 else ""
        )
        notes.append(f"{printable(now)} is listed as {was} in {shown}{more}")
    if regrouped := listing.regrouped:
        files = f"{len(regrouped)} files ({listed(list(regrouped))})"
        notes.append(
            f"its tensors are listed in {shown} under {files}: it was split or merged since, so its metadata "
            "was not compared"
        )
    return notes


def _names_notes(headers: Sequence[GgufHeader]) -> list[str]:
    due = set_names(headers)
    wrong = [
        f"{printable(header.path.name)} to {printable(name)}"
        for header, name in zip(headers, due, strict=True)
        if header.path.name != name
    ]
    if not wrong:
        return []
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return [
        "llama.cpp finds the files of a split set by their names alone; to load it, rename "
        f"{', '.join(wrong[:3])}{more}"
    ]


def _chosen(candidates: list[list[GgufHeader]], manifests: Sequence[Manifest]) -> list[GgufHeader]:
    """One file for each part of the set: the only one, or those that a manifest lists together."""
    several = [found for found in candidates if len(found) > 1]
    if not several:
        return [found[0] for found in candidates]
    own = {header_sha256(found[0]) for found in candidates if len(found) == 1}
    sums = {
        f.header for m in manifests for files in m.sets() if own & {g.header for g in files} for f in files
    }
    fitting = [
        found if len(found) == 1 else [header for header in found if header_sha256(header) in sums]
        for found in candidates
    ]
    if all(len(found) == 1 for found in fitting):
        return [found[0] for found in fitting]
    names = listed([header.path.name for header in several[0]])
    raise CheckpointError(
        f"{len(several[0])} files may be the same part of the split model: {names}",
        hint="give the files of the set back the names they were made with, or put each set into a folder",
    )
