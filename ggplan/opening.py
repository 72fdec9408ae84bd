"""open_model: the model that a name stands for: a path, a shipped inventory, standard input."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import replace
from pathlib import Path

from ggplan.errors import CheckpointError, NoSuchCheckpointError
from ggplan.inventories import (
    architecture_of,
    inventories,
    inventory,
    inventory_with,
    is_inventory,
    names_of_inventories,
)
from ggplan.model import Model
from ggplan.sources.files import begins_with, listed, shown
from ggplan.sources.remote import RemotePath, is_address
from ggplan.standard_input import EMPTY_NAME_HINT, NAME, SHOWN, read_standard_input
from ggplan.text import nearest, printable

_MOST_BESIDE = 1_000  # files of a folder that are looked at for a similar name
_ALIKE = 0.75
_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_ENDINGS = (".gguf", ".safetensors", ".map", ".json", ".txt", ".recipe")  # of files, not of models


def open_model(
    name: str | Path,
    *,
    pre: str | None = None,
    header_only: bool = False,
    weights: bool = False,
    converter: str | Path | None = None,
) -> Model:
    """Open a checkpoint without reading its weights.

    A model that cannot be converted says why in its `obstacle`; what a user should know is in its `notes`.

    Parameters
    ----------
    name
        A path: of a Hugging Face folder (safetensors, or with torch installed pytorch_model.bin), a GGUF file
        (any shard of a split set will do), or an inventory: a text tensor map or the JSON that
        `ggplan inspect --json` writes. Or the address of a checkpoint on a server, of which headers alone are
        read: `hf://org/name`, `hf://org/name@revision`, `https://host/model.gguf`. Where no file or folder is
        of the name: an inventory that ships with ggplan. `-` is an inventory on standard input. A `Path` is
        always a path.
    pre
        The pre-tokenizer's name in llama.cpp, for a Hugging Face tokenizer that is not recognised. Only
        converting needs it.
    header_only
        Accept a file that ends before its data does, and a split set of which files are missing: its headers
        are read, and it cannot be converted.
    weights
        Refuse what has no weights.
    converter
        A tree of llama.cpp, whose converter reads the checkpoint in ggplan's place, in a process of its own:
        for Hugging Face folders of architectures that ggplan does not know.

    Raises
    ------
    NoSuchCheckpointError
        If there is nothing of this name; the hint has the nearest.
    CheckpointError
        If what is there is of no known kind, or its files are damaged or incomplete; or if llama.cpp knows no
        pre-tokenizer called `pre`.
    """
    if name == "":
        raise NoSuchCheckpointError("the name of the model is empty", hint=EMPTY_NAME_HINT)
    if is_address(name):
        if converter is not None:
            raise CheckpointError(
                f"{shown(name)} is on a server, and llama.cpp's converter reads folders",
                hint="download it (`hf download`) and name the folder, or leave `--converter` out",
            )
        from ggplan.sources.addresses import open_address

        found = _open_path(path := open_address(str(name)), pre, header_only)
        return replace(found, notes=(*found.notes, path.place.told)) if path.place.told else found
    if converter is not None:
        return _by_converter(name, Path(converter), pre)
    if name == NAME:
        model = _from_standard_input()
    elif isinstance(name, str) and not is_there(name) and is_inventory(name):
        if weights:
            raise _nothing_at(Path(name))
        return inventory(name)
    else:
        model = _open_path(Path(name), pre, header_only)
    if weights and model.kind == "inventory":
        raise CheckpointError(
            f"{printable(str(model.path))} is an inventory: names and shapes without weights",
            hint="give the checkpoint's folder or a GGUF file",
        )
    return model


def _open_path(path: Path, pre: str | None, header_only: bool) -> Model:
    shown = printable(str(path))
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot open {shown}: {printable(str(error))}") from error
    if is_folder:
        return _open_folder(path, pre, header_only)
    if not is_file:
        if path.exists():
            raise CheckpointError(f"{shown} is not a file or a folder")
        raise _nothing_at(path)
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise CheckpointError(
            f"{shown} is one file of a Hugging Face checkpoint",
            hint="give the folder that also holds config.json and the tokenizer; `ggplan inspect` shows one "
            "safetensors file",
        )
    if path.suffix == ".gguf" or begins_with(path, b"GGUF"):
        from ggplan.sources.gguf import open_gguf

        return open_gguf(path, header_only=header_only)
    from ggplan.sources.inventory import open_inventory

    return with_family(open_inventory(path))


def _by_converter(name: str | Path, tree: Path, pre: str | None) -> Model:
    path = Path(name)
    if name == NAME or not path.is_dir():
        raise CheckpointError(
            f"{printable(str(name))} is not a folder, and llama.cpp's converter reads Hugging Face folders",
            hint="leave `--converter` out",
        )
    from ggplan.arch import is_known
    from ggplan.bridge import open_by_converter

    model = open_by_converter(path, tree, pre=pre)
    return replace(model, converter="") if is_known(path) else model


def with_family(model: Model) -> Model:
    """An inventory that does not say its architecture, with the one whose tensors have just such names."""
    if model.architecture or model.kind != "inventory":
        return model
    family = architecture_of(tensor.name for tensor in model.tensors)
    if not family:
        return model
    shown = printable(model.path.name)
    told = f"{shown} does not say its architecture; by the names of its tensors it is {family}"
    if not model.metadata and (same := inventory_with(model.tensors)):
        told += f"; they are those of {same}, an inventory that is shipped with metadata: give that name"
    return replace(model, architecture=family, notes=(*model.notes, told))


def _from_standard_input() -> Model:
    from ggplan.sources.inventory import parse_inventory
    from ggplan.sources.json_files import SIZE_LIMIT

    data = read_standard_input(SIZE_LIMIT, CheckpointError)
    if data.startswith(b"GGUF"):
        raise CheckpointError(
            "standard input is a GGUF file, which is not read in order", hint="name the file"
        )
    return with_family(parse_inventory(data, Path(SHOWN)))


def _nothing_at(path: Path) -> NoSuchCheckpointError:
    """There is no such file or folder: whether an inventory is called so, and the nearest name."""
    if is_inventory(str(path)):
        return NoSuchCheckpointError(
            f"no folder ./{printable(str(path))}; the name is also a shipped inventory, without weights",
            hint="give the path of the checkpoint's folder or of a GGUF file",
        )
    if path.is_symlink():
        return NoSuchCheckpointError(
            f"{printable(str(path))} is a link to {printable(os.readlink(path))}, where there is nothing",
            hint="download the file again, or link to where it is now",
        )
    return NoSuchCheckpointError(f"{printable(str(path))} does not exist", hint=_hint_for(path))


def _hint_for(path: Path) -> str:
    """What a name that nothing has was probably meant to be."""
    beside = {Path(name).stem: name for name in _names_in(path.parent) if Path(name).suffix == path.suffix}
    if similar := difflib.get_close_matches(path.stem[:100], beside, n=1, cutoff=_ALIKE):
        return f"the nearest is {printable(str(path.parent / beside[similar[0]]))}"
    if path.parent != Path():
        is_shipped = is_inventory(path.name)
        meant = [f"{printable(path.name)} is a shipped inventory, without weights"] if is_shipped else []
        if _ON_HUB.fullmatch(str(path)) and path.suffix not in _ENDINGS and not path.parent.exists():
            meant.append(f"a repository of the hub is named hf://{path}")
        return "; ".join(meant)
    if path.suffix in _ENDINGS:
        return ""
    near = nearest(path.name, names_of_inventories())
    known = f"the nearest is {near}" if near else f"shipped are {', '.join(inventories())}"
    return f"nor does ggplan ship an inventory of this name; {known}"


def is_there(name: str) -> bool:
    """Whether a file, a folder or a link is of this name, even one that leads nowhere."""
    try:
        return os.path.lexists(name)
    except ValueError:  # a NUL in the name
        return False


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))[:_MOST_BESIDE]
    except OSError:
        return []


def _open_folder(path: Path, pre: str | None, header_only: bool) -> Model:
    if not (path / "config.json").exists() or _holds_gguf_alone(path):
        return _open_only_gguf(path, header_only)
    from ggplan.arch import to_gguf
    from ggplan.sources.huggingface import open_checkpoint

    return to_gguf(open_checkpoint(path, header_only=header_only), pre=pre)


def _holds_gguf_alone(path: Path) -> bool:
    """Whether a repository on a server has config.json beside GGUF files, and no weights that it is of."""
    if not isinstance(path, RemotePath):
        return False
    weights = [p.suffix for p in path.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth")]
    return not weights and any(True for _ in path.rglob("*.gguf"))


def _open_only_gguf(folder: Path, header_only: bool) -> Model:
    """The GGUF model of a folder that holds one: a file, or a split set, which counts once."""
    from ggplan.sources.gguf import MOST_LISTED, models_in, open_gguf

    models, beside = models_in(folder)
    if len(models) == 1:
        model = open_gguf(models[0], header_only=header_only)
        others = listed([path.name for path in beside])
        told = f"{printable(str(folder))}: not read: {others}, which by the name is no model"
        return replace(model, notes=(*model.notes, told)) if beside else model
    shown = printable(str(folder))
    if models:
        names = [str(path)[len(str(folder)) + 1 :] for path in models]
        is_whole = isinstance(folder, RemotePath) and len(names) <= MOST_LISTED
        raise CheckpointError(
            f"{shown} holds {len(models)} GGUF models: "
            f"{', '.join(map(printable, names)) if is_whole else listed(names)}",
            hint=f"name one: {printable(str(models[0]))}",
        )
    is_shipped = is_inventory(str(folder))
    raise CheckpointError(
        f"{shown} is not a checkpoint: it holds no config.json and no GGUF file",
        hint=f"{shown} is also a shipped inventory, without weights; rename the folder to use that"
        if is_shipped
        else "",
    )
