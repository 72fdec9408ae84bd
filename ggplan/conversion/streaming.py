"""convert: write the GGUF of a plan.

The plan knows every tensor's place, so each thread takes the next chunk, reads its rows, encodes them and
writes the bytes at their final offset with pwrite; no thread waits for another, and the bytes do not
depend on how many there are. The kernels and the file system calls release the GIL.

Nothing appears under the final name until the file is whole: the output is written as `NAME.part`, synced,
and renamed. After a failure neither stays.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ggplan.conversion.chunks import Chunk, chunks_of
from ggplan.conversion.encoding import encode_chunk
from ggplan.conversion.finiteness import check_early
from ggplan.conversion.preflight import check_convertible, check_target
from ggplan.errors import ConversionError
from ggplan.planning import Plan
from ggplan.text import printable

Progress = Callable[[int], None]
"""Called with the number of bytes just written, from any thread, one call at a time."""


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """A finished conversion: where it is, how big, how long it took."""

    path: Path
    n_bytes: int
    n_weights: int
    seconds: float


def convert(
    plan: Plan,
    path: str | Path,
    *,
    threads: int | None = None,
    allow_requantize: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> ConversionResult:
    """Write the file a plan describes.

    Parameters
    ----------
    path
        The GGUF to write; it appears when it is complete.
    threads
        Threads that read, encode and write; by default one for each CPU this process may use.
        The bytes do not depend on it.
    allow_requantize
        Encode tensors that are quantized in the source to another quantized type.
    force
        Replace a file that exists.
    progress
        Told of every piece of data written.

    Raises
    ------
    PlanError
        If the plan cannot be carried out: no weights, a type ggplan cannot write, requantizing.
    ConversionError
        If the target cannot be written, or a weight is not finite.
    CheckpointError
        If the source cannot be read.
    """
    started = time.monotonic()
    path = Path(path)
    check_convertible(plan, allow_requantize=allow_requantize)
    check_target(plan, path, force=force)
    check_early(plan)
    part = path.with_name(path.name + ".part")
    try:
        with _created(part) as file:
            _pwrite(file, plan.header, 0)
            _run(chunks_of(plan), file, threads or available_cpus(), progress)
            os.ftruncate(file, plan.file_bytes)
            os.fsync(file)
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise ConversionError(f"cannot write {printable(str(path))}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return ConversionResult(path, plan.file_bytes, plan.n_weights, time.monotonic() - started)


def available_cpus() -> int:
    """The number of CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run(chunks: Iterator[Chunk], file: int, n_threads: int, progress: Progress | None) -> None:
    """Work through all chunks; the first error of any thread stops all and is raised here."""
    lock = threading.Lock()
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                data = encode_chunk(chunk)
                _pwrite(file, data, chunk.file_offset)
                if progress is not None:
                    with lock:
                        progress(len(data))
        except BaseException as error:
            failures.append(error)
            stop.set()

    workers = [threading.Thread(target=work, name=f"ggplan-{i}", daemon=True) for i in range(n_threads)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except BaseException:
        stop.set()
        for worker in workers:
            worker.join()
        raise
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _created(path: Path) -> Iterator[int]:
    """A new file of this name, open for writing; an older one is replaced, a link is not followed."""
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        yield file
    finally:
        os.close(file)


def _pwrite(file: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; the system may take it in pieces."""
    view = memoryview(data)
    while view.nbytes:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
