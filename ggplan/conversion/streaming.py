"""convert: write the GGUF of a plan without losing work when it is stopped.

The plan knows every tensor's place, so each thread takes the next chunk, reads its rows, encodes them and
writes the bytes at their final offset; the bytes do not depend on how many threads there are, on the size of
chunks, or on where an earlier run was stopped.

The file gets its final name when it is complete (see `ggplan.conversion.unfinished`). A conversion that must
fail is refused before anything is written. One that fails later keeps its work if the same command could
finish it, and removes everything if it could not.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.conversion.chunks import chunks_of
from ggplan.conversion.correction import (
    check_correctable,
    correct_plan,
    is_corrected,
    kept_layers,
    layers_folder,
    remove_layers,
    take_corrected,
)
from ggplan.conversion.fingerprint import fingerprint
from ggplan.conversion.finiteness import check_early
from ggplan.conversion.guides import Guides
from ggplan.conversion.input_hashes import with_input_hashes
from ggplan.conversion.inputs import InputState, changed_input, input_states
from ggplan.conversion.journal import open_journal
from ggplan.conversion.manifest import manifest_path
from ggplan.conversion.pace import Pace, choose_pace, default_memory, keep_freed_memory
from ggplan.conversion.part_file import part_path
from ggplan.conversion.preflight import check_absent, check_convertible, check_readable, check_target
from ggplan.conversion.unfinished import (
    UnfinishedOutput,
    check_journal,
    check_kept,
    find_renamed,
    open_parts,
    remove_stale_parts,
)
from ggplan.conversion.warming import warming
from ggplan.conversion.workers import Task, run
from ggplan.errors import CalibrationError, CheckpointError, ConversionError, Error
from ggplan.model import Model
from ggplan.planning import Plan
from ggplan.planning.splits import set_path, split_path, split_plan
from ggplan.sources.remote import PARALLEL_READS, is_remote
from ggplan.text import format_bytes, printable

if TYPE_CHECKING:
    from ggplan.conversion.reuse import Reuse

CHECKPOINT_BYTES = 256 << 20
"""Bytes written between two checkpoints, at which they are made durable and recorded. For a small output it
is a sixteenth of it, but at least 16 MiB."""
CHECKPOINT_SECONDS = 5.0
"""The most seconds between two checkpoints, since slow encoders write few bytes in that time."""

Progress = Callable[[int], None]
"""Called with a number of bytes, from any thread, one call at a time."""


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """A finished conversion.

    Attributes
    ----------
    path
        The output; of a split set the first file.
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
        With `reuse`, the tensors that were copied, and why the others were not.
    uncorrected
        Of a plan that is corrected, the quantized tensors of its layers that were not, and why.
    notes
        What else is to be said of its correction.
    """

    path: Path
    paths: tuple[Path, ...]
    manifest: Path
    n_bytes: int
    n_weights: int
    resumed_bytes: int
    seconds: float
    reuse: Reuse | None = None
    uncorrected: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to write a plan; the bytes of the tensors depend on none of these.

    Attributes
    ----------
    threads
        Threads that read, encode and write; by default one for each CPU this process may use, and 16 or more
        where weights come over the network.
    memory
        Bytes that chunks, moments and what correction needs may take, besides the interpreter and its
        libraries, and with a calibration one Hessian for each thread; if it is small, fewer threads run. By
        default 1 GiB, with a calibration 8 GiB.
    allow_requantize
        Encode tensors that are quantized in the source to another quantized type.
    force
        Replace files that exist, once the new ones are complete.
    resume
        Keep a journal, and continue unfinished work; without it, the work of a run that fails is removed.
    restart
        Discard unfinished work, of this plan or another.
    split_max_bytes, split_max_tensors, split_like
        Write a split set: with at most this many bytes of tensors in a file, at most this many tensors, or
        with the tensors of each file as in another model. At most one of the three.
    reuse
        An earlier output of ggplan, by any of its files. Tensors in it that would be encoded to the same
        bytes are copied from it, after this has been proven.
    """

    threads: int | None = None
    memory: int | None = None
    allow_requantize: bool = False
    force: bool = False
    resume: bool = True
    restart: bool = False
    split_max_bytes: int | None = None
    split_max_tensors: int | None = None
    split_like: Model | None = None
    reuse: str | Path | None = None


_DEFAULTS = ConvertOptions()
_FULL = (errno.ENOSPC, errno.EDQUOT)


def convert(
    plan: Plan,
    path: str | Path,
    options: ConvertOptions = _DEFAULTS,
    *,
    progress: Progress | None = None,
    resumed: Progress | None = None,
) -> ConversionResult:
    """Write the file a plan describes, or the set of files.

    If it is stopped at any moment, by a signal, a full disk or a power cut, the same call continues there and
    gives the same bytes. Until then `path` does not exist, or is the old file. A `KeyboardInterrupt` waits
    for the chunks that are being encoded and is raised again.

    Parameters
    ----------
    path
        The GGUF to write; it appears when it is complete. Beside it appears its manifest, `PATH.sha256`;
        while it is written, `PATH.part` and `PATH.part.journal`. A split set is called
        `PATH-00001-of-00003.gguf` and so on, after `path` without its `.gguf`.
    progress
        Called for every piece of data written.
    resumed
        Called for the bytes of every tensor that an earlier run wrote, before anything is written.

    Raises
    ------
    PlanError
        If the plan cannot be carried out: no weights, a type ggplan cannot write, requantizing, a row that
        does not fit into `memory`, a split that is not possible.
    ConversionError
        If the target cannot be written, another run is writing it, work of another plan is in the way, or a
        weight is not finite.
    CheckpointError
        If the source cannot be read, or changes during the conversion.
    """
    started = time.monotonic()
    if not isinstance(plan, Plan):
        raise TypeError(f"{printable(repr(plan))[:80]} is not a plan; ggplan.make_plan makes one")
    path = Path(path)
    if not path.name or path.is_dir():
        raise ConversionError(
            f"{printable(str(path))} is a folder", hint="give the name of the file to write"
        )
    check_convertible(plan, allow_requantize=options.allow_requantize)
    plan = with_input_hashes(plan)
    pace = pace_of(plan, options)
    max_bytes, max_tensors = options.split_max_bytes, options.split_max_tensors
    plans = split_plan(plan, max_bytes=max_bytes, max_tensors=max_tensors, like=options.split_like)
    is_set = max_bytes is not None or max_tensors is not None or len(plans) > 1
    output = set_path(path) if is_set else path
    paths = tuple(split_path(path, k, len(plans)) for k in range(len(plans))) if is_set else (path,)
    files = tuple(zip(paths, plans, strict=True))
    reuse = None
    if options.reuse is not None:
        from ggplan.conversion.reuse import find_reusable, open_earlier

        reuse = find_reusable(plan, open_earlier(options.reuse))
    try:
        with warming(plan):
            n_resumed, reused, uncorrected, notes = _write(
                plan, output, files, pace, options, reuse, progress or _ignore, resumed or _ignore
            )
    except OSError as error:
        reason, layers = error.strerror or str(error), str(layers_folder(output))
        where = layers if error.filename == layers else str(output)
        room = "make room, or write to another disk" if error.errno in _FULL else ""
        hint = _notes(error) or room
        raise ConversionError(f"cannot write {printable(where)}: {reason}", hint=hint) from error
    n_bytes = sum(part.file_bytes for part in plans)
    seconds = time.monotonic() - started
    return ConversionResult(
        paths[0], paths, manifest_path(output), n_bytes, plan.n_weights, n_resumed, seconds, reused,
        uncorrected, notes,
    )  # fmt: skip


def pace_of(plan: Plan, options: ConvertOptions) -> Pace:
    """The threads and the sizes that a plan is written with.

    Raises
    ------
    PlanError
        If the memory is not enough for one thread.
    """
    return choose_pace(plan, threads_of(plan, options), _memory_of(plan, options))


def _memory_of(plan: Plan, options: ConvertOptions) -> int:
    return default_memory(plan) if options.memory is None else options.memory


def guides_of(plan: Plan, pace: Pace) -> Guides | None:
    """The moments of a plan with a calibration, within what its pace allows."""
    return None if plan.feedback is None else Guides(plan.feedback, pace.n_threads, pace.moments)


def available_cpus() -> int:
    """The number of CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of(plan: Plan, options: ConvertOptions) -> int:
    """The threads that are asked for.

    By default one for each CPU, and where weights come over the network enough to wait for many ranges.
    """
    if options.threads:
        return options.threads
    over_network = any(is_remote(path) for path in plan.model.files)
    return max(available_cpus(), PARALLEL_READS) if over_network else available_cpus()


def _write(
    plan: Plan,
    output: Path,
    files: Sequence[tuple[Path, Plan]],
    pace: Pace,
    options: ConvertOptions,
    reuse: Reuse | None,
    progress: Progress,
    resumed: Progress,
) -> tuple[int, Reuse | None, Mapping[str, str], tuple[str, ...]]:
    """Carry out the plan; returns the bytes that an earlier run had written, and facts of the result."""
    manifest = manifest_path(output)
    journal_path = output.with_name(output.name + ".part.journal")
    paths = [path for path, _ in files]
    sidecars = [*map(part_path, paths), journal_path, manifest, part_path(manifest)]
    check_target(plan, paths, sidecars)
    if not options.force and not os.path.lexists(journal_path):
        check_absent(paths)
    if is_corrected(plan):
        check_correctable(plan, output)
    states = input_states(plan)
    check_early(plan)
    check_readable(plan)
    now = fingerprint(plan, files, states)
    journal = open_journal(journal_path)
    try:
        recorded = check_journal(journal.read(), now, output, resume=options.resume, restart=options.restart)
        renamed = find_renamed(files, recorded)
        if not options.force:
            check_absent([path for number, path in enumerate(paths) if number not in renamed])
    except BaseException:
        journal.close()
        raise
    work = UnfinishedOutput(journal, options.resume)
    try:
        if recorded.plan is None:
            remove_stale_parts(output, files)
            remove_layers(output)
            if options.resume:
                journal.begin(now)
        work.recorded = {key: max(mark.n_bytes for mark in marks) for key, marks in recorded.marks.items()}
        open_parts(work, files, recorded, renamed)
        check_kept(work, recorded, pace.n_threads, resumed, threading.Event())
        work.recorded = {key: hash_.done for key, hash_ in work.hashes.items() if hash_.done}
        if reuse is not None:
            reuse = _take_proven(work, reuse, pace)
        counted = 0
        uncorrected: Mapping[str, str] = {}
        notes: tuple[str, ...] = ()
        if is_corrected(plan) and not work.is_written:
            corrected = correct_plan(
                plan,
                layers_folder(output),
                threads=threads_of(plan, options),
                memory=_memory_of(plan, options),
                restart=options.restart,
                progress=progress,
            )
            counted, uncorrected = take_corrected(work, corrected), corrected.left
            notes = corrected.notes
        _run(work, guides_of(plan, pace), pace, progress, counted)
        _refuse_changed(states)
        work.finish(manifest)
        remove_layers(output)
        work.end()
    except BaseException as error:
        _keep_or_discard(work, error, output, plan.tensor_bytes, states)
        raise
    return work.resumed_bytes, reuse, uncorrected, notes


def _take_proven(work: UnfinishedOutput, reuse: Reuse, pace: Pace) -> Reuse:
    """Prove which tensors may be reused, of those not begun, and mark them to be copied."""
    from ggplan.conversion.reuse import prove_reusable

    keys = {t.name: (part.number, t.name) for part in work.parts for t in part.plan.tensors}
    wanted = [name for name in reuse.tensors if work.hashes[keys[name]].done == 0]
    proven = prove_reusable(reuse, wanted, pace.n_threads, pace.chunk_weights, threading.Event())
    for name, found in proven.tensors.items():
        key = keys[name]
        work.reused[key] = found.stored
        work.hashes[key].expected = found.sha256
        work.known_sources[key] = found.source
        work.sources.pop(key, None)
    return proven


def _run(work: UnfinishedOutput, guides: Guides | None, pace: Pace, progress: Progress, counted: int) -> None:
    """Encode and write all bytes that are missing; `counted` of them were told when they were made."""
    n_bytes = sum(part.plan.file_bytes for part in work.parts)
    step = min(CHECKPOINT_BYTES, max(16 << 20, n_bytes // 16))
    unsynced = 0
    due = time.monotonic() + CHECKPOINT_SECONDS

    def written(n_bytes: int) -> None:
        nonlocal unsynced, counted
        unsynced += n_bytes
        known = min(counted, n_bytes)
        counted -= known
        progress(n_bytes - known)

    def tick() -> None:
        nonlocal unsynced, due
        if work.resumable and unsynced and (unsynced >= step or time.monotonic() >= due):
            unsynced = 0
            work.checkpoint()
            due = time.monotonic() + CHECKPOINT_SECONDS

    keep_freed_memory(pace)
    run(
        _tasks(work, guides, pace.chunk_weights),
        n_threads=pace.n_threads,
        n_in_flight=pace.n_in_flight,
        written=written,
        tick=tick,
    )


def _tasks(work: UnfinishedOutput, guides: Guides | None, chunk_weights: int) -> Iterator[Task]:
    """The chunks that an earlier run did not finish, in the order of the files."""
    for part in work.parts:
        keys = [(part.number, t.name) for t in part.plan.tensors]
        if all(work.hashes[key].complete and key not in work.sources for key in keys):
            continue
        for chunk in chunks_of(part.plan, chunk_weights, guides):
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


def _keep_or_discard(
    work: UnfinishedOutput, error: BaseException, output: Path, n_bytes: int, states: dict[Path, InputState]
) -> None:
    """Keep the work if the same command could continue it, else remove it; the error says which."""
    if work.is_finished:
        error.add_note(f"{printable(str(output))} is complete")
        return
    # Interrupted, full disk, no memory: yes. Bad weights: they stay bad. Inputs: if they are still the same.
    is_lasting = isinstance(error, Error) and not isinstance(error, CheckpointError | CalibrationError)
    is_other_input = isinstance(error, CheckpointError) and changed_input(states) is not None
    kept = 0 if not work.resumable or is_lasting or is_other_input else work.save()
    if is_lasting or is_other_input or not work.resumable:
        remove_layers(output)
    n_layers = kept_layers(output)
    if kept == 0 and n_layers == 0:
        remove_layers(output)
        work.discard()
        return
    work.close()
    where, what = part_path(output), f"{format_bytes(kept)} of {format_bytes(n_bytes)} are"
    if kept == 0:
        where, what = (
            layers_folder(output),
            f"{n_layers:,} corrected layer{'s are' if n_layers > 1 else ' is'}",
        )
    note = f"{what} kept in {printable(str(where))}; the same command continues from there"
    error.add_note(note)
    if isinstance(error, Error):
        error.hint = f"{error.hint}; {note}" if error.hint else note


def _notes(error: BaseException) -> str:
    return "; ".join(getattr(error, "__notes__", []))


def _ignore(n_bytes: int) -> None:
    """The progress function of a call without one."""
