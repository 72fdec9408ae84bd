"""What llama.cpp b11434 allocated, row by row, and the headers of the models that it was measured on.

`models` are 22 big models, `architectures` tiny models of all that llama.cpp can make up for its own tests;
see tests/data/README.md.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ggplan.ggml_types import parse_type
from ggplan.metadata import MetadataType, MetadataValue, array, scalar, string
from ggplan.offload.header import Header, HeaderTensor
from ggplan.offload.settings import Override, Settings

DATA = Path(__file__).parent.parent / "data" / "memory"


@dataclass(frozen=True)
class Row:
    """One placement: how it was loaded, and bytes by device: weights, context, compute."""

    model: str
    n_gpus: int
    load: dict[str, str]
    context: dict[str, str]
    bytes: dict[str, tuple[int, int, int]]

    @property
    def kind(self) -> str:
        if self.n_gpus != 1:
            return "two GPUs" if self.n_gpus else "CPU"
        if "exps" in self.load.get("ot", ""):
            return "experts on the CPU"
        return "all on the GPU" if self.load["ngl"] == "99" else "some layers"

    @property
    def is_draft(self) -> bool:
        """Whether it is of the draft context alone."""
        return self.context.get("type") == "mtp"

    @property
    def settings(self) -> Settings:
        load, context = self.load, self.context
        overrides = [text.rsplit("=", 1) for text in load["ot"].split(",")] if "ot" in load else []
        return Settings(
            program="llama-server" if "out" in context else "llama-cli",
            gpu_layers=int(load["ngl"]),
            overrides=tuple(Override(pattern, device) for pattern, device in overrides),
            tensor_split=tuple(float(x) for x in load["ts"].split(",")) if "ts" in load else (),
            context=int(context["c"]),
            micro_batch=int(context["ub"]),
            batch=max(2048, int(context["ub"])),
            slots=int(context.get("np", 1)),
            unified_cache=context.get("kvu") == "1",
            flash_attention="on" if context["fa"] == "1" else "off",
            cache_k=parse_type(context.get("ctk", "f16")),
            cache_v=parse_type(context.get("ctv", "f16")),
            cache_on_gpu=context.get("nkvo") != "1",
            op_offload=context.get("oo") != "0",
            full_window=context.get("swafull") == "1",
            mtp=load.get("mtp") == "1",
        )

    @property
    def command(self) -> str:
        """The command line that loads it so."""
        load, context = self.load, self.context
        words = ["llama-server" if "out" in context else "llama-cli", "-ngl", load["ngl"]]
        if self.n_gpus == 0:
            words += ["-dev", "none"]
        if "ts" in load:
            words += ["-ts", load["ts"]]
        for override in load["ot"].split(",") if "ot" in load else ():
            words += ["-ot", f"'{override}'"]
        words += ["-c", context["c"], "-ub", context["ub"], "-b", str(max(2048, int(context["ub"])))]
        words += ["-fa", "on" if context["fa"] == "1" else "off", "-np", context.get("np", "1")]
        flags = (("kvu", "-kvu"), ("nkvo", "-nkvo"), ("swafull", "--swa-full"))
        words += [flag for key, flag in flags if context.get(key) == "1"]
        words += ["--no-op-offload"] if context.get("oo") == "0" else []
        for key in ("ctk", "ctv"):
            words += [f"-{key}", context[key]] if key in context else []
        words += ["--spec-type", "draft-mtp"] if load.get("mtp") == "1" else []
        return " ".join(words)


def _text(name: str) -> str:
    return lzma.decompress((DATA / name).read_bytes()).decode()


@cache
def rows(name: str) -> tuple[Row, ...]:
    found = []
    for line in csv.DictReader(io.StringIO(_text(f"{name}.csv.xz"))):
        n_gpus = int(line["n_gpu"])
        sizes = {}
        for device in ("host", *(f"gpu{i}" for i in range(n_gpus))):
            called = "host" if device == "host" else f"CUDA{device[3:]}"
            sizes[called] = tuple(int(line[f"{device}_{part}"]) for part in ("model", "memory", "compute"))
        load, context = (
            dict(word.split("=", 1) for word in line[key].split()) for key in ("load_args", "ctx_args")
        )
        found.append(Row(line["model"], n_gpus, load, context, sizes))  # type: ignore[arg-type]
    return tuple(found)


@cache
def headers(name: str) -> dict[str, Header]:
    found: dict[str, Header] = {}
    for part in _text(f"{name}.txt.xz").split("model ")[1:]:
        called, *lines = part.splitlines()
        metadata, tensors = {}, []
        for line in lines:
            what, key, rest = line.split(" ", 2)
            if what == "key":
                metadata[key] = _value(rest)
            else:
                kind, *shape = rest.split()
                tensors.append(HeaderTensor(key, parse_type(kind), tuple(int(n) for n in shape)))
        found[called] = Header(f"{called}.gguf", metadata, tuple(tensors))
    return found


def _value(text: str) -> MetadataValue:
    kind, data = text.split(" ", 1)
    if kind == "array":
        item, data = data.split(" ", 1)
        return array(MetadataType[item.upper()], json.loads(data))
    value = json.loads(data)
    return string(value) if kind == "string" else scalar(MetadataType[kind.upper()], value)


def write_header(header: Header, path: Path) -> Path:
    """A GGUF file that is its header alone."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(header.tensors), len(header.metadata)))
    for key, value in header.metadata.items():
        out += _encoded(key) + value.encode()
    at = 0
    for tensor in header.tensors:
        out += _encoded(tensor.name) + struct.pack(
            f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape
        )
        out += struct.pack("<IQ", tensor.type.id, at)
        at += -(-tensor.n_bytes // 32) * 32
    path.write_bytes(out)
    return path


def _encoded(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def header(architecture: str, tensors: Sequence[tuple[str, str, tuple[int, ...]]], **keys: object) -> Header:
    """A header made up: keys without their prefix, `__` for a dot."""
    metadata = {"general.architecture": string(architecture)}
    for key, value in keys.items():
        name = f"{architecture}.{key.replace('__', '.')}"
        if isinstance(value, list):
            metadata[name] = array(MetadataType.INT32, value)
        elif isinstance(value, str):
            metadata[name] = string(value)
        elif isinstance(value, float):
            metadata[name] = scalar(MetadataType.FLOAT32, value)
        else:
            metadata[name] = scalar(MetadataType.INT64, value)  # type: ignore[arg-type]
    found = tuple(HeaderTensor(name, parse_type(kind), shape) for name, kind, shape in tensors)
    return Header(f"{architecture}.gguf", metadata, found)
