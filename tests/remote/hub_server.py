"""A server on loopback that speaks the hub's paths, and misbehaves when told to.

    GET  /api/models/ORG/NAME/revision/REV          which commit it is
    GET  /api/models/ORG/NAME/tree/COMMIT           the files, in pages
    HEAD, GET /ORG/NAME/resolve/COMMIT/FILE         a small file, or a redirect of one in LFS storage
    GET  /blob/SHA256                               where the redirect leads: the bytes, by ranges

Faults are functions that are asked before each answer of a file's bytes, and may answer in its place.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
PIECE = 1 << 18
LARGE = 1 << 20  # bytes from which on a file is in LFS storage, unless `lfs` says otherwise


@dataclass
class Request:
    """One request, as it came and was answered; the names of its headers are in small letters."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int = 0
    sent: int = 0


@dataclass
class Hub:
    """What is served, and what was asked.

    `fault(handler, first, last, data_size)` is asked before bytes are sent; True means that it has answered.
    """

    folder: Path
    name: str = "org/name"
    commit: str = COMMIT
    lfs: Callable[[str], bool] | None = None
    fault: Callable[[Handler, int, int, int], bool] | None = None
    api_fault: Callable[[Handler], bool] | None = None
    resolve_fault: Callable[[Handler, dict[str, str]], None] | None = None
    token: str = ""
    gated: bool = False
    blobs_elsewhere: str = ""
    page_size: int = 1000
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    _hashes: dict[str, str] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        """Bytes of bodies that were sent."""
        return sum(request.sent for request in self.requests)

    def files(self) -> list[str]:
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())

    def is_lfs(self, name: str) -> bool:
        return self.lfs(name) if self.lfs else (self.folder / name).stat().st_size >= LARGE

    def hash(self, name: str) -> str:
        if name not in self._hashes:
            data = (self.folder / name).read_bytes()
            self._hashes[name] = (
                hashlib.sha256(data).hexdigest()
                if self.is_lfs(name)
                else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            )
        return self._hashes[name]


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server.hub
        self.request_ = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        hub.requests.append(self.request_)
        path = unquote(urlsplit(self.path).path)
        try:
            if path.startswith("/api/models/"):
                self._api(hub, path.removeprefix("/api/models/"))
            elif path.startswith("/blob/"):
                names = [name for name in hub.files() if hub.is_lfs(name) and hub.hash(name) == path[6:]]
                self._bytes(hub, names[0], {"ETag": '"s3-of-its-own"'})
            elif found := re.fullmatch(rf"/{hub.name}/resolve/([^/]+)/(.+)", path):
                self._resolve(hub, found[1], found[2])
            elif (hub.folder / path[1:]).is_file():
                self._bytes(hub, path[1:], {"ETag": f'"{hub.hash(path[1:])}"'})
            else:
                self.answer(404, b"not here", {"X-Error-Code": "RepoNotFound"})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.request_.status = status
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.request_.sent += len(body)

    def cut(self) -> None:
        """End the connection in the middle of what was being said."""
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _refused(self, hub: Hub) -> bool:
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            code = "GatedRepo" if hub.gated else "RepoNotFound"
            self.answer(401, b"no", {"X-Error-Code": code, "X-Error-Message": "Access is restricted"})
            return True
        return False

    def _api(self, hub: Hub, rest: str) -> None:
        if hub.api_fault is not None and hub.api_fault(self):
            return
        if self._refused(hub):
            return
        if not rest.startswith(hub.name + "/"):
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        kind, _, revision = rest[len(hub.name) + 1 :].partition("/")
        if revision not in ("main", hub.commit):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif kind == "revision":
            self._json({"id": hub.name, "sha": hub.commit, "siblings": []})
        else:
            query = urlsplit(self.path).query
            page = int(found[1]) if (found := re.search(r"cursor=(\d+)", query)) else 0
            names = hub.files()
            entries = []
            for name in names[page * hub.page_size : (page + 1) * hub.page_size]:
                size = (hub.folder / name).stat().st_size
                entry: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": hub.hash(name)}
                if hub.is_lfs(name):
                    entry["oid"] = "a" * 40
                    entry["lfs"] = {"oid": hub.hash(name), "size": size, "pointerSize": 134}
                    entry["xetHash"] = "b" * 64
                entries.append(entry)
            more = (page + 1) * hub.page_size < len(names)
            link = f'<{hub.url}{urlsplit(self.path).path}?recursive=True&cursor={page + 1}>; rel="next"'
            self._json(entries, {"Link": link} if more else {})

    def _json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.answer(200, body, {"Content-Type": "application/json", **(headers or {})})

    def _resolve(self, hub: Hub, revision: str, name: str) -> None:
        if self._refused(hub):
            return
        told = {"X-Repo-Commit": hub.commit}
        if revision not in ("main", hub.commit):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif name not in hub.files():
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", **told})
        elif hub.is_lfs(name):
            size, hash_ = (hub.folder / name).stat().st_size, hub.hash(name)
            # Another host, as on the hub, by name.
            other = hub.blobs_elsewhere or hub.url.replace("127.0.0.1", "localhost")
            where = f"{other}/blob/{hash_}?X-Amz-Signature=secret"
            told |= {"X-Linked-Size": str(size), "X-Linked-Etag": f'"{hash_}"', "Location": where}
            if hub.resolve_fault is not None:
                hub.resolve_fault(self, told)
            self.answer(302, b"", told)
        else:
            self._bytes(hub, name, {"ETag": f'"{hub.hash(name)}"', **told})

    def _bytes(self, hub: Hub, name: str, headers: Mapping[str, str]) -> None:
        path = hub.folder / name
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2] or size - 1)) if asked else (0, size - 1)
        if asked and first >= size:
            self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            return
        last = min(last, size - 1)
        if self.command == "GET" and hub.fault is not None and hub.fault(self, first, last, size):
            return
        told = {"Content-Length": str(last - first + 1), **headers}
        if asked:
            told["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.request_.status = 206 if asked else 200
        self.send_response(self.request_.status)
        for key, value in told.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.send(path, first, last + 1)

    def send(self, path: Path, start: int, stop: int) -> None:
        with open(path, "rb") as file:
            file.seek(start)
            while start < stop:
                piece = file.read(min(PIECE, stop - start))
                self.wfile.write(piece)
                self.request_.sent += len(piece)
                start += len(piece)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: Hub

    def handle_error(self, *_: object) -> None:
        """What a client does to its connection is not an error here."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port of loopback."""
    server = Server(("127.0.0.1", 0), Handler)
    server.hub = hub
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
