"""The HTTP client of this process, and what its errors and headers mean.

httpx2 is what huggingface_hub brings along; it is imported where the first address is read. One client holds
the connections: threads share them, and each is used again.
"""

from __future__ import annotations

import datetime
import email.utils
import functools
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from ggplan.errors import CheckpointError
from ggplan.sources.remote import PARALLEL_READS
from ggplan.text import printable
from ggplan.version import __version__

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 10
"""How long a server may be silent; huggingface_hub's HF_HUB_DOWNLOAD_TIMEOUT sets another time."""
INSTALL = "pip install 'ggplan[hub]'"
SET_TOKEN = "set a token: `hf auth login`, or HF_TOKEN=hf_... in the environment"


def shown_url(url: str) -> str:
    """An address without user, password, and what follows `?`, which may be a signature."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def require_client() -> None:
    """Raise CheckpointError unless the HTTP library is installed."""
    try:
        import httpx2  # noqa: F401
    except ImportError as error:
        raise CheckpointError("reading from a server needs httpx2", hint=INSTALL) from error


@functools.cache
def client() -> httpx2.Client:
    """The connections of this process, which its threads share; each is used again."""
    import httpx2

    silence = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "")
    return httpx2.Client(
        timeout=httpx2.Timeout(
            int(silence) if re.fullmatch(r"0*[1-9]\d{0,6}", silence, re.ASCII) else SILENT_SECONDS,
            connect=CONNECT_SECONDS,
            pool=None,
        ),
        limits=httpx2.Limits(max_connections=PARALLEL_READS, max_keepalive_connections=PARALLEL_READS),
        headers={"User-Agent": f"ggplan/{__version__}"},
    )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=client.cache_clear)


def origin(url: str) -> tuple[str, str, int]:
    """The server of an address: scheme, host and port."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return parts.scheme, parts.hostname or "", port


def etag_of(text: str) -> str:
    """The text of an ETag, without its quotes and the mark of a weak one."""
    return text.removeprefix("W/").strip('"')


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: by `Retry-After`, a number or a date, or by the hub's `RateLimit: "api";r=0;t=55`."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    if text:
        try:
            date = email.utils.parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.UTC)
        return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
    told = re.search(r";\s*r=0\s*;\s*t=(\d{1,6})", headers.get("RateLimit", ""))
    return float(told[1]) if told else None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def is_name_fault(error: BaseException) -> bool:
    """Whether the host's name was not found."""
    return any(isinstance(cause, socket.gaierror) for cause in causes(error))


def is_cut(error: BaseException) -> bool:
    """Whether a connection was made, and then cut."""
    import httpx2

    kinds = (httpx2.ReadError, httpx2.WriteError, httpx2.CloseError, httpx2.RemoteProtocolError)
    return isinstance(error, kinds)


def certificate_fault(error: BaseException) -> str:
    """What is wrong with a certificate; "" if that is not the fault."""
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message or str(cause)
    return ""


def in_words(error: Exception) -> str:
    """What became of a connection."""
    import httpx2

    if isinstance(error, httpx2.LocalProtocolError):  # its text may quote a header, which may be a token
        return "the request cannot be made: a header of it is not valid; is the token?"
    for cause in causes(error):
        if isinstance(cause, socket.gaierror):
            return "the host's name is not known"
        if isinstance(cause, ConnectionRefusedError):
            return "the host refuses the connection"
        if isinstance(cause, ConnectionError):
            return "the connection was cut"
    return f"the connection failed: {printable(str(error) or type(error).__name__)[:120]}"
