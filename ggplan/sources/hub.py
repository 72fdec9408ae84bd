"""A model repository of the Hugging Face hub at one commit.

Opening it asks the hub twice: which commit the revision is, and which files that commit has, with their sizes
and hashes. From then on the commit is asked for and nothing else, so that a branch that moves cannot mix two
versions.

`huggingface_hub` says where the hub is (HF_ENDPOINT), what the token is (`hf auth login`, HF_TOKEN), whether
the network may be used (HF_HUB_OFFLINE), and keeps whole files in its cache (HF_HOME). Small files are
fetched into that cache and compared with the hash that the repository lists: the SHA-256 of a file in LFS or
Xet storage, else git's SHA-1. Weights are read by ranges and not kept. Files that are in the cache already,
weights too, are read there, and with HF_HUB_OFFLINE all of them are.

The hash of weights is not checked: it is that of a whole file, and they are read in pieces, each when the
output needs it. The hub says with each file which hash it has, and that is compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ggplan.errors import CheckpointError, NoSuchCheckpointError
from ggplan.sources.http_client import (
    INSTALL,
    SET_TOKEN,
    certificate_fault,
    in_words,
    is_cut,
    is_name_fault,
    require_client,
    retry_after,
)
from ggplan.sources.http_ranges import FIRST_CUT_TRIES, Expected, HttpFile, wait_before
from ggplan.sources.remote import RemotePath, each
from ggplan.text import nearest, printable
from ggplan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    _Result = TypeVar("_Result")

SMALL_BYTES = 256 << 20
"""The largest file that is fetched whole."""
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")  # never fetched whole, however small
_FILE_LIMIT = 200_000
_TRIES, _FETCH_TRIES = 5, 3  # where the connection is not made, or the hub is busy
_FETCHED_FIRST = (
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "README.md",
    "chat_template.jinja", "tokenizer.model", "merges.txt", "vocab.json", "tiktoken.model",
    "hf_quant_config.json",
)  # fmt: skip


@dataclass(slots=True, eq=False)
class HubFile:
    """A file of a repository (a `ggplan.sources.remote.RemoteFile`), read by ranges or from the cache.

    `hash` is the SHA-256 of a file in LFS or Xet storage (64 digits), else git's SHA-1 of the blob (40).
    """

    repository: Repository
    name: str
    size: int
    hash: str
    _copy: Path | None = None
    _ranges: HttpFile | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def version(self) -> str:
        """Its hash."""
        return self.hash

    @property
    def is_changed(self) -> bool:
        """Whether the hub was found to have another file under this commit."""
        return self._ranges is not None and self._ranges.is_changed

    def read_into(self, offset: int, target: memoryview) -> None:
        """As `RemoteFile.read_into`."""
        with self._lock:
            if self._ranges is None:
                self._ranges = self.repository.ranges_of(self)
        self._ranges.read_into(offset, target)

    def copy_there(self) -> Path | None:
        """The copy in huggingface_hub's cache, if it is there."""
        return self._copy

    def copy(self) -> Path | None:
        """The copy in huggingface_hub's cache; that of a small file is made."""
        with self._lock:
            if self._copy is None and self.size <= SMALL_BYTES and not self.name.endswith(_WEIGHTS):
                self._copy = self.repository.fetch(self)
            return self._copy


@dataclass(frozen=True, slots=True, eq=False)
class Repository:
    """The files of a model repository at one commit (a `ggplan.sources.remote.Place`).

    Attributes
    ----------
    name
        `org/name`.
    revision
        What the user asked for; "" for the main branch.
    commit
        The commit that it is.
    files
        By name.
    """

    name: str
    revision: str
    commit: str
    files: dict[str, HubFile]

    @property
    def told(self) -> str:
        """Which commit it is."""
        return "" if self.revision == self.commit else f"{self.shown('')} is at commit {self.commit}"

    def shown(self, inside: str) -> str:
        """`hf://org/name@revision/inside`."""
        return address_of(self.name, self.revision) + (f"/{inside}" if inside else "")

    def find(self, inside: str) -> HubFile | None:
        """The file of this name; None if there is none."""
        return self.files.get(inside)

    def names(self) -> Sequence[str]:
        """The names of all files, sorted."""
        return list(self.files)

    def path(self, inside: str = "") -> RemotePath:
        """The path of a file, or of the whole.

        Raises
        ------
        NoSuchCheckpointError
            If the repository has no such file or folder.
        """
        path = RemotePath(self, self.name, inside)
        if not path.exists():
            near = nearest(inside, self.files)
            raise NoSuchCheckpointError(
                f"{printable(self.shown(''))} has no file {printable(inside)}",
                hint=f"the nearest is {printable(self.shown(near))}"
                if near
                else f"its files are at {printable(page_of(self.name, self.revision))}",
            )
        return path

    def ranges_of(self, file: HubFile) -> HttpFile:
        """What reads ranges of a file."""
        from huggingface_hub import constants, hf_hub_url

        require_client()
        if constants.HF_HUB_OFFLINE:
            raise _offline(self.shown(file.name), self.name)
        url = hf_hub_url(self.name, file.name, revision=self.commit, endpoint=constants.ENDPOINT)
        token = _token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        title = printable(self.shown(file.name))
        return HttpFile(url, title, file.size, headers, Expected(self.commit, file.hash))

    def fetch(self, file: HubFile) -> Path:
        """A whole file in huggingface_hub's cache, compared with its hash; made if it is not there."""
        path = self._fetched(file, again=False)
        if _is_whole(path, file):
            return path
        path = self._fetched(file, again=True)
        if _is_whole(path, file):
            return path
        raise CheckpointError(
            f"{printable(self.shown(file.name))}: what the hub sends does not have the hash that it lists",
            hint="try again later; if it is a mirror, ask the hub itself (unset HF_ENDPOINT)",
        )

    def _fetched(self, file: HubFile, *, again: bool) -> Path:
        from huggingface_hub import constants, hf_hub_download

        def fetch() -> str:
            return hf_hub_download(
                self.name,
                file.name,
                revision=self.commit,
                endpoint=constants.ENDPOINT,
                library_name="ggplan",
                library_version=__version__,
                force_download=again,
            )

        # It asks several times itself.
        return Path(_asking(fetch, self.shown(file.name), self.name, self.revision, n_tries=_FETCH_TRIES))


def open_repository(name: str, revision: str = "") -> Repository:
    """A model repository of the hub, at the commit that a revision is now.

    Parameters
    ----------
    name
        `org/name`.
    revision
        A branch, a tag, a commit or `refs/pr/N`; "" for the main branch.

    Raises
    ------
    CheckpointError
        If huggingface_hub is not installed, or the hub does not give the listing: no such repository or
        revision, no access, no network.
    """
    try:
        from huggingface_hub import HfApi, constants
    except ImportError as error:
        raise CheckpointError(f"{address_of(name, revision)} needs huggingface_hub", hint=INSTALL) from error
    require_client()
    where = address_of(name, revision)
    if constants.HF_HUB_OFFLINE:
        return _cached_repository(name, revision)
    api = HfApi(endpoint=constants.ENDPOINT, library_name="ggplan", library_version=__version__)
    wanted = revision or constants.DEFAULT_REVISION
    info = _asking(lambda: api.model_info(name, revision=wanted, timeout=30), where, name, revision)
    commit = info.sha or ""
    if not commit:
        raise CheckpointError(f"{where}: the hub does not say which commit it is")

    def listing() -> list[tuple[str, int, str]]:
        found = []
        for entry in api.list_repo_tree(name, recursive=True, revision=commit):
            size = getattr(entry, "size", None)
            if isinstance(size, int):
                lfs = getattr(entry, "lfs", None)
                found.append((entry.path, size, lfs.sha256 if lfs else getattr(entry, "blob_id", "")))
            if len(found) > _FILE_LIMIT:
                raise CheckpointError(f"{where} has more than {_FILE_LIMIT:,} files")
        return found

    files: dict[str, HubFile] = {}
    repository = Repository(name, revision, commit, files)
    for path, size, hash_ in sorted(_asking(listing, where, name, revision)):
        if not _is_sound(path):
            raise CheckpointError(f"{where} lists a file of the impossible name '{printable(path)[:120]}'")
        files[path] = HubFile(repository, path, size, hash_, _cached(name, path, commit, size))
    usual = [files[path] for path in _FETCHED_FIRST if "config.json" in files and path in files]
    each([file for file in usual if file.size <= SMALL_BYTES], HubFile.copy, parallel=True)
    return repository


def _token() -> str | None:
    """The token that is set, if it may be used."""
    from huggingface_hub import constants, get_token

    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def address_of(name: str, revision: str) -> str:
    """`hf://org/name`, and `@revision` where one is asked for."""
    return f"hf://{name}" + (f"@{revision}" if revision else "")


def page_of(name: str, revision: str = "") -> str:
    """The page of a repository."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name}" + (f"/tree/{revision}" if revision else "")


def _cached_repository(name: str, revision: str) -> Repository:
    """What huggingface_hub's cache has of a repository."""
    from huggingface_hub import snapshot_download

    where = address_of(name, revision)
    try:
        folder = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (OSError, ValueError) as error:
        raise _offline(where, name) from error
    files: dict[str, HubFile] = {}
    repository = Repository(name, revision, folder.name, files)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder).as_posix()
        # In the cache a file is a link to the blob that is called by its hash.
        files[inside] = HubFile(repository, inside, path.stat().st_size, path.resolve().name, path)
    return repository


def _cached(name: str, path: str, commit: str, size: int) -> Path | None:
    """The copy of a file in huggingface_hub's cache, if it is there and has its size."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, path, revision=commit)
    if not isinstance(found, str):
        return None
    with contextlib.suppress(OSError):
        return Path(found) if os.stat(found).st_size == size else None
    return None


def _is_whole(path: Path, file: HubFile) -> bool:
    """Whether a fetched file has the size and the hash that the repository lists."""
    data = path.read_bytes()
    if len(data) != file.size:
        return False
    if len(file.hash) == 64:
        return hashlib.sha256(data).hexdigest() == file.hash
    if len(file.hash) == 40:
        blob = b"blob %d\0" % len(data) + data
        return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == file.hash
    return True


def _is_sound(path: str) -> bool:
    """Whether a name of the listing stays in its folder and can be shown."""
    parts = path.split("/")
    return all(part not in ("", ".", "..") for part in parts) and not any(
        letter == "\\" or unicodedata.category(letter) in ("Cc", "Cs") for letter in path
    )


def _asking(
    ask: Callable[[], _Result], where: str, name: str, revision: str, *, n_tries: int = _TRIES
) -> _Result:
    """The answer of a call of huggingface_hub, which is made again where that may help."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    for tries in range(1, FIRST_CUT_TRIES + 1):
        try:
            with _quiet:
                return ask()
        except CheckpointError:
            raise
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if tries >= n_tries or not (status in (408, 425, 429) or status >= 500):
                _explain(error, where, name, revision)
            wait_before(tries, retry_after(error.response.headers), where)
        except (httpx2.TransportError, OSError, RuntimeError) as error:
            # A RuntimeError is of a client that another thread has closed, as huggingface_hub does at faults.
            # A host that is not known, or whose certificate is not valid, is so a second later too.
            hopeless = certificate_fault(error) or (is_name_fault(error) and tries > 1)
            was_cut = is_cut(error)
            last = FIRST_CUT_TRIES if was_cut else n_tries
            if tries >= last or hopeless or isinstance(error, OfflineModeIsEnabled):
                _explain(error, where, name, revision)
            wait_before(tries, None, where, is_cut=was_cut)
        except UnicodeEncodeError as error:
            raise CheckpointError(
                f"{printable(where)}: the token is none: it has letters that are not ASCII",
                hint="`hf auth login` (or set HF_TOKEN rightly)",
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # JSON of another kind
            raise CheckpointError(
                f"{where}: the server does not answer as the hub does: {printable(str(error))[:120]}",
                hint="check HF_ENDPOINT",
            ) from error
    raise AssertionError("the last try raises")


def _explain(error: Exception, where: str, name: str, revision: str) -> NoReturn:
    """Raise the error of the hub as one line with a remedy."""
    from huggingface_hub import errors

    where = printable(where)
    is_known = _token() is not None
    if isinstance(error, errors.GatedRepoError):
        raise CheckpointError(
            f"{where} is gated: its owner gives access on request, "
            + ("and the token that is set has none" if is_known else "and no token is set"),
            hint=f"ask for it at {page_of(name)}, then {SET_TOKEN}",
        ) from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise NoSuchCheckpointError(
            f"hf://{name} has no revision {printable(revision) or 'main'}",
            hint=f"`hf://{name}` without @ is the main branch",
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise NoSuchCheckpointError(
            f"{where}: the hub has no such repository, or it is private, "
            + ("and the token that is set may not read it" if is_known else "and no token is set"),
            hint=f"check the name; for a private one {SET_TOKEN}",
        ) from error
    if isinstance(error, errors.OfflineModeIsEnabled):
        raise _offline(where, name) from error
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        if status == 401:
            raise CheckpointError(
                f"{where}: the hub does not accept the token that is set (401)"
                if is_known
                else f"{where}: the hub wants a token (401), and no token is set",
                hint=SET_TOKEN,
            ) from error
        hint = {
            403: f"ask for access at {page_of(name)}, then {SET_TOKEN}",
            404: "check the name and the revision",
            429: "too many requests: try again later, or `hf auth login` for a higher limit",
        }.get(status, "try again later")
        raise CheckpointError(f"{where}: the hub answers {status}", hint=hint) from error
    if fault := certificate_fault(error):
        raise CheckpointError(
            f"{where}: the hub's certificate is not valid: {printable(fault)}",
            hint="check the date of this machine; behind a company's proxy, name its certificates in "
            "SSL_CERT_FILE",
        ) from error
    raise CheckpointError(
        f"{where}: {in_words(error)}",
        hint="check the connection, the proxy settings (HTTPS_PROXY) and HF_ENDPOINT",
    ) from error


def _offline(where: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"{printable(where)} is not in huggingface_hub's cache, and HF_HUB_OFFLINE is set",
        hint=f"unset it, or run `hf download {name}` where there is a network",
    )


class _Quiet:
    """No progress bars and no warnings of huggingface_hub while any thread is in here.

    What a user should know of it is in our own messages.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: tuple[int, bool] = (0, False)

    def __enter__(self) -> None:
        from huggingface_hub import utils

        with self._lock:
            self._inside += 1
            if self._inside == 1:
                logger = logging.getLogger("huggingface_hub")
                is_disabled = utils.are_progress_bars_disabled()  # type: ignore[attr-defined]
                self._before = logger.level, is_disabled
                logger.setLevel(logging.CRITICAL)
                if not is_disabled:
                    utils.disable_progress_bars()  # type: ignore[attr-defined]

    def __exit__(self, *error: object) -> None:
        from huggingface_hub import utils

        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                logging.getLogger("huggingface_hub").setLevel(self._before[0])
                if not self._before[1]:
                    utils.enable_progress_bars()  # type: ignore[attr-defined]


_quiet = _Quiet()
