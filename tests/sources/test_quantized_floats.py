"""Checkpoints in 8-bit floats and other forms, as their libraries wrote them: the libraries' own weights."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from handmade_safetensors import safetensors
from quantized_folders import QUANTIZED, rows_of, sha256_of

from ggplan.errors import CheckpointError
from ggplan.sources.huggingface import open_checkpoint

FOLDERS = sorted(path for path in (QUANTIZED / "floats").iterdir() if path.is_dir())
NAMES = [folder.name for folder in FOLDERS]
# The type that holds the codes, or a part of the reason why none does.
MOVED = {
    "bnb-fp4": "16 values of fp4", "bnb-int8": "does not hold", "bnb-nf4-nested": "16 values of nf4",
    "ct-fp8-block": "8-bit floats", "ct-fp8-tensor": "8-bit floats", "ct-mxfp8a16": "bf16",
    "fbgemm-fp8": "8-bit floats", "fp8-all-codes": "8-bit floats", "fp8-block-e8m0": "bf16",
    "fp8-block-f32": "8-bit floats", "fp8-block-ue8m0-f32": "bf16", "fp8-tensor-static": "8-bit floats",
    "hqq-int4-g64-axis0": "zero points", "hqq-int4-g64-axis1": "zero points", "modelopt-fp8": "8-bit floats",
    "modelopt-fp8-channel": "8-bit floats", "modelopt-mxfp8": "bf16", "modelopt-w4a16-awq": "for each column",
    "mxfp4-deepseek-v4": "bf16", "torchao-float8": "8-bit floats", "torchao-int8": "q8_0",
    "torchao-intx4": "q4_0",
}  # fmt: skip


def goldens(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "golden.json").read_text())


def test_every_checkpoint_has_an_expectation() -> None:
    assert sorted(MOVED) == NAMES


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_weights_are_those_of_the_library(folder: Path) -> None:
    tensors = open_checkpoint(folder).tensors
    for name, golden in goldens(folder)["library"].items():
        weights = rows_of(tensors[name])
        assert list(weights.shape) == golden["shape"]
        assert tensors[name].rows.fault() == ""
        if "nan_free_sha256" in golden:
            weights, golden = np.where(np.isnan(weights), np.float32(0), weights), {
                "dtype": "float32", "sha256": golden["nan_free_sha256"]
            }  # fmt: skip
        # A weight of 0 has the sign of its code; some libraries have no -0.
        found = {sha256_of(weights, golden["dtype"], zeros=zeros) for zeros in ("signed", "positive")}
        assert golden["sha256"] in found, name


@pytest.mark.parametrize("folder", [f for f in FOLDERS if "llama_cpp" in goldens(f)], ids=lambda f: f.name)
def test_weights_are_those_of_llama_cpps_converter(folder: Path) -> None:
    tensors = open_checkpoint(folder).tensors
    for name, golden in goldens(folder)["llama_cpp"].items():
        assert sha256_of(rows_of(tensors[name]), "float32") == golden["sha256"]


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_any_rows_are_the_same_as_in_one_piece(folder: Path) -> None:
    for tensor in open_checkpoint(folder).tensors.values():
        n_rows = tensor.rows.n_rows
        whole = tensor.rows.read(0, n_rows)
        for start, stop in ((n_rows // 3, n_rows // 2), (n_rows - 1, n_rows)):
            assert np.array_equal(tensor.rows.read(start, stop), whole[start:stop], equal_nan=True)
        for start, stop in ((-1, 1), (0, n_rows + 1), (1, 0)):
            with pytest.raises(ValueError, match="of"):
                tensor.rows.read(start, stop)


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_codes_that_move_are_the_same_weights(folder: Path) -> None:
    tensors = open_checkpoint(folder).tensors
    for name in goldens(folder)["library"]:
        tensor = tensors[name]
        if tensor.codes is None:
            assert MOVED[folder.name] in tensor.why_decoded or folder.name == "modelopt-w4a16-awq"
        elif folder.name == "modelopt-w4a16-awq":  # its scales are amax / 7 in f32
            assert "not exact in float16" in tensor.codes.fault()
        else:
            assert tensor.codes.dtype.name in (MOVED[folder.name], "mxfp4")
            assert tensor.codes.fault() == ""
            codes = tensor.codes.read_float32(0, tensor.codes.n_rows)
            assert np.array_equal(codes.reshape(tensor.shape), rows_of(tensor))
            assert np.array_equal(codes[5:9], tensor.codes.read_float32(5, 9))


def header_of(raw: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def mutate_config(value: object, rng: random.Random) -> object:
    """One value somewhere in a config changed, taken away, or of another type."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        changed = dict(value)
        if rng.random() < 0.2:
            del changed[key]
        else:
            changed[key] = mutate_config(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], mutate_config(value[at], rng), *value[at + 1 :]]
    odd = [
        None,
        True,
        -1,
        0,
        3,
        1 << 70,
        0.5,
        "",
        "x",
        [],
        {},
        [0, 0],
        {"weights": 1},
        "MXFP8",
        "group",
        [[]],
    ]
    return rng.choice(odd)


def mutate_header(header: dict, data: bytes, rng: random.Random) -> tuple[dict, bytes]:
    """A tensor of another shape or type, gone or renamed; the file stays sound by safetensors' rules."""
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry, kind = header[name], rng.randrange(6)
    if kind == 0:
        begin, end = entry["data_offsets"]
        data = data[:begin] + data[end:]
        kept = {n: e for n, e in header.items() if n != name}
        for other in kept.values():
            if "data_offsets" in other and other["data_offsets"][0] >= end:
                other["data_offsets"] = [at - (end - begin) for at in other["data_offsets"]]
        return kept, data
    if kind == 1:
        sizes = {
            "F32": "I32",
            "I32": "F32",
            "U8": "I8",
            "I8": "U8",
            "BF16": "F16",
            "F16": "I16",
            "I64": "F64",
        }
        entry["dtype"] = sizes.get(entry["dtype"], rng.choice(["U8", "I8", "F8_E8M0", "F8_E5M2"]))
    elif kind == 2:
        entry["shape"] = entry["shape"][::-1]
    elif kind == 3:
        entry["shape"] = [*entry["shape"], 1]
    elif kind == 4:
        count = int(np.prod(entry["shape"]))
        entry["shape"] = rng.choice([[count], [1, count], [count, 1], [count, 1, 1]])
    else:
        other = rng.choice(
            [".scale", "_scale", "_scale_inv", ".absmax", "x", ".W_q", "._weight_qdata", "_scale_2"]
        )
        header = {(n if n != name else n.rpartition(".")[0] + other): e for n, e in header.items()}
    return header, data


def mutant(folder: Path, copy: Path, rng: random.Random) -> Path:
    """A copy of a checkpoint with something else in its config, metadata, header or data."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    config = json.loads((folder / "config.json").read_text())
    header, data = header_of((folder / "model.safetensors").read_bytes())
    metadata = header.get("__metadata__", {})
    facts = [key for key, text in metadata.items() if text.startswith("{")]
    if rng.random() < 0.4 and config.get("quantization_config"):
        config["quantization_config"] = mutate_config(config["quantization_config"], rng)
    elif rng.random() < 0.3 and facts:
        key = rng.choice(facts)
        metadata[key] = json.dumps(mutate_config(json.loads(metadata[key]), rng))
    elif rng.random() < 0.7:
        header, data = mutate_header(header, data, rng)
    else:
        changed = bytearray(data)
        for _ in range(3):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(changed)
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "model.safetensors").write_bytes(safetensors(header, data))
    return copy


def read_all(folder: Path) -> None:
    for tensor in open_checkpoint(folder).tensors.values():
        for rows in (tensor.rows, tensor.codes):
            if rows is not None and not rows.fault():
                rows.read(0, rows.n_rows)


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_mutants_are_read_or_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    rng = random.Random(folder.name)
    said = []
    for _ in range(25):
        try:
            read_all(mutant(folder, tmp_path / "mutant", rng))
        except CheckpointError as error:
            said.append(str(error))
    assert said or folder.name == "fp8-all-codes"
    assert all(said)
    assert not any("\n" in text for text in said)
