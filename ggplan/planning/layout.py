"""The place of every byte of the GGUF, known before a weight is read.

Metadata, types and shapes alone determine the whole layout (see `ggplan.sources.gguf_writing`).
"""

from __future__ import annotations

from ggplan.planning.roles import layer_of
from ggplan.sources.gguf_writing import ALIGNMENT as ALIGNMENT
from ggplan.sources.gguf_writing import encode_header as encode_header
from ggplan.sources.gguf_writing import padded as padded
from ggplan.sources.gguf_writing import place as place
from ggplan.sources.gguf_writing import written_shape as written_shape


def file_order(name: str) -> tuple[int, bytes]:
    """The sort key of llama-quantize's order: first tensors outside the blocks, then by block and name.

    The order depends on the names alone, so the same model gives the same file, however it is sharded.
    """
    layer = layer_of(name)
    return (-1 if layer is None else layer, name.encode("utf-8"))
