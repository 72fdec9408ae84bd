"""The errors ggplan raises for faults that a user can correct.

Each carries what a message needs: what is wrong, where (file, line, tensor) and a hint what to do.
The library raises them, the command line prints them as one line and exits 1, nothing else does.
"""

from __future__ import annotations


class Error(Exception):
    """The base of every error that is the input's fault, not ggplan's.

    `is_rendered` is true of errors whose message is shown as it is, without `error: ` before it.

    Parameters
    ----------
    message
        One sentence that stands alone and names the culprit (file, tensor, line).
    hint
        What to do instead, or "".
    """

    is_rendered = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CheckpointError(Error):
    """A checkpoint (safetensors, GGUF, config, tokenizer) is damaged, incomplete or of an unknown kind."""


class NoSuchCheckpointError(CheckpointError):
    """There is nothing at the path that was given for a checkpoint."""


class TypeNameError(Error):
    """A text is not the name of a ggml type; `meant` is the name of the type that probably is, or ""."""

    def __init__(self, message: str, *, hint: str = "", meant: str = "") -> None:
        super().__init__(message, hint=hint)
        self.meant = meant


class RecipeError(Error):
    """A recipe cannot be read; the message is a rendered diagnostic with file, line and caret."""


class PlanError(Error):
    """A recipe cannot be applied to a model: a shape forbids a type, an imatrix does not fit, ..."""


class ImatrixError(Error):
    """An importance matrix file is damaged or does not belong to the model."""


class ConversionError(Error):
    """Writing the output failed: no space, a bad weight, a file that changed under the reader."""


class MeasureError(Error):
    """An engine, a text, a log or a record of measurements is missing, damaged or does not fit."""


class ChartError(Error):
    """A chart cannot be drawn from what it was given."""


class QuantizationError(Error, ValueError):
    """An array cannot be encoded or decoded: not whole blocks, a weight that is not finite, a wrong type."""
