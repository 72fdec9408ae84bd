"""A tensor of a safetensors file: where it lies, and its rows as float32.

Any tensor is also a matrix: the last dimension is the row, all others together count the rows. A vector
is one row, a scalar a row of one. Rows are what is read, so memory does not grow with the tensor.

How the float types become float32, each without rounding:

    BF16      the upper half of a float32: shift the 16 bits up
    F16       IEEE half, converted by the processor
    F8_E4M3   sign, 4 exponent bits of bias 7, 3 mantissa bits: a table of 256 values. There is no
              infinity; 0x7F and 0xFF are NaN ("FP8 Formats for Deep Learning", Micikevicius et al., 2022)
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ggplan.errors import CheckpointError
from ggplan.sources.files import read_array, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Bits of one value, for every type that safetensors 0.8 defines.
DTYPE_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
# NumPy turns the codes into 8-byte indices: in pieces these stay in the cache, which doubles the speed.
_PIECE = 1 << 16
READABLE = frozenset({"F32", "F16", "BF16", "F8_E4M3"})


class CheckpointTensor(Protocol):
    """What a Hugging Face checkpoint gives of a tensor, stored plainly or with scales beside it."""

    @property
    def name(self) -> str:
        """The checkpoint's name of it: `model.layers.0.mlp.down_proj.weight`."""

    @property
    def dtype(self) -> str:
        """The safetensors name of the stored type: `BF16`, `F8_E4M3`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first; `()` for a scalar."""

    @property
    def file(self) -> Path:
        """The file its weights are in."""

    @property
    def n_columns(self) -> int:
        """Weights in a row."""

    @property
    def n_rows(self) -> int:
        """Rows of all slices together."""

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` up to `stop` as a (stop - start, n_columns) float32 array."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a safetensors file: `n_bytes` bytes from byte `offset` of `file` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    n_bytes: int

    @property
    def n_columns(self) -> int:
        """Weights in a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def n_rows(self) -> int:
        """Rows of all slices together."""
        return math.prod(self.shape[:-1])

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` up to `stop` as a (stop - start, n_columns) float32 array.

        Raises
        ------
        CheckpointError
            If the type is none that ggplan reads, or the file fails.
        """
        self._check_rows(start, stop)
        n_columns = self.n_columns
        return self.read_flat(start * n_columns, stop * n_columns).reshape(stop - start, n_columns)

    def read_bf16(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Rows `start` up to `stop` of a BF16 tensor as a (stop - start, n_columns) array of their bits.

        Raises
        ------
        CheckpointError
            If the file fails.
        """
        self._check_rows(start, stop)
        row_bytes = self.n_columns * 2
        raw = read_array(self.file, self.offset + start * row_bytes, (stop - start) * row_bytes)
        return raw.view("<u2").reshape(stop - start, self.n_columns)

    def read_flat(self, start: int, stop: int) -> NDArray[np.float32]:
        """Weights `start` up to `stop`, in the order of the file, as a float32 vector."""
        import numpy as np

        where = f"{shown(self.file)}: tensor '{shown(self.name)}'"
        if self.dtype not in READABLE:
            raise CheckpointError(f"{where} is {self.dtype}; ggplan reads {', '.join(sorted(READABLE))}")
        size = DTYPE_BITS[self.dtype] // 8
        raw = read_array(self.file, self.offset + start * size, (stop - start) * size)
        if self.dtype == "F32":
            return raw.view("<f4")
        if self.dtype == "F16":
            return raw.view("<f2").astype(np.float32)
        if self.dtype == "BF16":
            from ggplan.quants.floats import widened

            return widened(raw.view("<u2"))
        values = np.empty(raw.size, np.float32)
        for at in range(0, raw.size, _PIECE):
            piece = slice(at, at + _PIECE)
            np.take(_e4m3_values(), raw[piece], out=values[piece], mode="clip")
        return values

    def _check_rows(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_rows:
            raise ValueError(f"rows {start} to {stop} of {self.n_rows}")


@functools.cache
def _e4m3_values() -> NDArray[np.float32]:
    """The value of each of the 256 codes: (-1)^s 2^(e-7) (1 + m/8), or 2^-6 m/8 where e is 0."""
    import numpy as np

    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent > 0, np.ldexp(1 + mantissa / 8, exponent - 7), np.ldexp(mantissa / 8, -6))
    magnitude[codes & 0x7F == 0x7F] = np.nan
    return np.copysign(magnitude, np.where(codes & 0x80, -1.0, 1.0)).astype(np.float32)
