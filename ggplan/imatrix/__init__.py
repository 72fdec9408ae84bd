"""Importance matrices: how much each column of a weight matters, measured by running a model on text.

`llama-imatrix` sums the squares of the inputs of every matrix, column by column, and counts the tokens. The
quotient, the mean square of a column's input, is the weight of that column's errors in an encoder. Each
expert has its own sums, since each token visits only a few experts.

A file has one of two forms, GGUF or legacy; `load_imatrix` opens both and checks every value.
"""

from __future__ import annotations

from pathlib import Path

from ggplan.errors import CheckpointError, ImatrixError
from ggplan.imatrix.entries import Imatrix, ImatrixEntry
from ggplan.imatrix.gguf_form import open_gguf_form
from ggplan.imatrix.legacy_form import open_legacy_form
from ggplan.sources.files import begins_with

__all__ = ["Imatrix", "ImatrixEntry", "load_imatrix"]


def load_imatrix(path: str | Path) -> Imatrix:
    """Open an imatrix file, GGUF or legacy, and check every value in it.

    Raises
    ------
    ImatrixError
        If the file is damaged, is not an imatrix, or holds a value that is not finite.
    """
    path = Path(path)
    try:
        is_gguf = begins_with(path, b"GGUF")
        imatrix = open_gguf_form(path) if is_gguf else open_legacy_form(path)
        for name in imatrix.entries:
            imatrix.entries[name]  # reading an entry checks it
    except CheckpointError as error:
        raise ImatrixError(error.message, hint=error.hint) from error
    return imatrix
