"""A calibration of random inputs for every matrix in a model's layers, without an engine that runs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from ggplan.calibration import Calibration
from ggplan.calibration.collecting import Activation, LayerCollector
from ggplan.calibration.marks import marks_of
from ggplan.calibration.run import begin
from ggplan.model import Model, TensorInfo

_SHARED = (
    ("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",),
    ("ffn_gate_shexp", "ffn_up_shexp"), ("ffn_down_shexp",),
)  # fmt: skip
N, EXPERTS = 256, 3


def made_up(folder: Path, model: Model, tokens: np.ndarray, seed: int = 0) -> Calibration:
    """Fill a folder for some tokens (chunks, n_ctx); the last expert sees none of them."""
    n = tokens.size
    settings = {
        "texts": [{"name": "a.txt", "sha256": f"{seed:064}"}], "tokens": n, "n_ctx": tokens.shape[1],
        "chunks": len(tokens),
    }  # fmt: skip
    run = begin(folder, settings)
    if isinstance(run, Calibration):
        return run
    run.write_tokens(tokens.astype(np.int32))
    rng = np.random.default_rng(seed)
    layers: dict[int, dict[str, TensorInfo]] = {}
    for tensor in model.tensors:
        if named := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name):
            layers.setdefault(int(named[1]), {})[named[2]] = tensor
    for layer, tensors in layers.items():
        _collect(layer, tensors, n, rng).write(folder, run.digest)
    return run.finish(run.finished(layers).values(), marks_of(model))


def _collect(
    layer: int, tensors: dict[str, TensorInfo], n_tokens: int, rng: np.random.Generator
) -> LayerCollector:
    found: list[tuple[Activation, int]] = []
    for names in _SHARED:
        if there := [tensors[name] for name in names if name in tensors]:
            full = tuple(t.name for t in there)
            found.append((Activation(names[0], there[0].n_columns, full), 0))
    if (gate := tensors.get("ffn_gate_exps")) is not None:
        up, down = tensors["ffn_up_exps"], tensors["ffn_down_exps"]
        n = gate.shape[0]
        found.append((Activation("exps", gate.n_columns, (), (gate.name, up.name), n, 1), n))
        found.append((Activation("glu", down.n_columns, (), (down.name,), n, 1, True, 1), n))
    collector = LayerCollector(layer, [a for a, _ in found], n_tokens)
    for activation, n in found:
        width = activation.n_columns
        mixed = rng.standard_normal((n_tokens, 16)) @ rng.standard_normal((16, width))
        x = (mixed + rng.standard_normal((n_tokens, width))).astype(np.float32)
        routes = rng.integers(0, max(1, n - 1), (n_tokens, 1)).astype(np.int32)
        if activation.has_own_rows:
            collector.add_own(activation.name, x, routes.reshape(-1))
        else:
            collector.add(activation.name, x, routes if n else None)
    return collector


def small_model(path: Path, n_layers: int = 2, seed: int = 5) -> Path:
    """A GGUF with the matrices of so many small layers, experts among them, and an output matrix."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(n_layers):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_q": (40, N), "attn_k": (9, N), "attn_output": (24, N),
                "ffn_gate_exps": (EXPERTS, 32, N), "ffn_up_exps": (EXPERTS, 32, N),
                "ffn_down_exps": (EXPERTS, 24, 32),
            }.items()
        }  # fmt: skip
    shapes["output.weight"] = (8, N)
    return write_model(path, {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()})


def write_model(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """A GGUF of some matrices."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
