"""Ranges of a file come whole and right, whatever the server does; what cannot be had is one line."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from hub_server import Handler, Hub, serving

from ggplan.errors import CheckpointError, NoSuchCheckpointError
from ggplan.sources import http_ranges
from ggplan.sources.addresses import open_address
from ggplan.sources.files import read_at, read_into, read_rectangle, size_and_version
from ggplan.sources.http_ranges import HttpFile
from ggplan.sources.remote import RemotePath, each, stop_of_this_thread, stop_reads_at

SIZE = 1_000_003
DATA = random.Random(1).randbytes(SIZE)
Fault = Callable[[Handler, int, int, int], bool]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "data.bin").write_bytes(DATA)
    with serving(Hub(tmp_path / "served", lfs=lambda name: False)) as served:
        yield served


def opened(hub: Hub) -> RemotePath:
    return open_address(f"{hub.url}/data.bin")


def part_of(handler: Handler, first: int, last: int, size: int, n_sent: int) -> None:
    """Promise a range, and send `n_sent` bytes of it."""
    handler.send_response(206)
    handler.send_header("Content-Length", str(last - first + 1))
    handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
    handler.end_headers()
    handler.wfile.write(DATA[first : first + n_sent])
    handler.wfile.flush()


def cut(handler: Handler, first: int, last: int, size: int) -> bool:
    part_of(handler, first, last, size, (last - first + 1) // 3)
    handler.cut()
    return True


def cut_at_once(handler: Handler, first: int, last: int, size: int) -> bool:
    handler.cut()
    return True


def stall(handler: Handler, first: int, last: int, size: int) -> bool:
    part_of(handler, first, last, size, (last - first + 1) // 2)
    time.sleep(1.5)
    handler.cut()
    return True


def status(code: int, **headers: str) -> Fault:
    def fault(handler: Handler, first: int, last: int, size: int) -> bool:
        handler.answer(code, b"busy", {key.replace("_", "-"): text for key, text in headers.items()})
        return True

    return fault


def less(handler: Handler, first: int, last: int, size: int) -> bool:
    """Half of the range, rightly called so: no fault, but the rest must be asked for."""
    part_of(handler, first, (first + last) // 2, size, (first + last) // 2 - first + 1)
    return True


PASSING = {
    "cut": cut,
    "cut at once": cut_at_once,
    "stall": stall,
    "500": status(500),
    "503": status(503, Retry_After="0"),
    "429": status(429, Retry_After="0"),
    "429 until a date": status(429, Retry_After=formatdate(0, usegmt=True)),
    "429 of the hub": status(429, RateLimit='"resolvers";r=0;t=0'),
    "less than asked": less,
}


@pytest.mark.parametrize("name", PASSING)
def test_faults_that_pass(hub: Hub, name: str) -> None:
    path = opened(hub)
    times = 1 if name == "stall" else 3

    def fault(handler: Handler, first: int, last: int, size: int) -> bool:
        nonlocal times
        times -= 1
        return times >= 0 and PASSING[name](handler, first, last, size)

    hub.fault = fault
    assert read_at(path, 100, SIZE - 200) == DATA[100:-100]
    assert times < 0


def answer_of(body: bytes, **headers: str) -> Fault:
    def fault(handler: Handler, first: int, last: int, size: int) -> bool:
        told = {"Content-Range": f"bytes {first}-{last}/{size}", "Content-Length": str(last - first + 1)}
        told |= {
            key.replace("_", "-"): text.format(first=first, last=last, size=size)
            for key, text in headers.items()
        }
        handler.answer(206, body or DATA[first : last + 1], {k: v for k, v in told.items() if v})
        return True

    return fault


def whole(handler: Handler, first: int, last: int, size: int) -> bool:
    handler.answer(200, DATA)
    return True


def more(handler: Handler, first: int, last: int, size: int) -> bool:
    """The range, and more than was asked for."""
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for piece in (DATA[first : last + 1], b"more"):
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    handler.wfile.write(b"0\r\n\r\n")
    return True


LASTING = {
    "more than asked": (more, "sends more than it says"),
    "another range": (answer_of(b"", Content_Range="bytes 0-{last}/{size}"), "the server sends bytes 0 to"),
    "no range": (answer_of(b"", Content_Range=""), "does not say which bytes"),
    "nonsense": (answer_of(b"", Content_Range="bytes 5-4/3"), "the server sends bytes 5 to 4"),
    "another size": (
        answer_of(b"", Content_Range="bytes {first}-{last}/999999999"),
        "has 999,999,999 bytes now",
    ),
    "packed": (answer_of(b"", Content_Encoding="gzip"), r"packs the file \(gzip\)"),
    "another ETag": (answer_of(b"", ETag='"other"'), "its ETag is another one now"),
    "other length": (answer_of(b"x" * 7, Content_Length="7"), "sends 7 bytes and calls them"),
    "whole files": (whole, "gives whole files only"),
    "404": (status(404), r"does not exist \(404\)"),
    "403": (status(403), r"refuses it \(403\)"),
    "416": (status(416), "has no bytes from 200,000 on"),
    "418": (status(418), "answers 418"),
    "always 500": (status(500), r"answers 500 \(11 tries in a row\)"),
    "always cut": (cut_at_once, r"the connection was cut|failed.*\(40 tries in a row\)"),
    "a length of 5,000 digits": (
        answer_of(b"", Content_Length="9" * 5000),
        "no right HTTP|the connection failed",
    ),
    "a whole file of 5,000 digits": (
        lambda handler, *_: handler.answer(200, DATA, {"Content-Length": "9" * 5000}) or True,
        "no right HTTP|the connection failed",
    ),
    "a size of 5,000 digits": (
        answer_of(b"", Content_Range="bytes {first}-{last}/" + "9" * 5000),
        "does not say which bytes",
    ),
    "in 5,000 digits of seconds": (status(429, Retry_After="9" * 5000), "wants to be asked again in"),
    "in an hour": (status(429, Retry_After="3600"), "asked again in 3,600 seconds"),
    "in circles": (status(302, Location="/data.bin"), "redirects in circles"),
    "to a file": (status(302, Location="file:///etc/passwd"), "redirects to what is no web address"),
    "to nowhere": (status(302), "redirects to what is no web address"),
}


@pytest.mark.parametrize("name", LASTING)
def test_faults_that_last(hub: Hub, name: str) -> None:
    path = opened(hub)
    hub.fault, message = LASTING[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        read_at(path, 200_000, 300_000)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)


class Waits(threading.Event):
    """An event that is waited for in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return False


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """The waits as they are for a user."""
    monkeypatch.setattr(http_ranges, "FIRST_WAIT", 0.25)
    monkeypatch.setattr(http_ranges, "LONGEST_WAIT", 30.0)
    stop_reads_at(found := Waits())
    yield found
    stop_reads_at(threading.Event())


@pytest.mark.parametrize("n_sent", [0, 1000])
def test_a_line_that_cuts_three_of_four_requests(hub: Hub, waits: Waits, n_sent: int) -> None:
    """What came between two cuts begins the waits anew, and a cut is not waited for long."""
    dice = random.Random(4)

    def fault(handler: Handler, first: int, last: int, size: int) -> bool:
        if dice.random() < 0.25:
            return False
        if n_sent:
            part_of(handler, first, last, size, n_sent)
        handler.cut()
        return True

    path = opened(hub)
    hub.fault = fault
    for at in range(0, 252_000, 4000):
        assert read_at(path, at, 4000) == DATA[at : at + 4000]
    assert 0 < sum(waits.seconds) < 30


def test_a_line_that_gives_a_byte_at_a_time_is_given_up(
    hub: Hub, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(handler: Handler, first: int, last: int, size: int) -> bool:
        time.sleep(0.005)
        part_of(handler, first, last, size, 1)
        handler.cut()
        return True

    path = opened(hub)
    hub.fault = fault
    monkeypatch.setattr(http_ranges, "_PATIENCE_SECONDS", 0.5)
    with pytest.raises(CheckpointError, match=r"was cut|peer closed"):
        read_at(path, 200_000, 300_000)


def test_a_file_that_changed_is_known_to_have_changed(hub: Hub) -> None:
    path = opened(hub)
    assert size_and_version(path) == (SIZE, f"version {hub.hash('data.bin')}")
    hub.fault = answer_of(b"", ETag='"other"')
    with pytest.raises(CheckpointError, match="changed on the server"):
        read_at(path, 200_000, 300_000)
    with pytest.raises(CheckpointError, match="changed on the server"):
        size_and_version(path)


def test_bytes_after_the_end_are_not_asked_for(hub: Hub) -> None:
    path = opened(hub)
    n_requests = len(hub.requests)
    with pytest.raises(CheckpointError, match="is truncated: 100 bytes at offset 1,000,000 were expected, 3"):
        read_at(path, 1_000_000, 100)
    assert len(hub.requests) == n_requests


def test_small_reads_come_in_blocks(hub: Hub) -> None:
    path = opened(hub)
    for at in range(0, SIZE - 7, 997):
        assert read_at(path, at, 7) == DATA[at : at + 7]
    assert len(hub.requests) == -(-SIZE // (1 << 16))
    assert hub.sent == SIZE


def test_a_small_file_of_a_server_without_ranges(hub: Hub) -> None:
    (hub.folder / "small").write_bytes(b"hello")
    (hub.folder / "empty").write_bytes(b"")

    def without_ranges(handler: Handler, first: int, last: int, size: int) -> bool:
        handler.answer(200, (hub.folder / handler.path[1:]).read_bytes())
        return True

    hub.fault = without_ranges
    assert read_at(open_address(f"{hub.url}/small"), 0, 5) == b"hello"
    assert size_and_version(open_address(f"{hub.url}/empty"))[0] == 0
    with pytest.raises(CheckpointError, match="gives whole files only"):
        open_address(f"{hub.url}/data.bin")


def test_many_threads_share_the_connections(hub: Hub) -> None:
    path = opened(hub)
    connections: set[object] = set()

    def count(handler: Handler, first: int, last: int, size: int) -> bool:
        connections.add(handler.client_address)
        return False

    hub.fault = count
    pieces = list(range(0, SIZE - 100_000, 10_000))
    whole = each(pieces, lambda at: read_at(path, at, 100_000), parallel=True)
    assert whole == [DATA[at : at + 100_000] for at in pieces]
    assert len(connections) <= 16 < len(pieces)


def test_a_token_stays_with_its_host(hub: Hub, tmp_path: Path) -> None:
    with serving(Hub(hub.folder, lfs=lambda name: False)) as other:
        hub.fault = status(302, Location=f"{other.url}/data.bin")
        file = HttpFile(f"{hub.url}/data.bin", "it", SIZE, {"Authorization": "Bearer secret"})
        raw = bytearray(100_000)
        file.read_into(50_000, memoryview(raw))
        assert bytes(raw) == DATA[50_000:150_000]
        assert [request.headers.get("authorization") for request in hub.requests] == ["Bearer secret"]
        assert [request.headers.get("authorization") for request in other.requests] == [None]
        # Where it led is kept, and found anew when it is no longer valid.
        other.fault = lambda handler, *_: len(other.requests) == 2 and status(403)(handler, 0, 0, 0)
        file.read_into(150_000, memoryview(raw))
        assert bytes(raw) == DATA[150_000:250_000]
        assert len(hub.requests) == 2
        assert "secret" not in repr(file)


def test_reads_end_when_their_thread_is_to_stop(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = opened(hub)
    monkeypatch.setattr(http_ranges, "FIRST_WAIT", 30.0)
    monkeypatch.setattr(http_ranges, "LONGEST_WAIT", 30.0)
    hub.fault = status(500)
    stop, caught = threading.Event(), []

    def read() -> None:
        stop_reads_at(stop)
        assert stop_of_this_thread() is stop
        try:
            read_into(path, 200_000, memoryview(bytearray(100_000)))
        except CheckpointError as error:
            caught.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.2)
    stop.set()
    thread.join(5)
    assert [error.message for error in caught] == [f"reading {path} was stopped"]


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/model.gguf"
        with pytest.raises(CheckpointError, match="refuses the connection") as caught:
            open_address(url)
    assert caught.value.hint.startswith("check the connection")
    with pytest.raises(CheckpointError, match="name is not known") as caught:
        open_address("http://no-such-host.invalid/model.gguf")
    assert "HTTPS_PROXY" in caught.value.hint


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://", "names no host"),
        ("http://host:port/x.gguf", "no web address"),
        ("http://127.0.0.1:1/", "names no file"),
        ("http://127.0.0.1:1/folder/", "names no file"),
        ("hf://", "no address of a model"),
        ("hf://name", "no address of a model"),
        ("hf://org/name@", "no address of a model"),
        ("hf://org/na me", "no address of a model"),
        ("hf://datasets/org/name", "is of the hub's datasets, not a model"),
        ("https://huggingface.co/spaces/org/name", "is of the hub's spaces, not a model"),
    ],
)
def test_what_is_no_address(address: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_address(address)
    assert caught.value.hint or "web address" in message or "host" in message


def test_secrets_of_an_address_are_not_shown(hub: Hub) -> None:
    address = f"{hub.url.replace('http://', 'http://user:password@')}/data.bin?X-Amz-Signature=secret"
    path = open_address(address)
    assert read_at(path, 5, 5) == DATA[5:10]
    assert str(path) == f"{hub.url}/data.bin"
    assert hub.requests[-1].headers["authorization"].startswith("Basic ")
    assert hub.requests[-1].path.endswith("?X-Amz-Signature=secret")
    hub.fault = status(403)
    with pytest.raises(CheckpointError) as caught:
        read_at(path, 200_000, 100_000)
    assert "secret" not in str(caught.value)
    assert "password" not in str(caught.value)
    with pytest.raises(NoSuchCheckpointError) as caught:
        open_address(address.replace("data.bin", "other.bin"))
    assert "secret" not in str(caught.value)


def test_a_remote_path_is_a_path(hub: Hub) -> None:
    path = opened(hub)
    assert isinstance(path, Path)
    assert (path.name, path.suffix, path.stem) == ("data.bin", ".bin", "data")
    beside = path.with_name("small.gguf")
    assert (str(beside), beside.exists()) == (f"{hub.url}/small.gguf", False)
    assert str(path.parent / "data.bin") == str(path)
    assert path.parent / "data.bin" == path
    assert hash(path.parent / "data.bin") == hash(path)
    assert path != Path("data.bin")
    assert path.resolve() is path
    assert not path.is_symlink()
    with pytest.raises(CheckpointError, match="is not on this machine"):
        os.stat(path)


def test_rectangles_of_one_band_take_one_request(hub: Hub) -> None:
    """The columns of packed weights, which are read a few at a time by many threads."""
    path, row_bytes, n_rows = opened(hub), 40_000, 20
    matrix = np.frombuffer(DATA, np.uint8, n_rows * row_bytes, 100).reshape(n_rows, row_bytes)
    n_before = len(hub.requests)

    def read(left: int) -> bool:
        found = read_rectangle(path, 100, row_bytes, (5, 20), (left, left + 100))
        return bool((found == matrix[5:, left : left + 100]).all())

    assert all(each(range(0, row_bytes, 400), read, parallel=True))
    assert len(hub.requests) == n_before + 1
