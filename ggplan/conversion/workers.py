"""The threads of a conversion: each takes the next chunk, reads, encodes, writes and hashes it.

A thread waits for others only because of memory: a written chunk keeps its bytes until those before it in the
tensor are hashed, and the number of such chunks is limited. The kernels, the hash and the calls
of the file system release the GIL. The calling thread does none of this work; from time to time it makes
written bytes durable, and it handles signals at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ggplan.conversion.chunks import Chunk, read_rows
from ggplan.conversion.encoding import encode_chunk
from ggplan.conversion.part_file import PartFile
from ggplan.conversion.running_hash import RunningHash
from ggplan.conversion.source_hash import add_rows
from ggplan.errors import CheckpointError
from ggplan.sources.remote import stop_reads_at
from ggplan.text import printable

_TICK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Task:
    """A chunk, the file it goes to, its tensor's hash, and that of the tensor's source if it is needed."""

    chunk: Chunk
    part: PartFile
    hash: RunningHash
    source: RunningHash | None = None

    @property
    def start(self) -> int:
        """The first byte of the chunk in the tensor."""
        return self.chunk.file_offset - len(self.part.plan.header) - self.chunk.planned.offset

    @property
    def stop(self) -> int:
        """The end of the chunk in the tensor, in bytes."""
        planned = self.chunk.planned
        row_bytes = planned.type.row_bytes(planned.tensor.n_columns)
        return self.start + (self.chunk.stop - self.chunk.start) * row_bytes


def run(
    tasks: Iterator[Task],
    *,
    n_threads: int,
    n_in_flight: int,
    written: Callable[[int], None],
    tick: Callable[[], None],
) -> None:
    """Do all tasks; the first error in any thread stops all and is raised here.

    Parameters
    ----------
    n_in_flight
        The most chunks whose bytes are in memory.
    written
        Called with the number of bytes just written, from any thread, one call at a time.
    tick
        Called from time to time from the calling thread, while there is work.
    """
    lock = threading.Lock()
    stop = threading.Event()
    room = threading.Semaphore(n_in_flight)
    failures: list[BaseException] = []

    def work() -> None:
        stop_reads_at(stop)
        try:
            while True:
                room.acquire()
                if stop.is_set():
                    return
                with lock:
                    task = next(tasks, None)
                if task is None:
                    return
                n_freed = _do(task, lock, written)
                for _ in range(n_freed):
                    room.release()
        except BaseException as error:
            failures.append(error)
            stop.set()
        finally:
            # Wake a thread that waits for room: after an error, or at the end, when no chunk is left.
            room.release()

    workers = [threading.Thread(target=work, name=f"ggplan-{i}", daemon=True) for i in range(n_threads)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            while worker.is_alive():
                worker.join(_TICK_SECONDS)
                if worker.is_alive() and not stop.is_set():
                    tick()
    finally:
        stop.set()
        room.release(n_threads)
        for worker in workers:
            worker.join()
    if failures:
        raise failures[0]


def _do(task: Task, lock: threading.Lock, written: Callable[[int], None]) -> int:
    """Do a task; returns how many chunks no longer need memory."""
    if task.stop <= task.hash.done:
        _read_again(task)
        return 1
    data = encode_chunk(task.chunk, task.source)
    start = task.start
    # After a resume the first chunk of a tensor may overlap the bytes that are kept.
    if start < task.hash.done:
        data, start = data[task.hash.done - start :], task.hash.done
    task.part.write(data, len(task.part.plan.header) + task.chunk.planned.offset + start)
    n_freed = task.hash.add(data, start)
    if task.hash.is_wrong:
        raise CheckpointError(f"{printable(task.chunk.planned.name)} changed while it was copied for --reuse")
    with lock:
        written(len(data))
    return n_freed


def _read_again(task: Task) -> None:
    """Hash the source of a chunk that an earlier run wrote without finishing its tensor."""
    chunk = task.chunk
    if task.source is not None:
        add_rows(task.source, chunk.start, read_rows(chunk.planned, chunk.start, chunk.stop))
