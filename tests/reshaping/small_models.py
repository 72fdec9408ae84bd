"""GGUF files of a few small tensors, and what is read back from one that was made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from program import run

import ggplan
from ggplan.model import Model

Key = int | float | bool | str | Sequence[int] | Sequence[bool]


def write_model(
    path: Path,
    architecture: str,
    keys: Mapping[str, Key],
    tensors: Mapping[str, tuple[int, ...] | np.ndarray],
    quantized: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """A file with these keys of its architecture; a shape stands for a tensor of random weights."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        name = f"{architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, list(value))
    for name, given in tensors.items():
        data = given if isinstance(given, np.ndarray) else rng.standard_normal(given).astype(np.float32)
        kind = (quantized or {}).get(name)
        if kind is None:
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def made(source: Path, target: Path, *options: str | Path) -> tuple[Model, str]:
    """Convert with options, check that the file can be made again, and open it; what was said, too."""
    done = run("convert", source, target, *options)
    assert done.returncode == 0, done.stderr
    again = run("reproduce", target, source)
    assert again.returncode == 0, again.stdout + again.stderr
    return ggplan.open_model(target), done.stderr


def refused(*arguments: str | Path, code: int = 1) -> str:
    """What a command says that fails with this code."""
    done = run(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "a bug in ggplan" not in done.stderr
    return done.stderr


def key(model: Model, name: str) -> object:
    """The value under a key of the architecture, or None."""
    value = model.metadata.get(f"{model.architecture}.{name}")
    return None if value is None else value.decode()


def values(model: Model, name: str) -> np.ndarray:
    """The weights of a tensor."""
    tensor = model[name]
    assert tensor.rows is not None
    return tensor.rows.read_float32(0, tensor.n_rows).reshape(tensor.shape)
