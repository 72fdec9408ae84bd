"""calibration.json, the index of a calibration's folder, and the names of the files in it.

It is

    {
      "schema": "ggplan.calibration/1",
      "run": {"model": {...}, "engine": {...}, "texts": [...], "n_ctx": 512, "tokens": 32768, ...},
      "imatrix": {"file": "imatrix.gguf", "sha256": "..."},
      "tokens": {"file": "tokens.safetensors", "sha256": "..."},
      "weights": {"blk.0.attn_q.weight": "..."},
      "layers": [{"file": "layer-000.safetensors", "sha256": "...", "inputs": [...]}]
    }

The SHA-256 of calibration.json is the identity of the whole: it has the SHA-256 of every other file, which is
checked when a file is first read. It holds no date and no path, so the same run makes the same folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggplan.calibration.inputs import Input, input_from_json, is_count, members_of
from ggplan.errors import CalibrationError, CheckpointError
from ggplan.imatrix import IN_CALIBRATION
from ggplan.sources.files import read_whole, shown
from ggplan.sources.json_files import parse_object

SCHEMA = "ggplan.calibration/1"
INDEX, RUN, TOKENS = "calibration.json", "run.json", "tokens.safetensors"
IMATRIX = IN_CALIBRATION
OUTSIDE = "outside.safetensors"
_LAYER_FILE = re.compile(r"layer-(\d{3,})\.safetensors|outside\.safetensors", re.ASCII)
_INDEX_LIMIT = 64 << 20
AGAIN = "run `ggplan calibrate` again"
"""The hint for a folder that is damaged."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


def layer_file(layer: int | None) -> str:
    """The name of a layer's file; None is what is outside the layers."""
    return OUTSIDE if layer is None else f"layer-{layer:03}.safetensors"


def is_layer_file(name: str) -> bool:
    """Whether a file has the name of a layer's file."""
    return _LAYER_FILE.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class LayerFile:
    """A layer's file and the inputs in it."""

    name: str
    sha256: str
    inputs: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """What an index says.

    Attributes
    ----------
    digest
        Its SHA-256.
    run, layers, weights
        As `Calibration` has them; `run` is its provenance.
    imatrix_sha256, tokens_sha256
        Of the imatrix and of the tokens that were run.
    """

    digest: str
    run: Mapping[str, Any]
    layers: tuple[LayerFile, ...]
    weights: Mapping[str, str]
    imatrix_sha256: str
    tokens_sha256: str


def read_index(folder: Path) -> Index:
    """Read the index of a folder and check every value that is used.

    Raises
    ------
    CalibrationError
        If it cannot be read, or is damaged.
    """
    where = shown(folder / INDEX)
    try:
        raw = read_whole(folder / INDEX, _INDEX_LIMIT)
        members = parse_object(raw, where)
    except CheckpointError as error:
        raise CalibrationError(error.message, hint=error.hint or AGAIN) from error
    schema = members.get("schema")
    if schema != SCHEMA:
        raise CalibrationError(
            f"{where} has the schema {shown(repr(schema))}, and this ggplan reads {SCHEMA!r}", hint=AGAIN
        )
    run = members_of(members.get("run"), f'"run" of {where}')
    _check_run(run, where)
    imatrix = members_of(members.get("imatrix"), f'"imatrix" of {where}')
    tokens = members_of(members.get("tokens"), f'"tokens" of {where}')
    weights = members_of(members.get("weights"), f'"weights" of {where}')
    layers = members.get("layers")
    if not isinstance(layers, list) or not layers:
        raise CalibrationError(f"{where} has no layers")
    files = tuple(_layer_from_json(value, where) for value in layers)
    if not all(isinstance(mark, str) for mark in weights.values()):
        raise CalibrationError(f"{where} has a mark of weights that is no text")
    names = [name for file in files for i in file.inputs for name in i.tensors]
    if len(set(names)) != len(names) or len({file.name for file in files}) != len(files):
        raise CalibrationError(f"{where} has a tensor or a file twice")
    digest = hashlib.sha256(raw).hexdigest()
    return Index(digest, run, files, weights, _digest_of(imatrix, where), _digest_of(tokens, where))


def _check_run(run: Mapping[str, Any], where: str) -> None:
    """What a calibration was made of has the members that are used, each of its own type."""
    texts, made_by = run.get("texts"), [run.get(name, {}) for name in ("model", "engine")]
    is_right = {
        "texts": isinstance(texts, list) and all(map(_is_text, texts)),
        "tokens": is_count(run.get("tokens")),
        "n_ctx": is_count(run.get("n_ctx")) and run["n_ctx"] > 0,
        "chunks": is_count(run.get("chunks", 0)),
        "model": isinstance(made_by[0], dict) and _are_strings(made_by[0].get("types", [])),
        "engine": isinstance(made_by[1], dict) and isinstance(made_by[1].get("name", ""), str),
    }
    for name, right in is_right.items():
        if not right:
            raise CalibrationError(
                f'{where} has a wrong "{name}": {shown(json.dumps(run.get(name))[:60])}', hint=AGAIN
            )


def _is_text(value: object) -> bool:
    return isinstance(value, dict) and _are_strings([value.get("name"), value.get("sha256")])


def _are_strings(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _layer_from_json(value: object, where: str) -> LayerFile:
    members = members_of(value, f"a layer of {where}")
    name, inputs = members.get("file"), members.get("inputs")
    if not isinstance(name, str) or not is_layer_file(name):
        raise CalibrationError(f"{where} names the file {shown(repr(name))}, which is none of a layer")
    if not isinstance(inputs, list):
        raise CalibrationError(f"{where} does not list the inputs of {name}")
    found = tuple(input_from_json(each, f"input {i} of {name} in {where}") for i, each in enumerate(inputs))
    return LayerFile(name, _digest_of(members, where), found)


def _digest_of(members: Mapping[str, Any], where: str) -> str:
    digest = members.get("sha256")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise CalibrationError(f"{where} has no SHA-256 of {shown(members.get('file', 'a file'))}")
    return digest


def sha256_of_json(value: object) -> str:
    """The SHA-256 of JSON values, whatever the order of their members."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
