"""Sizes for quantizations whose logs do not print them: given as numbers, or read from the GGUF files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggplan.errors import MeasureError
from ggplan.measure.record import FileFacts, ModelFacts, Quantization, Record
from ggplan.measure.subjects import parts_of
from ggplan.model import Model
from ggplan.opening import open_model
from ggplan.text import nearest, printable


@dataclass(frozen=True, slots=True)
class _Found:
    """What a GGUF says: itself, and the name of the quantization it is meant for, or ""."""

    path: Path
    name: str
    model: Model

    @property
    def file_names(self) -> set[str]:
        return {file.name for file in self.model.files}

    @property
    def n_weights(self) -> int:
        return sum(t.n_weights for t in self.model.tensors)


def with_sizes(
    records: Sequence[Record], sizes: Mapping[str, int], files: Sequence[tuple[str, Path]] = ()
) -> list[Record]:
    """The records with sizes that were given for their quantizations.

    Parameters
    ----------
    sizes
        Bytes of the file, by the quantization's name.
    files
        GGUF files, each with the name of its quantization, or "" to find it by the file's name. They give
        size, bits per weight, and the bytes of each role and type.

    Raises
    ------
    CheckpointError
        If a GGUF cannot be read.
    MeasureError
        If there is no quantization of a name, several have it, or a file belongs to none.
    """
    records = list(records)
    for name, n_bytes in sizes.items():
        at, place, found = _named(records, name)
        if found.file.sha256 and found.file.n_bytes not in (0, n_bytes):
            raise MeasureError(
                f"{printable(name)} was measured in a file of {found.file.n_bytes:,} bytes, not {n_bytes:,}"
            )
        sized = replace(found, file=replace(found.file, n_bytes=n_bytes))
        records[at] = _put(records[at], place, sized)
    for name, path in files:
        model = open_model(path)
        if model.kind != "gguf":
            raise MeasureError(f"{printable(str(path))} is not a GGUF file")
        file = _Found(path, name, model)
        at, place, found = _named(records, name) if name else _of_file(records, file)
        records[at] = _put(_with_model(records[at], file), place, _from_file(found, file))
    return records


def _named(records: Sequence[Record], name: str) -> tuple[int, int, Quantization]:
    places = [
        (at, place, q)
        for at, record in enumerate(records)
        for place, q in enumerate(record.quantizations)
        if q.name == name
    ]
    if len(places) == 1:
        return places[0]
    if places:
        raise MeasureError(
            f"{len(places)} quantizations are called {printable(name)}",
            hint="choose a model with --model-name",
        )
    names = [q.name for record in records for q in record.quantizations]
    near = nearest(name, names)
    hint = f"the nearest is {printable(near)}" if near else f"there are: {_shown(names)}"
    raise MeasureError(f"no quantization is called {printable(name)}", hint=hint)


def _of_file(records: Sequence[Record], file: _Found) -> tuple[int, int, Quantization]:
    """The quantization that a file's name tells, or the only one there is."""
    everything = [
        (at, place, q) for at, record in enumerate(records) for place, q in enumerate(record.quantizations)
    ]
    stems = {name.removesuffix(".gguf") for name in file.file_names}
    found = [e for e in everything if e[2].file.name in file.file_names or e[2].name in stems]
    found = found or (everything if len(everything) == 1 else [])
    if len(found) == 1:
        return found[0]
    what = "could be of several quantizations" if found else "has the name of no quantization"
    names = _shown([q.name for _, _, q in everything])
    raise MeasureError(
        f"{printable(str(file.path))} {what}",
        hint=f"say which: NAME={printable(file.path.name)}; there are: {names}",
    )


def _from_file(quantization: Quantization, file: _Found) -> Quantization:
    n_bytes = sum(path.stat().st_size for path in file.model.files)
    tensor_bytes = sum(t.n_bytes for t in file.model.tensors)
    bpw = round(8 * tensor_bytes / file.n_weights, 4) if file.n_weights else 0.0
    facts = FileFacts(quantization.file.name or file.path.name, quantization.file.sha256, n_bytes)
    return replace(quantization, file=facts, bpw=bpw, parts=parts_of(file.model))


def _with_model(record: Record, file: _Found) -> Record:
    """The record, with the model's weights and architecture where it does not have them."""
    model = record.model
    facts = ModelFacts(
        model.name, model.architecture or file.model.architecture, model.n_weights or file.n_weights
    )
    return replace(record, model=facts)


def _put(record: Record, place: int, quantization: Quantization) -> Record:
    changed = list(record.quantizations)
    changed[place] = quantization
    return replace(record, quantizations=tuple(changed))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:8])) + (", …" if len(names) > 8 else "")
