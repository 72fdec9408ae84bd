"""Addresses of models on the command line, and what they open as.

    hf://org/name                       a repository of the hub, its main branch
    hf://org/name@revision              at a branch, a tag, a commit or refs/pr/N
    hf://org/name[@revision]/sub/x.gguf one file of it; of a split set, any
    hf://org/name[@revision]:Q4_K_M     its GGUF of this type, as llama.cpp's -hf names it
    https://huggingface.co/org/name     the same, as a browser shows it; with /tree/, /blob/, /resolve/
    https://host/path/model.gguf        a file on any server that gives ranges

Where the hub is, huggingface_hub says (HF_ENDPOINT). A file on another server needs no huggingface_hub.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from ggplan.errors import CheckpointError, NoSuchCheckpointError
from ggplan.sources.gguf import MOST_LISTED, models_in
from ggplan.sources.http_client import require_client, shown_url
from ggplan.sources.http_ranges import HttpFile
from ggplan.sources.remote import RemotePath
from ggplan.text import printable

_ID = r"(?P<name>[\w.-]+/[\w.-]+)"
_HUB = re.compile(
    rf"hf://(?:models/)?{_ID}(?:@(?P<revision>refs/(?:pr|convert)/[^/@:]+|[^/@:]+))?"
    r"(?::(?P<tag>[\w.-]+)|/(?P<inside>.*))?",
    re.I | re.A,
)
_PAGE = re.compile(
    rf"/{_ID}(?:/(?:tree|blob|resolve|raw)/(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+)(?:/(?P<inside>.*))?)?/?",
    re.A,
)
_OTHER_KINDS = ("datasets/", "spaces/", "kernels/", "buckets/")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_FORM = "hf://org/name, hf://org/name@revision, or hf://org/name/file.gguf"


def open_address(address: str) -> RemotePath:
    """The folder or file that an address is of.

    Raises
    ------
    CheckpointError
        If it is no address of a model, or nothing is there.
    """
    if address.lower().startswith("hf://"):
        return _open_on_hub(address, _HUB.fullmatch(address), address[5:])
    parts = _checked(address)
    if _is_hub(address):
        page = unquote(parts.path)
        found = _PAGE.fullmatch(page)
        if found is not None or page.strip("/").lower().startswith(_OTHER_KINDS):
            return _open_on_hub(address, found, page.strip("/"))
    require_client()
    if not PurePosixPath(unquote(parts.path)).name or parts.path.endswith("/"):
        raise CheckpointError(
            f"{printable(shown_url(address))} names no file",
            hint=f"give the address of a .gguf file, or a repository of the hub: {_FORM}",
        )
    path = Neighbours(address).path()
    if not path.is_file():
        raise NoSuchCheckpointError(
            f"{printable(str(path))} does not exist", hint="check the address; names are case-sensitive"
        )
    return path


def _open_on_hub(address: str, found: re.Match[str] | None, rest: str) -> RemotePath:
    if rest.lower().startswith(_OTHER_KINDS):
        kind = rest.partition("/")[0]
        raise CheckpointError(
            f"{printable(address)} is of the hub's {kind}, not a model", hint=f"give {_FORM}"
        )
    if found is None:
        raise CheckpointError(f"{printable(address)} is no address of a model", hint=f"give {_FORM}")
    from ggplan.sources.hub import open_repository

    revision = unquote(found["revision"] or "")
    inside = (found["inside"] or "").strip("/")
    repository = open_repository(found["name"], revision)
    tag = found.groupdict().get("tag")
    return _of_type(repository.path(), tag) if tag else repository.path(inside)


def _of_type(folder: RemotePath, tag: str) -> RemotePath:
    """The one GGUF model of a repository that has `tag` in its name, as a word of it."""
    word = re.compile(rf"(?:^|[-._/]){re.escape(tag)}(?:[-._]|$)", re.IGNORECASE | re.ASCII)
    models, _ = models_in(folder)
    fitting = [path for path in models if word.search(path.name)]
    if len(fitting) == 1 and isinstance(fitting[0], RemotePath):
        return fitting[0]
    found = fitting or models
    names = ", ".join(printable(str(path)[len(str(folder)) + 1 :]) for path in found[:MOST_LISTED])
    many = f"{len(fitting) or 'no'} GGUF models of the type {printable(tag)}"
    raise NoSuchCheckpointError(
        f"{printable(str(folder))} holds {many}: {names}"
        if fitting
        else f"{printable(str(folder))} holds {many}" + (f", but {names}" if models else ""),
        hint=f"name one: {printable(str(found[0]))}" if found else f"give {_FORM}",
    )


def _is_hub(address: str) -> bool:
    """Whether a web address is the hub's: Hugging Face's own, or the one that HF_ENDPOINT names."""
    host = urlsplit(address).netloc.lower().rpartition("@")[2]
    return host in (*_HOSTS, urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower() or _HOSTS[0])


def _checked(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise CheckpointError(f"{printable(address)} is no web address: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise CheckpointError(
            f"{printable(address)}: addresses that begin with {printable(parts.scheme)}:// are not read",
            hint="give the path"
            if parts.scheme == "file"
            else f"give {_FORM}, https://host/model.gguf, or download it and name the file",
        )
    if not parts.hostname:
        raise CheckpointError(f"{printable(address)} is no web address: it names no host")
    return parts


@dataclass(slots=True, eq=False)
class Neighbours:
    """A file on a server and those beside it, such as the rest of its split set (a `Place`).

    There is no listing: whether a file is there is found out by asking for its first bytes.
    """

    address: str
    _files: dict[str, HttpFile | None] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def path(self) -> RemotePath:
        """The path of the file itself."""
        parts = urlsplit(self.address)
        return RemotePath(self, parts.hostname or "", unquote(parts.path).lstrip("/"))

    @property
    def told(self) -> str:
        """Nothing."""
        return ""

    def shown(self, inside: str) -> str:
        """The address, without user, password and query."""
        return shown_url(self._url(inside))

    def find(self, inside: str) -> HttpFile | None:
        """The file of this name; None if the server has none."""
        with self._lock:
            if inside in self._files:
                return self._files[inside]
        file: HttpFile | None = HttpFile(self._url(inside), printable(self.shown(inside)))
        try:
            assert file is not None
            _ = file.size
        except NoSuchCheckpointError:
            file = None
        with self._lock:
            return self._files.setdefault(inside, file)

    def names(self) -> Sequence[str]:
        """The names of the files that were asked for and are there."""
        with self._lock:
            return sorted(name for name, file in self._files.items() if file is not None)

    def _url(self, inside: str) -> str:
        parts = urlsplit(self.address)
        return urlunsplit((parts.scheme, parts.netloc, "/" + quote(inside), parts.query, ""))
