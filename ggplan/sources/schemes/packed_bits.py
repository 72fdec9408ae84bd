"""Codes of a few bits in 32-bit words, as the integer forms of quantized checkpoints pack them.

    dense         a stream of bits, little-endian: code i begins at bit `i * bits`, and may lie in two words
    padded        `32 // bits` codes in a word, low bits first; the highest bits of a word may be unused
    planar        32 codes in `bits` words, cut into planes of 4, 2 and 1 bits, the lowest of all 32 first
    interleaved   8 codes of 4 bits in a word, code j of them in nibble 0 4 1 5 2 6 3 7 [j]

For 1, 2, 4 and 8 bits dense and padded are the same. compressed-tensors packs padded before 0.18 and dense
since (`compressors/pack_quantized/helpers.py`); GPTQ is dense, or planar in GPTQModel's `gptq_p`
(GPTQModel 7.7.0, `nn_modules/qlinear/gptq_p`); AutoAWQ 0.2.9 interleaves (`awq/utils/packing_utils.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ggplan.sources.files import read_rectangle
from ggplan.sources.tensors import DTYPE_BITS, StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# (words, bits, count) -> codes: a matrix of words, the codes of each row in a row, `count` of them.
Unpack = Callable[["NDArray[np.uint32]", int, int], "NDArray[np.uint8]"]

PERIOD = 32
"""Codes after which every packing begins a word."""

_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
_ARRAYS = {
    "I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4",
    "I64": "<i8", "U64": "<u8", "F16": "<f2", "BF16": "<u2", "F32": "<f4",
}  # fmt: skip


def dense(words: NDArray[np.uint32], bits: int, count: int) -> NDArray[np.uint8]:
    """Codes of a stream of bits."""
    import numpy as np

    n_rows, n_words = words.shape
    if bits == 8:
        return _bytes_of(words)[:, :count]
    if bits == 4:
        pairs = _bytes_of(words).astype("<u2")
        pairs |= pairs << 4
        pairs &= 0x0F0F
        return _bytes_of(pairs)[:, :count]
    if 8 % bits == 0:
        whole = _bytes_of(words)
        per_byte = 8 // bits
        codes = np.empty((n_rows, whole.shape[1], per_byte), np.uint8)
        for i in range(per_byte):
            codes[:, :, i] = whole >> (i * bits) & _mask(bits)
        return codes.reshape(n_rows, -1)[:, :count]
    n_periods = -(-n_words // bits)
    padded_words = np.zeros((n_rows, n_periods * bits), np.uint32)
    padded_words[:, :n_words] = words
    periods = padded_words.reshape(n_rows, n_periods, bits)
    codes = np.empty((n_rows, n_periods, PERIOD), np.uint8)
    for i in range(PERIOD):
        at, shift = divmod(i * bits, 32)
        field = periods[:, :, at] >> shift
        if shift + bits > 32:
            field |= periods[:, :, at + 1] << (32 - shift)
        codes[:, :, i] = field & _mask(bits)
    return codes.reshape(n_rows, -1)[:, :count]


def padded(words: NDArray[np.uint32], bits: int, count: int) -> NDArray[np.uint8]:
    """Codes that never lie in two words."""
    import numpy as np

    per_word = 32 // bits
    codes = np.empty((*words.shape, per_word), np.uint8)
    for i in range(per_word):
        codes[:, :, i] = words >> (i * bits) & _mask(bits)
    return codes.reshape(words.shape[0], -1)[:, :count]


def planar(words: NDArray[np.uint32], bits: int, count: int) -> NDArray[np.uint8]:
    """Codes whose bits lie in planes."""
    import numpy as np

    n_rows = words.shape[0]
    periods = words.reshape(n_rows, -1, bits)
    codes = np.zeros((n_rows, periods.shape[1], PERIOD), np.uint8)
    count_whole = periods.shape[1] * PERIOD
    below = 0  # the bits, and so the words, of the planes before
    for width in _PLANES[bits]:
        plane = np.ascontiguousarray(periods[:, :, below : below + width]).reshape(n_rows, -1)
        codes |= dense(plane, width, count_whole).reshape(codes.shape) << below
        below += width
    return codes.reshape(n_rows, -1)[:, :count]


def interleaved(words: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """AutoAWQ's codes of a matrix whose words lie in columns: eight rows of codes for each row of words."""
    import numpy as np

    n_rows, n_columns = words.shape
    codes = np.empty((n_rows, 8, n_columns), np.uint8)
    for j, nibble in enumerate(_NIBBLES):
        codes[:, j] = words >> (4 * nibble) & 15
    return codes.reshape(-1, n_columns)


def n_words(unpack: Unpack, bits: int, count: int) -> int:
    """The 32-bit words that `count` codes need."""
    if unpack is padded:
        return -(-count // (32 // bits))
    if unpack is planar:
        return -(-count // PERIOD) * bits
    return -(-count * bits // 32)


def span(unpack: Unpack, bits: int, start: int, stop: int, total: int) -> tuple[int, int, int]:
    """Where codes `start` up to `stop` of `total` words lie: first word, end, and codes before `start`."""
    period, width = (32 // bits, 1) if unpack is padded else (PERIOD, bits)
    first, end = start // period, -(-stop // period)
    return first * width, min(end * width, total), start - first * period


def read_values(tensor: StoredTensor, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[Any]:
    """Part of a tensor as a matrix: of rows `rows[0]` up to `rows[1]` the columns likewise.

    Floats are float32, integers as they are stored.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    """
    import numpy as np

    size = DTYPE_BITS[tensor.dtype] // 8
    row_bytes = size * (tensor.shape[-1] if tensor.shape else 1)
    raw = read_rectangle(
        tensor.file, tensor.offset, row_bytes, rows, (columns[0] * size, columns[1] * size)
    ).view(_ARRAYS[tensor.dtype])
    if tensor.dtype == "BF16":
        from ggplan.quants.floats import widened

        return widened(raw)
    return raw.astype(np.float32) if tensor.dtype == "F16" else raw


def as_words(values: NDArray[Any]) -> NDArray[np.uint32]:
    """Integers of any width as 32-bit words, byte for byte, each row filled up to whole words."""
    import numpy as np

    whole = np.ascontiguousarray(values)
    if whole.dtype.itemsize == 4:
        return whole.view("<u4")
    raw = _bytes_of(whole)
    if missing := -raw.shape[1] % 4:
        raw = np.pad(raw, ((0, 0), (0, missing)))
    return np.ascontiguousarray(raw).view("<u4")


def _bytes_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    import numpy as np

    return np.ascontiguousarray(values).view(np.uint8).reshape(values.shape[0], -1)


def _mask(bits: int) -> int:
    return (1 << bits) - 1
