"""Dimensions: the shape of a model as its metadata states it, read as llama.cpp reads it.

A family that slides its window or mixes in recurrent blocks says which blocks do so by a key, or not at all:
then the engine knows it by the architecture, and so do the tables here.

Source: llama.cpp b11434, `src/llama-model.cpp` (load_hparams), `src/llama-hparams.cpp` and each
`src/models/*.cpp` (load_arch_hparams).
"""

from __future__ import annotations

from dataclasses import dataclass

from ggplan.offload.header import Header
from ggplan.offload.keys import MAX_BLOCKS, Keys, keys_of

RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
_BY_HEADS = frozenset({
    "bailingmoe3", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe",
    "nemotron_h", "nemotron_h_moe", "plamo2",
})  # fmt: skip
_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
HYBRID = _BY_HEADS | frozenset(_INTERVALS) | {"falcon-h1"}
"""Architectures whose blocks are recurrent in part."""

_MROPE = frozenset({
    "paddleocr", "qwen2vl", "qwen35", "qwen35moe", "qwen3tts", "qwen3vl", "qwen3vlmoe", "qwen4exp",
})  # fmt: skip
_MROPE_BY_SECTIONS = frozenset({"bailingmoe3", "glm4", "glm4moe", "hunyuan_vl"})
ROLLS_BACK = frozenset({
    "bailingmoe3", "deepseek4", "glm5-next", "kimi-k3", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe",
    "qwen35", "qwen35moe", "qwen4exp",
})  # fmt: skip
"""Architectures whose state keeps a plane for each drafted token (llm_arch_supports_rs_rollback)."""


@dataclass(frozen=True, slots=True)
class _Window:
    """How an architecture slides: every `period`-th block does not, the first or the last of each period."""

    period: int
    size: int | None = None  # where the key is missing; None: then no block slides
    dense_first: bool = False
    needs_key: bool = True  # without a window in the metadata no block slides
    fixed: int | None = None  # whatever the key says


_WINDOWS = {
    "afmoe": _Window(4),
    "cohere2": _Window(4),
    "cohere2moe": _Window(4, dense_first=True),
    "exaone-moe": _Window(4, 128),
    "gemma2": _Window(2, 4096, needs_key=False),
    "gemma3": _Window(6),
    "gemma3n": _Window(5),
    "gpt-oss": _Window(2),
    "laguna": _Window(4, dense_first=True),
    "mellum": _Window(4),
    "muse-glimmer": _Window(4),
    "olmo2": _Window(4),
    "plamo3": _Window(8),
    "smallthinker": _Window(4, dense_first=True, fixed=4096),
}
_WINDOWS_BY_ARRAY = frozenset(
    {"dflash", "dots3note", "gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35"}
)
_GLM_5_2_INDEXERS = (True, True, *((True, False, False, False) * 19))


@dataclass(frozen=True, slots=True)
class Indexer:
    """A sparse indexer: heads, the size of each, cells it chooses, and which blocks have their own."""

    heads: int
    size: int
    top_k: int
    is_full: tuple[bool, ...]
    pool: int = 0
    block_size: int = 1


@dataclass(frozen=True, slots=True)
class State:
    """The sizes behind a block's recurrent state, by the kind of layer; 0 where the kind has none."""

    conv: int = 0
    inner: int = 0
    size: int = 0
    rank: int = 0
    groups: int = 0
    kda_head: int = 0
    linear_head: int = 0
    wkv_head: int = 0
    token_shift: int = 0
    short_conv: int = 0


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The shape of a model.

    Attributes
    ----------
    architecture
        `general.architecture`.
    n_blocks, n_mtp
        All blocks of the file, and how many of them, the last, are for multi-token prediction.
    n_embd, n_vocab
        Width of the residual stream; rows of token_embd.
    trained_context
        Tokens the model was trained with.
    heads, kv_heads, n_ff, used
        By block: query heads, key heads, width of the feed-forward, experts per token.
    n_experts, n_expert_groups, n_groups_used
        Routed experts of a block, groups of them, and how many groups are chosen first.
    head_k, head_v, head_k_window, head_v_window
        Size of a head in blocks with full attention and in those that slide.
    head_k_mla, head_v_mla, q_rank, kv_rank, n_rope
        Of latent attention: sizes of a head after decompression, ranks, and rotated dimensions. `head_k_mla`
        is 0 where attention is not latent.
    window
        Tokens of a sliding window; 0 where none slides.
    slides, recurrent
        By block.
    n_own_cache
        Blocks from the first that keep a cache of their own; later ones read that of an earlier block.
    n_dense
        Blocks from the first without routed experts.
    gram_blocks, gram_row
        Blocks with an n-gram table, and numbers that its convolution keeps a sequence (qwen4exp).
    state, indexer
        Of recurrent blocks; of a sparse indexer, None where there is none.
    compress_ratios, hyper_connections
        Of DeepSeek-V4: tokens of a compressed key by block; streams of the residual.
    positions
        Position numbers of a token: 4 with multi-dimensional rotation, else 1.
    gating
        How routers turn logits into weights.
    normalizes, scales_experts
        Whether the weights of the chosen experts are divided by their sum; multiplied by a constant.
    """

    architecture: str
    n_blocks: int
    n_mtp: int
    n_embd: int
    n_vocab: int
    trained_context: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    n_ff: tuple[int, ...]
    used: tuple[int, ...]
    n_experts: int
    n_expert_groups: int
    n_groups_used: int
    head_k: int
    head_v: int
    head_k_window: int
    head_v_window: int
    head_k_mla: int
    head_v_mla: int
    q_rank: int
    kv_rank: int
    n_rope: int
    window: int
    slides: tuple[bool, ...]
    recurrent: tuple[bool, ...]
    n_own_cache: int
    n_dense: int
    gram_blocks: tuple[int, ...]
    gram_row: int
    state: State
    indexer: Indexer | None
    compress_ratios: tuple[int, ...]
    hyper_connections: int
    positions: int
    gating: int
    normalizes: bool
    scales_experts: bool

    @property
    def n_trunk(self) -> int:
        """Blocks without those for multi-token prediction."""
        return self.n_blocks - self.n_mtp

    @property
    def is_mla(self) -> bool:
        """Whether the cache holds one compressed key a token (multi-head latent attention)."""
        return self.head_k_mla > 0 and self.head_v_mla > 0

    def key_size(self, block: int) -> int:
        """Size of a key head of a block."""
        return self.head_k_window if self.slides[block] else self.head_k

    def value_size(self, block: int) -> int:
        """Size of a value head of a block."""
        return self.head_v_window if self.slides[block] else self.head_v


def dimensions_of(header: Header) -> Dimensions:
    """The shape that a header states.

    Raises
    ------
    CheckpointError
        If a key is missing, is no number, or cannot be.
    """
    keys = keys_of(header)
    n_blocks = keys.number("block_count")
    if not 0 < n_blocks <= MAX_BLOCKS:
        raise keys.error("block_count", f"is {n_blocks}; an engine loads 1 to {MAX_BLOCKS}")
    n_mtp = keys.number("nextn_predict_layers", 0)
    if n_mtp > n_blocks:
        raise keys.error("nextn_predict_layers", f"is {n_mtp} of {n_blocks} blocks")
    if keys.architecture == "deepseek4" and not _has_mtp(header, n_blocks - n_mtp):
        n_mtp = 0
    n_embd = keys.number("embedding_length")
    loops = keys.number("num_loops", 1) if keys.architecture == "nanbeige" else 1
    if not 0 < loops * n_blocks <= MAX_BLOCKS:
        raise keys.error("num_loops", f"is {loops}")
    heads = keys.per_block("attention.head_count", n_blocks, 0)
    head = n_embd // heads[0] if heads[0] else 0
    head_k = keys.number("attention.key_length", head) if heads[0] else 0
    head_v = keys.number("attention.value_length", head) if heads[0] else 0
    kv_heads = heads
    if f"{keys.architecture}.attention.head_count_kv" in header.metadata:
        kv_heads = keys.per_block("attention.head_count_kv", n_blocks)
    n_ff = keys.per_block("feed_forward_length", n_blocks, 0)
    if keys.architecture == "graniteswitch":  # one more block of one head, the router's
        n_blocks, n_mtp = n_blocks + 1, 1
        heads, kv_heads, n_ff = (*heads, 1), (*kv_heads, 1), (*n_ff, 0)
    n_blocks, heads, kv_heads, n_ff = n_blocks * loops, heads * loops, kv_heads * loops, n_ff * loops
    recurrent = _recurrent(keys, n_blocks, n_blocks - n_mtp, kv_heads, n_ff)
    window, slides = _window(keys, n_blocks, n_blocks - n_mtp, recurrent)
    kv_rank = keys.number("attention.kv_lora_rank", 0)
    if keys.architecture in ("kimi-k3", "glm5-next"):
        head_v = kv_rank
    sections = keys.numbers("rope.dimension_sections")
    has_sections = len(sections) > 1 and sections[0] > 0 and sections[1] > 0
    is_mrope = keys.architecture in _MROPE or (keys.architecture in _MROPE_BY_SECTIONS and has_sections)
    return Dimensions(
        keys.architecture,
        n_blocks,
        n_mtp,
        n_embd,
        _vocabulary(header, keys),
        keys.number("context_length", 0),
        heads,
        kv_heads,
        n_ff,
        _used(keys, n_blocks),
        keys.number("expert_count", 0),
        keys.number("expert_group_count", 0),
        keys.number("expert_group_used_count", 0),
        head_k,
        head_v,
        keys.number("attention.key_length_swa", head_k),
        keys.number("attention.value_length_swa", head_v),
        keys.number("attention.key_length_mla", 0),
        keys.number("attention.value_length_mla", 0),
        keys.number("attention.q_lora_rank", 0),
        kv_rank,
        keys.number("rope.dimension_count", head_k),
        window,
        slides,
        recurrent,
        _own_cache(keys, n_blocks),
        keys.number("leading_dense_block_count", 0),
        keys.numbers("ple.layers"),
        _gram_row(keys, n_embd),
        _state(keys, head_k),
        _indexer(keys, n_blocks, n_blocks - n_mtp),
        keys.numbers("attention.compress_ratios"),
        keys.number("hyper_connection.count", 0),
        4 if is_mrope else 1,
        keys.number("expert_gating_func", 0),
        bool(keys.number("expert_weights_norm", 0)),
        keys.fraction("expert_weights_scale", 0.0) not in (0.0, 1.0),
    )


def _used(keys: Keys, n_blocks: int) -> tuple[int, ...]:
    listed = keys.numbers("expert_used_count")
    if listed:
        return (*listed, *(0,) * (n_blocks - len(listed)))
    return (keys.number("expert_used_count", 0),) * n_blocks


def _has_mtp(header: Header, block: int) -> bool:
    return any(t.name == f"blk.{block}.nextn.eh_proj.weight" for t in header.tensors)


def _vocabulary(header: Header, keys: Keys) -> int:
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and len(tensor.shape) > 1:
            return tensor.shape[1]
    return keys.number("vocab_size", 0)


def _recurrent(
    keys: Keys, n_blocks: int, n_trunk: int, kv_heads: tuple[int, ...], n_ff: tuple[int, ...]
) -> tuple[bool, ...]:
    name = keys.architecture
    if name in RECURRENT or name == "falcon-h1":
        return (True,) * n_blocks
    if name in _INTERVALS:
        stated = keys.flags("attention.recurrent_layers", n_blocks)
        if stated is not None:
            return stated
        interval = keys.number("full_attention_interval", _INTERVALS[name])
        if not interval:
            raise keys.error("full_attention_interval", "is 0")
        return tuple(i < n_trunk and (i + 1) % interval != 0 for i in range(n_blocks))
    if name in ("nemotron_h", "nemotron_h_moe"):
        return tuple(i < n_trunk and kv_heads[i] == 0 and n_ff[i] == 0 for i in range(n_blocks))
    if name in _BY_HEADS:
        return tuple(i < n_trunk and kv_heads[i] == 0 for i in range(n_blocks))
    return (False,) * n_blocks


def _window(
    keys: Keys, n_blocks: int, n_trunk: int, recurrent: tuple[bool, ...]
) -> tuple[int, tuple[bool, ...]]:
    """The window in tokens, and which blocks slide."""
    name, none = keys.architecture, (False,) * n_blocks
    stated = keys.number("attention.sliding_window", 0)
    if name == "deepseek4":
        return stated, (True,) * n_blocks
    if name == "lfm2":
        return (stated, tuple(not r for r in recurrent)) if stated else (0, none)
    if name in _WINDOWS_BY_ARRAY:
        slides = keys.flags("attention.sliding_window_pattern", n_blocks)
        return (stated, slides) if stated and slides is not None and any(slides) else (0, none)
    if name == "llama4":
        has_key = f"{name}.attention.sliding_window" in keys.header.metadata
        rule = _Window(4, needs_key=False, fixed=8192) if not has_key or stated else None
    elif name == "exaone4":
        rule = _Window(4, 4096, needs_key=False) if n_trunk == 64 else None
    else:
        rule = _WINDOWS.get(name)
    if rule is None or (rule.needs_key and not stated):
        return 0, none
    size = rule.fixed or stated or rule.size or 0
    slides = keys.flags("attention.sliding_window_pattern", n_blocks)
    if slides is None:
        period = keys.number("attention.sliding_window_pattern", rule.period)
        dense = 0 if rule.dense_first else period - 1
        slides = tuple(i < n_trunk and (period == 0 or i % period != dense) for i in range(n_blocks))
    return (size, slides) if any(slides) else (0, none)


def _own_cache(keys: Keys, n_blocks: int) -> int:
    if keys.architecture == "gemma3n":
        return min(20, n_blocks)
    if keys.architecture == "gemma4":
        return n_blocks - min(keys.number("attention.shared_kv_layers", 0), n_blocks)
    return n_blocks


def _gram_row(keys: Keys, n_embd: int) -> int:
    taps = keys.number("ple.conv_kernel", 0) - 1
    size, streams = keys.number("ple.ngram_size", 0), keys.number("hyper_connection.count", 0)
    return taps * size * streams * n_embd if taps > 0 else 0


def _state(keys: Keys, head_k: int) -> State:
    return State(
        keys.number("ssm.conv_kernel", 0),
        keys.number("ssm.inner_size", 0),
        keys.number("ssm.state_size", 0),
        keys.number("ssm.time_step_rank", 0),
        keys.number("ssm.group_count", 0),
        keys.number("kda.head_dim", 0),
        head_k if keys.architecture == "minimax-01" else 0,
        keys.number("wkv.head_size", 0),
        keys.number("token_shift_count", 2),
        keys.number("shortconv.l_cache", 0),
    )


def _indexer(keys: Keys, n_blocks: int, n_trunk: int) -> Indexer | None:
    size = keys.number("attention.indexer.key_length", 0)
    if not size:
        return None
    full = keys.flags("attention.indexer.types", n_blocks)
    if full is None:
        full = (True,) * n_blocks
        if keys.architecture == "glm-dsa" and keys.number("context_length", 0) >= 1 << 20:
            full = tuple(i < len(_GLM_5_2_INDEXERS) and _GLM_5_2_INDEXERS[i] for i in range(n_blocks))
    return Indexer(
        keys.number("attention.indexer.head_count", 0),
        size,
        keys.number("attention.indexer.top_k", 0),
        tuple(f and i < n_trunk for i, f in enumerate(full)),
        keys.number("attention.indexer.kpool", 0),
        max(1, keys.number("attention.indexer.block_size", 1)),
    )
