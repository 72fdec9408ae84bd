"""The files of a record: the record itself, and beside it the scores of every token.

    air.json            the record
    air.json.lock       while a measurement into it runs
    air.scores/         the scores of each file on each text, one .npz each

A measurement takes hours, so the record is opened, checked and locked before it begins; a second one into
the same record is refused at once. A file gets its name when it is complete.

Scores belong to a file and to the conditions it was measured under, both known by digest. The name of an
.npz is made from these, and the file contains them in full.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggplan.errors import MeasureError
from ggplan.measure.outputs import check_writable, write_whole
from ggplan.measure.record import Measurement, Quantization, Record, merge, named
from ggplan.measure.record_json import record_from_json, record_to_json
from ggplan.measure.scores import TokenScores
from ggplan.substitutes import read_limited
from ggplan.text import decode_text, printable

MAX_BYTES = 64 << 20
# What a lock holds; a file of the lock's name that holds something else is the user's, and stays.
_LOCK = b"held by ggplan measure\n"
# Some network file systems have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

Scores = Callable[[Quantization, Measurement], TokenScores | None]
"""The kept scores of a quantization's measurement, or None."""


def load_record(path: str | Path) -> Record:
    """Read a record, also of an older version.

    Raises
    ------
    MeasureError
        If the file cannot be read or is not a record; the message has the file and the place in it.
    """
    shown = printable(str(path))
    raw = read_limited(path, MAX_BYTES, "record", MeasureError)
    try:
        return record_from_json(json.loads(decode_text(raw, "strict")))
    except (ValueError, RecursionError) as error:
        raise MeasureError(
            f"{shown} is not a record: {error}",
            hint="`ggplan measure --parse` and `ggplan.measure.parse_files` read logs and tables",
        ) from error


def save_record(record: Record, path: str | Path) -> None:
    """Write a record; a file of this name is replaced. To add to one, use `open_record`.

    Raises
    ------
    MeasureError
        If the file cannot be written, or the record holds what could not be read again (a figure that is
        not finite, a number of tokens below 0).
    """
    members = record_to_json(record)
    try:
        record_from_json(members)
    except ValueError as error:
        raise MeasureError(f"the record for {printable(str(path))} cannot be: {error}") from None
    text = json.dumps(members, indent=1, ensure_ascii=False, allow_nan=False)
    # A name that is not valid Unicode is written as an escape, which is valid JSON.
    write_whole(Path(path), f"{text}\n".encode("utf-8", "backslashreplace"))


@dataclass(frozen=True, slots=True)
class OpenRecord:
    """A record that is locked for adding to it.

    Attributes
    ----------
    path
        The file, links resolved.
    record
        What it held when it was opened; None if there was no file.
    model_name
        The model's name from now on, if the file holds figures of a model that nothing named.
    """

    path: Path
    record: Record | None
    model_name: str | None = None

    def add(self, new: Record, scores: Mapping[tuple[str, str], TokenScores] | None = None) -> Record:
        """Merge new figures into the file; returns the record that the file then holds.

        Parameters
        ----------
        scores
            By digest of file and of text, to be kept beside the record.

        Raises
        ------
        MeasureError
            If the file cannot be written, or holds another model by now; if only the scores cannot be
            written, the message says that the figures are kept.
        """
        # Read again: on a file system without locks another run may have written it.
        merged = merge(named(load_record(self.path), self.model_name), new) if self.path.exists() else new
        save_record(merged, self.path)
        if scores:
            with _writing_scores(self.path):
                _keep_scores(scores_folder(self.path), new, scores)
        return merged


@contextlib.contextmanager
def open_record(path: str | Path, *, model_name: str | None = None) -> Iterator[OpenRecord]:
    """Open a record to add to it, or create one; no other run can until the block ends.

    Parameters
    ----------
    model_name
        The name for the model of a record whose figures came from logs that name none.

    Raises
    ------
    MeasureError
        If the file is not a record, is being added to by another run, or the record or the folder of its
        scores cannot be written.
    """
    path = Path(os.path.realpath(path))
    if scores_folder(path) == path:
        raise MeasureError(
            f"{printable(str(path))} would be the record and the folder of its scores",
            hint="give the record a name that ends in .json",
        )
    with locked(path):
        check_writable(path)
        _check_scores_folder(scores_folder(path))
        record = named(load_record(path), model_name) if path.exists() else None
        yield OpenRecord(path, record, model_name)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs from writing a file until the block ends, by a lock beside it.

    Raises
    ------
    MeasureError
        If another run holds it, or it cannot be made.
    """
    lock = _lock_of(path)
    descriptor = _take(lock, printable(str(path)))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.pread(descriptor, len(_LOCK) + 1, 0) == _LOCK:
                lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def _writing_scores(record: Path) -> Iterator[None]:
    """Say in an error that the record itself is written."""
    try:
        yield
    except MeasureError as error:
        raise MeasureError(
            f"{error.message}; the figures are kept in {printable(str(record))},"
            " but not all scores of the tokens",
            hint=error.hint,
        ) from error


def _check_scores_folder(folder: Path) -> None:
    """Refuse a folder that scores could not be written to; one that does not exist is created and removed."""
    created = not os.path.lexists(folder)
    _make_folder(folder)
    try:
        check_writable(folder / _file_name('["", ""]'))
    finally:
        if created:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MeasureError(f"cannot write {printable(str(folder))}: {error.strerror}") from error


def _take(lock: Path, shown: str) -> int:
    """Create and lock a file; returns its descriptor, which holds the lock."""
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise MeasureError(f"cannot write {shown}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise MeasureError(
                f"another run of ggplan is measuring into {shown}",
                hint="wait for it, or give this run a record of its own:"
                " `ggplan measure --parse A.json B.json --record ALL.json` puts them together",
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise MeasureError(f"cannot lock {shown}: {error.strerror}") from error
        # The run that held the lock may have removed the file meanwhile; then this lock is worthless.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                if not os.fstat(descriptor).st_size:
                    os.pwrite(descriptor, _LOCK, 0)
                return descriptor
        os.close(descriptor)


def written_beside(record: str | Path) -> tuple[Path, Path]:
    """What is written beside a record: its lock, and the folder of its scores."""
    path = Path(os.path.realpath(record))
    return _lock_of(path), scores_folder(path)


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def scores_folder(record: str | Path) -> Path:
    """The folder beside a record that holds its scores."""
    return Path(record).with_suffix(".scores")


def kept_scores(*records: str | Path) -> Scores:
    """A function that finds the scores kept beside these records.

    It raises `MeasureError` if a file of scores is damaged or does not belong to its name.
    """
    folders = [scores_folder(record) for record in records]

    def find(quantization: Quantization, measurement: Measurement) -> TokenScores | None:
        key = _key(quantization, measurement)
        paths = (folder / _file_name(key) for folder in folders)
        found = next((path for path in paths if path.exists()), None) if quantization.file.sha256 else None
        return None if found is None else TokenScores.load(found, key)

    return find


@dataclass(frozen=True, slots=True)
class CarriedScores:
    """What became of the scores that belong to the measurements of records that were put together.

    Attributes
    ----------
    missing
        Measured files that have none, as `q4_K on eval.txt`.
    unused
        Why files of scores beside the records were not taken.
    """

    missing: tuple[str, ...]
    unused: tuple[str, ...]


def carry_scores(records: Sequence[str | Path], into: OpenRecord, new: Record) -> CarriedScores:
    """Copy the scores kept beside records to another record that has their measurements.

    Parameters
    ----------
    records
        The files of the records; of several that have scores of the same file under the same conditions, the
        last counts, as its figures do.
    into
        The record with the measurements.
    new
        The measurements whose scores are wanted; without a file's digest there are none.

    Raises
    ------
    MeasureError
        If the scores cannot be written.
    """
    target = scores_folder(into.path)
    missing, unused = [], []
    for quantization in new.quantizations:
        for measurement in quantization.measurements if quantization.file.sha256 else ():
            key = _key(quantization, measurement)
            name = _file_name(key)
            for record in (*reversed(records), into.path):
                path = scores_folder(os.path.realpath(record)) / name
                if not path.exists():
                    continue
                try:
                    scores = TokenScores.load(path, key)
                except MeasureError as error:
                    unused.append(error.message)
                    continue
                if path.parent != target:
                    with _writing_scores(into.path):
                        _make_folder(target)
                        write_whole(target / name, scores.to_bytes(key))
                break
            else:
                missing.append(f"{quantization.name} on {measurement.text.name}")
    for stray in stray_scores([new], *_other_records(records, target)):
        unused.append(f"the scores in {printable(str(stray))} belong to no measurement")
    return CarriedScores(tuple(missing), tuple(dict.fromkeys(unused)))


def _other_records(paths: Sequence[str | Path], target: Path) -> Iterator[str]:
    """Those of some files that are records and have another folder of scores than `target` beside them."""
    for path in dict.fromkeys(os.path.realpath(path) for path in paths):
        folder = scores_folder(path)
        if folder != target and folder.is_dir():
            with contextlib.suppress(MeasureError):  # a log, which has no scores
                load_record(path)
                yield path


def stray_scores(records: Iterable[Record], *paths: str | Path) -> list[Path]:
    """Files of scores beside these records that belong to none of their measurements.

    An older ggplan named them by file names, or the file was measured again under other conditions.
    """
    owned = {
        _file_name(_key(q, m)) for record in records for q in record.quantizations for m in q.measurements
    }
    found = (path for record in paths for path in scores_folder(record).glob("*.npz"))
    return sorted(path for path in found if path.name not in owned)


def _keep_scores(folder: Path, record: Record, scores: Mapping[tuple[str, str], TokenScores]) -> None:
    _make_folder(folder)
    for quantization in record.quantizations:
        for measurement in quantization.measurements:
            found = scores.get((quantization.file.sha256, measurement.text.sha256))
            if found is not None:
                key = _key(quantization, measurement)
                write_whole(folder / _file_name(key), found.to_bytes(key))


def _key(quantization: Quantization, measurement: Measurement) -> str:
    """The file and conditions that scores belong to, as one text."""
    return json.dumps([quantization.file.sha256, *measurement.conditions])


def _file_name(key: str) -> str:
    digests = (re.sub("[^0-9a-f]", "", digest)[:12] for digest in json.loads(key)[:2])
    return "-".join([*digests, hashlib.sha256(key.encode("utf-8")).hexdigest()[:12]]) + ".npz"
