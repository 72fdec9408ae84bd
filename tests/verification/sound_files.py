"""Small GGUF files of ggplan's own making, with their manifests."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import gguf
import numpy as np

import ggplan
from ggplan.conversion.manifest import FileHashes, format_manifest, manifest_path
from ggplan.sources.gguf import read_set

RNG = np.random.default_rng(11)
WEIGHTS = {
    "token_embd.weight": RNG.standard_normal((5, 256), np.float32),
    "output_norm.weight": RNG.standard_normal(250, np.float32),
    "blk.0.attn_q.weight": RNG.standard_normal((6, 256), np.float32),
    "blk.0.ffn_up_exps.weight": RNG.standard_normal((2, 4, 256), np.float32),
    "blk.0.ffn_down_exps.weight": RNG.standard_normal((2, 3, 96), np.float32),
}
RECIPE = "ffn_up_exps = q4_K\nffn_down_exps = q6_K | q8_0\nattn = q5_K\n@default bf16\n"


def write_source(path: Path, weights: dict[str, np.ndarray] = WEIGHTS) -> Path:
    """Weights as f32, by the gguf package."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(5)])
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_converted(folder: Path, recipe: str = RECIPE, **options: object) -> tuple[Path, Path]:
    """A source, and what a recipe makes of it, with the manifest that converting writes."""
    source, target = write_source(folder / "source.gguf"), folder / "out.gguf"
    plan = ggplan.make_plan(ggplan.open_model(source), ggplan.parse_recipe(recipe, "t.recipe"), **options)
    ggplan.convert(plan, target)
    return source, target


def write_manifest(path: Path) -> Path:
    """The manifest of a file or a split set, hashed here from the file's bytes."""
    files = []
    for header in read_set(path):
        data = header.path.read_bytes()
        tensors = {
            t.name: hashlib.sha256(data[t.offset : t.offset + t.n_bytes]).hexdigest() for t in header.tensors
        }
        files.append(
            FileHashes(header.path.name, hashlib.sha256(data[: header.data_at]).hexdigest(), tensors)
        )
    target = manifest_path(path)
    target.write_text(format_manifest(files))
    return target


def write_split(folder: Path, types: tuple[str, ...] = ("q8_0", "f32")) -> list[Path]:
    """A split set with one tensor in each file, laid out here by hand."""
    paths = []
    for number, name in enumerate(types):
        rows = RNG.standard_normal((3, 64), np.float32)
        type_ = ggplan.parse_type(name)
        data = ggplan.quantize(rows, type_).tobytes()
        keys = [("split.no", number), ("split.count", len(types)), ("split.tensors.count", len(types))]
        label = f"blk.{number}.attn_q.weight".encode()
        header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys))
        for key, value in keys:
            header += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IH", 2, value)
        header += struct.pack("<Q", len(label)) + label + struct.pack("<IQQIQ", 2, 64, 3, type_.id, 0)
        path = folder / f"set-{number + 1:05d}-of-{len(types):05d}.gguf"
        path.write_bytes(header + bytes(-len(header) % 32) + data + bytes(-len(data) % 32))
        paths.append(path)
    return paths
