"""Subjects of measurement: a GGUF file or a split set, known by the digest of its bytes.

A path does not identify a file: a link, a copy and another shard of the same set give the same subject, and
two files of one name in two folders are two subjects. The model, the recipe and the bytes of each role and
type are read from the file and go into the record.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggplan.errors import MeasureError
from ggplan.measure.record import FileFacts, ModelFacts, Part, Quantization, RecipeFacts
from ggplan.model import Model
from ggplan.opening import open_model
from ggplan.planning.roles import roles_in
from ggplan.text import printable

_PIECE = 1 << 22
_DIGITS = 8
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_WORDS = re.compile(r"(?<=[-_.])")

Progress = Callable[[int], None]
"""Called with the number of bytes just read."""


@dataclass(frozen=True, slots=True)
class FileState:
    """A file's digest, and its size and times, which change when it is written to."""

    path: Path
    sha256: str
    n_bytes: int
    stamp: tuple[int, int, int, int]

    def check_unchanged(self) -> None:
        """Refuse a file that was written to, or replaced, since its digest was taken.

        Raises
        ------
        MeasureError
            Naming the file.
        """
        try:
            unchanged = _stamp(os.stat(self.path)) == self.stamp
        except OSError:
            unchanged = False
        if not unchanged:
            raise MeasureError(
                f"{printable(str(self.path))} changed while it was measured",
                hint="measure again when nothing writes to it",
            )


@dataclass(frozen=True, slots=True)
class Subject:
    """A file or a split set that is measured.

    Attributes
    ----------
    path
        The path for an engine: the file, or the first one of a set.
    files
        All files, in order.
    sha256
        The digest, as in `FileFacts.sha256`.
    n_bytes
        Bytes of all files.
    name
        Its name in tables.
    model
        The model in the file.
    """

    path: Path
    files: tuple[FileState, ...]
    sha256: str
    n_bytes: int
    name: str
    model: Model

    def check_unchanged(self) -> None:
        """`FileState.check_unchanged` of all files."""
        for file in self.files:
            file.check_unchanged()

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary; 0 where the file has none."""
        tokens = self.model.metadata.get("tokenizer.ggml.tokens")
        return 0 if tokens is None else tokens.length


def read_state(path: Path, progress: Progress | None = None) -> FileState:
    """Compute a file's digest.

    Raises
    ------
    MeasureError
        If it cannot be read, or is written to at the same time.
    """
    digest, size = hashlib.sha256(), 0
    if path.exists() and not path.is_file() and not path.is_dir():
        shown = printable(os.fspath(path))
        raise MeasureError(f"{shown} is no file", hint="save it as one: it is read more than once")
    try:
        with path.open("rb") as file:
            before = _stamp(os.fstat(file.fileno()))
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
                if progress is not None:
                    progress(len(piece))
    except OSError as error:
        raise MeasureError(f"cannot read {printable(os.fspath(path))}: {error.strerror}") from error
    state = FileState(path, digest.hexdigest(), size, before)
    state.check_unchanged()
    return state


def open_subjects(
    paths: Iterable[str | Path], progress: Callable[[Path, int], Progress] | None = None
) -> tuple[Subject, ...]:
    """Open the files to measure, in the order given; a subject for each path, not named yet.

    Parameters
    ----------
    progress
        Called with a file or set and its bytes before they are read; returns a function to call while
        reading.

    Raises
    ------
    CheckpointError
        If a file is damaged, or a set incomplete.
    MeasureError
        If a file is no GGUF, or cannot be read.
    """
    subjects = []
    states: dict[str, FileState] = {}
    for path in map(Path, paths):
        model = open_model(path)
        if model.kind != "gguf":
            raise MeasureError(f"{printable(str(path))} is not a GGUF file", hint="convert it first")
        new = [file for file in model.files if os.path.realpath(file) not in states]
        told = progress(path, sum(f.stat().st_size for f in new)) if new and progress is not None else None
        states |= {os.path.realpath(file): read_state(file, told) for file in new}
        files = tuple(replace(states[os.path.realpath(file)], path=file) for file in model.files)
        n_bytes = sum(file.n_bytes for file in files)
        subjects.append(Subject(model.files[0], files, _set_digest(files), n_bytes, "", model))
    return tuple(subjects)


def with_names(subjects: Iterable[Subject]) -> tuple[Subject, ...]:
    """Each subject once, under different names.

    Names have no common beginning. If several are equal, the folder's name stands in front, or else the
    digest's first digits at the end.
    """
    once: dict[str, Subject] = {}
    for subject in subjects:
        known = once.get(subject.sha256, subject)
        once[subject.sha256] = min(known, subject, key=_plainness)
    names = short_names([_SHARD.sub("", s.path.stem) for s in once.values()])
    folders = [f"{s.path.absolute().parent.name}/{n}" for s, n in zip(once.values(), names, strict=True)]
    named = []
    for subject, name, in_folder in zip(once.values(), names, folders, strict=True):
        if names.count(name) > 1:
            unique = folders.count(in_folder) == 1
            name = in_folder if unique else f"{name} ({subject.sha256[:_DIGITS]})"
        named.append(replace(subject, name=name))
    return tuple(named)


def _plainness(subject: Subject) -> tuple[bool, int, str]:
    """A sort key for several paths of one subject, whatever their order: a file before a link."""
    return subject.path.is_symlink(), len(str(subject.path)), str(subject.path)


def short_names(names: Sequence[str]) -> list[str]:
    """File names without their common beginning: `GLM-4.5-Air-Q4_K_M`, `GLM-4.5-Air-bf16` → `Q4_K_M`, `bf16`.

    Only whole words are cut, and nothing is cut if two names would become the same or one empty.
    """
    different = list(dict.fromkeys(names))
    words = [_WORDS.split(name) for name in different]
    n_shared = next((i for i, column in enumerate(zip(*words, strict=False)) if len(set(column)) > 1), 0)
    short = {name: "".join(w[n_shared:]) for name, w in zip(different, words, strict=True)}
    sound = len(different) > 1 and all(short.values()) and len(set(short.values())) == len(different)
    return [short[name] for name in names] if sound else list(names)


def model_facts(subject: Subject) -> ModelFacts:
    """The model a file is of."""
    facts = model_facts_of(subject.model)
    return facts if facts.name else replace(facts, name=_SHARD.sub("", subject.path.stem))


def model_facts_of(model: Model) -> ModelFacts:
    """The model that a GGUF says it is of; its name is "" where it does not say."""
    named = _text(model, "general.name") or _text(model, "general.basename")
    return ModelFacts(named, model.architecture, sum(t.n_weights for t in model.tensors))


def quantization_of(subject: Subject) -> Quantization:
    """The quantization in a file: its size, its parts, the recipe it was made by."""
    shards = tuple(f.sha256 for f in subject.files) if len(subject.files) > 1 else ()
    file = FileFacts(subject.path.name, subject.sha256, subject.n_bytes, shards)
    return replace(facts_of(subject.model), name=subject.name, file=file)


def facts_of(model: Model) -> Quantization:
    """The quantization in a GGUF as its header tells it, without a digest and a name."""
    n_weights = sum(t.n_weights for t in model.tensors)
    tensor_bytes = sum(t.n_bytes for t in model.tensors)
    return Quantization(
        name="",
        file=FileFacts(model.files[0].name, n_bytes=sum(file.stat().st_size for file in model.files)),
        bpw=round(8 * tensor_bytes / n_weights, 4) if n_weights else 0.0,
        recipe=RecipeFacts(_text(model, "ggplan.recipe.name"), _text(model, "ggplan.recipe.sha256")),
        imatrix=_text(model, "quantize.imatrix.file"),
        parts=parts_of(model),
    )


def parts_of(model: Model) -> tuple[Part, ...]:
    """The bytes of each role and type of a model, as it is stored."""
    sums: dict[tuple[str, str], list[int]] = {}
    roles = roles_in(model)
    for tensor in model.tensors:
        total = sums.setdefault((roles[tensor.name].value, tensor.type.name), [0, 0])
        total[0] += tensor.n_bytes
        total[1] += tensor.n_weights
    return tuple(Part(role, type_, *total) for (role, type_), total in sorted(sums.items()))


def _text(model: Model, key: str) -> str:
    value = model.metadata[key].decode() if key in model.metadata else ""
    return value if isinstance(value, str) else ""


def _set_digest(files: Sequence[FileState]) -> str:
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256("".join(f"{f.sha256}\n" for f in files).encode("ascii")).hexdigest()


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
