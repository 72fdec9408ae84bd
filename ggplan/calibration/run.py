"""A run that fills the folder of a calibration: begun, gone on with after a kill, finished.

    run.json     the settings, from the beginning until calibration.json is written
    *.part       a file that is being written

A run is known by the digest of its settings: model, engine, texts and everything else its files depend on. A
layer's file that is there and of the same run is not made again. The order of the end is: imatrix.gguf,
calibration.json, and run.json is removed; so a folder with calibration.json is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.calibration.collecting import cannot_write, imatrix_sums, is_of_run, layer_of_run, write_tokens
from ggplan.calibration.folder import Calibration, damaged_files, open_calibration, sha256_of_file
from ggplan.calibration.index import (
    IMATRIX,
    INDEX,
    RUN,
    SCHEMA,
    TOKENS,
    LayerFile,
    is_layer_file,
    layer_file,
    sha256_of_json,
)
from ggplan.calibration.inputs import Input
from ggplan.errors import CalibrationError, CheckpointError, Error
from ggplan.imatrix import ImatrixSums, Sums, write_imatrix
from ggplan.imatrix.entries import ReadOnDemand
from ggplan.sources.files import exists, read_whole, shown, write_whole
from ggplan.sources.json_files import parse_object

_RUN_LIMIT = 1 << 24
WORKING_MODEL = "ggplan-working-model.gguf"
"""The name of a model that is made for an engine and removed again: one that nobody else gives a file."""
_WORKING = re.compile(
    rf"{re.escape(WORKING_MODEL)}(\.\w+)*"
    r"|states-[0-9a-f]{16}-\d{3,}\.f32(\.part)?"
    r"|\.tmp[0-9A-Za-z]{6}"  # of the safetensors library
    r"|(layer-\d{3,}|outside|tokens)\.safetensors\.part|(calibration|run)\.json\.part|imatrix\.gguf\.part",
    re.ASCII,
)  # of files that engines, or a run that was killed, have here
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # some network file systems
_OTHER_FOLDER = "name another folder, or give --force to replace it"


@dataclass(frozen=True, slots=True)
class Run:
    """A run of an engine that fills a folder.

    Attributes
    ----------
    folder
        The folder.
    settings
        What the files depend on, as JSON values; the calibration's `provenance`.
    """

    folder: Path
    settings: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The identity of the run."""
        return sha256_of_json(self.settings)

    def finished(self, layers: Iterable[int | None]) -> dict[int | None, LayerFile]:
        """Those of the layers whose files this run has written; None is what is outside the layers."""
        run = self.digest
        found = {layer: layer_of_run(self.folder / layer_file(layer), run) for layer in layers}
        return {layer: file for layer, file in found.items() if file is not None}

    def write_tokens(self, tokens: NDArray[np.int32]) -> None:
        """Keep the tokens that are run, (chunks, n_ctx), the first of each chunk as the model gets it."""
        write_tokens(self.folder, tokens, self.digest)

    def has_tokens(self) -> bool:
        """Whether this run has kept its tokens."""
        return is_of_run(self.folder / TOKENS, self.digest)

    def finish(self, files: Iterable[LayerFile], weights: Mapping[str, str]) -> Calibration:
        """Write the imatrix and the index; the calibration is whole then.

        Parameters
        ----------
        files
            The layers' files.
        weights
            For each tensor the mark of its weights (see `ggplan.calibration.marks`).

        Raises
        ------
        CalibrationError, ImatrixError
            If a file cannot be read or written.
        """
        layers = tuple(sorted(files, key=lambda file: file.name))
        parts = Calibration(self.folder, "", self.settings, layers, weights, "", "")
        if not self.has_tokens():
            raise CalibrationError(f"{shown(self.folder / TOKENS)} is missing or of another run")
        tokens = sha256_of_file(self.folder / TOKENS)
        imatrix = write_imatrix(sums_of(parts), self.folder / IMATRIX)
        index = {
            "schema": SCHEMA,
            "run": self.settings,
            "imatrix": {"file": IMATRIX, "sha256": imatrix},
            "tokens": {"file": TOKENS, "sha256": tokens},
            "weights": dict(sorted(weights.items())),
            "layers": [
                {"file": f.name, "sha256": f.sha256, "inputs": [i.to_json() for i in f.inputs]}
                for f in layers
            ],
        }
        _remove(
            self.folder,
            {entry.name for entry in self.folder.iterdir() if is_layer_file(entry.name)}
            - {file.name for file in layers},
        )
        _write_json(self.folder / INDEX, index)
        (self.folder / RUN).unlink(missing_ok=True)
        return open_calibration(self.folder)

    def abandon(self) -> None:
        """Remove what a run has left that failed before it wrote a layer; a model it works with stays."""
        working = {
            entry.name
            for entry in self.folder.iterdir()
            if _WORKING.fullmatch(entry.name) and not entry.name.startswith(WORKING_MODEL)
        }
        _remove(self.folder, {RUN, TOKENS, *working})


def begin(folder: str | Path, settings: Mapping[str, Any], *, force: bool = False) -> Run | Calibration:
    """Begin a run in a folder, or go on with the same one there.

    Parameters
    ----------
    force
        Replace the calibration of another run, or its unfinished work.

    Returns
    -------
    The run; of a run that is finished, its calibration.

    Raises
    ------
    CalibrationError
        If there is something else in the folder, or it cannot be made.
    """
    run = Run(Path(folder), settings)
    if exists(run.folder) and not run.folder.is_dir():
        raise CalibrationError(f"{shown(folder)} is not a folder", hint="name a folder, or one to be made")
    try:
        run.folder.mkdir(exist_ok=True)
        there = {entry.name for entry in run.folder.iterdir()}
    except OSError as error:
        raise CalibrationError(
            f"cannot make the folder {shown(folder)}: {error.strerror or error}",
            hint="name one in a folder that is there and can be written to",
        ) from error
    before = settings_there(run.folder)
    require_free(run.folder, before, settings, force=force)
    if before is not None and sha256_of_json(before) == run.digest:
        if INDEX in there:
            with contextlib.suppress(CalibrationError):
                return _whole(run.folder)
            # A layer's file says of which run it is, and not whether a bit of it was flipped since.
            _remove(run.folder, damaged_files(run.folder))
    elif before is not None or any(map(is_layer_file, there)):
        _remove(run.folder, {name for name in there if is_layer_file(name) or name in (IMATRIX, RUN, TOKENS)})
    _write_json(run.folder / RUN, {"schema": SCHEMA, "run": settings})
    (run.folder / INDEX).unlink(missing_ok=True)
    return run


def require_free(
    folder: Path, before: Mapping[str, Any] | None, settings: Mapping[str, Any], *, force: bool
) -> None:
    """Refuse a folder with something else than this run, before anything is written.

    Parameters
    ----------
    before
        The settings of the run whose files are there, in the form of `settings`.

    Raises
    ------
    CalibrationError
        If another run's calibration is there, and may not be replaced, or something else.
    """
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if before is not None and dict(before) == dict(settings):
        return
    if before is not None or any(map(is_layer_file, there)):
        if not force:
            told = f"the folder {shown(folder)} has another calibration"
            if before is not None:
                told += f": {_difference(before, settings)}"
            raise CalibrationError(told, hint=_OTHER_FOLDER)
    elif any(_WORKING.fullmatch(name) is None for name in there):
        raise CalibrationError(
            f"the folder {shown(folder)} is not empty and has no calibration", hint="name another folder"
        )


def _whole(folder: Path) -> Calibration:
    calibration = open_calibration(folder)
    calibration.verify()
    return calibration


@contextlib.contextmanager
def telling_kept(run: Run, layers: Sequence[int | None]) -> Iterator[None]:
    """Ctrl-C, and errors inside the block that do not come of the model, tell what of the layers is kept.

    After an error before the first layer nothing of the run stays.

    Raises
    ------
    CalibrationError
        In the place of an OSError: the engine could not write into the folder.
    """
    try:
        try:
            yield
        except OSError as error:
            raise cannot_write(Path(error.filename or run.folder), error) from error
    except KeyboardInterrupt as stopped:
        kept = len(run.finished(layers))
        stopped.add_note(f"{kept:,} of {len(layers):,} layers are kept; the same call makes the others")
        raise
    except Error as error:
        kept = len(run.finished(layers))
        if not kept:
            run.abandon()
        elif kept == len(layers) and not error.hint:
            error.hint = "all layers are kept; the same call makes what is missing"
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep two runs out of one folder. It is made if it is not there, and removed if it stays empty.

    Raises
    ------
    CalibrationError
        If another run has it.
    """
    made = False
    with contextlib.suppress(OSError):  # `begin` tells why it cannot be made
        folder.mkdir()
        made = True
    descriptor = -1
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if descriptor >= 0:
            _lock(descriptor, folder)
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if descriptor >= 0:
            os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CalibrationError(
            f"another run is filling {shown(folder)}", hint="wait for it, or name another folder"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise CalibrationError(f"cannot lock {shown(folder)}: {error.strerror or error}") from error


def remove_working(folder: Path) -> None:
    """Remove what engines left in a folder that is whole, where a run was killed before it could."""
    for entry in list(folder.iterdir()):
        if _WORKING.fullmatch(entry.name):
            with contextlib.suppress(OSError):
                entry.unlink()


def settings_there(folder: Path) -> Mapping[str, Any] | None:
    """The settings of the run whose files are in a folder; None if that is not known."""
    for name in (INDEX, RUN):
        if exists(folder / name):
            with contextlib.suppress(CheckpointError):
                value = parse_object(read_whole(folder / name, _RUN_LIMIT), name).get("run")
                if isinstance(value, dict):
                    return value
    return None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two runs, for people."""
    names = {"texts": "the texts", "model": "the model", "engine": "the engine", "n_ctx": "--ctx"}
    differing = [names.get(name, name) for name in now if before.get(name) != now[name]]
    return f"{shown(', '.join(differing) or 'the settings')} differ"


def sums_of(calibration: Calibration) -> ImatrixSums:
    """What the calibration's imatrix is made of, read from its layers' files entry by entry."""

    def read(file: LayerFile, which: Input) -> Sums:
        return imatrix_sums(*calibration.squares(file, which), which.experts)

    readers = {
        name: (lambda file=file, which=which: read(file, which))
        for name, (file, which) in calibration.inputs.items()
    }
    texts = calibration.provenance["texts"]
    return ImatrixSums(
        tuple(text["name"] for text in texts), int(calibration.provenance["n_ctx"]), ReadOnDemand(readers)
    )


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _write_json(path: Path, value: object) -> None:
    try:
        write_whole(path, [f"{json.dumps(value, indent=1)}\n".encode("ascii")])
    except OSError as error:
        raise cannot_write(path, error) from error
