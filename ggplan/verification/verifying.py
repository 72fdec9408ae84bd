"""verify: is this file complete and undamaged, and does it agree with its manifest?

Four questions, each answered for every tensor in one pass over the file:

    structure    the header by the strict reader's rules, padding zero, nothing after the last tensor
    soundness    every block scale finite, every float finite
    checksums    sha256 as in the manifest that `ggplan convert` writes beside the file
    source       with a checkpoint: how far the weights are from it; on request, whether the bytes are
                 exactly what the plan encodes

A split set is verified as one. Files may have been renamed (see `renamed`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.conversion.listing import Listing
from ggplan.conversion.manifest import manifest_path, read_manifest
from ggplan.errors import CheckpointError
from ggplan.folding import FOLD
from ggplan.model import Model
from ggplan.sources.files import file_size, shown
from ggplan.verification.contents import (
    TensorContents,
    check_around_tensors,
    check_tensor,
    checksum_faults,
    unknown_pretokenizer,
)
from ggplan.verification.exactness import prove, refuse_folded, reshaped_as
from ggplan.verification.faults import HEADER, Fault
from ggplan.verification.renamed import find_listing, listing_notes, open_files, other_notes
from ggplan.verification.source_errors import TensorError, compare_with_source
from ggplan.verification.workers import Progress, each

if TYPE_CHECKING:
    from ggplan.planning import Plan


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of verifying a file.

    Attributes
    ----------
    files
        The file, or those of its split set.
    n_tensors, n_bytes
        The number of tensors and bytes that were read.
    manifest
        The manifest that the checksums were compared with, or None.
    faults
        All faults, in the order of the file; empty for a sound file.
    notes
        What is no fault: that a file is listed under another name, or that llama.cpp needs other names.
    listing
        The listed file that each file is; None without a manifest.
    errors
        Against a checkpoint: each tensor's error, worst first; else empty.
    not_compared
        Against a checkpoint: tensors of types that ggplan does not decode.
    proven
        Whether the bytes were compared with those the plan encodes (and are equal if there is no fault).
    """

    files: tuple[Path, ...]
    n_tensors: int
    n_bytes: int
    manifest: Path | None
    faults: tuple[Fault, ...]
    errors: tuple[TensorError, ...] = ()
    not_compared: tuple[str, ...] = ()
    proven: bool = False
    notes: tuple[str, ...] = ()
    listing: Listing | None = field(default=None, repr=False)

    @property
    def is_sound(self) -> bool:
        """Whether there is no fault."""
        return not self.faults


def verify(
    path: str | Path,
    *,
    against: Model | None = None,
    plan: Plan | None = None,
    manifest: str | Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Verify a GGUF file, or the split set it belongs to.

    Parameters
    ----------
    against
        The checkpoint it was made from: each tensor's error is measured.
    plan
        The plan it was made by, from `plan_again`: every byte is compared with the bytes this plan encodes.
    manifest
        Checksums of the tensors; by default those that `convert` wrote beside the file, if they exist, or a
        manifest in the same folder that lists this file under another name.
    threads
        Threads that read; by default one for each CPU this process may use.
    progress
        Called with the number of bytes of each piece of data that was checked.

    Raises
    ------
    CheckpointError
        If the file or the manifest cannot be opened; damage inside the file is a fault, not an error.
    """
    path = Path(path)
    file_size(path)
    given = None if manifest is None else read_manifest(Path(manifest))
    if given is None and manifest_path(path).exists():
        read_manifest(manifest_path(path))  # what is wrong with it is no fault of the file
    try:
        files = open_files(path, given)
    except CheckpointError as error:
        fault = Fault(
            HEADER, "header", error.message.removeprefix(f"{shown(path)}: "), path.name, hint=error.hint
        )
        return Verification((path,), 0, 0, None, (fault,))
    headers, written = files.headers, files.model
    unknown = unknown_pretokenizer(written)
    faults = [unknown] if unknown is not None else []
    faults += [fault for header in headers for fault in check_around_tensors(header)]
    work = ((header, record) for header in headers for record in header.tensors)
    contents: list[TensorContents] = []
    for found in each(work, lambda pair: check_tensor(*pair, progress), threads):
        faults += found.faults
        contents.append(found)
    hashes = {found.record.name: found.sha256 for found in contents if found.sha256}
    found_hashes = dataclasses.replace(files.hashed, tensor_hashes=hashes)
    listing = find_listing(files, found_hashes)
    if listing is not None:
        faults += checksum_faults(listing, found_hashes)
    errors: tuple[TensorError, ...] = ()
    skipped: tuple[str, ...] = ()
    if against is not None:
        against, _ = reshaped_as(written, against)
        if plan is not None and FOLD in plan.model.reshaped:
            against = plan.model  # its scales were folded again
        refuse_folded(written, against)
        measured, more, unread = compare_with_source(written, against, threads, progress)
        errors, skipped = tuple(measured), tuple(unread)
        faults += more
    if plan is not None:
        faults += prove(written, plan, threads, progress)
    return Verification(
        files=tuple(header.path for header in headers),
        n_tensors=len(contents),
        n_bytes=sum(found.record.n_bytes for found in contents),
        manifest=None if listing is None else listing.manifest.path,
        faults=tuple(faults),
        errors=errors,
        not_compared=skipped,
        proven=plan is not None,
        notes=(
            *files.notes,
            *(listing_notes(listing) if listing is not None else ()),
            *other_notes(files, found_hashes),
        ),
        listing=listing,
    )
