r"""Weights: on which device each tensor is loaded, and the bytes that it takes there.

    blocks         `-ngl N` counts blocks and the output from the end, blocks for multi-token prediction too;
                   the rest is on the CPU
    several GPUs   a block is on the first GPU whose share of all (`-ts`, by default free memory) reaches
                   beyond it; the output counts as the last block
    overrides      `-ot` beats everything, the first that is found in the name wins
    token_embd     always on the CPU; where the file has no output.weight, a second copy is the output
    rope_freqs     one copy on every device that has a block
    MTP            not loaded unless drafts are asked for, but for what `planning.devices` names
    a GPU          pads quantized rows (see `allocation`)

In RAM a tensor may lie in a buffer that a GPU reads (`CUDA_Host`), in one whose blocks are repacked for the
CPU's kernels, or in a plain one. A tied output is a second copy where these differ between the two uses.

Source: llama.cpp b11434, `src/llama-model.cpp` (load_tensors, make_cpu_buft_list),
`src/llama-model-loader.cpp` (create_tensor), `src/llama-arch.cpp` (LLM_TENSOR_INFOS),
`ggml/src/ggml-cpu/repack.cpp` (AVX2).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

from ggplan.errors import PlanError
from ggplan.offload.allocation import HOST, device_bytes, gpu_name
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.header import Header, HeaderTensor
from ggplan.offload.machine import Gpu
from ggplan.offload.settings import Settings
from ggplan.planning.devices import is_loaded_of_nextn
from ggplan.rules.patterns import PATTERN_MEMORY, re2_options
from ggplan.text import printable

_BLOCK = re.compile(r"blk\.(\d+)\.")
_OUTPUT = "output.weight"
_EMBEDDING = "token_embd.weight"
_INPUTS = ("token_embd.", "token_types.", "position_embd.", "per_layer_token_embd.")
_OF_FIRST_BLOCK = (
    "token_embd_norm.", "hrm.z_l_init", "per_layer_model_proj.", "per_layer_proj_norm.",
    "nextn.pre_projection.",
)  # fmt: skip
_NOT_LOADED = ("masked_embd_centroids.", "masked_embd_ordering.")
_ONCE_A_DEVICE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Families that read their MTP blocks, or refuse to, whatever is asked for: the rest skip them.
_NEVER_MTP = frozenset({"bailingmoe2", "dots3note", "exaone-moe", "exaone4", "glm4"})
_REPACKED = frozenset({"q4_0", "q4_K", "iq4_nl", "mxfp4"})
_MAX_PATTERN = 4_000
# Types of which a GPU cannot look up rows; the last two can be, if rows are whole superblocks.
_NO_ROWS = frozenset({"nvfp4", "tq1_0", "tq2_0"})
_ROWS_OF_SUPERBLOCKS = frozenset({"iq4_nl", "mxfp4"})
_SCANNED = frozenset({
    "falcon-h1", "granitehybrid", "jamba", "mamba", "mamba2", "nemotron_h", "nemotron_h_moe", "plamo2",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loaded:
    """One tensor in a buffer.

    Attributes
    ----------
    tensor
        The tensor of the file.
    use
        Its name, or `output.weight` for the second copy of a tied token_embd.
    device
        `host` or a GPU.
    repacked
        Whether it lies in RAM in the form of the CPU's own kernels, which no GPU can read.
    n_bytes
        Bytes in the buffer.
    """

    tensor: HeaderTensor
    use: str
    device: str
    repacked: bool
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the weights are.

    Attributes
    ----------
    loaded
        In the file's order, copies after their original.
    blocks
        Device of each block: that of its cache and of what has no weight of its own.
    output
        Device of the output.
    """

    loaded: tuple[Loaded, ...]
    blocks: tuple[str, ...]
    output: str

    def by_device(self) -> dict[str, int]:
        """Bytes on each device that holds weights."""
        sums: dict[str, int] = {}
        for one in self.loaded:
            sums[one.device] = sums.get(one.device, 0) + one.n_bytes
        return sums

    def devices(self) -> dict[str, str]:
        """Device of each tensor that is loaded, by name; that of a tied output as `output.weight`."""
        found: dict[str, str] = {}
        for one in self.loaded:
            found.setdefault(one.use, one.device)
        return found


def place_weights(header: Header, dimensions: Dimensions, settings: Settings, gpus: Sequence[Gpu]) -> Weights:
    """Where an engine loads the tensors of a header.

    Raises
    ------
    PlanError
        If an override is no regex that can be run, or names a device that is not there.
    """
    blocks = block_devices(dimensions, settings, gpus)
    place = _Place(settings, blocks, _overrides(settings, len(gpus)), len(gpus), dimensions.architecture)
    loaded = tuple(_load(header, dimensions, settings, place))
    return Weights(loaded, blocks[:-1], blocks[-1])


def block_devices(dimensions: Dimensions, settings: Settings, gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """Device of each block, and at the end of the output."""
    n = dimensions.n_blocks + 1
    wanted = n if settings.gpu_layers < 0 else settings.gpu_layers
    start, n_on_gpus = max(n - wanted, 0), min(wanted, n) if gpus else 0
    if settings.split_mode == "none" and gpus:
        if not 0 <= settings.main_gpu < len(gpus):
            raise PlanError(f"there is no GPU {settings.main_gpu} among {len(gpus)}", hint="see `--gpus`")
        return tuple(
            gpu_name(settings.main_gpu) if start <= i < start + n_on_gpus else HOST for i in range(n)
        )
    ends = _split_points(settings, gpus)
    found = []
    for i in range(n):
        if not start <= i < start + n_on_gpus:
            found.append(HOST)
            continue
        at = _float32((i - start) / n_on_gpus)
        gpu = next((k for k, end in enumerate(ends) if end > at), len(ends) - 1)
        found.append(gpu_name(gpu))
    return tuple(found)


def _split_points(settings: Settings, gpus: Sequence[Gpu]) -> list[float]:
    """Where the share of each GPU ends, of 1, in single precision as the engine computes them."""
    asked = (*settings.tensor_split, *(0.0,) * len(gpus))[: len(gpus)]
    shares = asked if any(asked) else [float(gpu.memory) for gpu in gpus]
    if gpus and not any(shares):
        shares = [1.0] * len(gpus)
    ends, total = [], 0.0
    for share in shares:
        total = _float32(total + _float32(share))
        ends.append(total)
    return [_float32(end / total) for end in ends] if total else []


def _float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


# --- Overrides ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Search:
    """One override that is ready to run."""

    search: Any
    device: str


def _overrides(settings: Settings, n_gpus: int) -> list[_Search]:
    known = {"CPU": HOST} | {gpu_name(i): gpu_name(i) for i in range(n_gpus)}
    found = []
    for override in settings.overrides:
        device = known.get(override.device)
        shown = f"{printable(override.pattern)}={printable(override.device)}"
        if device is None:
            raise PlanError(
                f"-ot {shown}: there is no device {printable(override.device)}",
                hint=f"the devices are {', '.join(known)}",
            )
        found.append(_Search(_compiled(override.pattern), device))
    return found


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Any:
    shown = printable(pattern)[:80]
    if len(pattern) > _MAX_PATTERN:
        raise PlanError(f"the pattern {shown}... has {len(pattern)} characters; {_MAX_PATTERN} are allowed")
    try:
        return re2.compile(pattern, re2_options(PATTERN_MEMORY))
    except re2.error as error:
        why = error.args[0] if error.args else ""
        why = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
        raise PlanError(f"the pattern {shown} is no regex that can be run: {printable(why)}") from None


# --- Loading -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    settings: Settings
    blocks: tuple[str, ...]
    overrides: list[_Search]
    n_gpus: int
    architecture: str

    def device(self, name: str, default: str) -> str:
        """The device of a name: the first override that is found in it, else the block's."""
        for override in self.overrides:
            if override.search.search(name):
                return override.device
        return default

    def buffer(self, tensor: HeaderTensor, device: str, *, is_looked_up: bool) -> str:
        """Which of the CPU's buffers holds a tensor in RAM; the device itself on a GPU."""
        if device != HOST:
            return device
        # Rows are looked up on the GPU for few types only; others stay with the CPU.
        readable = not is_looked_up or _has_rows(tensor)
        if self.n_gpus and self.settings.host_buffer and readable:
            return "CPU" if "mmap" in self.settings.load_mode else "CUDA_Host"
        is_matrix = len(tensor.shape) > 1 and tensor.shape[1] % 8 == 0
        if self.settings.repack and not is_looked_up and is_matrix and tensor.type.name in _REPACKED:
            return "CPU_REPACK"
        return "CPU"


def _load(header: Header, dimensions: Dimensions, settings: Settings, place: _Place) -> Iterator[Loaded]:
    blocks, output = place.blocks[:-1], place.blocks[-1]
    has_output = any(t.name == _OUTPUT for t in header.tensors)
    architecture = dimensions.architecture
    reads_mtp = settings.mtp and architecture not in _NEVER_MTP
    for tensor in header.tensors:
        name = tensor.name
        if name.startswith(_NOT_LOADED):
            continue
        found = _BLOCK.match(name)
        if found is not None:
            block = min(int(found[1]), len(blocks) - 1)
            if block >= dimensions.n_trunk and not reads_mtp and not is_loaded_of_nextn(architecture, name):
                continue
            default = blocks[block] if _runs_on_gpu(dimensions, tensor) else HOST
            yield _loaded(place, tensor, name, place.device(name, default))
        elif name in _ONCE_A_DEVICE:
            for device in dict.fromkeys(place.device(name, d) for d in _rope_blocks(dimensions, blocks)):
                yield _loaded(place, tensor, name, device)
        elif name.startswith(_OF_FIRST_BLOCK) and not _is_output(dimensions, name):
            yield _loaded(place, tensor, name, place.device(name, blocks[0]))
        elif name.startswith(_INPUTS):
            device = place.device(name, HOST)
            yield _loaded(place, tensor, name, device, is_looked_up=True)
            if name == _EMBEDDING and not has_output:
                yield from _tied(place, tensor, place.device(name, output), device)
        else:
            yield _loaded(place, tensor, name, place.device(name, output))


def _tied(place: _Place, tensor: HeaderTensor, device: str, embedding: str) -> Iterator[Loaded]:
    """The copy that the output reads, unless it would lie in the same buffer."""
    there = place.buffer(tensor, embedding, is_looked_up=True)
    # Gemma 3n and 4 make the output first, and then the embedding whatever there is.
    if (
        place.architecture in ("gemma3n", "gemma4")
        or place.buffer(tensor, device, is_looked_up=False) != there
    ):
        yield _loaded(place, tensor, _OUTPUT, device)


def _loaded(
    place: _Place, tensor: HeaderTensor, use: str, device: str, *, is_looked_up: bool = False
) -> Loaded:
    buffer = place.buffer(tensor, device, is_looked_up=is_looked_up)
    size = device_bytes(device, tensor.type, tensor.shape)
    return Loaded(tensor, use, device, buffer == "CPU_REPACK", size)


def _has_rows(tensor: HeaderTensor) -> bool:
    """Whether a GPU can look up rows of the tensor."""
    name = tensor.type.name
    if name in _ROWS_OF_SUPERBLOCKS:
        return bool(tensor.shape) and tensor.shape[0] % 256 == 0
    return tensor.type.engine == "llama.cpp" and name not in _NO_ROWS


def _runs_on_gpu(dimensions: Dimensions, tensor: HeaderTensor) -> bool:
    """Whether a GPU has a kernel for the operation on a block's weight; else the weight stays in RAM."""
    shape = (*tensor.shape, 1, 1)
    if tensor.name.endswith((".ssm_conv1d.weight", ".shortconv.conv.weight")):
        return shape[1] % 128 == 0
    if not tensor.name.endswith(".ssm_a") or dimensions.architecture not in _SCANNED:
        return True
    state = dimensions.state
    n_heads = max(shape[1], 1)
    width = state.inner // n_heads
    if shape[0] == 1:  # Mamba 2
        return state.size in (96, 128, 256) and width % 16 == 0
    return shape[0] == 16 and width == 1 and n_heads % 128 == 0 and state.groups <= 1


def _is_output(dimensions: Dimensions, name: str) -> bool:
    # LFM2 calls its last norm so.
    return name == "token_embd_norm.weight" and dimensions.architecture in ("lfm2", "lfm2moe")


def _rope_blocks(dimensions: Dimensions, blocks: Sequence[str]) -> Sequence[str]:
    """Devices of the blocks that ask for the factors of rotation."""
    if dimensions.architecture == "gemma4":
        return [d for d, slides in zip(blocks, dimensions.slides, strict=True) if not slides]
    return blocks


def streamed_tensor(weights: Weights) -> tuple[str, int] | None:
    """The largest expert tensor in RAM that a GPU would read for a prompt, and its bytes there."""
    largest: tuple[str, int] | None = None
    for one in weights.loaded:
        if one.device != HOST or one.repacked or "_exps." not in one.use or not one.use.endswith(".weight"):
            continue
        size = device_bytes(gpu_name(0), one.tensor.type, one.tensor.shape)
        if largest is None or size > largest[1]:
            largest = one.use, size
    return largest
