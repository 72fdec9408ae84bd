"""A conversion of a checkpoint on a server gives the bytes of the local one, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import Handler, Hub, serving
from program import run
from served_model import write_sharded

import ggplan
from ggplan.conversion import ConvertOptions
from ggplan.errors import CheckpointError, ConversionError
from ggplan.sources import http_ranges

Use = Callable[[Hub], Hub]
OPTIONS = ("-r", "Q4_K_M", "--pre", "glm4")
N_CUTS = 20
RECORDED = 4
"""Lines of a journal that has work."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharded(tmp_path_factory.mktemp("served") / "name")


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("local") / "out.gguf"
    done = run("convert", folder, output, *OPTIONS)
    assert done.returncode == 0, done.stderr
    return output.read_bytes()


@pytest.fixture
def hub(folder: Path, use: Use) -> Iterator[Hub]:
    with serving(Hub(folder, lfs=lambda name: name.endswith(".safetensors"))) as served:
        yield use(served)


def send_part(handler: Handler, first: int, last: int, size: int, share: int = 3) -> None:
    """Promise a range, send a part of it, and cut the connection."""
    hub = handler.server.hub
    name = next(n for n in hub.files() if hub.is_lfs(n) and handler.path[6:].startswith(hub.hash(n)))
    handler.send_response(206)
    handler.send_header("Content-Length", str(last - first + 1))
    handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
    handler.end_headers()
    handler.send(hub.folder / name, first, first + (last - first + 1) // share)
    handler.cut()


def is_small(first: int, last: int) -> bool:
    return last - first < 1 << 16


class Cuts:
    """Cut the first connections over which weights come."""

    def __init__(self, n: int) -> None:
        self.left, self.lock = n, threading.Lock()

    def __call__(self, handler: Handler, first: int, last: int, size: int) -> bool:
        if is_small(first, last) or not handler.path.startswith("/blob/"):
            return False
        with self.lock:
            self.left -= 1
            is_cut = self.left >= 0
        if is_cut:
            send_part(handler, first, last, size)
        return is_cut


def test_twenty_cut_connections(hub: Hub, expected: bytes, tmp_path: Path) -> None:
    hub.fault = cuts = Cuts(N_CUTS)
    done = run("convert", "hf://org/name", tmp_path / "out.gguf", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert cuts.left < 0
    assert (tmp_path / "out.gguf").read_bytes() == expected
    assert "the SHA-256 of whole files is not checked" in done.stderr
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.gguf", "out.gguf.sha256"]


def test_a_gguf_of_any_server(folder: Path, hub: Hub, tmp_path: Path) -> None:
    bf16 = tmp_path / "bf16.gguf"
    assert run("convert", folder, bf16, "--pre", "glm4", "-q").returncode == 0
    assert run("convert", bf16, tmp_path / "here.gguf", "-r", "Q8_0", "-q").returncode == 0
    with serving(Hub(tmp_path, lfs=lambda name: False)) as other:
        done = run("convert", f"{other.url}/bf16.gguf", tmp_path / "there.gguf", "-r", "Q8_0")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "there.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()


def plan_of_hub() -> ggplan.Plan:
    return ggplan.make_plan(ggplan.open_model("hf://org/name", pre="glm4"), "Q4_K_M")


@pytest.fixture
def unfinished(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a conversion whose network went away, and that has recorded work."""
    monkeypatch.setattr("ggplan.conversion.streaming.CHECKPOINT_SECONDS", 0.0)
    output = tmp_path / "out.gguf"

    def away(handler: Handler, first: int, last: int, size: int) -> bool:
        if not is_recorded(output, first, last, size):
            return False
        handler.cut()
        return True

    hub.fault = away
    with pytest.raises(CheckpointError, match=r"\(40 tries in a row\)") as caught:
        ggplan.convert(plan_of_hub(), output, ConvertOptions(threads=1))
    assert "the same command continues from there" in caught.value.hint
    assert not output.exists()
    hub.fault = None
    hub.requests.clear()
    return output


def test_a_network_that_stays_away_keeps_the_work(hub: Hub, expected: bytes, unfinished: Path) -> None:
    result = ggplan.convert(plan_of_hub(), unfinished)
    assert result.resumed_bytes > 0
    assert unfinished.read_bytes() == expected


def test_work_goes_on_after_the_files_were_downloaded(hub: Hub, expected: bytes, unfinished: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download("org/name", endpoint=hub.url)
    hub.requests.clear()
    assert ggplan.convert(plan_of_hub(), unfinished).resumed_bytes > 0
    assert unfinished.read_bytes() == expected
    assert not [request for request in hub.requests if "/resolve/" in request.path]


def test_work_that_was_begun_from_another_version(hub: Hub, unfinished: Path) -> None:
    """Unfinished work names the file that is another one on the hub now."""
    shard = "model-00003-of-00003.safetensors"
    hub._hashes[shard], hub.commit = "a" * 64, "b" * 40
    with pytest.raises(ConversionError, match=rf"begun under another plan: the input {shard}"):
        ggplan.convert(plan_of_hub(), unfinished)


def test_a_file_that_changes_midway_leaves_nothing(folder: Path, hub: Hub, tmp_path: Path) -> None:
    assert run("convert", folder, tmp_path / "bf16.gguf", "--pre", "glm4", "-q").returncode == 0
    with serving(Hub(tmp_path, lfs=lambda name: False)) as other:
        plan = ggplan.make_plan(ggplan.open_model(f"{other.url}/bf16.gguf"), "Q8_0")

        def changed(handler: Handler, first: int, last: int, size: int) -> bool:
            if not is_small(first, last) and first > size // 2:
                handler.server.hub._hashes["bf16.gguf"] = "f" * 40
            return False

        other.fault = changed
        with pytest.raises(CheckpointError, match="changed on the server"):
            ggplan.convert(plan, tmp_path / "out.gguf", ConvertOptions(threads=1))
    assert [path.name for path in tmp_path.glob("out*")] == []


def stop_midway(hub: Hub, output: Path, number: int = signal.SIGKILL) -> tuple[int, str]:
    """Send a signal to a conversion in a process of its own that has recorded work; its code and errors."""
    is_over = threading.Event()

    def fault(handler: Handler, first: int, last: int, size: int) -> bool:
        if is_recorded(output, first, last, size):
            is_over.wait(20)
        return False

    hub.fault = fault
    program = (
        "import ggplan.conversion.streaming as streaming\n"
        "from ggplan.cli import main\n"
        "streaming.CHECKPOINT_SECONDS = 0.0\n"
        "main()"
    )
    arguments = ["convert", "hf://org/name", str(output), *OPTIONS, "--threads", "1"]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**environment, "HF_HUB_DOWNLOAD_TIMEOUT": "30"},
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while n_recorded(output) < RECORDED and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    if number != signal.SIGKILL:
        time.sleep(0.2)
    is_over.set()
    _, errors = process.communicate(timeout=30)
    hub.fault = None
    return process.returncode, errors


def n_recorded(output: Path) -> int:
    """Lines of the journal of a conversion."""
    journal = output.with_name(output.name + ".part.journal")
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def is_recorded(output: Path, first: int, last: int, size: int) -> bool:
    """Whether a conversion that asks for weights has recorded work; the last layer's wait until it has.

    Readers are far ahead of the encoder: all weights may be there before the first are encoded.
    """
    is_last_layer = n_recorded(output) and not is_small(first, last) and first > size * 4 // 5
    until = time.monotonic() + 30
    while is_last_layer and n_recorded(output) < RECORDED and time.monotonic() < until:
        time.sleep(0.01)
    return n_recorded(output) >= RECORDED


@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_killed_and_run_again(hub: Hub, expected: bytes, tmp_path: Path, number: int) -> None:
    output = tmp_path / "out.gguf"
    code, errors = stop_midway(hub, output, number)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130), errors
    assert not output.exists()
    hub.requests.clear()
    done = run("convert", "hf://org/name", output, *OPTIONS, "--json")
    assert done.returncode == 0, done.stderr
    assert '"resumed_bytes": 0' not in done.stdout
    assert output.read_bytes() == expected


def test_verify_and_reproduce_against_the_hub(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    assert run("convert", "hf://org/name", output, *OPTIONS, "-q").returncode == 0
    done = run("verify", output, "--against", "hf://org/name", "--exact")
    assert done.returncode == 0, done.stderr
    assert "every byte is what the plan encodes" in done.stdout
    done = run("reproduce", output, "hf://org/name")
    assert done.returncode == 0, done.stderr
    assert "every byte is what hf://org/name and the recorded recipe give" in done.stdout


def test_a_round_trip_is_hidden_by_many_readers(hub: Hub, expected: bytes, tmp_path: Path) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def count(handler: Handler, first: int, last: int, size: int) -> bool:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.05)
        with lock:
            inside -= 1
        return False

    hub.fault = count
    done = run("convert", "hf://org/name", tmp_path / "out.gguf", *OPTIONS, "-q")
    assert done.returncode == 0, done.stderr
    assert 4 < most <= 16
    assert (tmp_path / "out.gguf").read_bytes() == expected
    assert http_ranges.FIRST_WAIT < 1
