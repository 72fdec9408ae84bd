"""Rows of E2M1 codes: 4-bit floats, two in a byte, with a scale for each group of 16 or 32 in a row.

    code    0 1   2 3   4 5 6 7    8 to 15 are the same, negative
    value   0 0.5 1 1.5 2 3 4 6    1 bit of sign, 2 of exponent (bias 1), 1 of fraction

("OCP Microscaling Formats (MX) Specification 1.0", 5.3.3.) Byte j of a row holds element 2j in its lower four
bits and element 2j + 1 in the upper ones, in every checkpoint of these formats. In a group of ggml's mxfp4
and nvfp4, byte j holds element j below and element j + n/2 above.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.model import require_rows
from ggplan.sources.files import read_array, shown
from ggplan.sources.schemes import compressed_tensors
from ggplan.sources.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Keys of configs that have such weights. They name modules, which the tensors show more reliably, are about
# activations and caches, or say who wrote the file.
KEYS = compressed_tensors.KEYS | {
    "activation_scheme", "exclude_modules", "group_size", "ignored_layers", "kv_cache_quant_algo",
    "modules_to_not_convert", "moe_quant_algo", "producer", "quant_algo", "quantized_layers", "scale_fmt",
    "store_dtype",
}  # fmt: skip


def read_raw(tensor: StoredTensor, start: int, stop: int, n_rows: int) -> NDArray[np.uint8]:
    """Rows `start` up to `stop` of a tensor of `n_rows` rows, as their bytes: (stop - start, bytes)."""
    require_rows(start, stop, n_rows)
    row_bytes = tensor.n_bytes // n_rows if n_rows else 0
    raw = read_array(tensor.file, tensor.offset + start * row_bytes, (stop - start) * row_bytes)
    return raw.reshape(stop - start, row_bytes)


def values_of(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The values of rows of codes: (rows, bytes) give (rows, 2 x bytes)."""
    import numpy as np

    return np.take(_pairs(), raw, axis=0).reshape(len(raw), raw.shape[1] * 2)


def regrouped(raw: NDArray[np.uint8], group: int) -> NDArray[np.uint8]:
    """Rows of codes in the order of ggml's groups of this many: (rows, groups, group / 2) bytes."""
    import numpy as np

    n_groups = raw.shape[1] * 2 // group
    pairs = raw.reshape(len(raw), n_groups, group // 2)
    codes = np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(len(raw), n_groups, group)
    packed: NDArray[np.uint8] = codes[:, :, : group // 2] | codes[:, :, group // 2 :] << 4
    return packed


def require_shape(scale: StoredTensor, shape: tuple[int, ...], weights: tuple[int, ...]) -> None:
    """Raise CheckpointError unless scales have this shape, which their weights ask for."""
    if scale.shape != shape:
        raise CheckpointError(
            f"{shown(scale.file)}: the scales '{shown(scale.name)}' have the shape {list(scale.shape)}; "
            f"weights of shape {list(weights)} need {list(shape)}"
        )


def require_floats(scale: StoredTensor) -> None:
    """Raise CheckpointError unless a tensor's values are floats of a type that scales have."""
    if scale.dtype not in ("F32", "BF16", "F16"):
        raise CheckpointError(
            f"{shown(scale.file)}: the scale '{shown(scale.name)}' is {scale.dtype}, not F32, BF16 or F16"
        )


def rows_in(shape: tuple[int, ...]) -> int:
    """Rows of a tensor of this shape."""
    return math.prod(shape[:-1])


@functools.cache
def _pairs() -> NDArray[np.float32]:
    """The two values of each byte: (256, 2)."""
    import numpy as np

    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    values = np.concatenate((magnitudes, -magnitudes))
    raw = np.arange(256)
    return np.stack((values[raw & 15], values[raw >> 4]), axis=-1)
