"""Entries: the quantizations that logs and tables give, put together as records.

Runs of one file are one entry, as long as none of their figures would replace another's. What tells two files
of one name is where the log opened them, their size and bits per weight; what cannot be one file stays apart,
under a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from ggplan.measure.record import (
    Conditions,
    Measurement,
    Merging,
    ModelFacts,
    Quantization,
    Record,
    Speed,
    begin_merge,
    could_be_one,
    would_replace,
)
from ggplan.text import format_bytes, printable

_SHOWN = 6


Tell = Callable[[str], None]
"""Called with a sentence about something that was read but is not in the records."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A quantization that a file gives.

    Attributes
    ----------
    model
        The model, "" where the file does not say.
    is_named
        Whether the text names it; else it is called after the text's own file.
    line
        Where it stands, 0 where that is not known.
    is_run
        Whether it is of a log, not a row of a table.
    folder
        The folder in which the log opened the file, "" where it does not say.
    """

    model: str
    quantization: Quantization
    is_named: bool = True
    line: int = 0
    is_run: bool = False
    folder: str = ""


def joined_runs(entries: Sequence[Entry], told: Tell) -> list[Entry]:
    """The entries of a text, with runs of one file as one.

    Where two of them measured the same and differ, none are: the text does not tell which go together.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for at, entry in enumerate(entries):
        if entry.is_run and entry.quantization.file.name:
            key = (entry.quantization.name, entry.quantization.file.name)
            groups.setdefault(key, []).append(at)
    found: dict[int, Entry | None] = {}
    for places in groups.values():
        folders = {entries[at].folder for at in places} - {""}
        for folder in sorted({entries[at].folder for at in places}) if len(folders) > 1 else [""]:
            own = [at for at in places if len(folders) < 2 or entries[at].folder == folder]
            together = _together([entries[at] for at in own], told)
            if len(folders) > 1:
                together = [_called(entry, folder) for entry in together]
            found.update(dict.fromkeys(own))
            found.update(zip(own, together, strict=False))
    kept = (found.get(at, entry) for at, entry in enumerate(entries))
    return [entry for entry in kept if entry is not None]


def _called(entry: Entry, mark: str) -> Entry:
    """The entry, with something added to its name."""
    if not mark:
        return entry
    q = entry.quantization
    return replace(entry, quantization=replace(q, name=f"{q.name} ({mark})"))


def _together(entries: list[Entry], told: Tell) -> list[Entry]:
    """Runs of one file as one entry, or as they are if two of them differ in what they measured."""
    if len(entries) == 1:
        return entries
    first = entries[0].quantization
    measured: dict[Conditions, Measurement] = {}
    speeds: dict[tuple[str, str, str], tuple[Speed, ...]] = {}
    again: list[Entry] = []
    for entry in entries:
        q = entry.quantization
        if not could_be_one(first, q):
            return entries
        size = first.file.n_bytes or q.file.n_bytes
        first = replace(first, file=replace(first.file, n_bytes=size), bpw=first.bpw or q.bpw)
        conditions = {(s.engine, s.build, s.hardware) for s in q.speeds}
        news = [m for m in q.measurements if m.conditions not in measured]
        changed = any(measured.get(m.conditions, m).metrics != m.metrics for m in q.measurements)
        if changed or any(speeds.get(c, q.speeds) != q.speeds for c in conditions):
            return entries
        if not news and conditions <= speeds.keys():
            again.append(entry)
        measured.update((m.conditions, m) for m in news)
        speeds.update(dict.fromkeys(conditions, q.speeds))
    for entry in again:
        told(f"line {entry.line}: the run of {printable(first.name)} is there before; it counts once")
    rows = dict.fromkeys(s for group in speeds.values() for s in group)
    whole = replace(first, measurements=tuple(measured.values()), speeds=tuple(rows))
    folder = next((entry.folder for entry in entries if entry.folder), "")
    return [replace(entries[0], quantization=whole, folder=folder)]


@dataclass(slots=True)
class Known:
    """The records that files gave so far.

    Attributes
    ----------
    called
        The names in a record of what logs and tables call so, by model and that name.
    folders
        Where logs opened the files, by model and name in the record.
    """

    records: dict[str, Merging] = field(default_factory=dict)
    called: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    folders: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Take a record; its figures replace older ones."""
        old = self.records.get(record.model.name)
        if old is None:
            self.records[record.model.name] = begin_merge(record)
        else:
            old.add(record)

    def add_entries(self, model: str, entries: Iterable[Entry], stem: str, told: Tell) -> None:
        """Take the entries of a text whose file has this stem; they replace no figures of other texts."""
        old = self.records.get(model)
        named = []
        for entry in _uniquely_named(entries):
            taken = self.called.setdefault((model, entry.quantization.name), set())
            there = {k.name: k for name in sorted(taken) for k in old.called(name)} if old else {}
            if there:
                entry = self._placed(model, entry, there, stem, told)
            name = entry.quantization.name
            taken.add(name)
            if entry.folder:
                self.folders.setdefault((model, name), entry.folder)
            named.append(entry)
        self.add(Record(ModelFacts(model), tuple(e.quantization for e in _uniquely_named(named))))

    def _placed(
        self, model: str, entry: Entry, there: dict[str, Quantization], stem: str, told: Tell
    ) -> Entry:
        """The entry under the name that its file has in the record, or under a new one.

        `there` are the quantizations of the record that other texts call so.
        """
        q = entry.quantization
        folders = {name: self.folders.get((model, name), "") for name in there}
        elsewhere = {name for name in there if entry.folder and folders[name] not in ("", entry.folder)}
        fitting = [name for name, k in there.items() if name not in elsewhere and could_be_one(k, q)]
        same = [name for name in fitting if not would_replace(there[name], q)]
        if same:
            return replace(entry, quantization=replace(q, name=same[0]))
        placed = _called(entry, entry.folder if elsewhere and not fitting else stem)
        if not fitting:
            first = next(iter(there.values()))
            why = f"it has {_size(q)}, not {_size(first)}"
            if first.name in elsewhere:
                why = f"it is in the folder {printable(entry.folder)}, not {printable(folders[first.name])}"
            new = printable(placed.quantization.name)
            told(f"{printable(q.name)} is another file than the one before: {why}; it is called {new}")
        return placed


def _size(q: Quantization) -> str:
    return format_bytes(q.file.n_bytes) if q.file.n_bytes else f"{q.bpw:g} bits per weight"


def _uniquely_named(entries: Iterable[Entry]) -> list[Entry]:
    """Entries with different names: author, bits per weight or a number are added to equal ones."""
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    found = []
    for entry in entries:
        q = entry.quantization
        by = q.name + (f" ({q.author})" if q.author else "")
        full = by + (f" {q.bpw:g}" if q.bpw else "")
        free = [name for name in (q.name, by, full) if name not in taken]
        number = numbers.get(full, 2)
        while not free:
            free = [name for name in (f"{full} #{number}",) if name not in taken]
            number += 1
            numbers[full] = number
        taken.add(free[0])
        found.append(entry if q.name == free[0] else replace(entry, quantization=replace(q, name=free[0])))
    return found
