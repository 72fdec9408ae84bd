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
    is_given
        Whether the manifest was given, or is named after the file, so that no other is meant.
    notes
        That the names of a split set do not fit.
    """

    headers: Sequence[GgufHeader]
    model: Model
    hashed: Hashed
    manifests: Sequence[Manifest]
    is_given: bool
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
    named = manifest_path(headers[0].path)
    return OpenedFiles(
        headers,
        open_gguf(path, headers),
        hashed(headers),
        manifests,
        manifest is not None or any(found.path == named for found in manifests),
        tuple(_names_notes(headers)),
    )


def find_listing(files: OpenedFiles, found: Hashed) -> Listing | None:
    """What a manifest says of the files, whose tensors were hashed; None without a manifest of them."""
    manifest = find_by_header(files.manifests, found)
    if manifest is None and files.is_given:
        manifest = files.manifests[0]
    if manifest is None:
        manifest = find_by_tensors(files.manifests, found)
    return None if manifest is None else list_files(manifest, found)


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
