"""Checkpoints of integers of which something was changed: weights, or one line that says what is wrong."""

from __future__ import annotations

import copy
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade_safetensors import safetensors

from ggplan.errors import CheckpointError
from ggplan.model import RowSource
from ggplan.quants import dequantize
from ggplan.sources.huggingface import open_checkpoint
from ggplan.sources.tensors import DTYPE_BITS

DATA = Path(__file__).parents[1] / "data/quantized/integers"
NAMES = sorted(path.name for path in DATA.iterdir() if path.is_dir())
MUTANTS = 14  # of each checkpoint: 322 in all
ODD = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    5,
    8,
    9,
    31,
    64,
    127,
    1 << 40,
    2.5,
    "",
    "4",
    "gptq_v2",
    "re:(",
    [],
    {},
    [1],
    {"a": 1},
]
WIDTHS = {"I32": ("F32", "U32", "I64", "I8"), "F16": ("BF16", "I16", "U8"), "BF16": ("F16", "U8"),
          "I8": ("U8", "F8_E4M3", "I16"), "I64": ("I32", "F64"), "I16": ("F16", "U16")}  # fmt: skip

Tensors = dict[str, tuple[str, list[int], bytes]]


def contents(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """The config, and type, shape and bytes of each tensor."""
    raw = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    data = raw[8 + length :]
    header = json.loads(raw[8 : 8 + length])
    tensors = {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }
    return json.loads((folder / "config.json").read_text()), tensors


def write(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    (folder / "model.safetensors").write_bytes(safetensors(header, data))
    (folder / "config.json").write_text(json.dumps(config))


def change_config(rng: random.Random, value: Any) -> None:
    """Change, remove or add one value somewhere in the config."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.8:
            value = value[key]
            continue
        how = rng.random()
        if how < 0.2 and isinstance(value, dict):
            del value[key]
        elif how < 0.25 and isinstance(value, dict):
            value[f"{key}_x"] = value.pop(key)
        else:
            value[key] = copy.deepcopy(rng.choice(ODD))
        return


def change_tensor(rng: random.Random, tensors: Tensors) -> None:
    """Change the name, the type, the shape or bytes of one tensor, or take it away."""
    name = rng.choice(list(tensors))
    dtype, shape, raw = tensors[name]
    how = rng.randrange(8)
    if how == 0:
        del tensors[name]
    elif how == 1:
        other = rng.choice(list(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif how == 2:
        tensors[name + rng.choice("x_")] = tensors.pop(name)
    elif how == 3:
        new = rng.choice(WIDTHS.get(dtype, ("U8",)))
        bits = shape[-1] * DTYPE_BITS[dtype] if shape else 0
        if bits and bits % DTYPE_BITS[new] == 0:
            tensors[name] = (new, [*shape[:-1], bits // DTYPE_BITS[new]], raw)
    elif how == 4:
        tensors[name] = (dtype, shape[::-1], raw)
    elif how == 5 and len(shape) == 2:
        factor = rng.choice([2, 4, 8])
        if shape[0] % factor == 0:
            tensors[name] = (dtype, [shape[0] // factor, shape[1] * factor], raw)
    elif how == 6:
        tensors[name] = (
            dtype,
            rng.choice([[1, *shape], [*shape, 1], [len(raw) * 8 // DTYPE_BITS[dtype]]]),
            raw,
        )
    else:
        junk = bytearray(raw)
        for _ in range(rng.choice([1, 8, len(raw)])):
            junk[rng.randrange(len(junk))] = rng.randrange(256)
        tensors[name] = (dtype, shape, bytes(junk))


def shrink(rng: random.Random, tensors: Tensors) -> None:
    """Take the last row of a tensor away."""
    name = rng.choice(list(tensors))
    dtype, shape, raw = tensors[name]
    if shape and shape[0] > 1:
        tensors[name] = (dtype, [shape[0] - 1, *shape[1:]], raw[: len(raw) // shape[0] * (shape[0] - 1)])


def read_all(folder: Path) -> int:
    """Read all that can be read; the number of errors."""
    try:
        checkpoint = open_checkpoint(folder)
    except CheckpointError as error:
        assert_one_line(error)
        return 1
    errors = 0
    for tensor in checkpoint.tensors.values():
        if tensor.rows is None:
            continue
        try:
            fault = tensor.rows.fault()
            assert "\n" not in fault
            weights = tensor.rows.read(0, tensor.rows.n_rows)
        except CheckpointError as error:
            assert_one_line(error)
            errors += 1
            continue
        errors += bool(fault)
        if not fault and tensor.codes is not None:
            errors += check_codes(tensor.codes, weights)
    return errors


def check_codes(codes: RowSource, weights: np.ndarray) -> int:
    """Codes without a fault are read, and decode to the weights; 1 if there is a fault."""
    fault = codes.fault()
    assert "\n" not in fault
    if fault:
        try:
            codes.read(0, codes.n_rows)
        except CheckpointError as error:
            assert_one_line(error)
        return 1
    blocks = codes.read(0, codes.n_rows)
    assert np.array_equal(dequantize(blocks, codes.dtype), weights)
    return 0


def assert_one_line(error: CheckpointError) -> None:
    assert error.message
    assert "\n" not in error.message


@pytest.mark.parametrize("name", NAMES)
def test_mutants_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    config, tensors = contents(DATA / name)
    write(tmp_path, config, tensors)
    assert read_all(tmp_path) == 0
    refused = 0
    for _ in range(MUTANTS):
        changed_config, changed = copy.deepcopy(config), dict(tensors)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            rng.choice([
                lambda: change_config(rng, changed_config["quantization_config"]),  # noqa: B023
                lambda: change_tensor(rng, changed),  # noqa: B023
                lambda: shrink(rng, changed),  # noqa: B023
            ])()  # fmt: skip
        write(tmp_path, changed_config, changed)
        refused += bool(read_all(tmp_path))
    assert refused > MUTANTS // 4
