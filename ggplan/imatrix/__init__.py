"""Importance matrices: how much each column of a weight matters, measured by running a model on text.

`llama-imatrix` sums the squares of the inputs of every matrix, column by column, and counts the tokens. The
quotient, the mean square of a column's input, is the weight of that column's errors in an encoder. Each
expert has its own sums, since each token visits only a few experts.

A file has one of two forms, GGUF or legacy; `load_imatrix` opens both and checks every value. `load_sums`
gives what they were computed from, which can be added up, and `write_imatrix` writes either form.
"""

from __future__ import annotations

from pathlib import Path

from ggplan.errors import CheckpointError, ImatrixError
from ggplan.imatrix.entries import Imatrix, ImatrixEntry
from ggplan.imatrix.gguf_form import open_gguf_form, open_gguf_sums
from ggplan.imatrix.legacy_form import open_legacy_form, open_legacy_sums
from ggplan.imatrix.sums import DEFAULT_CHUNK, ImatrixSums, Sums
from ggplan.imatrix.writing import write_imatrix
from ggplan.sources.files import begins_with, shown

IN_CALIBRATION = "imatrix.gguf"
"""The name of the imatrix in the folder of a calibration."""

__all__ = ["Imatrix", "ImatrixEntry", "ImatrixSums", "Sums", "load_imatrix", "load_sums", "write_imatrix"]


def load_imatrix(path: str | Path) -> Imatrix:
    """Open an imatrix file, GGUF or legacy, and check every value in it; of a calibration's folder its own.

    Raises
    ------
    ImatrixError
        If the file is damaged, is not an imatrix, or holds a value that is not finite.
    """
    path = _file_of(path)
    try:
        is_gguf = begins_with(path, b"GGUF")
        imatrix = open_gguf_form(path) if is_gguf else open_legacy_form(path)
        for name in imatrix.entries:
            imatrix.entries[name]  # reading an entry checks it
    except CheckpointError as error:
        raise ImatrixError(error.message, hint=error.hint) from error
    return imatrix


def _file_of(path: str | Path) -> Path:
    """The file; the one that a calibration's folder has, if a folder is named."""
    path = Path(path)
    return path / IN_CALIBRATION if (path / IN_CALIBRATION).is_file() else path


def load_sums(path: str | Path, *, chunk_size: int = DEFAULT_CHUNK) -> ImatrixSums:
    """Open an imatrix file, GGUF or legacy, as the sums that its values were computed from.

    Parameters
    ----------
    chunk_size
        Tokens of a batch of a legacy file, which does not say.

    Raises
    ------
    ImatrixError
        As `load_imatrix`.
    """
    load_imatrix(path)  # checks every value
    path = _file_of(path)
    try:
        is_gguf = begins_with(path, b"GGUF")
        sums = open_gguf_sums(path) if is_gguf else open_legacy_sums(path, chunk_size)
    except CheckpointError as error:
        raise ImatrixError(error.message, hint=error.hint) from error
    if sums.chunk_size < 1:
        raise ImatrixError(
            f"{shown(path)}: imatrix.chunk_size is {sums.chunk_size}, which is no number of tokens"
        )
    return sums
