"""Progress bars on stderr, where that is a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress, ProgressColumn, TaskID

    from ggplan.measure import Watched
    from ggplan.measure.measuring import Watcher


class NoBar:
    """Stands for a bar that is not shown, without the time that it takes to import one."""

    def __enter__(self) -> NoBar:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def add_task(self, description: str, total: float | None = None) -> TaskID:
        """As `rich.progress.Progress.add_task`."""
        return cast("TaskID", 0)

    def advance(self, task: TaskID, advance: float = 1) -> None:
        """As `rich.progress.Progress.advance`."""

    def reset(self, task: TaskID, *, completed: float = 0) -> None:
        """As `rich.progress.Progress.reset`."""


def bytes_bar(*, quiet: bool) -> Progress | NoBar:
    """A bar that counts bytes, with their speed and the time that is left.

    It says when a kernel is being compiled, which takes seconds at its first use on a machine.
    """
    if not is_shown(quiet):
        return NoBar()
    from rich.progress import DownloadColumn, TransferSpeedColumn

    return _bar(DownloadColumn(binary_units=True), TransferSpeedColumn(), _compiling(), quiet=quiet)


def _compiling() -> ProgressColumn:
    """A column that says when a kernel is being compiled, which takes seconds at its first use."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    from ggplan.quants.kernels import is_compiling

    class Compiling(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("compiling encoders, once on this machine" if is_compiling() else "")

    return Compiling()


def steps_bar(*, quiet: bool) -> Progress:
    """A bar for several steps of work one after another, each with the time that is left."""
    from rich.progress import TaskProgressColumn

    return _bar(TaskProgressColumn(), _compiling(), quiet=quiet)


def files_watched(bar: Progress) -> Watcher:
    """The function that is told how far the measuring of a file is: a line of the bar for each."""
    from ggplan.text import printable

    tasks: dict[Watched, TaskID] = {}

    def watch(what: Watched, done: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(printable(str(what)), total=of)
        bar.update(tasks[what], completed=done)

    return watch


def chunks_bar(*, quiet: bool) -> Progress:
    """A bar that counts chunks of text, with the time that is left."""
    from rich.progress import MofNCompleteColumn, TextColumn

    return _bar(MofNCompleteColumn(), TextColumn("chunks"), quiet=quiet)


class ChunkLines:
    """A line a minute on stderr where there is no terminal for a bar: the chunks done, and the time left.

    Parameters
    ----------
    what
        What is done.
    clock
        The seconds of some clock.
    """

    def __init__(self, what: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._clock = what, clock
        self._begun: tuple[float, int] | None = None
        self._told = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Tell of chunks that are done."""
        now = self._clock()
        if self._begun is None:
            self._begun, self._told = (now, done), now
        elif now - self._told >= _SECONDS_OF_A_LINE:
            self._told = now
            start, done_before = self._begun
            left = (now - start) * (total - done) / max(1, done - done_before)
            click.echo(f"{self._what}: {done:,} of {total:,} chunks, {_in_words(left)} left", err=True)


_SECONDS_OF_A_LINE = 60


def _in_words(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def tensors_bar(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar that counts tensors; gives the function that is told how many are done, and of how many."""
    if not is_shown(quiet):
        yield lambda done, total: None
        return
    from rich.progress import MofNCompleteColumn, TextColumn

    with _bar(MofNCompleteColumn(), TextColumn("tensors"), quiet=quiet) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def progress_bar(what: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Bytes done of `total`, or of a total that is not known; gives the function that adds to them."""
    from ggplan.text import printable

    with bytes_bar(quiet=quiet) as bar:
        task = bar.add_task(printable(what), total=total)
        yield lambda n_bytes: bar.advance(task, n_bytes)


@contextmanager
def reading_bar(*, quiet: bool) -> Iterator[Callable[[Path, int], Callable[[int], None]]]:
    """A bar for each file that is read whole, as `ggplan.measure.open_subjects` calls it."""
    from ggplan.text import printable

    with bytes_bar(quiet=quiet) as bar:

        def reading(path: Path, n_bytes: int) -> Callable[[int], None]:
            task = bar.add_task(printable(f"reading {path.name}"), total=n_bytes)
            return lambda n: bar.advance(task, n)

        yield reading


def _bar(*counts: object, quiet: bool) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ggplan.cli.output import console

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *counts,  # type: ignore[arg-type]  # columns
        TimeRemainingColumn(),
        console=console(sys.stderr),
        disable=not is_shown(quiet),
        transient=True,
    )


def is_shown(quiet: bool) -> bool:
    """Whether bars are: on a terminal, unless all is to be quiet."""
    return not quiet and sys.stderr.isatty()
