"""convert: write the GGUF of a plan, so that no work is lost.

The plan knows every tensor's place, so each thread takes the next chunk, reads its rows, encodes them and
writes the bytes at their final offset; the bytes do not depend on how many threads there are, on the size of
chunks, or on where an earlier run was stopped.

Nothing appears under the final name until the file is whole (see `ggplan.conversion.workspace`). What can be
known to fail is refused before anything is written. What fails later leaves its work behind if the same
command could finish it, and nothing at all if it could not.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggplan.conversion.chunks import chunks_of
from ggplan.conversion.fingerprint import fingerprint
from ggplan.conversion.finiteness import check_early
from ggplan.conversion.input_hashes import with_input_hashes
from ggplan.conversion.inputs import InputState, changed_input, input_states
from ggplan.conversion.journal import open_journal
from ggplan.conversion.manifest import manifest_path
from ggplan.conversion.pace import DEFAULT_MEMORY, Pace, choose_pace, keep_freed_memory
from ggplan.conversion.part_file import part_path
from ggplan.conversion.preflight import check_absent, check_convertible, check_readable, check_target
from ggplan.conversion.reuse import Reuse, find_reusable, open_earlier, prove_reusable
from ggplan.conversion.warming import warming
from ggplan.conversion.workers import Task, run
from ggplan.conversion.workspace import (
    Workspace,
    check_journal,
    check_kept,
    find_renamed,
    open_parts,
    remove_stale_parts,
)
from ggplan.errors import CheckpointError, ConversionError, Error
from ggplan.model import Model
from ggplan.planning import Plan
from ggplan.planning.splits import set_path, split_path, split_plan
from ggplan.text import format_bytes, printable

CHECKPOINT_BYTES = 256 << 20
"""How much is written between two moments at which it is made durable and recorded. A sixteenth of a small
output, but no less than 16 MiB, is less."""
CHECKPOINT_SECONDS = 5.0
"""How much time passes between them at the most; slow encoders write little in it, but it is as dear."""

Progress = Callable[[int], None]
"""Called with a number of bytes, from any thread, one call at a time."""


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """A finished conversion.

    Attributes
    ----------
    path
        The output; of a split set the first file, which opens it.
    paths
        All files of the output.
    manifest
        The file with the SHA-256 of each tensor, in llama-gguf-hash's format.
    n_bytes, n_weights
        Of all files together.
    resumed_bytes
        Bytes of tensors that an earlier run had written.
    seconds
        How long this run took.
    reuse
        With `reuse`, what was copied from there, and why the rest was not.
    """

    path: Path
    paths: tuple[Path, ...]
    manifest: Path
    n_bytes: int
    n_weights: int
    resumed_bytes: int
    seconds: float
    reuse: Reuse | None = None


def convert(
    plan: Plan,
    path: str | Path,
    *,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    allow_requantize: bool = False,
    force: bool = False,
    resume: bool = True,
    restart: bool = False,
    split_max_bytes: int | None = None,
    split_max_tensors: int | None = None,
    split_like: Model | None = None,
    reuse: str | Path | None = None,
    progress: Progress | None = None,
    resumed: Progress | None = None,
) -> ConversionResult:
    """Write the file a plan describes, or the set of files.

    Stopped at any moment, by a signal, a full disk or a power cut, the same call goes on where it stopped
    and ends in the same bytes. Until then `path` is not there, or is the old file. A `KeyboardInterrupt`
    waits for the chunks at work and passes through.

    Parameters
    ----------
    path
        The GGUF to write; it appears when it is complete. Beside it appears its manifest, `PATH.sha256`;
        while it is written, `PATH.part` and `PATH.part.journal`. A split set is called
        `PATH-00001-of-00003.gguf` and so on, after `path` without its `.gguf`.
    threads
        Threads that read, encode and write; by default one for each CPU this process may use.
        The bytes do not depend on it.
    memory
        Bytes that chunks may take, besides the interpreter and its libraries; fewer threads run where
        it is little. The bytes do not depend on it.
    allow_requantize
        Encode tensors that are quantized in the source to another quantized type.
    force
        Replace files that exist, once the new ones are complete.
    resume
        Keep a journal, and go on with work that was begun; else the work of a run that fails is removed.
    restart
        Throw away work that was begun, of this plan or another.
    split_max_bytes, split_max_tensors, split_like
        Write a split set: with at most so many bytes of tensors in a file, so many tensors, or with the
        tensors of each file as another model has them. One of the three at most.
    reuse
        An earlier output of ggplan, by any of its files. Tensors it has that would be encoded to the same
        bytes are copied from it, once that is proven; the output does not depend on it.
    progress
        Told of every piece of data written.
    resumed
        Told of every tensor's bytes that an earlier run wrote, before anything is written.

    Raises
    ------
    PlanError
        If the plan cannot be carried out: no weights, a type ggplan cannot write, requantizing, a row that
        does not fit into `memory`, a split that is not possible.
    ConversionError
        If the target cannot be written, another run is writing it, work of another plan is in the way, or a
        weight is not finite.
    CheckpointError
        If the source cannot be read, or changes meanwhile.
    """
    started = time.monotonic()
    path = Path(path)
    if not path.name or path.is_dir():
        raise ConversionError(
            f"{printable(str(path))} is a folder", hint="give the name of the file to write"
        )
    check_convertible(plan, allow_requantize=allow_requantize)
    plan = with_input_hashes(plan)
    pace = choose_pace(plan, threads or available_cpus(), memory)
    plans = split_plan(plan, max_bytes=split_max_bytes, max_tensors=split_max_tensors, like=split_like)
    is_set = split_max_bytes is not None or split_max_tensors is not None or len(plans) > 1
    output = set_path(path) if is_set else path
    paths = tuple(split_path(path, k, len(plans)) for k in range(len(plans))) if is_set else (path,)
    files = tuple(zip(paths, plans, strict=True))
    found = None if reuse is None else find_reusable(plan, open_earlier(reuse))
    try:
        with warming(plan):
            n_resumed, reused = _write(
                plan, output, files, pace, force, resume, restart, found, progress, resumed
            )
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConversionError(
            f"cannot write {printable(str(output))}: {reason}", hint=_notes(error)
        ) from error
    n_bytes = sum(part.file_bytes for part in plans)
    seconds = time.monotonic() - started
    return ConversionResult(
        paths[0], paths, manifest_path(output), n_bytes, plan.n_weights, n_resumed, seconds, reused
    )


def available_cpus() -> int:
    """The number of CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write(
    plan: Plan,
    output: Path,
    files: Sequence[tuple[Path, Plan]],
    pace: Pace,
    force: bool,
    resume: bool,
    restart: bool,
    reuse: Reuse | None,
    progress: Progress | None,
    resumed: Progress | None,
) -> tuple[int, Reuse | None]:
    """Carry out the plan; returns the bytes that an earlier run had written, and what was reused."""
    manifest = manifest_path(output)
    journal_path = output.with_name(output.name + ".part.journal")
    paths = [path for path, _ in files]
    sidecars = [*map(part_path, paths), journal_path, manifest, part_path(manifest)]
    check_target(plan, paths, sidecars)
    if not force and not os.path.lexists(journal_path):
        check_absent(paths)
    states = input_states(plan)
    check_early(plan)
    check_readable(plan)
    now = fingerprint(plan, files, states)
    journal = open_journal(journal_path)
    try:
        recorded = check_journal(journal.read(), now, output, resume=resume, restart=restart)
        renamed = find_renamed(files, recorded)
        if not force:
            check_absent([path for number, path in enumerate(paths) if number not in renamed])
    except BaseException:
        journal.close()
        raise
    work = Workspace(journal, resume)
    try:
        if recorded.plan is None:
            remove_stale_parts(output, files)
            if resume:
                journal.begin(now)
        work.recorded = {key: max(mark.n_bytes for mark in marks) for key, marks in recorded.marks.items()}
        open_parts(work, files, recorded, renamed)
        check_kept(work, recorded, pace.n_threads, resumed or _ignore, threading.Event())
        work.recorded = {key: hash_.done for key, hash_ in work.hashes.items() if hash_.done}
        if reuse is not None:
            reuse = _take_proven(work, reuse, pace)
        _run(work, pace, progress or _ignore)
        _refuse_changed(states)
        work.finish(manifest)
    except BaseException as error:
        _settle(work, error, output, plan.tensor_bytes, states)
        raise
    return work.resumed_bytes, reuse


def _take_proven(work: Workspace, reuse: Reuse, pace: Pace) -> Reuse:
    """Prove what may be reused of that which is not begun, and have it copied."""
    keys = {t.name: (part.number, t.name) for part in work.parts for t in part.plan.tensors}
    wanted = [name for name in reuse.tensors if work.hashes[keys[name]].done == 0]
    proven = prove_reusable(reuse, wanted, pace.n_threads, pace.chunk_weights, threading.Event())
    for name, found in proven.tensors.items():
        key = keys[name]
        work.reused[key] = found.read_bytes
        work.hashes[key].expected = found.sha256
        work.known_sources[key] = found.source
        work.sources.pop(key, None)
    return proven


def _run(work: Workspace, pace: Pace, progress: Progress) -> None:
    """Encode and write all that is not there."""
    n_bytes = sum(part.plan.file_bytes for part in work.parts)
    step = min(CHECKPOINT_BYTES, max(16 << 20, n_bytes // 16))
    unsynced = 0
    due = time.monotonic() + CHECKPOINT_SECONDS

    def written(n_bytes: int) -> None:
        nonlocal unsynced
        unsynced += n_bytes
        progress(n_bytes)

    def tick() -> None:
        nonlocal unsynced, due
        if work.resumable and unsynced and (unsynced >= step or time.monotonic() >= due):
            unsynced = 0
            work.checkpoint()
            due = time.monotonic() + CHECKPOINT_SECONDS

    keep_freed_memory(pace)
    run(
        _tasks(work, pace.chunk_weights),
        n_threads=pace.n_threads,
        n_in_flight=pace.n_in_flight,
        written=written,
        tick=tick,
    )


def _tasks(work: Workspace, chunk_weights: int) -> Iterator[Task]:
    """The chunks that are not kept, in the order of the files."""
    for part in work.parts:
        keys = [(part.number, t.name) for t in part.plan.tensors]
        if all(work.hashes[key].complete and key not in work.sources for key in keys):
            continue
        for chunk in chunks_of(part.plan, chunk_weights):
            key = part.number, chunk.planned.name
            if key in work.reused:
                chunk = replace(chunk, reused=work.reused[key])
            task = Task(chunk, part, work.hashes[key], work.sources.get(key))
            if task.stop > task.hash.done or task.source is not None:
                yield task


def _refuse_changed(states: dict[Path, InputState]) -> None:
    if (changed := changed_input(states)) is not None:
        raise CheckpointError(
            f"{printable(str(changed))} changed while it was being read",
            hint="convert again when its download or copy is complete",
        )


def _settle(
    work: Workspace, error: BaseException, output: Path, n_bytes: int, states: dict[Path, InputState]
) -> None:
    """Keep the work if the same command could go on with it, else remove it; the error tells which."""
    if work.is_finished:
        error.add_note(f"{printable(str(output))} is complete")
        return
    # Interrupted, full disk, no memory: yes. Bad weights: they stay bad. Inputs: if they are still the same.
    is_lasting = isinstance(error, Error) and not isinstance(error, CheckpointError)
    is_other_input = isinstance(error, CheckpointError) and changed_input(states) is not None
    kept = 0 if not work.resumable or is_lasting or is_other_input else work.save()
    if kept == 0:
        work.discard()
        return
    work.close()
    note = (
        f"{format_bytes(kept)} of {format_bytes(n_bytes)} are kept in {printable(str(part_path(output)))}; "
        "the same command goes on from there"
    )
    error.add_note(note)
    if isinstance(error, Error):
        error.hint = f"{error.hint}; {note}" if error.hint else note


def _notes(error: BaseException) -> str:
    return "; ".join(getattr(error, "__notes__", []))


def _ignore(n_bytes: int) -> None:
    """Nobody wants to know."""
