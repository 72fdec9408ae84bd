"""The texts of a calibration: checked before an engine is started, and divided into chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggplan.calibration.shipped import DEFAULT, shipped_texts
from ggplan.errors import CalibrationError, CheckpointError
from ggplan.sources.files import read_whole, shown
from ggplan.text import plural, text_encoding

TEXT_LIMIT = 1 << 32
"""Bytes of a text that are read at most."""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of all texts is run.

    Attributes
    ----------
    n_ctx
        Tokens of a chunk.
    n_tokens, n_chunks
        The most of all texts together; at most one of the two is given.
    """

    n_ctx: int
    n_tokens: int | None = None
    n_chunks: int | None = None

    @property
    def limit(self) -> int | None:
        """The most chunks that all texts may have together."""
        return self.n_chunks if self.n_tokens is None else self.n_tokens // self.n_ctx


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is given.

    Attributes
    ----------
    name
        By which the calibration calls it: the file's, or `default/prose`.
    path, sha256, n_bytes
        The file, and what is in it.
    """

    name: str
    path: Path
    sha256: str
    n_bytes: int


def read_texts(texts: Sequence[str | Path], amount: Amount) -> list[Text]:
    """The texts that are named; "default" is the four parts of the text that ships, which stand last.

    Raises
    ------
    CalibrationError
        If there is none, one is no text in UTF-8 or too short, two are the same, or the amount is too small
        for all of them.
    """
    if isinstance(texts, str | Path):
        texts = [texts]
    if not texts:
        raise CalibrationError(
            "no text is given", hint="--text FILE names one, --text default is the text that ships"
        )
    if amount.n_tokens is not None and amount.n_chunks is not None:
        raise CalibrationError("both --tokens and --chunks are given", hint="give one of them")
    named = [(Path(text).name, Path(text)) for text in texts if str(text) != DEFAULT]
    if len(named) < len(texts):
        named += shipped_texts().items()
    found: list[Text] = []
    for name, path in named:
        text = _read_text(name, path, amount.n_ctx)
        for other in found:
            if other.sha256 == text.sha256:
                raise CalibrationError(
                    f"{shown(path)} and {shown(other.path)} are one text", hint="name it once"
                )
        found.append(text)
    _refuse_too_few([text.name for text in found], amount)
    return found


def read_text(path: Path) -> bytes:
    """What is in a text, which is UTF-8.

    Raises
    ------
    CalibrationError
        If it cannot be read, or is something else.
    """
    try:
        raw = read_whole(path, TEXT_LIMIT)
    except CheckpointError as error:
        raise CalibrationError(error.message, hint=error.hint) from error
    if (encoding := text_encoding(raw)[1]) != "utf-8":
        raise CalibrationError(
            f"{shown(path)} is text in {encoding}, which a model would read as nonsense",
            hint="write it in UTF-8",
        )
    if b"\0" in raw:
        raise CalibrationError(f"{shown(path)} is no text: it has zero bytes", hint="name a text in UTF-8")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{shown(path)} is not UTF-8: byte {raw[error.start]:#04x} at {error.start:,}",
            hint="write it in UTF-8 (`iconv -f latin1 -t utf-8`, if it is in Latin-1)",
        ) from None
    return raw


def _read_text(name: str, path: Path, n_ctx: int) -> Text:
    """A text; what no tokenizer can make a chunk of is refused."""
    raw = read_text(path)
    if len(raw) + 1 < n_ctx:  # a token for each byte, and one that begins the text
        raise CalibrationError(
            f"{shown(path)} has {len(raw):,} bytes, and a chunk is of {n_ctx:,} tokens",
            hint="give a longer text, or a smaller --ctx",
        )
    return Text(name, path, hashlib.sha256(raw).hexdigest(), len(raw))


def _refuse_too_few(names: Sequence[str], amount: Amount) -> None:
    """Refuse a limit under which a text would not be run at all, and what it stands for be missing."""
    limit, n_ctx = amount.limit, amount.n_ctx
    if limit is None or limit >= len(names):
        return
    each = f" for each of the {len(names):,} texts {shown(', '.join(names))}" if len(names) > 1 else ""
    if amount.n_tokens is not None:
        told = f"{amount.n_tokens:,} tokens are less than a chunk of {n_ctx:,}{each}"
        least = f"at least {len(names) * n_ctx:,} with --tokens"
    else:
        told = f"{plural(limit, 'chunk')} {'is' if limit == 1 else 'are'} less than one{each}"
        least = f"at least {len(names):,} with --chunks"
    fewer = ", or fewer texts" if len(names) > 1 else ", or a smaller --ctx"
    raise CalibrationError(told, hint=f"give {least}{fewer}")


def taken_chunks(tokens: Sequence[int], texts: Sequence[Text], amount: Amount) -> list[list[int]]:
    """The numbers of the chunks of each text that are run: all, or an equal share of each that has so many.

    `tokens` has how many each text has. A number of tokens is taken from all over a text, which may go from
    one kind to the next; a number of chunks is its first, as llama-imatrix has them.

    Raises
    ------
    CalibrationError
        If a text has no whole chunk, or all together have less than two, which llama-imatrix asks for.
    """
    there = [n // amount.n_ctx for n in tokens]
    for n, text in zip(tokens, texts, strict=True):
        if n < amount.n_ctx:
            raise CalibrationError(
                f"{shown(text.path)} has {n:,} tokens, which is less than a chunk of {amount.n_ctx:,}",
                hint="give a longer text, or a smaller --ctx",
            )
    if sum(there) < 2:
        raise CalibrationError(
            f"the text has {sum(tokens):,} tokens, which is less than two chunks of {amount.n_ctx:,}",
            hint="give a longer text, or a smaller --ctx",
        )
    limit = amount.limit
    left = sum(there) if limit is None else min(limit, sum(there))
    taken = [0] * len(there)
    while left:
        open_texts = [i for i, n in enumerate(there) if taken[i] < n]
        share = max(1, left // len(open_texts))
        for i in open_texts:
            more = min(share, there[i] - taken[i], left)
            taken[i] += more
            left -= more
    if amount.n_tokens is None:
        return [list(range(n)) for n in taken]
    return [[k * n // count for k in range(count)] for n, count in zip(there, taken, strict=True)]
