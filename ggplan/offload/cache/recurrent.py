"""Recurrent state: of one size a sequence, whatever the context. Float32, a row a slot and plane.

    kind                          r: last inputs of the convolution            s: state
    Mamba 1 and 2, Gated DeltaNet (conv − 1)(inner + 2 · groups · size)        size · inner
    Kimi Delta Attention (KDA)    3 (conv − 1) · heads · d                     heads · d²
    lightning attention           0                                            heads · d²
    RWKV                          shift · n_embd                               n_embd · head
    short convolution (LFM2)      n_embd (l_cache − 1)                         0

A hybrid keeps it for its recurrent blocks and a KV cache for the others; Falcon-H1 keeps both for each.
Nemotron-H has blocks of one thing each: those of a feed-forward keep nothing.

Source: llama.cpp b11434, `src/llama-memory-recurrent.cpp`, `src/llama-hparams.cpp` (n_embd_r, n_embd_s,
ple_conv_state), `src/llama-model.cpp` (create_memory).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggplan.offload.cache.tensors import CacheTensor, Cells, attention_tensors, state_tensor
from ggplan.offload.cache.window import windowed_blocks
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.holding import Holding
from ggplan.offload.settings import Settings

_TRUNK_ALONE = frozenset({"glm5-next", "minimax-01", "qwen3next", "qwen35", "qwen35moe", "qwen4exp"})


def conv_row(dimensions: Dimensions) -> int:
    """Numbers of the last inputs that a block's convolution keeps, a sequence."""
    state = dimensions.state
    if state.wkv_head:
        return state.token_shift * dimensions.n_embd
    if state.short_conv:
        return dimensions.n_embd * (state.short_conv - 1)
    if state.kda_head:
        taps = state.conv - 1 if state.conv else 3
        return 3 * taps * dimensions.heads[0] * state.kda_head
    return max(state.conv - 1, 0) * (state.inner + 2 * state.groups * state.size)


def state_row(dimensions: Dimensions) -> int:
    """Numbers of a block's state, a sequence."""
    state = dimensions.state
    if state.wkv_head:
        return dimensions.n_embd * state.wkv_head
    if state.kda_head:
        return state.kda_head**2 * dimensions.heads[0]
    if state.linear_head:
        return state.linear_head**2 * dimensions.heads[0]
    return state.size * state.inner


def state_tensors(dimensions: Dimensions, holding: Holding, blocks: Iterable[int]) -> Iterator[CacheTensor]:
    """What some blocks keep."""
    n_rows = holding.n_slots * holding.n_planes
    for block in blocks:
        yield state_tensor("r", block, conv_row(dimensions), n_rows)
        yield state_tensor("s", block, state_row(dimensions), n_rows)
        if block in dimensions.gram_blocks:
            yield state_tensor("n-gram r", block, dimensions.gram_row, n_rows)


def recurrent(dimensions: Dimensions, settings: Settings, holding: Holding) -> Iterator[CacheTensor]:
    """Every block is recurrent."""
    yield from state_tensors(dimensions, holding, range(dimensions.n_trunk))


def attention_blocks(dimensions: Dimensions) -> list[int]:
    """The blocks of a hybrid that keep a KV cache."""
    # The filter that most hybrids share lets blocks for multi-token prediction through.
    n = dimensions.n_trunk if dimensions.architecture in _TRUNK_ALONE else dimensions.n_blocks
    if dimensions.architecture == "falcon-h1":
        return list(range(n))
    if dimensions.architecture in ("nemotron_h", "nemotron_h_moe"):
        return [i for i in range(n) if not dimensions.recurrent[i] and dimensions.n_ff[i] == 0]
    return [i for i in range(n) if not dimensions.recurrent[i]]


def hybrid(dimensions: Dimensions, settings: Settings, holding: Holding) -> Iterator[CacheTensor]:
    """State of the recurrent blocks, keys and values of the others."""
    blocks = attention_blocks(dimensions)
    if any(dimensions.slides):
        yield from windowed_blocks(dimensions, settings, holding, blocks)
    else:
        cells = Cells(holding.n_cells, holding.n_streams)
        yield from attention_tensors(dimensions, settings, blocks, cells)
    recurrent_blocks = [i for i in range(dimensions.n_trunk) if dimensions.recurrent[i]]
    yield from state_tensors(dimensions, holding, recurrent_blocks)
