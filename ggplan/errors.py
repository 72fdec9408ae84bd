"""The errors ggplan raises for faults that a user can correct.

Each carries what a message needs: what is wrong, where (file, line, tensor) and a hint what to do. A hint is
in the library's words (`pre="glm4"`); where the command line calls the same thing by another name
(`--pre glm4`), the error has both. `str(error)` is the message with the library's hint. The command line
prints the message after `error: ` and its own hint after `help: `, and exits 1.
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
    cli_hint
        The same in the words of the command line, if these differ.
    """

    is_rendered = False

    def __init__(self, message: str, *, hint: str = "", cli_hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.cli_hint = cli_hint or hint

    def add_hint(self, text: str) -> None:
        """Put a sentence behind the hint, in both wordings."""
        self.hint = f"{self.hint}; {text}" if self.hint else text
        self.cli_hint = f"{self.cli_hint}; {text}" if self.cli_hint else text

    def __str__(self) -> str:
        return f"{self.message} (help: {self.hint})" if self.hint else self.message


class CheckpointError(Error):
    """A checkpoint (safetensors, GGUF, config, tokenizer) is damaged, incomplete or of an unknown kind."""


class TokenizerError(CheckpointError):
    """A tokenizer of a kind that ggplan cannot write, or unknown to llama.cpp; only converting needs it."""


class TruncatedError(CheckpointError):
    """A file that ends before its data does, or a set that lacks files; the headers there are whole."""


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
