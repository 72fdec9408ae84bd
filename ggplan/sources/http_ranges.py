"""Ranges of bytes of a file on a web server, asked for until they have come, and checked.

Each request says `Range: bytes=FIRST-LAST` (RFC 9110, section 14) and is answered `206 Partial Content` with
`Content-Range: bytes FIRST-LAST/SIZE`. What else comes is never taken for the bytes:

    other bytes than were asked, another size, a packed body    the server is asked again, three times
    a cut connection, silence, fewer than 1 KiB/s               asked again for what is missing
    408, 425, 429, 5xx                                          asked again, as `Retry-After` says
    another ETag, another commit of a repository                the file has changed: an error
    200 with the whole file                                     an error: the server gives no ranges

Between tries without any progress the waits double, from a quarter of a second to half a minute, or to two
seconds where a connection was cut; whatever came begins them anew. After two and a half minutes the error is
raised, unless 1 KiB/s came on the whole, and a conversion keeps its work. A server that has never answered is
given up sooner.

Redirects are followed here and not by the library: a token is sent to the host that it belongs to and to no
other, and https is never left. Where a redirect led (the hub gives addresses that are valid for an hour) is
kept until it is refused.

Small reads, such as those of headers and scales, are served from blocks of 64 KiB, the last of which are
kept.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from ggplan.errors import CheckpointError, NoSuchCheckpointError
from ggplan.sources.http_client import (
    SET_TOKEN,
    certificate_fault,
    client,
    etag_of,
    in_words,
    is_cut,
    is_name_fault,
    origin,
    retry_after,
)
from ggplan.sources.remote import stop_of_this_thread
from ggplan.text import printable

if TYPE_CHECKING:
    import httpx2

FIRST_WAIT, LONGEST_WAIT, LONGEST_WAIT_OF_CUT = 0.25, 30.0, 2.0
_TRIES, _FIRST_TRIES, _NAME_TRIES, _LIES = 11, 6, 2, 3
# Of connections that were made and then cut: where three of four are, some ten in a row are usual.
CUT_TRIES, FIRST_CUT_TRIES = 40, 20
_PATIENCE_SECONDS, _LEAST_SPEED = 150.0, 1 << 10
_LONGEST_RETRY_AFTER = 300.0
_REDIRECTS = 6
_SLOW_SECONDS, _SLOW_BYTES = 30.0, 30 << 10
_BLOCK, _KEPT_BLOCKS = 1 << 16, 256  # 16 MiB for all files together
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_NUMBER = re.compile(r"\d{1,19}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_AGAIN = (408, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)
_CHECK = "check the address"
_MOVED = (301, 302, 303, 307, 308)


class _AgainError(Exception):
    """A try that failed, where another may not.

    `after` is the seconds to wait if the server named them; `is_lie` says that the answer itself is wrong,
    `is_cut` that the connection was made and then cut.
    """

    def __init__(
        self, why: str, *, after: float | None = None, is_lie: bool = False, is_cut: bool = False
    ) -> None:
        super().__init__(why)
        self.why, self.after, self.is_lie, self.is_cut = why, after, is_lie, is_cut


@dataclass(frozen=True, slots=True)
class Expected:
    """What the hub's answers must say of a file: its commit, and the hash that its ETag is."""

    commit: str
    hash: str


@dataclass(slots=True, eq=False)
class HttpFile:
    """A file at an address (a `ggplan.sources.remote.RemoteFile`).

    Attributes
    ----------
    url
        Its address, with user and password if it has them.
    title
        Its name in messages.
    known_size
        Its bytes, where a listing says; -1 until an answer does.
    headers
        Sent to the host of `url` and to no other: a token.
    expected
        What the hub must say of it.
    """

    url: str
    title: str
    known_size: int = -1
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    expected: Expected | None = None
    is_changed: bool = False
    etag: str = ""
    _target: str = ""

    @property
    def size(self) -> int:
        """Its bytes; asks the server where they are not known."""
        if self.known_size < 0:
            self._block(0)
        return self.known_size

    @property
    def version(self) -> str:
        """The hub's hash of the file, or the server's ETag or date; "" if it gives none."""
        if self.expected is not None and self.expected.hash:
            return self.expected.hash
        return self.etag if self.size >= 0 else ""

    def copy(self) -> Path | None:
        """None: it is read where it is."""
        return None

    def copy_there(self) -> Path | None:
        """None."""
        return None

    def read_into(self, offset: int, target: memoryview) -> None:
        """As `RemoteFile.read_into`."""
        if len(target) > _BLOCK:
            self._fill(offset, target)
            return
        done = 0
        while done < len(target):
            number, start = divmod(offset + done, _BLOCK)
            piece = self._block(number)[start : start + len(target) - done]
            if not piece:
                raise CheckpointError(f"{self.title} ends at {self.size:,} bytes")
            target[done : done + len(piece)] = piece
            done += len(piece)

    def _block(self, number: int) -> bytes:
        """A block of the file; shorter at the end, empty after it."""
        if (kept := _blocks.get((self, number))) is not None:
            return kept
        start = number * _BLOCK
        if 0 <= self.known_size <= start:
            return b""
        n_bytes = _BLOCK if self.known_size < 0 else min(_BLOCK, self.known_size - start)
        raw = bytearray(n_bytes)
        got = self._fill(start, memoryview(raw), may_end=self.known_size < 0)
        block = bytes(raw[:got])
        _blocks.put((self, number), block)
        return block

    def _fill(self, offset: int, target: memoryview, *, may_end: bool = False) -> int:
        """Fill `target`, or with `may_end` up to the end of the file; returns the bytes that came."""
        done, tries, lies = 0, 0, 0
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while done < len(target):
            before = done
            try:
                for piece in self._pieces(offset + done, len(target) - done):
                    target[done : done + len(piece)] = piece
                    done += len(piece)
                if may_end and 0 <= self.known_size <= offset + done:
                    break
                if done < len(target) and done == before:
                    raise _AgainError("nothing came")
            except _AgainError as error:
                _check_stop(self.title)
                if error.is_lie:  # what came before it was noticed is not trusted either
                    done = before
                tries = 1 if done > before else tries + 1
                lies = lies + 1 if error.is_lie else 0
                is_late = time.monotonic() > deadline + done / _LEAST_SPEED
                if tries >= self._patience(error) or lies >= _LIES or is_late:
                    raise self._given_up(error, tries) from error.__cause__
                wait_before(tries, error.after, self.title, is_cut=error.is_cut)
                deadline += error.after or 0.0
        return done

    def _patience(self, error: _AgainError) -> int:
        """The tries in a row without progress after which the error is raised."""
        if origin(self.url) in _answered:
            return CUT_TRIES if error.is_cut else _TRIES
        if error.is_cut:
            return FIRST_CUT_TRIES
        return _NAME_TRIES if is_name_fault(error) else _FIRST_TRIES

    def _given_up(self, error: _AgainError, tries: int) -> CheckpointError:
        many = f" ({tries} tries in a row)" if tries > 1 else ""
        hint = "check the connection and the address, and try again"
        if error.is_lie:
            hint = (
                "the server or a proxy between does not serve ranges rightly: download the file and name that"
            )
        elif is_name_fault(error):
            hint = "check the name of the host, the connection and the proxy settings (HTTPS_PROXY)"
        return CheckpointError(f"{self.title}: {error.why}{many}", hint=hint)

    def _pieces(self, offset: int, n_bytes: int) -> Iterator[bytes]:
        """The bytes of one answer, at most those that were asked for."""
        import httpx2

        try:
            with closing(self._answer(offset, n_bytes)) as response:
                n_sent = self._check_answer(response, offset, n_bytes)
                _answered.add(origin(self.url))
                if n_sent:
                    yield from self._body(response, n_sent)
        except httpx2.TimeoutException as error:
            raise _AgainError("the server does not answer in time") from error
        except httpx2.TransportError as error:
            if found := certificate_fault(error):
                raise CheckpointError(
                    f"{self.title}: the server's certificate is not valid: {printable(found)}",
                    hint="check the date of this machine; behind a company's proxy, name its certificates in "
                    "SSL_CERT_FILE",
                ) from error
            raise _AgainError(in_words(error), is_cut=is_cut(error)) from error
        except (httpx2.InvalidURL, httpx2.DecodingError) as error:
            raise CheckpointError(f"{self.title}: {printable(str(error))}") from error
        except ValueError as error:  # of the library, such as for a number of thousands of digits
            raise CheckpointError(
                f"{self.title}: the server's answer is no right HTTP: {printable(str(error))[:120]}",
                hint=_CHECK,
            ) from error

    def _body(self, response: httpx2.Response, n_bytes: int) -> Iterator[bytes]:
        came, started, stop = 0, time.monotonic(), stop_of_this_thread()
        for piece in response.iter_raw():
            came += len(piece)
            if came > n_bytes:
                raise _AgainError("the server sends more than it says", is_lie=True)
            yield piece
            if stop.is_set():
                _check_stop(self.title)
            if time.monotonic() - started > _SLOW_SECONDS and came < n_bytes:
                if came < _SLOW_BYTES:
                    raise _AgainError("the server sends less than 1 KiB a second")
                started, came, n_bytes = time.monotonic(), 0, n_bytes - came
        if came < n_bytes:
            raise _AgainError("the connection was cut", is_cut=True)

    def _answer(self, offset: int, n_bytes: int) -> httpx2.Response:
        """The answer of the last of the servers that the address leads to."""
        target, is_kept = (self._target, True) if self._target else (self.url, False)
        for _ in range(_REDIRECTS):
            response = self._ask(target, offset, n_bytes)
            try:
                if not is_kept:
                    self._check_promises(response)
            except CheckpointError:
                response.close()
                raise
            if is_kept and response.status_code in (400, 401, 403, 404, 410):
                # The address that a redirect gave is valid for a while only.
                response.close()
                self._target, target, is_kept = "", self.url, False
                continue
            if response.status_code not in _MOVED:
                self._target = target if target != self.url else ""
                return response
            response.close()
            target, is_kept = self._redirected(target, response.headers.get("Location", "")), False
        raise CheckpointError(f"{self.title}: the server redirects in circles", hint=_CHECK)

    def _redirected(self, before: str, location: str) -> str:
        target = urljoin(before, location)
        there = urlsplit(target)
        if there.scheme not in ("http", "https") or not there.hostname or not location:
            raise CheckpointError(
                f"{self.title}: the server redirects to what is no web address", hint=_CHECK
            )
        if urlsplit(before).scheme == "https" and there.scheme == "http":
            raise CheckpointError(
                f"{self.title}: the server redirects from https to http, where anybody could change it",
                hint=_CHECK,
            )
        return target

    def _ask(self, target: str, offset: int, n_bytes: int) -> httpx2.Response:
        headers = {"Range": f"bytes={offset}-{offset + n_bytes - 1}", "Accept-Encoding": "identity"}
        if origin(target) == origin(self.url):
            headers |= self.headers
        request = client().build_request("GET", target, headers=headers)
        return client().send(request, stream=True, follow_redirects=False)

    def _check_promises(self, response: httpx2.Response) -> None:
        """Refuse an answer of the hub that is about another commit or other contents."""
        if self.expected is None or response.status_code >= 400:
            return
        commit = response.headers.get("X-Repo-Commit", "")
        if self.expected.commit and commit and commit != self.expected.commit:
            self.is_changed = True
            raise CheckpointError(
                f"{self.title}: the server answers with commit {printable(commit[:40])}, not with "
                f"{self.expected.commit}, which was asked for",
                hint="try again; if it is a mirror, ask the hub itself (unset HF_ENDPOINT)",
            )
        hash_ = etag_of(response.headers.get("X-Linked-Etag") or response.headers.get("ETag") or "")
        if self.expected.hash and _HASH.fullmatch(hash_) and hash_ != self.expected.hash:
            raise self._changed("its hash is not the one that the repository lists")
        size = response.headers.get("X-Linked-Size", "")
        if size.isdecimal() and self.known_size >= 0 and size.lstrip("0") != str(self.known_size).lstrip("0"):
            raise self._changed(f"it has {size[:20]} bytes, the repository lists {self.known_size:,}")

    def _check_answer(self, response: httpx2.Response, offset: int, n_bytes: int) -> int:
        """The bytes that the body must have."""
        status, headers = response.status_code, response.headers
        if status == 416 and self.known_size < 0 and headers.get("Content-Range") == "bytes */0":
            self.known_size = 0
            return 0
        if status == 416:
            raise self._changed(f"the server has no bytes from {offset:,} on")
        if status in _AGAIN:
            raise _AgainError(f"the server answers {status}", after=retry_after(headers))
        if status not in (200, 206):
            raise self._refused(status)
        if (packed := headers.get("Content-Encoding", "identity").lower()) != "identity":
            raise _AgainError(f"the server packs the file ({printable(packed)})", is_lie=True)
        self._check_version(headers)
        if status == 200:
            return self._whole(headers, offset, n_bytes)
        told = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if told is None:
            raise _AgainError("the server does not say which bytes it sends", is_lie=True)
        first, last = int(told[1]), int(told[2])
        if first != offset or not first <= last < offset + n_bytes:
            raise _AgainError(
                f"the server sends bytes {first:,} to {last:,}, asked for {offset:,} to "
                f"{offset + n_bytes - 1:,}",
                is_lie=True,
            )
        if told[3] != "*":
            self._check_size(int(told[3]))
        elif self.known_size < 0:
            raise _AgainError("the server does not say how large the file is", is_lie=True)
        length = headers.get("Content-Length", str(last - first + 1))
        if length != str(last - first + 1):
            raise _AgainError(
                f"the server sends {printable(length[:20])} bytes and calls them {first:,} to {last:,}",
                is_lie=True,
            )
        return last - first + 1

    def _check_size(self, size: int) -> None:
        if self.known_size < 0:
            self.known_size = size
        elif size != self.known_size:
            raise self._changed(f"it has {size:,} bytes now, before {self.known_size:,}")

    def _check_version(self, headers: Mapping[str, str]) -> None:
        if self.expected is not None and self.expected.hash and self._target:
            return  # the hub has said which file it is, and the other host's ETags may be of its own kind
        version = etag_of(headers.get("ETag", "")) or headers.get("Last-Modified", "")
        if version and self.etag and version != self.etag:
            raise self._changed("its ETag is another one now")
        self.etag = self.etag or version

    def _whole(self, headers: Mapping[str, str], offset: int, n_bytes: int) -> int:
        """The answer without ranges: right if the whole file was asked for."""
        length = headers.get("Content-Length", "")
        if _NUMBER.fullmatch(length) and offset == 0 and int(length) <= n_bytes:
            self._check_size(int(length))
            return int(length)
        raise CheckpointError(
            f"{self.title}: the server gives whole files only, no ranges of bytes",
            hint="download the file and name that",
        )

    def _changed(self, how: str) -> CheckpointError:
        self.is_changed = True
        return CheckpointError(
            f"{self.title} changed on the server while it was read: {how}", hint="run the command again"
        )

    def _refused(self, status: int) -> CheckpointError:
        if status in (401, 403) and self.expected is None:
            return CheckpointError(
                f"{self.title}: the server refuses it ({status})",
                hint="give an address that this machine may read, or download the file and name that",
            )
        if status in (401, 403):
            return CheckpointError(
                f"{self.title}: the hub refuses it ({status}), "
                + ("with the token that is set" if self.headers else "and no token is set"),
                hint=f"ask for access on the model's page, then {SET_TOKEN}",
            )
        if status in (404, 410):
            return NoSuchCheckpointError(
                f"{self.title} does not exist ({status})", hint="check the address; names are case-sensitive"
            )
        return CheckpointError(f"{self.title}: the server answers {status}", hint=_CHECK)


class _Blocks:
    """The blocks that were used last, of all files."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[HttpFile, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[HttpFile, int]) -> bytes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: tuple[HttpFile, int], block: bytes) -> None:
        with self._lock:
            self._kept[key] = block
            while len(self._kept) > _KEPT_BLOCKS:
                self._kept.popitem(last=False)


_blocks = _Blocks()
_answered: set[tuple[str, str, int]] = set()
"""The servers that have answered this process as they should."""


def wait_before(tries: int, after: float | None, title: str, *, is_cut: bool = False) -> None:
    """Wait before another try: the longer the more there were, and at least `after` seconds.

    Raises
    ------
    CheckpointError
        If the server wants to be left alone for long, or the reads of this thread are to stop.
    """
    longest = min(LONGEST_WAIT, LONGEST_WAIT_OF_CUT) if is_cut else LONGEST_WAIT
    wait = min(longest, FIRST_WAIT * 2 ** (tries - 1))
    wait *= 0.75 + random.random() / 2  # many threads do not ask again in the same moment
    if after is not None:
        if after > _LONGEST_RETRY_AFTER:
            raise CheckpointError(
                f"{title}: the server wants to be asked again in {after:,.0f} seconds",
                hint="try again later; on the hub a token (`hf auth login`) has a higher limit",
            )
        wait = max(wait, after)
    stop_of_this_thread().wait(wait)
    _check_stop(title)


def _check_stop(title: str) -> None:
    if stop_of_this_thread().is_set():
        raise CheckpointError(f"reading {title} was stopped")
