"""Opening an imatrix file, whichever of its two forms it has, with every value checked."""

from __future__ import annotations

from pathlib import Path

from ggplan.errors import CheckpointError, ImatrixError
from ggplan.imatrix.entries import Imatrix
from ggplan.imatrix.gguf_form import open_gguf_form
from ggplan.imatrix.legacy_form import open_legacy_form
from ggplan.sources.files import begins_with


def load_imatrix(path: str | Path) -> Imatrix:
    """Open an imatrix file, GGUF or legacy, and check every value in it.

    Raises
    ------
    ImatrixError
        If the file is damaged, is no imatrix, or holds a value that is not finite.
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
