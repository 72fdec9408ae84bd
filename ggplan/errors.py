"""The errors ggplan raises for faults that a user can correct.

Each carries what a message needs: what is wrong, where (file, line, tensor) and a hint what to do. A hint
names an option as the command line does (`--pre NAME`), which prints the message after `error: ` and the hint
after `help: `, and exits 1. `str(error)` has both, the options as arguments of the library (`pre=NAME`); a
command in backticks stays a command.
"""

from __future__ import annotations

import re

# Options without a value, and what they are in the library; all others are `name=value`.
_FLAGS = {
    "allow-requantize": "allow_requantize=True",
    "force": "force=True",
    "header-only": "header_only=True",
    "mixed": "mixed=True",
    "no-resume": "resume=False",
    "restart": "restart=True",
    "strict": "strict=True",
}
# All others that a hint names. An option of another program is no argument of the library.
_OPTIONS = frozenset(_FLAGS) | {
    "base", "block", "bpw", "calibration", "chunks", "correct", "ctx", "dialect", "effort", "engine",
    "exact", "figure", "fold", "fuse", "gguf", "imatrix", "kind", "max-kld", "memory", "metric", "min-tps",
    "model-name", "no-assert", "nonfinite", "pre", "probes", "ram", "record", "size", "text", "tokens",
    "types", "vram", "work", "x",
}  # fmt: skip
# An option is a word of its own: in a path, `--` is a part of a name. A value is a placeholder in capitals, a
# range, or a word that is a choice.
_OPTION = re.compile(
    r"`[^`]*`|(?<!\S)--([a-z]+(?:-[a-z]+)*)(?![\w/.=-]\w)"
    r"(?: ([A-Z]+\b|\d+ to \d+|(?:zero|keep|types|parts|quality|context)\b))?"
)


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

    def __str__(self) -> str:
        return f"{self.message} (help: {_OPTION.sub(_argument, self.hint)})" if self.hint else self.message


def _argument(option: re.Match[str]) -> str:
    """An option as the argument of a function; a command in backticks as it is."""
    name, value = option[1], option[2]
    if name not in _OPTIONS:
        return option[0]
    if name in _FLAGS:
        return _FLAGS[name] + (f" {value}" if value else "")
    shown = repr(value) if value and value[0].islower() else value or "..."
    return f"{name.replace('-', '_')}={shown}"


class CheckpointError(Error):
    """A checkpoint (safetensors, GGUF, config, tokenizer) is damaged, incomplete or of an unknown kind."""


class TokenizerError(CheckpointError):
    """A tokenizer of a kind that ggplan cannot write, or unknown to llama.cpp; only converting needs it."""


class TruncatedError(CheckpointError):
    """A file that ends before its data does, or a set that lacks files; the headers there are whole."""


class MissingFilesError(TruncatedError):
    """A split set of which files are not there: what is in them is not known."""


class SubstituteError(CheckpointError):
    """Something else lies where a file should: a Git LFS pointer, a web page."""


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


class CommandError(Error):
    """A command line of an engine cannot be read or written: an unknown option, a bad value."""


class ImatrixError(Error):
    """An importance matrix file is damaged or does not belong to the model."""


class CalibrationError(Error):
    """A calibration is damaged, unfinished, of another model, or cannot be made."""


class ConversionError(Error):
    """Writing the output failed: no space, a bad weight, a file that changed under the reader."""


class MeasureError(Error):
    """An engine, a text, a log or a record of measurements is missing, damaged or does not fit."""


class MachineError(Error):
    """A description of a machine is damaged, names what nobody knows, or a machine cannot be measured."""


class ChartError(Error):
    """A chart cannot be drawn from what it was given."""


class QuantizationError(Error, ValueError):
    """An array cannot be encoded or decoded: not whole blocks, a weight that is not finite, a wrong type."""
