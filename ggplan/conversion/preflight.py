"""Refuse a conversion that must fail, before the first byte is written."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from ggplan.conversion.inputs import input_files
from ggplan.errors import ConversionError, PlanError
from ggplan.ggml_types import way_to_write
from ggplan.planning import Plan, PlannedTensor
from ggplan.planning.importance import importance_refusal
from ggplan.sources.remote import RemotePath, each, is_remote
from ggplan.text import printable

# What earlier conversions may have left in a checkpoint's folder.
_OUTPUT_SUFFIXES = (".gguf", ".part", ".journal", ".sha256")


def check_convertible(plan: Plan, *, allow_requantize: bool) -> None:
    """Refuse a plan that cannot be carried out.

    Raises
    ------
    PlanError
        With the first tensor that prevents it, and how many others do.
    CheckpointError
        If the model has an obstacle: an unknown tokenizer, or weights that are not there.
    """
    if plan.model.obstacle is not None:
        raise plan.model.obstacle
    if plan.model.kind == "inventory":
        raise PlanError(
            f"{printable(str(plan.model.path))} is an inventory: names and shapes without weights",
            hint="give the checkpoint's folder or a GGUF file",
        )
    if (refusal := importance_refusal(plan)) is not None:
        raise refusal
    work = [t for t in plan.tensors if not t.is_copied]
    _refuse(
        [t for t in work if t.tensor.rows is None],
        lambda t: f"ggplan cannot read {t.tensor.stored_as} yet",
        "keep the tensor's type, which copies its bytes",
    )
    unwritable = [t for t in work if not t.type.encodable]
    recipe = plan.recipe.file if plan.recipe is not None else ""
    _refuse(
        unwritable,
        lambda t: f"ggplan cannot write {t.type.described}",
        way_to_write(unwritable[0].type, recipe, str(plan.model.path), plan.model.pretokenizer)
        if unwritable
        else "",
    )
    if not allow_requantize:
        _refuse(
            list(plan.requantized),
            lambda t: f"it is {t.tensor.type.name} already; encoding it again as {t.type.name} adds errors",
            "start from a bf16, f16 or f32 checkpoint, or give --allow-requantize",
        )


def check_target(plan: Plan, outputs: Sequence[Path], sidecars: Sequence[Path]) -> None:
    """Refuse names that an output cannot have: in a missing folder, of a folder, of an input.

    Parameters
    ----------
    outputs
        The final names of the files.
    sidecars
        The other names that are written: part files, journal, manifest.

    Raises
    ------
    ConversionError
        Naming the path.
    """
    shown = printable(str(outputs[0]))
    folder = outputs[0].parent
    if "\0" in str(outputs[0]):
        raise ConversionError(f"{shown} is not the name of a file")
    if not folder.is_dir():
        raise ConversionError(f"the folder of {shown} does not exist")
    sources = _source_files(plan)
    for path in (*outputs, *sidecars):
        _check_name(path, sources)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConversionError(f"the folder {printable(str(folder))} is not writable")


def check_absent(outputs: Sequence[Path]) -> None:
    """Refuse to replace files that exist.

    Raises
    ------
    ConversionError
        Naming the first.
    """
    if found := [path for path in outputs if os.path.lexists(path)]:
        raise ConversionError(f"{printable(str(found[0]))} exists", hint="give --force to replace it")


def check_readable(plan: Plan) -> None:
    """Read the first and the last row of each tensor, and a calibration: what is damaged fails now.

    On a server only those of one tensor in each file are read: a round trip for each would take minutes.

    Raises
    ------
    CheckpointError
        Naming the file and the tensor.
    CalibrationError
        Naming the file.
    """
    tensors = list(plan.tensors)
    over_network = any(is_remote(path) for path in plan.model.files)
    if over_network:  # there the size of each file is known, and one tensor shows whether it may be read
        tensors = list({planned.tensor.origin: planned for planned in tensors}.values())
    each(tensors, _check_ends, parallel=over_network)
    if plan.feedback is not None:
        plan.feedback.calibration.verify()


def _check_ends(planned: PlannedTensor) -> None:
    tensor = planned.tensor
    rows = tensor.stored if planned.is_copied else tensor.rows
    if rows is not None and tensor.n_weights:
        rows.read(0, 1)
        rows.read(tensor.n_rows - 1, tensor.n_rows)


def _check_name(path: Path, sources: dict[tuple[int, int], Path]) -> None:
    shown = printable(str(path))
    for follow in (True, False):
        try:
            found = os.stat(path, follow_symlinks=follow)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConversionError(f"cannot write {shown}: {error.strerror}") from error
        if (found.st_dev, found.st_ino) in sources:
            raise ConversionError(
                f"{shown} is a file of the model that is being read", hint="write to another name or folder"
            )
        if stat.S_ISDIR(found.st_mode):
            raise ConversionError(f"{shown} is a folder", hint="give the name of the file to write")
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
            raise ConversionError(f"{shown} is not a regular file")


def _source_files(plan: Plan) -> dict[tuple[int, int], Path]:
    """Files that must not be written to, by device and inode: inputs, and other files of the checkpoint."""
    paths = [path for path in input_files(plan) if not is_remote(path)]
    if plan.model.kind == "hf" and not isinstance(plan.model.path, RemotePath):
        paths += [path for path in plan.model.path.iterdir() if path.suffix not in _OUTPUT_SUFFIXES]
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            state = os.stat(path)
            found[state.st_dev, state.st_ino] = path
    return found


def _refuse(found: list[PlannedTensor], why: Callable[[PlannedTensor], str], hint: str) -> None:
    if found:
        others = f" (and {len(found) - 1} more tensors)" if len(found) > 1 else ""
        raise PlanError(f"{printable(found[0].name)}: {why(found[0])}{others}", hint=hint)
