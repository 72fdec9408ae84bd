"""The shipped demo model as a repository: in three shards with an index."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import ggplan
from ggplan.sources.safetensors import read_tensors

DEMO = Path(ggplan.__file__).parent / "demo_model"
SMALL = ("README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def write_sharded(folder: Path, n_shards: int = 3) -> Path:
    """Write it; a shard has about 3 MB."""
    folder.mkdir(parents=True)
    for name in SMALL:
        shutil.copy(DEMO / name, folder)
    tensors = list(read_tensors(DEMO / "model.safetensors").values())
    data = (DEMO / "model.safetensors").read_bytes()
    whole, done = sum(t.n_bytes for t in tensors), 0
    shards: list[list[int]] = [[] for _ in range(n_shards)]
    for number, tensor in enumerate(tensors):
        shards[done * n_shards // whole].append(number)
        done += tensor.n_bytes
    weight_map = {}
    for k, numbers in enumerate(shards):
        file = f"model-{k + 1:05d}-of-{n_shards:05d}.safetensors"
        header, body = {}, b""
        for tensor in (tensors[number] for number in numbers):
            begin = len(body)
            body += data[tensor.offset : tensor.offset + tensor.n_bytes]
            header[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": [begin, len(body)],
            }
            weight_map[tensor.name] = file
        text = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + body)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
