"""open_model: what kind of checkpoint is at this path, and the model in it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from ggplan.errors import CheckpointError, NoSuchCheckpointError
from ggplan.model import Model
from ggplan.sources.files import begins_with
from ggplan.text import nearest, printable

_LISTED = 1000  # names of a folder among which a misspelt one is looked for


def open_model(path: str | Path, *, pre: str | None = None, header_only: bool = False) -> Model:
    """Open a checkpoint without reading its weights.

    A model that cannot be converted says why in its `obstacle`; what a user should know is in its `notes`.

    Parameters
    ----------
    path
        A Hugging Face folder (safetensors, or with torch installed pytorch_model.bin), a GGUF file (any shard
        of a split set will do), or an inventory: a text tensor map or the JSON that `ggplan inspect --json`
        writes.
    pre
        The pre-tokenizer's name in llama.cpp, for a Hugging Face tokenizer that is not recognised. Only
        converting needs it.
    header_only
        Accept a file that ends before its data does, and a split set of which files are missing: its headers
        are read, and it cannot be converted.

    Raises
    ------
    CheckpointError
        If the path does not exist, is of no known kind, or its files are damaged or incomplete; or if
        llama.cpp knows no pre-tokenizer called `pre`.
    """
    path = Path(path)
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
        raise NoSuchCheckpointError(f"{shown} does not exist", hint=_nearest_beside(path))
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

    return open_inventory(path)


def _nearest_beside(path: Path) -> str:
    """The nearest name in the same folder, as a hint, or ""."""
    try:
        near = nearest(path.name, (entry.name for entry in islice(path.parent.iterdir(), _LISTED)))
    except (OSError, ValueError):
        return ""
    return f"the nearest is {printable(str(path.with_name(near)))}" if near else ""


def open_model_or_inventory(name: str, *, pre: str | None = None, header_only: bool = False) -> Model:
    """Open what is at this path, or the shipped inventory of this name where nothing is.

    Raises
    ------
    CheckpointError
        As `open_model`; if it is neither, with the nearest inventory's name.
    """
    from ggplan.inventories import inventory

    try:
        return open_model(name, pre=pre, header_only=header_only)
    except NoSuchCheckpointError as error:
        try:
            return inventory(name)
        except CheckpointError as unknown:
            beside = f"{error.hint}; " if error.hint else ""
            hint = f"{beside}nor does ggplan ship an inventory of this name; {unknown.hint}"
            raise CheckpointError(error.message, hint=hint) from None


def _open_folder(path: Path, pre: str | None, header_only: bool) -> Model:
    if not (path / "config.json").exists():
        shards = sorted(path.glob("*.gguf"))
        first = [s for s in shards if "-00001-of-" in s.name] or shards
        if len(first) == 1:
            from ggplan.sources.gguf import open_gguf

            return open_gguf(first[0], header_only=header_only)
        found = f"it holds {len(first)} GGUF models; name one" if first else "it holds no config.json"
        raise CheckpointError(f"{printable(str(path))} is not a checkpoint: {found}")
    from ggplan.arch import to_gguf
    from ggplan.sources.huggingface import open_checkpoint

    return to_gguf(open_checkpoint(path, header_only=header_only), pre=pre)
