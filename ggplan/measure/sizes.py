"""The files that logs are of: a log seldom says how large its file is, and never its digest.

Sizes are given as numbers, for a quantization by its name, or read from the GGUF files. A file belongs to the
quantizations whose logs name it, else to the one that is called as the file is, else to the only one, if its
log names no other file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ggplan.errors import MeasureError
from ggplan.measure.log_lines import without_ending
from ggplan.measure.record import (
    UNNAMED,
    Quantization,
    Record,
    could_be_one_size,
    merge,
    tell_apart,
    would_replace,
)
from ggplan.measure.subjects import Subject, facts_of, model_facts_of, quantization_of
from ggplan.model import Model
from ggplan.opening import open_model
from ggplan.text import format_bytes, nearest, printable

_SHOWN = 8
_Place = tuple[int, int]


def with_sizes(
    records: Sequence[Record], sizes: Mapping[str, int], files: Sequence[tuple[str, Path | Subject]] = ()
) -> list[Record]:
    """The records with what is known of the files that their quantizations are of.

    Parameters
    ----------
    sizes
        Bytes of the file, by the quantization's name.
    files
        GGUF files, each with the name of its quantization, or "" to find it by the file's name. They give
        size, bits per weight, recipe and the bytes of each role and type; a `Subject` gives the digest too.

    Raises
    ------
    CheckpointError
        If a GGUF cannot be read.
    MeasureError
        If there is no quantization of a name, several have it, a file belongs to none, a log says another
        size, or a file has two results of one kind.
    """
    records = list(records)
    given: set[_Place] = set()
    for name, n_bytes in sizes.items():
        at, place = _named(records, name)
        q = records[at].quantizations[place]
        _check_size(q, n_bytes, "the given size is")
        given.add((at, place))
        records[at] = _put(records[at], place, replace(q, file=replace(q.file, n_bytes=n_bytes)))
    for name, file in files:
        subject = file if isinstance(file, Subject) else None
        path = subject.path if subject else file
        assert isinstance(path, Path)
        model = subject.model if subject else open_model(path)
        if model.kind != "gguf":
            raise MeasureError(f"{printable(str(path))} is not a GGUF file")
        of_file = quantization_of(subject) if subject else facts_of(model)
        for at, place in [_named(records, name)] if name else _of_file(records, path, model):
            q = records[at].quantizations[place]
            _check_size(q, of_file.file.n_bytes, f"{printable(str(path))} has", is_given=(at, place) in given)
            records[at] = _put(_with_model(records[at], model), place, _from_file(q, of_file))
    return [_joined(record) for record in _of_one_model(records)]


def _of_one_model(records: Sequence[Record]) -> list[Record]:
    """The records, with those as one whose models have one name, as they may by what the files say."""
    found: dict[str, Record] = {}
    for record in records:
        name = record.model.name
        found[name] = _put_together(found[name], record) if name in found else record
    return list(found.values())


def _put_together(one: Record, other: Record) -> Record:
    """Two records of one model; none of the figures of the first is replaced."""
    together = merge(one, replace(other, quantizations=()))
    for q in other.quantizations:
        before = {known.name: known for known in together.quantizations}
        merged = merge(together, replace(other, quantizations=(q,)))
        lost = next((k for k in merged.quantizations if would_replace(before.get(k.name, k), k)), None)
        if lost is not None:
            raise _two_results(before[lost.name], q)
        together = merged
    return together


def _two_results(one: Quantization, other: Quantization) -> MeasureError:
    return MeasureError(
        f"{printable(one.name)} and {printable(other.name)} are of the same file, and of one kind",
        hint="leave one of the two results out",
    )


def _named(records: Sequence[Record], name: str) -> _Place:
    places = [(at, place) for at, place, q in _all(records) if q.name == name]
    if len(places) == 1:
        return places[0]
    if places:
        raise MeasureError(
            f"{len(places)} quantizations are called {printable(name)}",
            hint="choose a model with --model-name",
        )
    names = [q.name for _, _, q in _all(records)]
    near = nearest(name, names)
    hint = f"the nearest is {printable(near)}" if near else f"there are: {_words(names)}"
    raise MeasureError(f"no quantization is called {printable(name)}", hint=hint)


def _all(records: Sequence[Record]) -> list[tuple[int, int, Quantization]]:
    return [(at, place, q) for at, r in enumerate(records) for place, q in enumerate(r.quantizations)]


def _of_file(records: Sequence[Record], path: Path, model: Model) -> list[_Place]:
    """The quantizations that a file is of."""
    everything = _all(records)
    stems = {without_ending(file.name) for file in model.files}
    by_log = [(at, place) for at, place, q in everything if without_ending(q.file.name) in stems]
    if by_log:
        return by_log
    unnamed = [(at, place, q) for at, place, q in everything if not q.file.name]
    found = [(at, place) for at, place, q in unnamed if q.name in stems]
    if not found and len(everything) == 1:
        found = [(at, place) for at, place, _ in unnamed]
    if len(found) == 1:
        return found
    names = _words([q.name + (f" (of {q.file.name})" if q.file.name else "") for _, _, q in everything])
    what = "could be of several quantizations" if found else "has the name of no quantization"
    if len(everything) == 1 and not unnamed:
        what = f"is not the file that the log names, {printable(everything[0][2].file.name)}"
    raise MeasureError(
        f"{printable(str(path))} {what}",
        hint=f"say which: NAME={printable(path.name)}; there are: {names}",
    )


def _from_file(q: Quantization, of_file: Quantization) -> Quantization:
    name = q.file.name or of_file.file.name
    return replace(
        q,
        file=replace(of_file.file, name=name, sha256=of_file.file.sha256 or q.file.sha256),
        bpw=of_file.bpw,
        recipe=of_file.recipe,
        imatrix=of_file.imatrix,
        parts=of_file.parts,
    )


def _with_model(record: Record, model: Model) -> Record:
    """The record, with what the file says of its model where nothing does."""
    known, facts = record.model, model_facts_of(model)
    return replace(
        record,
        model=replace(
            known,
            name=facts.name if known.name == UNNAMED and facts.name else known.name,
            architecture=known.architecture or facts.architecture,
            n_weights=known.n_weights or facts.n_weights,
        ),
    )


def _joined(record: Record) -> Record:
    """The record, with the quantizations of one digest as one."""
    places: dict[str, int] = {}
    joined: list[Quantization] = []
    for q in record.quantizations:
        digest = q.file.sha256
        if not digest or digest not in places:
            places[digest] = len(joined)
            joined.append(q)
            continue
        known = joined[places[digest]]
        if would_replace(known, q):
            raise _two_results(known, q)
        (joined[places[digest]],) = merge(
            Record(record.model, (known,)), Record(record.model, (q,))
        ).quantizations
    if len(joined) == len(record.quantizations):
        return record
    return Record(record.model, tell_apart(joined))


def _check_size(q: Quantization, n_bytes: int, whose: str, *, is_given: bool = False) -> None:
    """Refuse a size that cannot be that of the file; `is_given` if the known one was given with it."""
    exact = bool(q.file.sha256)
    known = q.file.n_bytes
    if (exact and known not in (0, n_bytes)) or not could_be_one_size(known, n_bytes):
        known_by = "was measured in a file of" if exact else "has by what was read"
        if is_given:
            known_by = "has by the given size"
        raise MeasureError(
            f"{printable(q.name)} {known_by} {format_bytes(known)}, and {whose} {format_bytes(n_bytes)}"
        )


def _put(record: Record, place: int, q: Quantization) -> Record:
    changed = list(record.quantizations)
    changed[place] = q
    return replace(record, quantizations=tuple(changed))


def _words(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
