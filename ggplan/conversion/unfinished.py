"""The files of an unfinished conversion: journal, part files, and how much of each tensor is written.

    OUT.gguf.part           the output, at its final size; tensors are filled in any order
    OUT.gguf.part.journal   which bytes of it are certainly on the disk, and the lock
    OUT.gguf                the part file, renamed when all is done

The order of steps makes this safe against a stop at any moment. Bytes are made durable before the journal
records them. The journal is removed last, after the renames are durable, so as long as it exists there may be
work to do. The files of a set are renamed from the last to the first, because the first opens the set. If a
run finds a final file instead of a part file, and its contents agree with the journal, an earlier run was
stopped between two renames, and this one continues from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggplan.conversion.fingerprint import Fingerprint, best_revision, differences
from ggplan.conversion.journal import NO_SOURCE, Journal, Mark, Recorded, TensorKey
from ggplan.conversion.manifest import FileHashes, format_manifest
from ggplan.conversion.part_file import (
    PartFile,
    check_space,
    open_final,
    open_part,
    part_path,
    reserve,
    sync_folder,
)
from ggplan.conversion.running_hash import RunningHash
from ggplan.conversion.source_hash import (
    has_source_hash,
    importance_hash,
    new_source_hash,
)
from ggplan.errors import ConversionError
from ggplan.model import RowSource
from ggplan.planning import Plan, PlannedTensor
from ggplan.text import printable

_PIECE = 1 << 20


@dataclass(slots=True)
class UnfinishedOutput:
    """The output of a run until it is complete: its open files, and how much of each tensor they hold.

    Attributes
    ----------
    journal
        Holds the lock, and the marks where `resumable` is true; else it stays empty.
    parts
        The files of the output, in order.
    hashes
        The running hash of each tensor, with the number of bytes written.
    sources
        The same for the weights that are read, of tensors whose source is hashed.
    known_sources
        The hashes of sources that were read before: by an earlier run, or for `--reuse`.
    reused
        The rows, in an earlier output, of tensors that are copied from there.
    resumed_bytes
        Bytes of tensors that an earlier run wrote and that have the recorded hash.
    recorded
        Bytes of each tensor that the journal has recorded.
    made
        Files that a run without a journal removes if it fails.
    """

    journal: Journal
    resumable: bool
    parts: list[PartFile] = field(default_factory=list)
    hashes: dict[TensorKey, RunningHash] = field(default_factory=dict)
    sources: dict[TensorKey, RunningHash] = field(default_factory=dict)
    known_sources: dict[TensorKey, str] = field(default_factory=dict)
    reused: dict[TensorKey, RowSource] = field(default_factory=dict)
    resumed_bytes: int = 0
    recorded: dict[TensorKey, int] = field(default_factory=dict)
    made: list[Path] = field(default_factory=list)
    is_finished: bool = False

    def checkpoint(self) -> None:
        """Make the written bytes durable, then record them in the journal."""
        marks = {
            key: replace(mark, source=self.source_of(key)) if mark.n_bytes == hash_.n_bytes else mark
            for key, hash_ in self.hashes.items()
            if (mark := hash_.new_mark()) is not None
        }
        for number in sorted({number for number, _ in marks}):
            self.parts[number].sync_data()
        if self.resumable:
            self.journal.record(marks.items())
            self.recorded.update((key, mark.n_bytes) for key, mark in marks.items())

    def source_of(self, key: TensorKey) -> str:
        """The hash of the weights a tensor is encoded from; "" if it is not needed, or not known yet.

        `NO_SOURCE` for tensors that are made of more.
        """
        source = self.sources.get(key)
        if source is not None and source.complete:
            return source.mark().sha256
        return self.known_sources.get(key, "")

    @property
    def is_written(self) -> bool:
        """Whether every byte of every tensor is there."""
        return all(hash_.complete for hash_ in self.hashes.values())

    def finish(self, manifest: Path) -> None:
        """Give the files their final names; all bytes must be written. `end` follows."""
        self.checkpoint()
        for part in self.parts:
            if missing := [
                t.name for t in part.plan.tensors if not self.hashes[part.number, t.name].complete
            ]:
                raise ConversionError(f"{printable(missing[0])} was not written to its end")
            if not part.has_size_and_header():
                raise ConversionError(f"{printable(str(part.part))} was changed by another program")
            if not part.is_final:
                part.sync()
        waiting = part_path(manifest)
        self.made.append(waiting)
        _write_durably(waiting, format_manifest(self._hashes_of(part) for part in self.parts))
        manifest.unlink(missing_ok=True)
        for part in reversed(self.parts):
            if not part.is_final:
                os.replace(part.part, part.path)
                self.made.append(part.path)
        os.replace(waiting, manifest)
        sync_folder(manifest.parent)
        self.is_finished = True

    def end(self) -> None:
        """Remove the journal, when nothing else is left to be done."""
        self.journal.remove()
        self._close_parts()

    def save(self) -> int:
        """Record as much as possible; returns the bytes of tensors that a later run will find."""
        with contextlib.suppress(OSError):
            self.checkpoint()
        return sum(self.recorded.values())

    def close(self) -> None:
        """Leave everything where it is, and release the lock."""
        self._close_parts()
        self.journal.close()

    def discard(self) -> None:
        """Remove what was written, and release the lock."""
        for path in [part.part for part in self.parts] + self.made:
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._close_parts()
        with contextlib.suppress(OSError):
            self.journal.remove()

    def _hashes_of(self, part: PartFile) -> FileHashes:
        tensors = {t.name: self.hashes[part.number, t.name].mark().sha256 for t in part.plan.tensors}
        hashed = [t for t in part.plan.tensors if has_source_hash(t)]
        sources = {t.name: self.source_of((part.number, t.name)) for t in hashed}
        importances = {t.name: importance_hash(part.plan, t) for t in hashed}
        revision = best_revision(part.plan.effort)
        return FileHashes(
            part.path.name,
            hashlib.sha256(part.plan.header).hexdigest(),
            tensors,
            {t.name: source for t in hashed if (source := sources[t.name]) not in ("", NO_SOURCE)},
            {name: digest for name, digest in importances.items() if digest},
            {} if revision is None else {t.name: revision for t in hashed},
        )

    def _close_parts(self) -> None:
        for part in self.parts:
            part.close()


def check_journal(
    recorded: Recorded, now: Fingerprint, output: Path, *, resume: bool, restart: bool
) -> Recorded:
    """The records of a journal that may be used; empty if the work begins again.

    Raises
    ------
    ConversionError
        If there is work of another plan, or work that this run would not continue, and no `restart`.
    """
    if restart or recorded.plan is None:
        return Recorded()
    part = printable(str(part_path(output)))
    if found := differences(recorded.plan, now):
        raise ConversionError(
            f"{part} was begun under another plan: {printable('; '.join(found))}",
            hint="repeat the command it was begun with, or discard it with --restart",
        )
    if not resume:
        raise ConversionError(
            f"{part} is unfinished work that can be resumed",
            hint="leave out --no-resume to resume it, or discard it with --restart",
        )
    return recorded


def find_renamed(files: Sequence[tuple[Path, Plan]], recorded: Recorded) -> dict[int, PartFile]:
    """The files an earlier run had renamed when it was stopped, by their number."""
    found = {}
    for number, (path, plan) in enumerate(files):
        if recorded.plan is None or os.path.lexists(part_path(path)):
            continue
        marks = {t.name: recorded.marks.get((number, t.name), []) for t in plan.tensors}
        whole = all(t.n_bytes in (0, *(mark.n_bytes for mark in marks[t.name])) for t in plan.tensors)
        if not whole or path.is_symlink() or not path.is_file():
            continue
        part = open_final(number, path, plan)
        hashes = (kept_hash(part, t.offset, t.n_bytes, marks[t.name]) for t in plan.tensors)
        if part.has_size_and_header() and all(hash_.complete for hash_ in hashes):
            found[number] = part
        else:
            part.close()
    return found


def open_parts(
    work: UnfinishedOutput,
    files: Sequence[tuple[Path, Plan]],
    recorded: Recorded,
    renamed: Mapping[int, PartFile],
) -> None:
    """Open or create the part files, reserve their space, and write everything except the weights.

    Raises
    ------
    ConversionError
        If the disk has too little room.
    """
    new = [
        (part_path(path), plan.file_bytes)
        for number, (path, plan) in enumerate(files)
        if number not in renamed
    ]
    if new:
        check_space(new)
    for number, (path, plan) in enumerate(files):
        if number in renamed:
            work.parts.append(renamed[number])
            continue
        part = open_part(number, path, plan, keep=recorded.plan is not None)
        work.parts.append(part)
        reserve(part)
        part.write_all_but_weights()
    sync_folder(files[0][0].parent)


def check_kept(
    work: UnfinishedOutput,
    recorded: Recorded,
    n_threads: int,
    resumed: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Hash the bytes in the journal again; those with another hash will be written again."""
    jobs = [(part, tensor) for part in work.parts for tensor in part.plan.tensors]
    if not recorded.marks:
        for part, tensor in jobs:
            _take_kept(work, part, tensor, RunningHash(tensor.n_bytes), [])
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(n_threads) as pool:
        try:
            kept = {
                (part.number, t.name): pool.submit(kept_hash, part, t.offset, t.n_bytes, marks, stop)
                for part, t in jobs
                if (marks := recorded.marks.get((part.number, t.name)))
            }
            for part, tensor in jobs:
                key = part.number, tensor.name
                hash_ = kept[key].result() if key in kept else RunningHash(tensor.n_bytes)
                _take_kept(work, part, tensor, hash_, recorded.marks.get(key, []))
                if hash_.done:
                    work.resumed_bytes += hash_.done
                    resumed(hash_.done)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _take_kept(
    work: UnfinishedOutput, part: PartFile, tensor: PlannedTensor, hash_: RunningHash, marks: Sequence[Mark]
) -> None:
    """Continue a tensor behind the bytes that agree with its marks."""
    key = part.number, tensor.name
    work.hashes[key] = hash_
    whole = [m.source for m in marks if m.source and m.n_bytes == tensor.n_bytes] if hash_.complete else []
    if whole:
        work.known_sources[key] = whole[-1]
    elif has_source_hash(tensor):
        work.sources[key] = new_source_hash(tensor)


def kept_hash(
    part: PartFile, offset: int, n_bytes: int, marks: Sequence[Mark], stop: threading.Event | None = None
) -> RunningHash:
    """The hash of the part of a tensor that is in the file and agrees with the marks."""
    hash_, good, done, at = hashlib.sha256(), hashlib.sha256(), 0, 0
    for mark in sorted(marks, key=lambda mark: mark.n_bytes):
        if not at <= mark.n_bytes <= n_bytes:
            break
        while at < mark.n_bytes and not (stop is not None and stop.is_set()):
            piece = part.read(len(part.plan.header) + offset + at, min(_PIECE, mark.n_bytes - at))
            if not piece:
                break
            hash_.update(piece)
            at += len(piece)
        if at != mark.n_bytes or hash_.hexdigest() != mark.sha256:
            break
        good, done = hash_.copy(), at
    return RunningHash(n_bytes, done, good)


def remove_stale_parts(output: Path, files: Sequence[tuple[Path, Plan]]) -> None:
    """Remove part files that an earlier plan of this output left: other splits of it."""
    stem = re.escape(output.name.removesuffix(".gguf"))
    pattern = re.compile(stem + r"(-\d{5}-of-\d{5})?\.gguf\.part", re.ASCII)
    own = {part_path(path).name for path, _ in files}
    for entry in output.parent.iterdir():
        if pattern.fullmatch(entry.name) and entry.name not in own:
            entry.unlink(missing_ok=True)


def _write_durably(path: Path, text: str) -> None:
    """Write a small file and make it durable."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(text.encode("utf-8"))
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
