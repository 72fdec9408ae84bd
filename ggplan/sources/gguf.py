"""GGUF files as models: one file, or the files of a split set taken together.

A split set (`llama-gguf-split`, `--split-max-size`) is files named `NAME-00001-of-00003.gguf` that carry
`split.no` (from 0), `split.count` and `split.tensors.count`; the first holds the model's metadata. Any of
them opens the set. The keys of the split belong to the files, not to the model, and are dropped.

Rows of every type have a fixed number of bytes, so the place of a row is found by multiplication.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ggplan.errors import CheckpointError, MissingFilesError, TruncatedError
from ggplan.ggml_types import BF16, F16, F32
from ggplan.metadata import MetadataType
from ggplan.model import Model, RowSource, TensorInfo
from ggplan.sources.files import exists, listed, rows_in_file, shown
from ggplan.sources.gguf_header import GgufHeader, read_header
from ggplan.sources.remote import RemotePath, each

_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL | re.ASCII)

MOST_LISTED = 60
"""Models of a repository that a message lists."""
_BESIDE_A_MODEL = ("mmproj", "imatrix")
_MOST_FILES = 99_999  # their numbers have five digits


def open_gguf(path: Path, headers: Sequence[GgufHeader] | None = None, *, header_only: bool = False) -> Model:
    """Open a GGUF file, or the split set it belongs to. No weights are read.

    Parameters
    ----------
    headers
        Those of the set, in order, where `find_set` found them; by default those that `read_set` reads.
    header_only
        Accept a file that ends before its data does, and a set of which files are missing: the model has the
        tensors of the headers that are there, and cannot be converted (`Model.obstacle`).

    Raises
    ------
    TruncatedError
        If a file ends before its data does, or is missing from its set.
    CheckpointError
        If a file is damaged or of another version.
    """
    missing = None
    if headers is None:
        headers, missing = _read_set(path, header_only)
    metadata = {key: value for key, value in headers[0].metadata.items() if not key.startswith("split.")}
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for record in header.tensors:
            if record.name in tensors:
                raise CheckpointError(
                    f"{shown(header.path)}: tensor '{shown(record.name)}' is also in "
                    f"{shown(tensors[record.name].origin)}"
                )
            stored = rows_in_file(header.path, record.offset, record.type, record.shape)
            tensors[record.name] = TensorInfo(
                record.name,
                record.shape,
                record.type,
                origin=header.path.name,
                stored_as=record.type.name,
                rows=_weights(stored),
                stored=stored,
            )
    obstacle = missing or next((header.truncated for header in headers if header.truncated), None)
    if missing is None:
        _check_total(headers[0], len(headers), len(tensors))
    return Model(
        path,
        "gguf",
        _architecture(headers[0]),
        metadata,
        tuple(tensors.values()),
        tuple(header.path for header in headers),
        obstacle=obstacle,
    )


def _weights(stored: RowSource) -> RowSource | None:
    """The rows as floats, decoded if they are blocks; None if ggplan cannot decode them."""
    if not stored.dtype.decodable:
        return None
    return stored if stored.dtype in (F32, F16, BF16) else stored.as_float32()


def read_set(path: Path) -> list[GgufHeader]:
    """The headers of all files of the set that `path` belongs to, in order.

    Raises
    ------
    CheckpointError
        As `open_gguf`.
    """
    return _read_set(path, header_only=False)[0]


def _read_set(path: Path, header_only: bool) -> tuple[list[GgufHeader], TruncatedError | None]:
    """The headers, and the error of a set that lacks files."""
    header = read_header(path, header_only=header_only)
    count = _integer(header, "split.count", 1)
    if count <= 1:
        return [header], None
    named = _SPLIT_NAME.fullmatch(path.name)
    if named is None or int(named[3]) != count:
        raise CheckpointError(
            f"{shown(path)} is one of {count:,} files of a split model, but its name does not end in "
            f"-{_integer(header, 'split.no', 0) + 1:05d}-of-{count:05d}.gguf",
            hint="give the files of the set back the names they were made with",
        )
    paths = [path.with_name(f"{named[1]}-{number:05d}-of-{named[3]}.gguf") for number in range(1, count + 1)]
    incomplete = None
    there = each(paths, exists)
    if missing := [part.name for part, is_there in zip(paths, there, strict=True) if not is_there]:
        incomplete = MissingFilesError(
            f"{shown(path)}: {len(missing)} of {count} files of the set are missing: {listed(missing)}",
            hint="download them into the same folder; --header-only reads what is there",
        )
        if not header_only:
            raise incomplete
    present = [(number, part) for number, part in enumerate(paths) if part.name not in missing]
    headers = each([part for _, part in present], partial(read_header, header_only=header_only))
    for (number, _), part in zip(present, headers, strict=True):
        stated = (_integer(part, "split.no", -1), _integer(part, "split.count", -1))
        if stated != (number, count):
            raise CheckpointError(
                f"{shown(part.path)}: its metadata makes it file {stated[0] + 1} of {stated[1]}, "
                f"its name file {number + 1} of {count}"
            )
    return headers, incomplete


def find_set(path: Path) -> list[list[GgufHeader]]:
    """As `read_set`, but files may have other names: the files that may be each of the set, in order.

    llama.cpp finds the files of a set by their names. Where these do not fit, the others are looked for in
    the folder by what they say of themselves: their number, and how many files and tensors the set has.
    Files whose names fit are another set's.

    Raises
    ------
    CheckpointError
        As `read_set`, if there is no file for a number.
    """
    try:
        return [[header] for header in read_set(path)]
    except CheckpointError:
        given = read_header(path)
        places = _places(given)
        if places is None:
            raise
        number, *whole = places
        found: list[list[GgufHeader]] = [[] for _ in range(whole[0])]
        fitting: dict[str, bool] = {}
        for other in sorted(path.parent.glob("*.gguf")):
            try:
                header = read_header(other)
            except CheckpointError:
                continue
            its = _places(header)
            if its is None or its[1:] != tuple(whole) or its[0] == number:
                continue
            stem = _stem(other)
            if stem not in fitting:  # each set of names is looked at once, however many files it has
                fitting[stem] = _is_in_a_set(other)
            if not fitting[stem]:
                found[its[0]].append(header)
        found[number] = [given]
        if all(found):
            return found
        if _SPLIT_NAME.fullmatch(path.name):
            raise  # which names the missing files
        absent = [_ordinal(i) for i, files in enumerate(found) if not files]
        raise TruncatedError(
            f"{shown(path)}: {len(absent)} of {whole[0]:,} files of the set "
            f"{'is' if len(absent) == 1 else 'are'} missing: {listed(absent)}; its name does not end in "
            f"-{number + 1:05d}-of-{whole[0]:05d}.gguf, so they were looked for by their metadata",
            hint="put them into the same folder, under any name",
        ) from None


def _ordinal(index: int) -> str:
    """The place of a file in its set in words: `the first`, `number 7`."""
    return "the first" if index == 0 else f"number {index + 1}"


def split_set_of(name: str) -> tuple[str, int]:
    """The split set that the name of a file tells: what comes before the number, and how many files it has.

    Of a file that is alone: its name, and 1.
    """
    named = _SPLIT_NAME.fullmatch(name)
    return (named[1], int(named[3])) if named else (name, 1)


def models_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The GGUF models of a folder, each by its first file, and the files beside them that are no models.

    A repository on a server is looked through with its folders, of which there may be one for each type, and
    may have vision towers and importance matrices too.
    """
    models: dict[tuple[str, int], Path] = {}
    beside = []
    is_remote = isinstance(folder, RemotePath)
    for path in sorted(folder.rglob("*.gguf") if is_remote else folder.glob("*.gguf")):
        if is_remote and path.name.startswith(_BESIDE_A_MODEL):
            beside.append(path)
        else:
            models.setdefault(split_set_of(str(path)), path)
    return list(models.values()), beside


def set_names(headers: Sequence[GgufHeader]) -> list[str]:
    """The names that the files of a set must have for llama.cpp to find them, after the first one's."""
    first, count = headers[0].path.name, len(headers)
    if count == 1:
        return [first]
    named = _SPLIT_NAME.fullmatch(first)
    prefix = named[1] if named else first.removesuffix(".gguf")
    return [f"{prefix}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def _stem(path: Path) -> str:
    """What the names of the files of a set have in common; a name without a number is its own."""
    named = _SPLIT_NAME.fullmatch(path.name)
    return f"{named[1]}-of-{named[3]}" if named else path.name


def _is_in_a_set(path: Path) -> bool:
    """Whether the names of a file and of the rest of its set fit."""
    try:
        return bool(read_set(path))
    except CheckpointError:
        return False


def _places(header: GgufHeader) -> tuple[int, int, int] | None:
    """The number of a file in its set, of the set's files, and of its tensors; None without a set."""
    number, count = _integer(header, "split.no", -1), _integer(header, "split.count", 1)
    if not 0 <= number < count or count > _MOST_FILES:
        return None
    return number, count, _integer(header, "split.tensors.count", -1)


def _check_total(first: GgufHeader, n_files: int, n_tensors: int) -> None:
    stated = _integer(first, "split.tensors.count", n_tensors)
    if n_files > 1 and stated != n_tensors:
        raise CheckpointError(
            f"{shown(first.path)}: the set has {n_tensors:,} tensors, not the stated {stated:,}"
        )


def _integer(header: GgufHeader, key: str, default: int) -> int:
    value = header.metadata.get(key)
    if value is None:
        return default
    number = value.decode() if value.item_type is None else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise CheckpointError(f"{shown(header.path)}: {key} is not an integer")
    return number


def _architecture(header: GgufHeader) -> str:
    value = header.metadata.get("general.architecture")
    if value is None:
        return ""
    if value.type is not MetadataType.STRING:
        raise CheckpointError(f"{shown(header.path)}: general.architecture is not a string")
    return str(value.decode())
