"""What a GGUF file says of itself, for the record: its size, its parts, the recipe it was made by."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from ggplan.errors import MeasureError
from ggplan.measure.record import FileFacts, ModelFacts, Part, Quantization, RecipeFacts
from ggplan.model import Model
from ggplan.opening import open_model
from ggplan.planning.roles import roles_in
from ggplan.text import printable

_PIECE = 1 << 22


def describe_file(
    path: Path, name: str | None = None, progress: Callable[[int], None] | None = None
) -> tuple[ModelFacts, Quantization]:
    """The model a GGUF is of, and the quantization it is; `progress` is told of bytes hashed.

    Raises
    ------
    CheckpointError
        If the file is no GGUF.
    MeasureError
        If it cannot be read.
    """
    model = open_model(path)
    if model.kind != "gguf":
        raise MeasureError(f"{printable(str(path))} is no GGUF file", hint="convert it first")
    n_weights = sum(t.n_weights for t in model.tensors)
    tensor_bytes = sum(t.n_bytes for t in model.tensors)
    sha256, n_bytes = _digest(path, progress)
    quantization = Quantization(
        name=name or path.stem,
        file=FileFacts(path.name, sha256, n_bytes),
        bpw=round(8 * tensor_bytes / n_weights, 4) if n_weights else 0.0,
        recipe=RecipeFacts(_text(model, "ggplan.recipe.name"), _text(model, "ggplan.recipe.sha256")),
        imatrix=_text(model, "quantize.imatrix.file"),
        parts=_parts(model),
    )
    named = _text(model, "general.name") or _text(model, "general.basename") or path.stem
    return ModelFacts(named, model.architecture, n_weights), quantization


def _text(model: Model, key: str) -> str:
    value = model.metadata[key].decode() if key in model.metadata else ""
    return value if isinstance(value, str) else ""


def _parts(model: Model) -> tuple[Part, ...]:
    sums: dict[tuple[str, str], list[int]] = {}
    roles = roles_in(model)
    for tensor in model.tensors:
        total = sums.setdefault((roles[tensor.name].value, tensor.type.name), [0, 0])
        total[0] += tensor.n_bytes
        total[1] += tensor.n_weights
    return tuple(Part(role, type_, *total) for (role, type_), total in sorted(sums.items()))


def _digest(path: Path, progress: Callable[[int], None] | None) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
                if progress is not None:
                    progress(len(piece))
    except OSError as error:
        raise MeasureError(f"cannot read {printable(os.fspath(path))}: {error.strerror}") from error
    return digest.hexdigest(), size
