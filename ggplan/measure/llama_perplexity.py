"""Run the user's own llama-perplexity (llama.cpp's or ik_llama.cpp's) and score every token.

llama-perplexity prints sums only, and writes all log-probabilities of a model to a file when it is told
`--kl-divergence-base FILE` without `--kl-divergence`. For the base model that file is what we keep. For the
others the file is a pipe: each chunk is compared with the base's while the engine computes the next, so the
tens of gigabytes are never stored. The file keeps log-probabilities in steps of 16/65535 nats, which
changes a mean KL divergence by about 0.000002; the perplexity is the one that is printed.

Two faults of llama-perplexity are worked around here (b11434). It can exit with 0 without printing its last
lines; then the perplexity is computed from the log-probabilities, which differs by a millionth. And on some
virtual machines its AMX code crashes (SIGILL or SIGSEGV) on quantized files; then it is run again with
LLAMA_ARG_REPACK=0, which avoids that code.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ggplan.errors import MeasureError
from ggplan.measure.base_logits import (
    LONGER_TEXT,
    BaseLogits,
    ChunkedText,
    log_probs,
    part_of_logits,
    read_chunked_text,
)
from ggplan.measure.scores import TokenScores, join_scores, score_chunk
from ggplan.text import printable

NAME = "llama-perplexity"
ChunkProgress = Callable[[int, int], None]
"""Called with the number of chunks done and the number of all."""

_FINAL = re.compile(rb"Final estimate: PPL[^=\r\n]{0,60}= ([0-9.]+) \+/- ([0-9.]+)")
_BUILD = re.compile(rb"version: ([^\r\n]{1,80})")
_TOO_SHORT = re.compile(rb"you need at least (\d{1,9}) tokens")
_N_TOKENS = re.compile(rb"tokenizes to only (\d{1,9}) tokens")
_CRASHES = (-4, -11, 132, 139)
_ATTEMPTS = 5
_TAIL = 1 << 16


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run.

    Attributes
    ----------
    ppl, ppl_error
        As the engine prints them after `Final estimate`; None if it prints nothing.
    notes
        What was worked around, for the user.
    """

    scores: TokenScores
    ppl: float | None = None
    ppl_error: float | None = None
    notes: tuple[str, ...] = ()


def find_engine(path: str | None) -> str | None:
    """The llama-perplexity to use: the one named, else the one on the PATH, else None.

    Raises
    ------
    MeasureError
        If the one named is not a program.
    """
    found = shutil.which(path or NAME)
    if path and found is None:
        raise MeasureError(f"{printable(path)} is not a program", hint="give the path of a llama-perplexity")
    return found


def engine_build(engine: str) -> str:
    """What `--version` says, or ""."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([engine, "--version"], capture_output=True, timeout=30, check=False)
        found = _BUILD.search(done.stdout + done.stderr)
        if found:
            return printable(found[1].decode("utf-8", "replace").strip())
    return ""


def run_base(
    engine: str,
    model: str | Path,
    text: str | Path,
    keep: str | Path,
    *,
    n_ctx: int,
    n_chunks: int | None,
    options: Sequence[str] = (),
    progress: ChunkProgress | None = None,
) -> Run:
    """Run the base model and keep its log-probabilities in `keep`.

    Raises
    ------
    MeasureError
        If the engine fails, with the last lines it printed.
    """
    keep = Path(keep)
    part = part_of_logits(keep)
    command = _command(engine, model, text, part, n_ctx, n_chunks, options)
    try:
        run = _persistently(
            lambda environment: _watch(
                command, environment, lambda engine: _kept_scores(part, engine), n_chunks, progress
            )
        )
        os.replace(part, keep)
    except OSError as error:
        raise MeasureError(f"cannot write {printable(str(keep))}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return run


def run_model(
    engine: str,
    model: str | Path,
    text: str | Path,
    base: BaseLogits,
    *,
    options: Sequence[str] = (),
    progress: ChunkProgress | None = None,
) -> Run:
    """Run a model on the chunks of `base` and compare every token.

    Raises
    ------
    MeasureError
        If the engine fails, with the last lines it printed, or cuts the text into other tokens than the base.
    """
    chunked = base.chunked
    with tempfile.TemporaryDirectory(prefix="ggplan-") as folder:
        pipe = Path(folder) / "logits"
        os.mkfifo(pipe)
        command = _command(engine, model, text, pipe, chunked.n_ctx, chunked.n_chunks, options)
        return _persistently(
            lambda environment: _watch(
                command, environment, lambda engine: _compare(pipe, base, engine, progress), chunked.n_chunks
            )
        )


def _command(
    engine: str, model: str | Path, text: str | Path, logits: Path, n_ctx: int, n_chunks: int | None,
    options: Sequence[str],
) -> list[str]:  # fmt: skip
    chunks = ["--chunks", str(n_chunks)] if n_chunks else []
    return [
        engine, "-m", str(model), "-f", str(text), "-c", str(n_ctx), *chunks,
        "--kl-divergence-base", str(logits), *options,
    ]  # fmt: skip


class _PassingError(Exception):
    """The engine failed in a way that may not happen in another run."""

    def __init__(self, why: str, *, without_repack: bool) -> None:
        super().__init__(why)
        self.without_repack = without_repack


def _persistently(run: Callable[[dict[str, str]], Run]) -> Run:
    """Run, and run again after failures that may not happen again."""
    environment = dict(os.environ)
    notes: list[str] = []
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            done = run(environment)
            return replace(done, notes=(*notes, *done.notes))
        except _PassingError as failure:
            if attempt == _ATTEMPTS or (
                failure.without_repack and environment.get("LLAMA_ARG_REPACK") == "0"
            ):
                raise MeasureError(f"{NAME} {failure}, {attempt} times") from failure
            note = f"{NAME} {failure}; run again"
            if failure.without_repack:
                environment["LLAMA_ARG_REPACK"] = "0"
                note += " with LLAMA_ARG_REPACK=0"
            notes.append(note)
    raise AssertionError("the last attempt returns or raises")


def _watch(
    command: list[str],
    environment: dict[str, str],
    score: Callable[[subprocess.Popen[bytes]], TokenScores | None],
    n_chunks: int | None,
    progress: ChunkProgress | None = None,
) -> Run:
    """Start the engine, read what it prints, and score what it writes.

    `score` gives None if that is incomplete; `progress` is called for the chunks that the engine prints.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    except OSError as error:
        raise MeasureError(f"cannot start {printable(command[0])}: {error.strerror}") from error
    said = bytearray()
    listener = threading.Thread(target=_listen, args=(process, said, n_chunks, progress), daemon=True)
    listener.start()
    try:
        scores = score(process)
        process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        listener.join()
    # Whatever the exit code: another run would end the same way.
    short = _TOO_SHORT.search(said)
    if short is not None:
        n_tokens = _N_TOKENS.search(said)
        has = f"it has {int(n_tokens[1]):,} tokens, and " if n_tokens else ""
        raise MeasureError(f"the text is too short: {has}{int(short[1]):,} are needed", hint=LONGER_TEXT)
    if process.returncode in _CRASHES:
        raise _PassingError(f"crashed (exit {process.returncode})", without_repack=True)
    if process.returncode:
        words = _last_lines(said)
        if not words:
            raise _PassingError(
                f"failed and printed nothing (exit {process.returncode})", without_repack=False
            )
        raise MeasureError(f"{NAME} failed (exit {process.returncode}): {words}")
    if scores is None:
        if b"[1]" in said:
            raise _PassingError("ended before its last chunk", without_repack=False)
        if _error_lines(said):
            raise MeasureError(f"{NAME} measured nothing: {_last_lines(said)}")
        raise _PassingError(f"measured nothing ({_last_lines(said)})", without_repack=False)
    final = _FINAL.search(said)
    if final is None:
        note = "ended without its last line; the perplexity is that of the log-probabilities it wrote"
        return Run(scores, notes=(f"{NAME} {note}",))
    return Run(scores, float(final[1]), float(final[2]))


def _listen(
    process: subprocess.Popen[bytes], said: bytearray, n_chunks: int | None, progress: ChunkProgress | None
) -> None:
    """Keep the end of what is printed; `[12]4.5678,` says that chunk 12 is done."""
    assert process.stdout is not None
    total = re.compile(rb"over (\d+) chunks")
    last = re.compile(rb"\[(\d+)\][0-9.]+,")
    of = n_chunks or 0
    while data := os.read(process.stdout.fileno(), 1 << 16):
        said += data
        found = total.search(said)
        of = int(found[1]) if found else of
        if progress is not None and of:
            done = last.findall(said[-4096:])
            if done:
                progress(min(int(done[-1]), of), of)
        del said[: -4 * _TAIL]
    process.stdout.close()


def _lines(said: bytearray) -> list[str]:
    lines = (line.strip() for line in bytes(said[-_TAIL:]).decode("utf-8", "replace").splitlines())
    return [line for line in lines if line]


def _error_lines(said: bytearray) -> list[str]:
    """The lines about errors; none if the engine ended before its logging thread printed them."""
    return [line for line in _lines(said) if re.search(r"\berror\b|\bE \b|failed|need at least|unable", line)]


def _last_lines(said: bytearray) -> str:
    return printable("; ".join((_error_lines(said) or _lines(said))[-2:]))


def _kept_scores(part: Path, process: subprocess.Popen[bytes]) -> TokenScores | None:
    """Score the log-probabilities that the engine leaves in a file; None where it is not whole."""
    process.wait()
    try:
        with BaseLogits(part) as logits:
            return TokenScores(_nll_of(logits))
    except MeasureError:
        return None


def _compare(
    pipe: Path, base: BaseLogits, process: subprocess.Popen[bytes], progress: ChunkProgress | None
) -> TokenScores | None:
    """Score what comes through the pipe; None if the engine ends before all of it has come."""
    chunked, scores = base.chunked, []
    with _open_pipe(pipe, process) as read:
        own = read_chunked_text(read)
        if own is None:
            return None
        if own.n_vocab != chunked.n_vocab or not np.array_equal(own.tokens, chunked.tokens):
            process.kill()
            raise MeasureError(
                f"the log-probabilities in {printable(str(base.path))} are of another text,"
                " or of a model with another tokenizer",
                hint="measure the base model again",
            )
        step = max(1, (1 << 22) // chunked.n_vocab)
        for chunk in range(chunked.n_chunks):
            parts = []
            for start in range(0, chunked.n_scored, step):
                stop = min(start + step, chunked.n_scored)
                raw = read((stop - start) * chunked.row_codes * 2)
                if raw is None:
                    return None
                rows = np.frombuffer(raw, "<u2").reshape(stop - start, chunked.row_codes)
                targets = chunked.targets[chunk, start:stop]
                mine = log_probs(rows, chunked.n_vocab)
                parts.append(score_chunk(mine, targets, base.rows(chunk, start, stop), normalized=True))
            scores.append(join_scores(parts, axis=1))
            if progress is not None:
                progress(chunk + 1, chunked.n_chunks)
        while read(1) is not None:  # until the engine has ended
            pass
    return join_scores(scores)


@contextlib.contextmanager
def _open_pipe(pipe: Path, process: subprocess.Popen[bytes]) -> Iterator[Callable[[int], bytes | None]]:
    """A function that reads exactly n bytes from the pipe, or None if the engine ends before them."""
    file = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(file, select.POLLIN)
    opened = False

    def read(n: int) -> bytes | None:
        nonlocal opened
        data = bytearray()
        while len(data) < n:
            ended = process.poll() is not None
            if poll.poll(0 if ended else 200):
                try:
                    part = os.read(file, n - len(data))
                except BlockingIOError:
                    continue
                if part:
                    opened = True
                    data += part
                    continue
                if opened or ended:  # the writer is gone
                    return None
                poll.poll(50)
            elif ended:
                return None
        return bytes(data)

    try:
        yield read
    finally:
        os.close(file)


def _nll_of(base: BaseLogits) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """-ln p of every token of the text, from a kept file."""
    chunked: ChunkedText = base.chunked
    nll = np.empty((chunked.n_chunks, chunked.n_scored), np.float32)
    for chunk in range(chunked.n_chunks):
        rows = base.rows(chunk, 0, chunked.n_scored)
        head = np.ascontiguousarray(rows[:, :4]).view(np.float32)
        codes = rows[np.arange(chunked.n_scored), 4 + chunked.targets[chunk]]
        nll[chunk] = -(codes.astype(np.float32) * head[:, 0] + head[:, 1])
    return nll
