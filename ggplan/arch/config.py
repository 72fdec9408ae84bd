"""A model's config.json, with every value checked.

Hugging Face writes a flat JSON object whose keys depend on the model class. transformers fills in what a
file leaves out, so old checkpoints rely on its defaults; an architecture has those that end up in a GGUF.
The values are not trusted: a count must be an integer of 32 bits, a count of layers no larger than the number
of tensors; any other value is an error that names the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ggplan.errors import CheckpointError
from ggplan.sources.files import shown

_UINT32_MAX = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Config:
    """The keys of config.json, or of one object in it.

    Attributes
    ----------
    where
        The file (and the object in it), for messages.
    values
        The JSON object.
    n_tensors
        How many tensors the checkpoint has, which bounds how many layers it can have.
    assumed
        What stands for each absent count, where only the names of tensors are wanted; None for a model's
        config, which must have them.
    """

    where: str
    values: Mapping[str, object]
    n_tensors: int
    assumed: int | None = None

    def with_defaults(self, **defaults: object) -> Config:
        """The same config with defaults for absent keys."""
        return replace(self, values={**defaults, **self.values})

    def section(self, key: str) -> Config:
        """The object under `key`; empty if it is absent or null."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.wrong(key, "is not an object")
        return Config(f"{key} in {self.where}", value, self.n_tensors, self.assumed)

    def count(self, key: str, *, least: int = 1) -> int:
        """A whole number from `least` up."""
        value = self.optional_count(key, least=least)
        if value is None and self.assumed is not None:
            return self.assumed
        if value is None:
            raise CheckpointError(f"{self.where} lacks {key}")
        return value

    def optional_count(self, key: str, *, least: int = 1) -> int | None:
        """A whole number from `least` up; None if it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= _UINT32_MAX:
            raise self.wrong(key, f"is {_brief(value)}, not a whole number from {least} to {_UINT32_MAX}")
        return value

    def layers(self, key: str, *, least: int = 1) -> int:
        """A count of layers, each of which has tensors of its own."""
        value = self.count(key, least=least)
        if value > self.n_tensors:
            raise self.wrong(key, f"is {value}, but the checkpoint has only {self.n_tensors} tensors")
        return value

    def optional_number(self, key: str) -> float | None:
        """A finite number; None if it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not _fits_float32(value):
            raise self.wrong(key, f"is {_brief(value)}, not a finite 32-bit number")
        return float(value)  # type: ignore[arg-type]

    def counts(self, key: str, *, least: int = 0) -> list[int]:
        """A list of whole numbers from `least` up; empty if it is absent or null."""
        values = self._list(key)
        if not all(type(value) is int and least <= value <= _UINT32_MAX for value in values):
            raise self.wrong(key, f"is not a list of whole numbers from {least} to {_UINT32_MAX}")
        return values  # type: ignore[return-value]

    def numbers(self, key: str) -> list[float]:
        """A list of finite numbers; empty if it is absent or null."""
        values = self._list(key)
        if not all(type(value) in (int, float) and _fits_float32(value) for value in values):
            raise self.wrong(key, "is not a list of finite 32-bit numbers")
        return [float(value) for value in values]  # type: ignore[arg-type]

    def texts(self, key: str) -> list[str]:
        """A list of texts; empty if it is absent or null."""
        values = self._list(key)
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(key, "is not a list of texts")
        return values  # type: ignore[return-value]

    def _list(self, key: str) -> list[object]:
        value = self.values.get(key)
        if value is not None and not isinstance(value, list):
            raise self.wrong(key, f"is {_brief(value)}, not a list")
        return value or []

    def flag(self, key: str) -> bool:
        """True or false; false if it is absent or null."""
        return bool(self.optional_flag(key))

    def optional_flag(self, key: str) -> bool | None:
        """True or false; None if it is absent or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, f"is {_brief(value)}, not true or false")
        return value

    def optional_text(self, key: str) -> str | None:
        """A text; None if it is absent or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, f"is {_brief(value)}, not a text")
        return value

    def wrong(self, key: str, what: str) -> CheckpointError:
        """The error for a key with an impossible value."""
        return CheckpointError(f"{self.where}: {key} {what}")


def _fits_float32(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 3.4e38  # false for NaN and infinity


def _brief(value: object) -> str:
    """A JSON value for a message; a number of a million digits must not be spelt out."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a number of more than 128 bits"
    return f"'{shown(value)}'" if isinstance(value, str) else shown(value)
