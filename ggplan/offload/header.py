"""The header of a GGUF file: metadata and the tensors' names, shapes and types. All that fitting needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggplan.ggml_types import GgmlType
from ggplan.model import Model
from ggplan.planning import Plan


@dataclass(frozen=True, slots=True)
class HeaderTensor:
    """One tensor as it stands in the file.

    Attributes
    ----------
    name
        GGUF name.
    type
        ggml type in the file.
    shape
        ggml's order: `ne0`, the row's length, first.
    """

    name: str
    type: GgmlType
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows, without padding."""
        n_rows = 1
        for n in self.shape[1:]:
            n_rows *= n
        return self.type.row_bytes(self.shape[0] if self.shape else 1) * n_rows


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says before its data.

    Attributes
    ----------
    name
        How messages call it: a file's name, or that of the model that was planned.
    metadata
        Its keys and values.
    tensors
        In the file's order.
    file
        The file that an engine is given, of a split set the first; "" where there is none yet.
    """

    name: str
    metadata: Mapping[str, Any]
    tensors: tuple[HeaderTensor, ...]
    file: str = ""


def header_of(source: Model | Plan) -> Header:
    """The header of a GGUF that was opened, or of the file a plan would write."""
    if isinstance(source, Plan):
        tensors = tuple(HeaderTensor(t.name, t.type, t.tensor.shape[::-1]) for t in source.tensors)
        return Header(source.model.path.name, source.metadata, tensors)
    tensors = tuple(
        HeaderTensor(t.name, t.type, t.shape[::-1]) for t in (*source.tensors, *source.companions)
    )
    file = str(source.files[0]) if source.kind == "gguf" and source.files else ""
    return Header(source.path.name, source.metadata, tensors, file)
