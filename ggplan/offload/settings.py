"""Settings: how an engine is told to load a model and to hold its context.

The words are llama.cpp's. `commands.py` reads them from a command line and writes them into one; placement
chooses them; the reckoning says what they cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ggplan.ggml_types import F16, GgmlType

LoadMode = Literal["none", "mmap", "mlock", "mmap+mlock", "dio"]


@dataclass(frozen=True, slots=True)
class Override:
    """`-ot REGEX=DEVICE`: tensors in whose name the regex is found go to this buffer type; first match wins.

    Attributes
    ----------
    pattern
        Regex, unanchored.
    device
        Name of a buffer type: `CPU`, `CUDA0`, `CUDA1`...
    """

    pattern: str
    device: str


@dataclass(frozen=True, slots=True)
class Settings:
    """All that decides what an engine allocates. None is the engine's own default.

    Attributes
    ----------
    program
        `llama-server`, `llama-bench`, `llama-cli`, `llama-perplexity`, `llama-sweep-bench`: it decides how
        many outputs a batch may have (the server: one a slot; others: one a token) and the defaults.
    gpu_layers
        `-ngl`: blocks and the output, counted from the end; -1 is all, 0 none.
    overrides
        `-ot`, `-cmoe`, `-ncmoe`, `--n-cpu-ffn` in the order given: first match wins.
    tensor_split
        `-ts`: shares of the GPUs; () is by free memory.
    main_gpu, split_mode
        `-mg`, `-sm` (`none`, `layer`, `row`, `tensor`).
    context
        `-c`: tokens of all slots together; 0 or None is what the model was trained with.
    batch, micro_batch
        `-b`, `-ub`.
    slots
        `-np`; None is the program's default (llama-server: 4, unified).
    unified_cache
        `-kvu`; None is the program's default.
    flash_attention
        `-fa`: on, off, auto.
    cache_k, cache_v
        `-ctk`, `-ctv`.
    cache_on_gpu
        False with `-nkvo`.
    op_offload
        False with `--no-op-offload`: experts in RAM are never streamed to a GPU.
    full_window
        `--swa-full`: sliding-window layers hold the whole context.
    load_mode
        `-lm`.
    repack
        False with `-nr`.
    host_buffer
        False with `--no-host`.
    mtp
        `--spec-type draft-mtp`: the MTP blocks are loaded and have a context of their own.
    n_drafted, n_guessed
        `--spec-draft-n-max`: tokens that these draft at once; tokens that are guessed at once from the text
        or by another model. The server may need the logits of all of them.
    host_cache_mib
        `-cram`: RAM that llama-server may use for prompts; None is its default.
    threads
        `-t`.
    """

    program: str = "llama-server"
    gpu_layers: int = -1
    overrides: tuple[Override, ...] = ()
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    split_mode: Literal["none", "layer", "row", "tensor"] = "layer"
    context: int | None = None
    batch: int = 2048
    micro_batch: int = 512
    slots: int | None = None
    unified_cache: bool | None = None
    flash_attention: Literal["on", "off", "auto"] = "auto"
    cache_k: GgmlType = F16
    cache_v: GgmlType = F16
    cache_on_gpu: bool = True
    op_offload: bool = True
    full_window: bool = False
    load_mode: LoadMode = "mmap"
    repack: bool = True
    host_buffer: bool = True
    mtp: bool = False
    n_drafted: int = 3
    n_guessed: int = 0
    host_cache_mib: int | None = None
    threads: int | None = None
