"""What can be known to fail is refused before the first byte is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ggplan.errors import ConversionError, PlanError
from ggplan.planning import Plan, PlannedTensor
from ggplan.text import format_bytes, printable


def check_convertible(plan: Plan, *, allow_requantize: bool) -> None:
    """Refuse a plan that cannot be carried out.

    Raises
    ------
    PlanError
        Naming the first tensor that is in the way, and how many others.
    """
    if plan.model.kind == "inventory":
        raise PlanError(
            f"{printable(str(plan.model.path))} is an inventory: names and shapes without weights",
            hint="give the checkpoint's folder or a GGUF file",
        )
    work = [t for t in plan.tensors if not t.is_copied]
    _refuse(
        [t for t in work if t.tensor.read_rows is None],
        lambda t: f"ggplan cannot read {t.tensor.stored_as} yet",
        "keep the tensor's type, which copies its bytes",
    )
    _refuse(
        [t for t in work if not t.type.encodable],
        lambda t: f"ggplan cannot write {t.type.name} yet",
        "`ggplan types` shows which types can be written",
    )
    if not allow_requantize:
        _refuse(
            list(plan.requantized),
            lambda t: f"it is {t.tensor.type.name} already; encoding it again as {t.type.name} adds errors",
            "start from a bf16, f16 or f32 checkpoint, or give --allow-requantize",
        )


def check_target(plan: Plan, path: Path, *, force: bool) -> None:
    """Refuse a target that cannot hold the file.

    Raises
    ------
    ConversionError
        If the folder does not exist or has too little space, the target exists without `force`, is a
        folder, or is a file of the source.
    """
    shown = printable(str(path))
    folder = path.parent
    if not folder.is_dir():
        raise ConversionError(f"the folder of {shown} does not exist")
    if path.is_dir():
        raise ConversionError(f"{shown} is a folder", hint="give the name of the file to write")
    if path.exists() or path.is_symlink():
        if _is_source(plan, path):
            raise ConversionError(f"{shown} is a file of the model that is being read")
        if path.exists() and not path.is_file():
            raise ConversionError(f"{shown} is not a regular file")
        if not force:
            raise ConversionError(f"{shown} exists", hint="give --force to replace it")
    if not os.access(folder, os.W_OK):
        raise ConversionError(f"the folder {printable(str(folder))} is not writable")
    free = shutil.disk_usage(folder).free
    if free < plan.file_bytes:
        raise ConversionError(
            f"{shown} needs {format_bytes(plan.file_bytes)} and "
            f"{printable(str(folder))} has {format_bytes(free)} free"
        )


def _is_source(plan: Plan, path: Path) -> bool:
    """Whether the path is, by whatever name or link, a file the weights come from."""
    folder = plan.model.path if plan.model.path.is_dir() else plan.model.path.parent
    sources = {folder / tensor.origin for tensor in plan.model.tensors}
    return any(source.exists() and path.exists() and os.path.samefile(source, path) for source in sources)


def _refuse(found: list[PlannedTensor], why: Callable[[PlannedTensor], str], hint: str) -> None:
    if found:
        others = f" (and {len(found) - 1} more tensors)" if len(found) > 1 else ""
        raise PlanError(f"{printable(found[0].name)}: {why(found[0])}{others}", hint=hint)
