"""The base model's log-probabilities of every token of the vocabulary, kept as llama-perplexity keeps them.

`llama-perplexity --kl-divergence-base FILE` (llama.cpp b11434, tools/perplexity/perplexity.cpp) writes,
little endian and without padding between the parts,

    "_logits_"  n_ctx:u32  n_vocab:i32  n_chunks:i32  tokens:i32[n_chunks * n_ctx]
    per chunk, for each of its n_ctx - 1 - n_ctx/2 scored positions:
        scale:f32  min_log_prob:f32  codes:u16[n_vocab]  (one u16 more where n_vocab is odd)

with log p(token) = scale * code + min_log_prob. Values more than 16 nats below the most likely token are cut
off there. Both engines read and write this file, and so does any llama-perplexity.

Only the second half of each context is scored, so that every token has at least n_ctx/2 tokens before it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ggplan.errors import MeasureError
from ggplan.measure.outputs import is_of_another_kind
from ggplan.text import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_CHUNKS = 2
"""Chunks that a text must have: llama-perplexity refuses a shorter one."""
MAX_ADDED_TOKENS = 16
"""A text has at most as many tokens as bytes, and so many that a tokenizer adds (BOS, a leading space)."""
LONGER_TEXT = "give a longer text or a smaller --ctx"
"""The hint where a text is too short."""

_MAGIC = b"_logits_"
_HEAD = struct.Struct("<8sIii")
_CUT_OFF = np.float32(16)
_MAX_CODE = np.float32(65535)


@dataclass(frozen=True, slots=True)
class ChunkedText:
    """A text cut into chunks of n_ctx tokens, which says which tokens are scored.

    Attributes
    ----------
    tokens
        (n_chunks, n_ctx) int32.
    """

    n_ctx: int
    n_vocab: int
    tokens: NDArray[np.int32]

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return len(self.tokens)

    @property
    def n_scored(self) -> int:
        """Scored positions of a chunk."""
        return self.n_ctx - 1 - self.n_ctx // 2

    @property
    def targets(self) -> NDArray[np.int32]:
        """The tokens that are to be predicted, (n_chunks, n_scored)."""
        return self.tokens[:, self.n_ctx // 2 + 1 :]

    @property
    def row_codes(self) -> int:
        """u16 codes of one position, scale and minimum included."""
        return 2 * ((self.n_vocab + 1) // 2) + 4


def is_base_logits(path: Path) -> bool:
    """Whether a file begins with the magic of a file of log-probabilities.

    Raises
    ------
    MeasureError
        If it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for a writer
            return False
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise MeasureError(f"cannot read {printable(str(path))}: {error.strerror}") from error


def read_chunked_text(read: Callable[[int], bytes | None]) -> ChunkedText | None:
    """The chunked text that a file begins with; `read(n)` gives the next n bytes, or None if there are fewer.

    Raises
    ------
    MeasureError
        If it is not such a file, or is damaged.
    """
    head = read(_HEAD.size)
    if head is None:
        return None
    magic, n_ctx, n_vocab, n_chunks = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise MeasureError("this is not a file of log-probabilities (llama-perplexity writes them)")
    if not (4 <= n_ctx <= 1 << 24 and 0 < n_vocab <= 1 << 24 and 0 < n_chunks <= 1 << 24):
        raise MeasureError(f"the file is damaged: {n_chunks} chunks of {n_ctx} tokens out of {n_vocab}")
    raw = read(4 * n_ctx * n_chunks)
    if raw is None:
        return None
    tokens = np.frombuffer(raw, "<i4").reshape(n_chunks, n_ctx).astype(np.int32)
    if tokens.min() < 0 or tokens.max() >= n_vocab:
        raise MeasureError(f"the file is damaged: a token is not in the vocabulary of {n_vocab}")
    return ChunkedText(n_ctx, n_vocab, tokens)


def compress(logits: NDArray[np.float32], row_codes: int) -> NDArray[np.uint16]:
    """Log-probabilities of logits (n, n_vocab) as rows of the file, (n, row_codes)."""
    n_vocab = logits.shape[1]
    rows = np.zeros((len(logits), row_codes), np.uint16)
    top = logits.max(axis=1, keepdims=True)
    low = np.maximum(logits.min(axis=1, keepdims=True), top - _CUT_OFF)
    log_sum = np.log(np.exp(logits - top).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    scale = (top - low) / _MAX_CODE
    rows[:, :4].view(np.float32)[:] = np.concatenate([scale, low - top - log_sum], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale > 0, 1 / scale, np.float32(0))
    codes = np.rint(inverse * (logits - low))
    rows[:, 4 : 4 + n_vocab] = np.where(logits > low, codes, 0)
    return rows


def log_probs(rows: NDArray[np.uint16], n_vocab: int) -> NDArray[np.float32]:
    """Log-probabilities (n, n_vocab) of rows of the file."""
    head = np.ascontiguousarray(rows[:, :4]).view(np.float32)
    codes = rows[:, 4 : 4 + n_vocab].astype(np.float32)
    return codes * head[:, :1] + head[:, 1:2]


class BaseLogits:
    """A file of log-probabilities, open for reading; read piece by piece, never mapped.

    Raises
    ------
    MeasureError
        If the file is not one, or is incomplete.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        shown = printable(str(path))
        try:
            self._file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise MeasureError(f"cannot read {shown}: {error.strerror}") from error
        try:
            self.chunked, self._start = self._read_chunked_text(shown)
        except BaseException:
            os.close(self._file)
            raise

    def _read_chunked_text(self, shown: str) -> tuple[ChunkedText, int]:
        size = os.fstat(self._file).st_size
        at = 0

        def read(n: int) -> bytes | None:
            nonlocal at
            at += n
            return self._read(at - n, n) if at <= size else None

        try:
            chunked = read_chunked_text(read)
        except MeasureError as error:
            raise MeasureError(f"{shown}: {error.message}") from None
        start = at
        if (
            chunked is not None
            and size == start + chunked.n_chunks * chunked.n_scored * chunked.row_codes * 2
        ):
            return chunked, start
        raise MeasureError(f"{shown} is not whole", hint="measure the base model again")

    def _read(self, offset: int, n_bytes: int) -> bytes:
        parts = []
        while n_bytes:
            part = os.pread(self._file, n_bytes, offset)
            if not part:
                raise MeasureError(f"{printable(str(self.path))} became shorter while it was read")
            parts.append(part)
            offset, n_bytes = offset + len(part), n_bytes - len(part)
        return b"".join(parts)

    def rows(self, chunk: int, start: int, stop: int) -> NDArray[np.uint16]:
        """Positions `start` up to `stop` of a chunk, (n, row_codes)."""
        row_bytes = 2 * self.chunked.row_codes
        first = chunk * self.chunked.n_scored + start
        raw = self._read(self._start + first * row_bytes, (stop - start) * row_bytes)
        return np.frombuffer(raw, "<u2").reshape(stop - start, self.chunked.row_codes)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> BaseLogits:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def not_logits(path: Path) -> Path | None:
    """The file that keeping log-probabilities in `path` would destroy: one of another kind there, or where
    an engine writes before; None if there is none.

    Raises
    ------
    MeasureError
        If a file cannot be read.
    """
    return next((p for p in (path, part_of_logits(path)) if is_of_another_kind(p, _MAGIC)), None)


def part_of_logits(path: Path) -> Path:
    """The file that an engine writes before it is complete and gets its name."""
    return path.with_name(path.name + ".part")


def write_base_logits(
    path: str | Path, chunked: ChunkedText, chunks: Iterator[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """Write the file of these logits, (n_scored, n_vocab) for each chunk; yields each chunk after writing it.

    The file gets its name when the last chunk is written.

    Raises
    ------
    MeasureError
        If the file cannot be written.
    """
    path = Path(path)
    part = part_of_logits(path)
    try:
        with part.open("wb") as file:
            file.write(_HEAD.pack(_MAGIC, chunked.n_ctx, chunked.n_vocab, chunked.n_chunks))
            file.write(chunked.tokens.astype("<i4").tobytes())
            for logits in chunks:
                for rows in np.array_split(logits, max(1, logits.size >> 22)):
                    file.write(compress(rows, chunked.row_codes).astype("<u2").tobytes())
                yield logits
        os.replace(part, path)
    except OSError as error:
        raise MeasureError(f"cannot write {printable(str(path))}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
