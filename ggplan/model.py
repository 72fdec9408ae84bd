"""Model: what every checkpoint becomes before rules meet it, whatever kind of file it came from.

Tensors have GGUF names (`blk.7.ffn_down_exps.weight`) and shapes with rows first, as NumPy has them: the
last dimension is the row's length, ggml's `ne0`. A tensor of any number of dimensions is also a matrix
of `n_rows` rows of `n_columns` weights; experts stacked in three dimensions are rows upon rows. Rows are
the unit in which weights are read, encoded and written, so no tensor is ever in memory as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ggplan.ggml_types import GgmlType
from ggplan.metadata import Metadata

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RowReader(Protocol):
    """Reads rows `start` up to `stop` of one tensor as a (stop - start, n_columns) float32 array.

    Safe to call from several threads at once. Raises `CheckpointError` where the file fails.
    """

    def __call__(self, start: int, stop: int) -> NDArray[np.float32]:
        """Read these rows."""


class Bf16Reader(Protocol):
    """As `RowReader`, but the array is uint16: the bits of bfloat16, as they are stored."""

    def __call__(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Read these rows."""


class ByteReader(Protocol):
    """Reads rows `start` up to `stop` of one tensor as the bytes they have in `TensorInfo.type`."""

    def __call__(self, start: int, stop: int) -> bytes:
        """Read these rows."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a model.

    Attributes
    ----------
    name
        The GGUF name.
    shape
        Rows first; `shape[-1]` is ggml's ne0.
    type
        The type it keeps when no rule speaks: for GGUF the type in the file, for Hugging Face
        checkpoints the type llama.cpp's converter gives it (f32 for norms, vectors and the router, the
        checkpoint's own float type for the rest).
    origin
        Where its weights are, for messages: `model-00003-of-00047.safetensors`.
    stored_as
        The checkpoint's own name of its type: `BF16`, `F8_E4M3`, `q8_0`.
    read_rows
        Reads weights as float32; None for an inventory that has no weights, and for types ggplan
        cannot decode.
    read_bytes
        Reads rows as they are stored; only where the file stores them as GGUF does.
    scale_fault
        Where weights are stored with scales beside them: reads these and says what is wrong, or "".
    read_bf16
        Reads weights that are stored as bfloat16 without widening them; None where they are not.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    origin: str
    stored_as: str
    read_rows: RowReader | None = None
    read_bytes: ByteReader | None = None
    scale_fault: Callable[[], str] | None = None
    read_bf16: Bf16Reader | None = None

    @property
    def n_columns(self) -> int:
        """Weights in a row (ggml's ne0)."""
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        """Rows of all slices together."""
        return math.prod(self.shape[:-1])

    @property
    def n_weights(self) -> int:
        """Weights in the tensor."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor in its own type."""
        return self.type.tensor_bytes(self.shape)


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint, ready for rules: metadata and tensors, no weights in memory.

    Attributes
    ----------
    path
        What the user opened.
    kind
        `"hf"`, `"gguf"` or `"inventory"` (names and shapes without weights).
    architecture
        GGUF's `general.architecture`, or "" where an inventory does not say.
    metadata
        The key-value pairs the GGUF will carry, in order.
    tensors
        In the checkpoint's order; names are unique.
    files
        The files the weights are in, in order; empty for an inventory.
    """

    path: Path
    kind: str
    architecture: str
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    files: tuple[Path, ...] = ()
