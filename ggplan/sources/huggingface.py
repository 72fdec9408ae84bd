"""A Hugging Face checkpoint: a folder with config.json, a tokenizer and weights in safetensors files.

The index decides: `model.safetensors.index.json` (`weight_map`: tensor name to file name) names the files
that are read. Without one they are the files `model*.safetensors`. Where there are neither,
`pytorch_model.bin` and its shards are read in the same way (see `pytorch`), and at last any `.safetensors`.
These are the files that llama.cpp's converter reads (b11434, `conversion/base.py`, `index_tensors`); files of
weights beside them are noted.

The folder is untrusted: a shard's name must be a bare file name, so that no index reaches out of the folder.
Links are followed, since in the Hugging Face cache every file is a link to a blob elsewhere; links are made
by the program that fills the folder, not by the index.

No code of a folder is ever run: no `auto_map`, no chat template, and a pickle only under torch's
restrictions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from ggplan.errors import CheckpointError, TruncatedError
from ggplan.sources.files import exists, listed, read_at, read_whole, shown
from ggplan.sources.json_files import SIZE_LIMIT, load_object
from ggplan.sources.remote import RemotePath, each
from ggplan.sources.safetensors import read_file
from ggplan.sources.schemes import join_tensors, read_quantization_config
from ggplan.sources.tensors import CheckpointTensor, StoredTensor

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SEPARATORS = frozenset("/\\:")  # of folders and of a drive
_PIECE = 1 << 22
_SHARD_LIMIT = 100_000
_NUMBERED = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\.\w+)", re.ASCII)


_Contents = tuple[list[dict[str, StoredTensor]], TruncatedError | None]


@dataclass(frozen=True, slots=True)
class _Form:
    """A file format for weights.

    Attributes
    ----------
    title
        Its name in messages.
    single, index
        The name of a single file with all weights, and of the index of shards.
    ending
        Of the names that an index may contain.
    unlisted
        The names that are read if there is no index.
    read
        Gives the tensors of each file, and the error of the first that is truncated.
    """

    title: str
    single: str
    index: str
    ending: str
    unlisted: re.Pattern[str]
    read: Callable[[Sequence[Path]], _Contents]


def _read_safetensors(paths: Sequence[Path]) -> _Contents:
    found = each(paths, read_file)
    return [tensors for tensors, _ in found], next((error for _, error in found if error), None)


def _read_pytorch(paths: Sequence[Path]) -> _Contents:
    if any(isinstance(path, RemotePath) for path in paths):
        raise CheckpointError(
            f"{shown(paths[0].parent)} holds its weights only as pickles "
            f"({listed([path.name for path in paths])}), which are not read from a server",
            hint="take a revision with safetensors (a pull request of the repository may have them: "
            "@refs/pr/N), or download it and name the folder",
        )
    from ggplan.sources import pytorch

    return pytorch.read_tensors(paths), None


_SAFETENSORS = _Form(
    "safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    ".safetensors",
    re.compile(r"model.*\.safetensors", re.DOTALL),
    _read_safetensors,
)
_PYTORCH = _Form(
    "PyTorch",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    ".bin",
    re.compile(r"pytorch_model.*\.bin", re.DOTALL),
    _read_pytorch,
)


@dataclass(frozen=True, slots=True)
class HfCheckpoint:
    """An opened checkpoint.

    Attributes
    ----------
    path
        The folder.
    config
        config.json, parsed.
    tensors
        By name; shards in the order of their names, and within a shard the tensors too, which is the
        order in which llama.cpp's converter reads them. Quantized tensors are given as weights (see
        `schemes`), without its scales.
    files
        The files of weights, in the order of their names.
    notes
        What a user should know of the folder: files that were not read, and why.
    truncated
        The error of shards that are missing, or of the first file that ends before its data does, which only
        a reader of headers accepts.
    lacks_shards
        Whether shards are missing, so that tensors are.
    """

    path: Path
    config: dict[str, object]
    tensors: Mapping[str, CheckpointTensor]
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    truncated: TruncatedError | None = None
    lacks_shards: bool = False

    def read_json(self, name: str) -> dict[str, object] | None:
        """A JSON file of the folder, parsed; None if there is none."""
        path = self.path / name
        return load_object(path) if exists(path) else None

    def read_text(self, name: str) -> str | None:
        """A UTF-8 text file of the folder, with LF for CR LF and for CR as Python's text mode (and so the
        converter) has it; None if there is none.
        """
        path = self.path / name
        if not exists(path):
            return None
        try:
            text = read_whole(path, SIZE_LIMIT).decode("utf-8")
        except UnicodeError as error:
            raise CheckpointError(f"{shown(path)} is not UTF-8 text") from error
        return text.replace("\r\n", "\n").replace("\r", "\n")


def open_checkpoint(folder: Path, *, header_only: bool = False) -> HfCheckpoint:
    """Open a Hugging Face folder: its config, and the place of each tensor. No weights are read.

    Parameters
    ----------
    header_only
        Accept safetensors files that end before their data does, and a set of which shards are missing.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged or of a kind that ggplan does not read.
    """
    where = shown(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{where} is not a folder", hint="give the folder that holds config.json")
    if not exists(folder / "config.json"):
        raise CheckpointError(
            f"{where} holds no config.json", hint="give the folder of one model, with config and tokenizer"
        )
    config = load_object(folder / "config.json")
    quantization = read_quantization_config(config, folder)
    weights = _read_shards(folder)
    stored, problem = weights.tensors, weights.missing or weights.truncated
    if problem is not None and (not header_only or not stored):
        raise problem
    if not stored:
        raise CheckpointError(f"{where}: its files of weights hold no tensors")
    files = tuple(sorted({tensor.file for tensor in stored.values()}))
    notes = list(weights.notes)
    try:
        tensors = join_tensors(stored, quantization, notes=notes)
    except CheckpointError as error:  # the parts of a quantized tensor may be in several shards
        raise weights.missing or error from None
    return HfCheckpoint(folder, config, tensors, files, tuple(notes), problem, weights.missing is not None)


@dataclass(frozen=True, slots=True)
class _Weights:
    """The tensors of the files that are read, by name; notes about the others; what is not there."""

    tensors: dict[str, StoredTensor]
    notes: tuple[str, ...]
    missing: TruncatedError | None
    truncated: TruncatedError | None


def _read_shards(folder: Path) -> _Weights:
    form, names, weight_map = _shards(folder)
    there = [name for name in names if exists(folder / name)]
    contents, truncated = form.read([folder / name for name in there])
    found = dict(zip(there, contents, strict=True))
    spare: list[str] = []
    if not weight_map and _is_whole(found, form.single):
        spare = [name for name in there if name != form.single]
        _require_same(folder, form, found)
        found, names = {form.single: found[form.single]}, [form.single]
    missing = _missing_error(folder, names)
    tensors: dict[str, StoredTensor] = {}
    for name, shard in found.items():
        for tensor in shard.values():
            if (earlier := tensors.get(tensor.name)) is not None:
                raise _in_two(folder, tensor.name, earlier.file.name, name)
            tensors[tensor.name] = tensor
    if weight_map:
        notes = _stray_files(folder, found.keys(), f"{form.index} does not name")
        known = {name: shard for name, shard in weight_map.items() if shard in found}
        notes += _check_index(folder / form.index, known, tensors)
    else:
        notes = _spare_files(folder, spare, f"{form.single} has all tensors of")
        source = form.single if len(names) == 1 else f"{_beginning(names)}*"
        notes += _stray_files(folder, {*names, *spare}, f"the weights are in {source}, not in")
    return _Weights(tensors, notes, missing, truncated)


def _is_whole(found: Mapping[str, dict[str, StoredTensor]], single: str) -> bool:
    """Whether one file has all tensors that others have, as where a model was saved whole and in shards."""
    return bool(found.get(single)) and all(shard.keys() <= found[single].keys() for shard in found.values())


def _require_same(folder: Path, form: _Form, found: Mapping[str, dict[str, StoredTensor]]) -> None:
    """Refuse files after the single one, in the order of names, which have other weights under its names.

    The converter reads all files in this order, and of tensors of one name it writes the last. So files
    before the single one change nothing, those after it do, unless they hold the same.
    """
    whole = found[form.single]
    for name in sorted(found):
        for tensor in found[name].values() if name > form.single else ():
            if not _same_bytes(whole[tensor.name], tensor):
                raise _in_two(folder, tensor.name, form.single, name, ", with other weights")


def _same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.dtype, one.shape, one.n_bytes) != (other.dtype, other.shape, other.n_bytes):
        return False
    return all(
        read_at(one.file, one.offset + at, min(_PIECE, one.n_bytes - at))
        == read_at(other.file, other.offset + at, min(_PIECE, one.n_bytes - at))
        for at in range(0, one.n_bytes, _PIECE)
    )


def _in_two(folder: Path, tensor: str, one: str, other: str, how: str = "") -> CheckpointError:
    return CheckpointError(
        f"{shown(folder)}: tensor '{shown(tensor)}' is in two shards, {shown(one)} and {shown(other)}{how}",
        hint="take the file away that is not of this model",
    )


def _missing_error(folder: Path, names: Sequence[str]) -> TruncatedError | None:
    missing = [name for name in names if not exists(folder / name)]
    if not missing:
        return None
    return TruncatedError(
        f"{shown(folder)}: {len(missing)} of {len(names)} shards are missing: {listed(missing)}",
        hint="download them into the folder; `ggplan inspect --header-only` shows what is there",
    )


def _shards(folder: Path) -> tuple[_Form, list[str], dict[str, str]]:
    """The form of the weights, the files' names in order, and the index's map, which may be empty."""
    names = _file_names(folder)
    for form in (_SAFETENSORS, _PYTORCH):
        if weight_map := _weight_map(folder, form):
            return form, sorted(set(weight_map.values())), weight_map
        if shards := _numbered([name for name in names if form.unlisted.fullmatch(name)]):
            return form, shards, {}
    if others := _numbered([name for name in names if name.endswith(".safetensors")]):
        return _SAFETENSORS, others, {}
    raise _no_weights(folder)


def _beginning(names: Sequence[str]) -> str:
    """What the sorted names of shards begin with, without a number."""
    pairs = zip(names[0], names[-1], strict=False)
    same = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return same.rstrip("0123456789-") if len(names) > 1 else names[0]


def _stray_files(folder: Path, read: Collection[str], why: str) -> tuple[str, ...]:
    """A note about files of weights that were not read."""
    strays = [
        name
        for name in _file_names(folder)
        if name not in read and (name.endswith(".safetensors") or _PYTORCH.unlisted.fullmatch(name))
    ]
    return _spare_files(folder, strays, why)


def _spare_files(folder: Path, names: list[str], why: str) -> tuple[str, ...]:
    if not names:
        return ()
    them = "it" if len(names) == 1 else "them"
    return (f"{shown(folder)}: not read: {listed(names)}; {why} {them}",)


def _weight_map(folder: Path, form: _Form) -> dict[str, str]:
    """The index's map of tensor names to shard names; empty if there is no index."""
    path = folder / form.index
    if not exists(path):
        return {}
    weight_map = load_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{shown(path)} has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard, form.ending):
            leads_out = isinstance(shard, str) and (shard == ".." or not _SEPARATORS.isdisjoint(shard))
            raise CheckpointError(
                f"{shown(path)} places tensor '{shown(name)}' in '{shown(shard)}', "
                f"which is no plain name of a {form.title} file",
                hint="do not trust this checkpoint: an index must not lead out of its folder"
                if leads_out
                else "download the index again",
            )
    return weight_map


def _is_plain(name: str, ending: str) -> bool:
    """Whether this is the name of a file in the folder itself: no separator, no hidden file, no control."""
    return (
        name.endswith(ending)
        and len(name) > len(ending)
        and not name.startswith(".")
        and _SEPARATORS.isdisjoint(name)
        and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    )


def _check_index(path: Path, weight_map: dict[str, str], tensors: dict[str, StoredTensor]) -> tuple[str, ...]:
    """Refuse an index that does not list the tensors of its shards; note one that errs only in places."""
    where = shown(path)
    found = {name: tensor.file.name for name, tensor in tensors.items()}
    if missing := [name for name in weight_map if name not in found]:
        raise CheckpointError(
            f"{where}: {len(missing):,} {'tensor is' if len(missing) == 1 else 'tensors are'} "
            "not in the shard it names, the first "
            f"'{shown(missing[0])}' in {shown(weight_map[missing[0]])}",
            hint="download the shard again: it is another version's, or incomplete",
        )
    if extra := [name for name in found if name not in weight_map]:
        raise CheckpointError(
            f"{where} does not list {len(extra):,} tensor{'s' * (len(extra) > 1)} of the shards, "
            f"the first '{shown(extra[0])}' "
            f"in {shown(found[extra[0]])}",
            hint="download the index again: it is another version's",
        )
    if misplaced := [name for name, shard in weight_map.items() if found[name] != shard]:
        first = misplaced[0]
        many = "1 tensor is" if len(misplaced) == 1 else f"{len(misplaced):,} tensors are"
        return (
            f"{where}: {many} in another shard than it says, the first '{shown(first)}' in "
            f"{shown(found[first])}, not {shown(weight_map[first])}",
        )
    return ()


def _numbered(names: list[str]) -> list[str]:
    """Names of shards, sorted, with those that are missing by the numbering of the others."""
    whole = set(names)
    for name in names:
        if (numbered := _NUMBERED.fullmatch(name)) and len(whole) <= _SHARD_LIMIT:
            stem, _, count, suffix = numbered.groups()
            whole |= {f"{stem}{number:05d}-of-{count}{suffix}" for number in range(1, int(count) + 1)}
    return sorted(whole)


def _file_names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"cannot read {shown(folder)}: {error.strerror or error}") from error


def _no_weights(folder: Path) -> CheckpointError:
    pickles = [name for name in _file_names(folder) if name.endswith(_PICKLES)]
    if not pickles:
        return CheckpointError(f"{shown(folder)} holds no safetensors files")
    return CheckpointError(
        f"{shown(folder)} holds its weights only as pickles ({listed(pickles)}), which ggplan does not open: "
        "a pickle is a program",
        hint="use the model's safetensors, or make them: load it with transformers and save_pretrained() it",
    )
