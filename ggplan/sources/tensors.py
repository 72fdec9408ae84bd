"""Tensors of a Hugging Face checkpoint: as they are stored in files, and as the weights they hold.

Any tensor is also a matrix: the last dimension is the row, all others together count the rows. A vector
is one row, a scalar a row of one. Rows are what is read, so memory does not grow with the tensor.

How the float types become float32, each but F64 without rounding:

    F64       rounded to the nearest, ties to even, as the converter does
    BF16      the upper half of a float32: shift the 16 bits up
    F16       IEEE half, converted by the processor
    F8_E5M2   the upper half of an F16
    F8_E4M3   sign, 4 exponent bits of bias 7, 3 mantissa bits: a table of 256 values. There is no
              infinity; 0x7F and 0xFF are NaN ("FP8 Formats for Deep Learning", Micikevicius et al., 2022)
    F8_*FNUZ  the same fields with a bias that is greater by 1 (8 for E4M3, 16 for E5M2); no infinity, no
              negative zero, and one NaN, 0x80 ("8-bit Numerical Formats for Deep Neural Networks",
              Noune et al., 2022)
    F8_E8M0   a power of two, 2^(code - 127); 0xFF is NaN (OCP Microscaling Formats 1.0, 5.4.1)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.ggml_types import BF16, F16, F32, GgmlType
from ggplan.model import Integers, RowSource, require_rows
from ggplan.sources.files import read_array, rows_in_file, shown

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
# The types whose values are the weights, without scales.
PLAIN: dict[str, GgmlType] = {"BF16": BF16, "F16": F16, "F32": F32}
# Types of full precision, which stay f32 when no rule matches.
_FULL = ("F32", "F64")
_READABLE = (*PLAIN, "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F64")
# NumPy turns the codes into 8-byte indices; in small pieces these stay in the cache, which doubles the speed.
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it is stored in a file: `n_bytes` bytes from byte `offset` of `file` on.

    `dtype` is the safetensors name of its type, `shape` has rows first and is `()` for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    n_bytes: int

    @property
    def n_weights(self) -> int:
        """Values in the tensor."""
        return math.prod(self.shape)

    def rows(self) -> RowSource | None:
        """Its rows, in its own type, F64 in f32; None for a type that does not hold weights by itself."""
        if self.dtype == "F64":
            return RowSource(F32, self.shape, self._read_double_rows)
        dtype = PLAIN.get(self.dtype)
        return None if dtype is None else rows_in_file(self.file, self.offset, dtype, self.shape)

    def _read_double_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        n_columns = self.shape[-1] if self.shape else 1
        require_rows(start, stop, math.prod(self.shape[:-1]))
        return self.read_floats(start * n_columns, stop * n_columns).reshape(stop - start, n_columns)

    def read_floats(self, start: int, stop: int) -> NDArray[np.float32]:
        """Values `start` up to `stop`, in the order of the file, as a float32 vector.

        Raises
        ------
        CheckpointError
            If the type is not a float type that ggplan reads, or the file cannot be read.
        """
        import numpy as np

        if self.dtype not in _READABLE:
            raise CheckpointError(
                f"{shown(self.file)}: tensor '{shown(self.name)}' is {self.dtype}; "
                f"ggplan reads {', '.join(_READABLE)}"
            )
        size = DTYPE_BITS[self.dtype] // 8
        raw = read_array(self.file, self.offset + start * size, (stop - start) * size)
        if self.dtype == "F32":
            return raw.view("<f4")
        if self.dtype == "F64":
            with np.errstate(over="ignore"):
                return raw.view("<f8").astype(np.float32)
        if self.dtype == "F16":
            return raw.view("<f2").astype(np.float32)
        if self.dtype == "F8_E5M2":
            return (raw.astype("<u2") << 8).view("<f2").astype(np.float32)
        if self.dtype == "BF16":
            from ggplan.quants.floats import widened

            return widened(raw.view("<u2"))
        values = np.empty(raw.size, np.float32)
        for at in range(0, raw.size, _PIECE):
            piece = slice(at, at + _PIECE)
            np.take(values_of_codes(self.dtype), raw[piece], out=values[piece], mode="clip")
        return values


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """A tensor of weights, whether one tensor of a file holds it or several do (see `schemes`).

    Attributes
    ----------
    name
        Its name in the checkpoint: `model.layers.0.mlp.down_proj.weight`.
    file
        The file with its weights; scales may be in another file.
    stored_as
        How they are stored, in the format's own terms: `BF16`, `F8_E4M3`.
    shape
        Rows first; `()` for a scalar.
    rows
        The weights; None if ggplan cannot read the way they are stored.
    codes, why_decoded, companions, nearly, full_activations
        Of quantized weights: the codes as rows of the ggml type that holds them exactly, or why there is
        none, the tensors that belong to them, the same codes in q4_1, and whether they are for activations
        of more than 4 bits; see `schemes.Weights`.
    bits
        Bits that the file has for each weight's code, without scales; 0 of weights that are not quantized.
    integers
        Codes that are integers; see `schemes.Weights`.
    """

    name: str
    file: Path
    stored_as: str
    shape: tuple[int, ...]
    rows: RowSource | None
    codes: RowSource | None = None
    why_decoded: str = ""
    companions: Mapping[str, RowSource] = field(default_factory=dict)
    nearly: RowSource | None = None
    full_activations: bool = False
    bits: float = 0.0
    integers: Integers | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether it is stored as codes that a scheme decodes."""
        return self.codes is not None or bool(self.why_decoded)

    @property
    def type(self) -> GgmlType | None:
        """The type that the weights keep where no rule matches and no codes are moved; None if unreadable.

        It is the type of the rows; but rows that are float32 because a formula gives float32 become bf16, as
        with llama.cpp's converter.
        """
        if self.rows is None:
            return None
        return BF16 if self.rows.dtype == F32 and self.stored_as not in _FULL else self.rows.dtype


@functools.cache
def values_of_codes(dtype: str) -> NDArray[np.float32]:
    """The value of each of the 256 codes of an 8-bit float type."""
    import numpy as np

    if dtype == "F8_E8M0":
        powers = np.ldexp(1.0, np.arange(256) - 127)
        powers[255] = np.nan
        return powers.astype(np.float32)
    if dtype == "F8_E4M3":
        return _small_floats(3, 7, (0x7F, 0xFF))
    return _small_floats(3, 8, (0x80,)) if dtype == "F8_E4M3FNUZ" else _small_floats(2, 16, (0x80,))


def _small_floats(mantissa_bits: int, bias: int, nans: Sequence[int]) -> NDArray[np.float32]:
    """(-1)^s 2^(e-bias) (1 + m/2^bits), or 2^(1-bias) m/2^bits where e is 0, of the codes s, e, m."""
    import numpy as np

    codes = np.arange(256)
    steps = 1 << mantissa_bits
    exponent, fraction = (codes & 127) >> mantissa_bits, codes % steps / steps
    lowest = np.ldexp(fraction, 1 - bias)
    magnitude = np.where(exponent > 0, np.ldexp(1 + fraction, exponent - bias), lowest)
    magnitude[list(nans)] = np.nan
    return np.copysign(magnitude, np.where(codes & 0x80, -1.0, 1.0)).astype(np.float32)
