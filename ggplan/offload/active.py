"""Bytes that each device reads to write one token: what generation waits for.

A token reads all weights but those of the experts it does not use:

    routed experts    bytes × used / all
    token_embd        one row; as the output of a file without output.weight, the whole table
    blocks of MTP     nothing: they are not loaded
    all others        whole
    KV cache          `depth` cells of each block; those of its window where it slides; `top_k` of them where
                      a sparse indexer chooses, and all of the indexer's keys
    state             read once and written once, at any depth

Weights are kept apart by ggml type, because a core decodes some types at half the speed of others.

A token also changes devices on its way: a block whose attention is on a GPU and whose experts are in RAM
costs a way there and back, whatever it weighs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ggplan.offload.allocation import HOST, plain_bytes
from ggplan.offload.cache.classes import cache_tensors
from ggplan.offload.cache.tensors import CacheTensor
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.holding import Holding
from ggplan.offload.settings import Settings
from ggplan.offload.weights import Loaded, Weights
from ggplan.planning.devices import LOOKED_UP

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_ROUTED = re.compile(r"ffn_(?:up|down|gate|gate_up)_(?:ch)?exps\.")
_INTERLEAVED = re.compile(r"_r\d+$")
# ik_llama.cpp 8337e4c, `ggml/src/ggml-cuda`: interleaved types that have kernels there.
_READ_BY_GPUS = frozenset({
    "iq1_s_r4", "iq1_m_r4", "iq2_k_r4", "iq3_k_r4", "iq4_k_r4", "iq5_k_r4", "iq4_ks_r4", "iq5_ks_r4",
})  # fmt: skip
# Convolution, gates, norms and the scan of a recurrent block, in steps that cost as much as a small matrix.
_RECURRENT_STEPS = 10
_STATES = frozenset({"r", "s", "n-gram r"})
_PARTS = ("attention", "feed-forward", "gate and up", "down")  # of a block, as a token passes them


@dataclass(frozen=True, slots=True)
class DeviceReads:
    """What one device does for a token.

    Attributes
    ----------
    weights
        Bytes that are read, by the name of their ggml type.
    cache
        Bytes of KV cache and state.
    n_steps
        Steps of the graph, in matrices: one for each that is multiplied, and what stands for the many small
        steps of a recurrent block.
    multiplied, multiplied_experts
        Weights that the token is multiplied with, outside and inside routed experts.
    attended
        Products of a query with cached keys, and of weights with cached values.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    cache: float = 0.0
    n_steps: int = 0
    multiplied: float = 0.0
    multiplied_experts: float = 0.0
    attended: float = 0.0

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights of all types."""
        return sum(self.weights.values())


@dataclass(frozen=True, slots=True)
class ActiveBytes:
    """What a token reads, by device, and how often it changes devices.

    Attributes
    ----------
    devices
        By name; `host` is the CPU. A device that does nothing is missing.
    host_crossings, gpu_crossings
        Changes between the CPU and a GPU, and between two GPUs, from the first block to the last.
    experts_in_ram, streamable
        Bytes of all routed experts in RAM, those that a token does not use too; bytes of those that a GPU can
        read from there: repacked ones are for the CPU alone.
    matrices_in_ram, streamable_matrices
        The same of the other matrices of blocks.
    used_share
        Share of the routed experts that a token uses; 1 where there are none.
    cache_is_quantized, cache_is_latent
        Whether keys or values are quantized; whether they are compressed (MLA).
    file_bytes
        Bytes of all tensors that are loaded, by which the file is known again.
    """

    devices: Mapping[str, DeviceReads]
    host_crossings: int
    gpu_crossings: int
    experts_in_ram: int
    streamable: int
    matrices_in_ram: int
    streamable_matrices: int
    used_share: float
    cache_is_quantized: bool
    cache_is_latent: bool
    file_bytes: int

    @property
    def host(self) -> DeviceReads:
        """What the CPU does."""
        return self.devices.get(HOST, DeviceReads())


@dataclass(slots=True)
class _Sums:
    weights: dict[str, float] = field(default_factory=dict)
    cache: float = 0.0
    n_steps: int = 0
    multiplied: float = 0.0
    multiplied_experts: float = 0.0
    attended: float = 0.0


def active_bytes(
    weights: Weights, dimensions: Dimensions, settings: Settings, *, depth: int = 0
) -> ActiveBytes:
    """The bytes of a token with `depth` tokens in the cache before it."""
    share = used_share(dimensions)
    sums: dict[str, _Sums] = {}
    paths: dict[int, dict[str, str]] = {}
    in_ram = streamable = matrices = streamable_matrices = file_bytes = 0
    for one, read in token_reads(weights, dimensions):
        tensor, block, part = one.tensor, *_place(one.use)
        n_bytes, n_weights = tensor.n_bytes, math.prod(tensor.shape)
        file_bytes += n_bytes if one.use == tensor.name else 0
        is_routed = part in ("gate and up", "down")
        if block is not None:
            paths.setdefault(block, {}).setdefault(part, one.device)
        total = sums.setdefault(one.device, _Sums())
        if is_routed:
            if one.device == HOST:
                in_ram += n_bytes
                streamable += 0 if one.repacked or _is_for_cpu(tensor.type.name) else n_bytes
            total.multiplied_experts += n_weights * share
        elif len(tensor.shape) > 1 and not one.use.startswith(LOOKED_UP):
            total.multiplied += n_weights
            if one.device == HOST and block is not None:
                matrices += n_bytes
                streamable_matrices += 0 if one.repacked or _is_for_cpu(tensor.type.name) else n_bytes
        elif read > 1:  # a tied output that has no copy of its own
            total.multiplied += n_weights
        total.weights[tensor.type.name] = total.weights.get(tensor.type.name, 0.0) + n_bytes * read
        total.n_steps += len(tensor.shape) > 1 and not one.use.startswith(LOOKED_UP)
    for block, cells in _cells(dimensions, settings, depth).items():
        device = weights.blocks[block] if settings.cache_on_gpu else HOST
        total = sums.setdefault(device, _Sums())
        total.cache += cells.n_bytes
        total.attended += cells.attended
        total.n_steps += _RECURRENT_STEPS * dimensions.recurrent[block]
    host, gpu = _crossings(paths)
    types = (settings.cache_k, settings.cache_v)
    return ActiveBytes(
        {name: _frozen(total) for name, total in sums.items()}, host, gpu, in_ram, streamable, matrices,
        streamable_matrices, share, any(t.is_quantized for t in types), dimensions.is_mla, file_bytes,
    )  # fmt: skip


def _is_for_cpu(kind: str) -> bool:
    """Whether rows are interleaved for the CPU in a way that no GPU kernel reads (ik_llama.cpp)."""
    return _INTERLEAVED.search(kind) is not None and kind not in _READ_BY_GPUS


def _frozen(total: _Sums) -> DeviceReads:
    return DeviceReads(total.weights, total.cache, total.n_steps, total.multiplied,
                       total.multiplied_experts, total.attended)  # fmt: skip


@lru_cache(maxsize=8192)
def _place(name: str) -> tuple[int | None, str]:
    """The block of a tensor, None outside of blocks, and the part of the block."""
    found = _BLOCK.match(name)
    if found is None:
        return None, ""
    rest = found[2]
    if _ROUTED.match(rest):
        return int(found[1]), "down" if rest.startswith("ffn_down") else "gate and up"
    return int(found[1]), "feed-forward" if rest.startswith("ffn_") else "attention"


def used_share(dimensions: Dimensions) -> float:
    """Share of the routed experts that a token uses; 1 where there are none."""
    used = max(dimensions.used, default=0)
    return min(used / dimensions.n_experts, 1.0) if dimensions.n_experts and used else 1.0


def token_reads(weights: Weights, dimensions: Dimensions) -> Iterator[tuple[Loaded, float]]:
    """What is loaded and not for drafting alone, with the share of it that a token reads.

    That of a tied token_embd which is also read as the output is one row and the whole.
    """
    share = used_share(dimensions)
    is_tied = all(one.use != "output.weight" for one in weights.loaded)
    for one in weights.loaded:
        block, part = _place(one.use)
        if block is not None and block >= dimensions.n_trunk:
            continue
        read = share if part in ("gate and up", "down") else 1.0
        if one.use.startswith(LOOKED_UP):
            read = 1 / max(one.tensor.shape[-1], 1) + (is_tied and one.use == "token_embd.weight")
        yield one, read


@dataclass(slots=True)
class _Cells:
    n_bytes: float = 0.0
    attended: float = 0.0


def _cells(dimensions: Dimensions, settings: Settings, depth: int) -> dict[int, _Cells]:
    """What each block reads of the cache: that of a context of just `depth` tokens and one sequence."""
    window = min(depth, dimensions.window) if dimensions.window else depth
    holding = Holding(depth, depth, 1, 1, 1, 1, window, 1)
    indexer = dimensions.indexer
    top_k = indexer.top_k if indexer is not None and dimensions.is_mla else 0
    found: dict[int, _Cells] = {}
    for tensor in cache_tensors(dimensions, replace(settings, flash_attention="on"), holding):
        cells = found.setdefault(tensor.block, _Cells())
        row, n = tensor.shape[0], tensor.shape[1]
        if tensor.role in _STATES:
            cells.n_bytes += 2 * plain_bytes(tensor.type, (row, n))
            continue
        chosen = min(n, top_k) if top_k and tensor.role == "k" else n
        cells.n_bytes += plain_bytes(tensor.type, (row, chosen))
        cells.attended += _products(tensor, dimensions) * chosen
    return found


def _products(tensor: CacheTensor, dimensions: Dimensions) -> float:
    """Multiplications of one cell's row: each query head with its key, and its weight with its value."""
    row, heads = tensor.shape[0], dimensions.heads[tensor.block]
    if tensor.role == "indexer k":
        return float(row * (dimensions.indexer.heads if dimensions.indexer else 1))
    if dimensions.is_mla:
        # One row serves all heads, as key and, without the rotated part, as value.
        return float(heads * (row + dimensions.kv_rank))
    return row / max(dimensions.kv_heads[tensor.block], 1) * heads


def _crossings(paths: Mapping[int, Mapping[str, str]]) -> tuple[int, int]:
    """Changes of the device along all blocks: with the CPU, and between GPUs."""
    host = gpu = 0
    before = None
    for block in sorted(paths):
        devices = [paths[block][part] for part in _PARTS if part in paths[block]]
        # What experts give is added to the stream where the block began.
        for device in (*devices, devices[0]):
            if before is not None and device != before:
                host += HOST in (device, before)
                gpu += HOST not in (device, before)
            before = device
    return host, gpu
