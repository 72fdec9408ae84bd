"""Paths of files that are on a server: what `hf://org/name` and `https://host/model.gguf` are inside ggplan.

A `RemotePath` is a `Path`, so all that is given a folder or a file takes it as it takes a local one: `/`,
`name`, `suffix`, `parent`, `exists()`, `is_file()`, `iterdir()`, `glob()` answer from what is known of the
server, and it prints as the user wrote it. Bytes are read by `ggplan.sources.files`, which asks for the
`RemoteFile`. What the system is asked for by such a path (`os.stat`, `open`) is a copy on this machine: that
of a small file is made at the first question, that of weights is refused.

What is remote is known from the listing of a repository, not by asking for each name.
"""

from __future__ import annotations

import fnmatch
import os
import re
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ggplan.errors import CheckpointError
from ggplan.text import printable

# A class made from `Path` itself has no flavour before Python 3.12.
if TYPE_CHECKING:
    _Base = Path
else:
    _Base = type(Path())

PARALLEL_READS = 16
"""Ranges that are asked for at once. The threads that wait for them are the read-ahead: with a megabyte or
two each, a round trip of 50 ms is hidden on lines of up to some gigabits."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE | re.ASCII)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class RemoteFile(Protocol):
    """A file on a server, of which ranges can be read from any thread."""

    @property
    def size(self) -> int:
        """Its bytes."""

    @property
    def version(self) -> str:
        """What tells its contents from others of the same size: a hash or an ETag; "" if nothing does."""

    @property
    def is_changed(self) -> bool:
        """Whether the server was found to have another file now."""

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on.

        Raises
        ------
        CheckpointError
            If the server does not give just these bytes, however often it is asked.
        """

    def copy(self) -> Path | None:
        """A whole copy on this machine, which is made if the file is small; None if there can be none."""

    def copy_there(self) -> Path | None:
        """The copy that is on this machine already; None if there is none."""


class Place(Protocol):
    """Files of one server that belong together: a repository at a commit, or the neighbours of a URL."""

    @property
    def told(self) -> str:
        """What a user should know of the place, as a note; or ""."""

    def shown(self, inside: str) -> str:
        """The address of a file, or of the whole for "", without secrets."""

    def find(self, inside: str) -> RemoteFile | None:
        """The file of this name; None if there is none."""

    def names(self) -> Sequence[str]:
        """All names that are known, sorted, folders in them divided by `/`."""


def is_address(name: object) -> bool:
    """Whether a name on the command line is an address: `hf://...`, `https://...`, or of what is not read."""
    return isinstance(name, str) and _SCHEME.match(name) is not None


class RemotePath(_Base):
    """A file, or the folder of all files, of a `Place`.

    As a path it is `folder / inside`, so that its last part is the name of the repository or the file.
    """

    __slots__ = ("_folder", "_inside", "_place")

    def __new__(cls, place: Place, folder: str, inside: str = "") -> RemotePath:  # noqa: D102
        return super().__new__(cls, folder, inside)

    def __init__(self, place: Place, folder: str, inside: str = "") -> None:
        if sys.version_info >= (3, 12):
            super().__init__(folder, inside)
        self._place, self._folder, self._inside = place, folder, inside

    @property
    def place(self) -> Place:
        """Where it is."""
        return self._place

    @property
    def inside(self) -> str:
        """Its name in the place, folders divided by `/`; "" for the folder of all."""
        return self._inside

    def file(self) -> RemoteFile:
        """The file that it names.

        Raises
        ------
        CheckpointError
            If it names none.
        """
        found = self._place.find(self._inside)
        if found is None:
            raise CheckpointError(
                f"{printable(str(self))} does not exist" if self._inside else self._no_file()
            )
        return found

    def only_remote(self) -> RemoteFile | None:
        """The file, if there is no copy of it on this machine."""
        found = self.file()
        return found if found.copy_there() is None else None

    def _no_file(self) -> str:
        return f"{printable(str(self))} is not a file but a repository"

    def _at(self, inside: PurePosixPath | str) -> RemotePath:
        text = str(inside)
        return RemotePath(self._place, self._folder, "" if text == "." else text)

    # What pathlib makes of one path for another.

    def with_segments(self, *segments: str | os.PathLike[str]) -> RemotePath:
        """Another path of the same place."""
        whole = PurePosixPath(*(os.fspath(s) if isinstance(s, str) else s for s in segments))
        return self._at(whole.relative_to(self._folder))

    def __truediv__(self, name: str | os.PathLike[str]) -> RemotePath:
        return self._at(PurePosixPath(self._inside) / name)

    def joinpath(self, *names: str | os.PathLike[str]) -> RemotePath:
        """As `Path.joinpath`."""
        return self._at(PurePosixPath(self._inside).joinpath(*names))

    def with_name(self, name: str) -> RemotePath:
        """As `Path.with_name`."""
        return self._at(PurePosixPath(self._inside).with_name(name))

    def with_suffix(self, suffix: str) -> RemotePath:
        """As `Path.with_suffix`."""
        return self._at(PurePosixPath(self._inside).with_suffix(suffix))

    @property
    def parent(self) -> RemotePath:
        """The folder that it is in; the folder of all is its own."""
        return self._at(PurePosixPath(self._inside).parent)

    def resolve(self, strict: bool = False) -> RemotePath:
        """Itself."""
        return self

    def absolute(self) -> RemotePath:
        """Itself."""
        return self

    # What pathlib asks the system.

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether the listing has it."""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """Whether it is a file of the listing."""
        return self._inside != "" and self._place.find(self._inside) is not None

    def is_dir(self, **_: Any) -> bool:
        """Whether files of the listing are in it."""
        start = f"{self._inside}/"
        return self._inside == "" or any(name.startswith(start) for name in self._place.names())

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def iterdir(self) -> Generator[RemotePath, None, None]:
        """The files and folders in it."""
        depth = len(self._inside) + 1 if self._inside else 0
        start = f"{self._inside}/" if self._inside else ""
        names = {n[depth:].partition("/")[0] for n in self._place.names() if n.startswith(start)}
        yield from (self / name for name in sorted(names))

    def glob(self, pattern: str, **_: Any) -> Generator[RemotePath, None, None]:
        """The files and folders in it whose names fit a pattern without `/`."""
        yield from (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str, **_: Any) -> Generator[RemotePath, None, None]:
        """The files in it and below whose names fit a pattern without `/`."""
        start = f"{self._inside}/" if self._inside else ""
        names = [name for name in self._place.names() if name.startswith(start)]
        yield from (self._at(n) for n in names if fnmatch.fnmatchcase(n.rpartition("/")[2], pattern))

    def __fspath__(self) -> str:
        found = self._place.find(self._inside) if self._inside else None
        if found is None:
            return str(self)  # no such file on this machine either
        copy = found.copy()
        if copy is None:
            raise CheckpointError(f"{printable(str(self))} is not on this machine")
        return os.fspath(copy)

    def __str__(self) -> str:
        return self._place.shown(self._inside)

    def as_posix(self) -> str:
        """As it prints."""
        return str(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RemotePath):
            return False
        return self._place is other._place and self._inside == other._inside

    def __hash__(self) -> int:
        return hash((id(self._place), self._inside))

    def __lt__(self, other: object) -> bool:
        return self._inside < other._inside if isinstance(other, RemotePath) else NotImplemented


def is_remote(path: Path) -> bool:
    """Whether reading it goes over the network, at least in part."""
    if not isinstance(path, RemotePath):
        return False
    return path.inside == "" or (path.is_file() and path.only_remote() is not None)


def each(
    items: Sequence[_Item], read: Callable[[_Item], _Result], *, parallel: bool | None = None
) -> list[_Result]:
    """`read` of each item, in order: of remote paths in parallel, since most of the time is spent waiting.

    Parameters
    ----------
    parallel
        Whether to; by default if one of the items is a remote path.
    """
    if parallel is None:
        parallel = any(isinstance(item, RemotePath) for item in items)
    if len(items) < 2 or not parallel:
        return [read(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor

    stop = threading.Event()

    def work(item: _Item) -> _Result:
        stop_reads_at(stop)
        return read(item)

    with ThreadPoolExecutor(min(PARALLEL_READS, len(items)), "ggplan-remote") as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_of_this_thread = threading.local()


def stop_reads_at(event: threading.Event) -> None:
    """Let this thread's remote reads end with an error, instead of asking again, once `event` is set."""
    _of_this_thread.stop = event


def stop_of_this_thread() -> threading.Event:
    """The event that ends this thread's reads; one that is never set if there is none."""
    found = getattr(_of_this_thread, "stop", None)
    if found is None:
        found = _of_this_thread.stop = threading.Event()
    return found
