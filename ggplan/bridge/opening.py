"""A checkpoint as llama.cpp's converter makes it: its headers become a model, its tensors come on request."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggplan.bridge import server
from ggplan.errors import CheckpointError, TokenizerError
from ggplan.ggml_types import BF16, F16, F32
from ggplan.model import Model, RowSource, TensorInfo, empty_rows, require_rows
from ggplan.sources.files import shown
from ggplan.sources.gguf import open_gguf
from ggplan.sources.json_files import load_object
from ggplan.sources.schemes import read_quantization_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NEEDED = ("torch", "transformers", "sentencepiece")
_MISSING = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_FLOATS = (F32, F16, BF16)
_KEPT_LINES = 40


def open_by_converter(folder: Path, tree: Path, *, pre: str | None = None) -> Model:
    """The model that llama.cpp's converter makes of a checkpoint. No weights are read.

    Parameters
    ----------
    folder
        A Hugging Face folder of any architecture that the converter knows.
    tree
        A tree of llama.cpp, with `conversion/` and `gguf-py/`. Its code is run, in a process of its own.
    pre
        llama.cpp's name of the pre-tokenizer, for a tokenizer that the converter does not recognise.

    Raises
    ------
    CheckpointError
        If the tree is none, torch or transformers are not installed, or the converter refuses the checkpoint.
        A tokenizer that it refuses is the model's `obstacle`.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{shown(folder)} holds no config.json", hint="llama.cpp's converter reads Hugging Face folders"
        )
    for part in ("conversion/__init__.py", "gguf-py/gguf/__init__.py"):
        if not (tree / part).is_file():
            raise CheckpointError(
                f"{shown(tree)} is no tree of llama.cpp with the converter's package: it lacks {part}",
                hint="give the folder that `git clone https://github.com/ggml-org/llama.cpp` makes",
            )
    with tempfile.TemporaryDirectory(prefix="ggplan-") as headers:
        process = _start(folder.resolve(), tree.resolve(), Path(headers), pre)
        types = open_gguf(Path(headers) / "types.gguf", header_only=True)
        floats = open_gguf(Path(headers) / "rows.gguf", header_only=True)
        about = load_object(Path(headers) / "about.json")
        stored_as = _texts(about, "stored_as")
    tensors = []
    pairs = zip(types.tensors, floats.tensors, stored_as, strict=True)
    for number, (chosen, computed, stored_in) in enumerate(pairs):
        if (chosen.name, chosen.shape) != (computed.name, computed.shape):
            raise CheckpointError(
                f"{shown(tree)}: the converter names the tensors of {shown(folder)} otherwise from one time "
                f"to the next: '{shown(chosen.name)}' and '{shown(computed.name)}'"
            )
        stored = _rows(process, number, computed)
        rows = stored if stored.dtype in _FLOATS else stored.as_float32() if stored.dtype.decodable else None
        kept = stored if stored.dtype == chosen.type else None
        tensors.append(TensorInfo(chosen.name, chosen.shape, chosen.type, folder.name, stored_in, rows, kept))
    identity = identity_of(tree)
    metadata = {key: value for key, value in types.metadata.items() if key != "general.file_type"}
    return Model(
        folder,
        "hf",
        types.architecture,
        metadata,
        tuple(tensors),
        tuple(map(Path, _texts(about, "files"))),
        (
            f"names, keys and transforms are those of {shown(about.get('class'))} in {shown(tree)} "
            f"(converter {identity[:12]})",
            *_decoded(folder),
        ),
        obstacle=_without_tokenizer(folder, about.get("tokenizer")),
        converter=identity,
    )


def _without_tokenizer(folder: Path, words: object) -> TokenizerError | None:
    """Why the model cannot be converted, by the converter's own words about its tokenizer."""
    if not isinstance(words, str) or not words:
        return None
    what = f"{shown(folder)}: llama.cpp's converter does not read its tokenizer"
    if _MISSING.search(words) is not None:
        refusal = _refusal(what, words)
        return TokenizerError(refusal.message, hint=refusal.hint)
    known = "pre-tokenizer" in words
    return TokenizerError(
        f"{what}: {shown(words)}", hint="name it with `--pre`, if you know which it is" if known else ""
    )


def _decoded(folder: Path) -> list[str]:
    """What becomes of the codes of a quantized checkpoint: the converter gives the weights they stand for."""
    if not read_quantization_config(load_object(folder / "config.json"), folder).values:
        return []
    return [
        f"{shown(folder)} is quantized, and llama.cpp's converter decodes it: its codes are not moved, and a "
        "type of few bits quantizes them a second time"
    ]


def _texts(about: dict[str, object], key: str) -> list[str]:
    found = about.get(key)
    return [str(item) for item in found] if isinstance(found, list) else []


def identity_of(tree: Path) -> str:
    """The SHA-256 of the converter's own code, by which another version of it is told."""
    digest = hashlib.sha256()
    for part in ("conversion", "gguf-py/gguf"):
        for path in sorted((tree / part).glob("*.py")):
            digest.update(f"{part}/{path.name}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Server:
    """The converter's process, its socket, and the number of the tensor that it holds computed."""

    where: str
    process: subprocess.Popen[bytes]
    link: socket.socket
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))
    lock: threading.Lock = field(default_factory=threading.Lock)
    computed: int = -1

    def read_into(self, number: int, name: str, start: int, target: memoryview) -> None:
        """Fill `target` with bytes of a tensor, from byte `start` on."""
        with self.lock:
            if number != self.computed:
                self.computed = -1
                self.ask(number, server.COMPUTE, server.COMPUTE)
                self.receive(memoryview(b""), f"cannot compute {shown(name)}")
                self.computed = number
            self.ask(number, start, start + len(target))
            self.receive(target, f"cannot give {shown(name)}")

    def ask(self, *request: int) -> None:
        """Send a request; a process that is gone shows in the answer."""
        with contextlib.suppress(OSError):
            self.link.sendall(server.REQUEST.pack(*request))

    def receive(self, target: memoryview, what: str) -> None:
        """Take an answer of just as many bytes as `target` has.

        Raises
        ------
        CheckpointError
            If the process fails or ends, with its own words.
        """
        head = bytearray(server.ANSWER.size)
        if not self._fill(memoryview(head)):
            last = next((line for line in reversed(self.lines) if line.strip()), "it said nothing")
            raise CheckpointError(f"{self.where}: llama.cpp's converter ended: {shown(last)}")
        status, length = server.ANSWER.unpack(head)
        if status:
            words = bytearray(length)
            self._fill(memoryview(words))
            raise _refusal(f"{self.where}: llama.cpp's converter {what}", words.decode("utf-8", "replace"))
        if length != len(target) or not self._fill(target):
            raise CheckpointError(
                f"{self.where}: llama.cpp's converter gave {length:,} bytes, not {len(target):,}"
            )

    def _fill(self, target: memoryview) -> bool:
        done = 0
        while done < len(target):
            try:
                count = self.link.recv_into(target[done:])
            except OSError:
                return False
            if not count:
                return False
            done += count
        return True


def _refusal(what: str, words: str) -> CheckpointError:
    """The converter's own error as ours."""
    if (missing := _MISSING.search(words)) is not None:
        return CheckpointError(
            f"{what}: {missing[1]} is not installed in {shown(sys.executable)}",
            hint=f"pip install {' '.join(dict.fromkeys((missing[1].split('.')[0], *_NEEDED)))}",
        )
    return CheckpointError(f"{what}: {shown(words)}")


def _start(folder: Path, tree: Path, headers: Path, pre: str | None) -> _Server:
    """Start the process, and wait until it has made the headers."""
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    process = subprocess.Popen(
        [
            sys.executable, "-P", server.__file__, str(tree), str(folder), str(theirs.fileno()),
            str(headers), pre or "",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(theirs.fileno(),),
        cwd=headers,
        start_new_session=True,  # Ctrl-C is ours to handle: closing the socket ends it
    )  # fmt: skip
    theirs.close()
    started = _Server(shown(folder), process, ours)
    weakref.finalize(started, _end, process, ours)
    assert process.stderr is not None
    threading.Thread(target=_keep_lines, args=(process.stderr, started.lines), daemon=True).start()
    started.receive(memoryview(b""), "does not read it")
    return started


def _keep_lines(stream: Any, lines: deque[str]) -> None:
    for line in stream:
        lines.append(line.decode("utf-8", "replace").rstrip())


def _end(process: subprocess.Popen[bytes], link: socket.socket) -> None:
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
    link.close()
    process.kill()
    process.wait()


def _rows(process: _Server, number: int, tensor: TensorInfo) -> RowSource:
    """The rows of a tensor as the converter computes them, in its type."""
    dtype, n_columns, n_rows = tensor.type, tensor.n_columns, tensor.n_rows
    row_bytes = dtype.row_bytes(n_columns)

    def read(start: int, stop: int) -> NDArray[Any]:
        require_rows(start, stop, n_rows)
        rows = empty_rows(dtype, stop - start, n_columns)
        if rows.size:
            process.read_into(number, tensor.name, start * row_bytes, rows.reshape(-1).data.cast("B"))
        return rows

    return RowSource(dtype, tensor.shape, read)
