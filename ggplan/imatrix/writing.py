"""Imatrix files are written whole under a temporary name and then renamed, in either form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ggplan.errors import ImatrixError
from ggplan.imatrix.gguf_form import gguf_pieces
from ggplan.imatrix.legacy_form import legacy_pieces
from ggplan.imatrix.sums import ImatrixSums
from ggplan.sources.files import shown, write_whole

Form = Literal["gguf", "dat"]
FORMS: tuple[Form, ...] = get_args(Form)


def form_of_name(path: str | Path) -> Form:
    """The form that a file's name asks for: the legacy one if it ends in .dat, else GGUF."""
    return "dat" if str(path).endswith(".dat") else "gguf"


def write_imatrix(imatrix: ImatrixSums, path: str | Path, form: Form | None = None) -> str:
    """Write an imatrix file as llama-imatrix writes it; returns its SHA-256.

    Parameters
    ----------
    form
        GGUF, or the legacy form, which has one count for all experts of a weight; by default as the name's
        extension says.

    Raises
    ------
    ImatrixError
        If a sum is not finite or negative, a count is larger than the form can say, or the file cannot be
        written.
    """
    path = Path(path)
    form = form or form_of_name(path)
    _check(imatrix, path)
    _check_counts(imatrix, path, form)
    pieces = gguf_pieces if form == "gguf" else legacy_pieces
    return _write_whole(path, pieces(imatrix, imatrix.chunk_count))


def _check(imatrix: ImatrixSums, path: Path) -> None:
    if not imatrix.entries:
        raise ImatrixError(f"{shown(path)} is not written: the imatrix would have no entry")
    for name in imatrix.names:
        squares = imatrix.entries[name].squares
        with np.errstate(invalid="ignore"):
            if not ((squares >= 0) & (squares < np.inf)).all():
                raise ImatrixError(
                    f"{shown(path)} is not written: '{shown(name)}' has sums that are negative or not finite",
                    hint="run a model that does not overflow (bf16 instead of f16)",
                )


def _check_counts(imatrix: ImatrixSums, path: Path, form: Form) -> None:
    """Refuse counts beyond the integers of the form: uint32 in GGUF, int32 in the legacy form."""
    most = 0xFFFF_FFFF if form == "gguf" else 0x7FFF_FFFF
    what = f"{shown(path)} is not written in the form {form}"
    if not 0 < imatrix.chunk_size <= most:
        raise ImatrixError(f"{what}: chunks of {imatrix.chunk_size:,} tokens are not possible there")
    for name in imatrix.names:
        found = imatrix.entries[name]
        tokens = int(found.counts.max(initial=0))
        if -(-tokens // imatrix.chunk_size) > most:
            raise ImatrixError(
                f"{what}: '{shown(name)}' has a count of {tokens:,} tokens, which is more than it can hold",
                hint="a count of this size is damage; make the imatrix again",
            )
        if form == "dat" and found.squares.size > most:
            raise ImatrixError(
                f"{what}: '{shown(name)}' has {found.squares.size:,} values, which is more than it can hold",
                hint="write the form gguf",
            )


def _write_whole(path: Path, pieces: Iterator[bytes]) -> str:
    try:
        return write_whole(path, pieces)
    except OSError as error:
        raise ImatrixError(f"cannot write {shown(path)}: {error.strerror or error}") from error
