"""Reading the metadata keys of one architecture: numbers and arrays, with errors that name the key."""

from __future__ import annotations

from dataclasses import dataclass

from ggplan.errors import CheckpointError
from ggplan.offload.header import Header
from ggplan.text import printable

MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS in llama.cpp's `src/llama-hparams.h`
_LARGEST = 1 << 40  # of a size in a header; what is larger is damage, and would only overflow later


@dataclass(frozen=True, slots=True)
class Keys:
    """The metadata of a header, asked by a key without its prefix (`block_count`).

    Attributes
    ----------
    header
        Where they are from.
    architecture
        `general.architecture`, the prefix of all keys.
    """

    header: Header
    architecture: str

    def number(self, key: str, default: int | None = None) -> int:
        """A number that is not negative; without a default the key must be there."""
        value = self._value(key)
        if value is None:
            if default is None:
                raise self.error(key, "is missing")
            return default
        if isinstance(value, list):
            raise self.error(key, f"is an array of {len(value)}, where one number is expected")
        return self._checked(key, value)

    def fraction(self, key: str, default: float) -> float:
        """A number that need not be whole."""
        value = self._value(key)
        if value is None:
            return default
        if not isinstance(value, int | float):
            raise self.error(key, f"is {printable(str(value))[:40]}, not a number")
        return float(value)

    def per_block(self, key: str, n_blocks: int, default: int | None = None) -> tuple[int, ...]:
        """A number for each block, from an array or from one number for all."""
        value = self._value(key)
        if not isinstance(value, list):
            return (self.number(key, default),) * n_blocks
        if len(value) < n_blocks:
            raise self.error(key, f"has {len(value)} items for {n_blocks} blocks")
        return tuple(self._checked(key, item) for item in value[:n_blocks])

    def flags(self, key: str, n_blocks: int) -> tuple[bool, ...] | None:
        """An array of yes and no, one a block; blocks beyond its end are no. None where it is no array."""
        value = self._value(key)
        if not isinstance(value, list):
            return None
        found = [bool(item) for item in value[:n_blocks]]
        return (*found, *(False,) * (n_blocks - len(found)))

    def numbers(self, key: str) -> tuple[int, ...]:
        """The items of an array; () where there is none."""
        value = self._value(key)
        return tuple(self._checked(key, item) for item in value) if isinstance(value, list) else ()

    def _value(self, key: str) -> object:
        found = self.header.metadata.get(f"{self.architecture}.{key}")
        return None if found is None else found.decode()

    def _checked(self, key: str, value: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int):
            raise self.error(key, f"is {printable(str(value))[:40]}, not a whole number")
        if not 0 <= value <= _LARGEST:
            raise self.error(key, f"is {value}, which cannot be")
        return int(value)

    def error(self, key: str, what: str) -> CheckpointError:
        """An error of the file for one key."""
        return CheckpointError(f"{printable(self.header.name)}: {printable(self.architecture)}.{key} {what}")


def keys_of(header: Header) -> Keys:
    """The keys of a header's architecture."""
    found = header.metadata.get("general.architecture")
    architecture = "" if found is None else found.decode()
    if not isinstance(architecture, str) or not architecture:
        raise CheckpointError(
            f"{printable(header.name)}: general.architecture is missing, so nothing says how it is loaded",
            hint="name a GGUF file or a shipped inventory; a map without metadata has tensors alone",
        )
    return Keys(header, architecture)
