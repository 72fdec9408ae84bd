"""Attention: projections, the cache, and what is computed over its cells.

    flash attention     one operation; a GPU's kernel wants K and V as f16 and makes copies behind its result
                        where the cache has another type
    without             scores of all heads over all cells, a softmax, and the values
    latent (MLA)        queries are taken into the space of the compressed keys, which are the values too
    sparse (DSA)        an indexer scores all cells; a mask lets the best through

A quantized cache is rotated (Hadamard) where its heads are a multiple of 64.

Source: llama.cpp b11434, `src/llama-graph.cpp` (build_qkv, build_attn, build_attn_mha),
`src/llama-kv-cache.cpp`, `ggml/src/ggml-cuda/fattn.cu` (which kernel, and what it needs).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ggplan.ggml_types import F16, F32, GgmlType
from ggplan.offload.cache.attention import trunk_with_cache
from ggplan.offload.graph.maker import I32, I64, Cache, Maker
from ggplan.offload.graph.tensors import Tensor

_EQUAL_HEADS = frozenset({40, 64, 72, 80, 96, 112, 128, 256})
_UNEQUAL_HEADS = {192: (128, 8), 320: (256, 32), 512: (512, 2), 576: (512, 2)}
KERNEL_TYPES = frozenset({"f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"})
_VECTOR_TYPES = frozenset({"f16", "bf16", "q8_0", "q4_0"})  # K and V of one of these types
_ROTATED = 64


def has_kernel(
    head_k: int, head_v: int, n_heads: int, n_kv_heads: int, types: tuple[GgmlType, GgmlType]
) -> bool:
    """Whether a GPU has flash attention for heads of these sizes and a cache of these types."""
    if not n_kv_heads or any(kind.name not in KERNEL_TYPES for kind in types):
        return False
    if head_k in _EQUAL_HEADS:
        return head_v == head_k
    if head_k not in _UNEQUAL_HEADS:
        return False
    value, ratio = _UNEQUAL_HEADS[head_k]
    shared = n_heads // n_kv_heads
    return (
        head_v == value and shared >= 2 and shared % ratio == 0
        if head_k in (192, 320)
        else (head_v == value and shared >= 2)
    )


@dataclass(slots=True)
class Inputs:
    """Inputs of attention for one kind of block: those with all cells, or those with a window.

    Attributes
    ----------
    n_cells
        Cells of a stream.
    k_ids, v_ids
        Cells that the tokens are written to.
    mask
        Which cells a token sees.
    k_rotation, v_rotation
        Hadamard matrices, None where the cache is not rotated.
    """

    n_cells: int
    k_ids: Tensor
    v_ids: Tensor | None
    mask: Tensor
    k_rotation: Tensor | None = None
    v_rotation: Tensor | None = None


@dataclass(slots=True)
class Attention:
    """Inputs of a graph's attention, by kind of block, and the caches that were met."""

    maker: Maker
    full: Inputs | None = None
    window: Inputs | None = None
    caches: dict[int, Cache] = field(default_factory=dict)
    k_first: bool = False  # the order in which keys and values are computed

    def inputs(self, block: int) -> Inputs:
        """Those of a block."""
        found = self.window if self.maker.dims.slides[block] else self.full
        if found is None:
            raise LookupError(f"attention of block {block}")
        return found


def attention_inputs(maker: Maker, *, k_only: bool = False, mtp: bool = False) -> Attention:
    """Inputs for all blocks: two sets where some slide."""
    dims, holding = maker.dims, maker.job.holding
    attention = Attention(maker, _inputs(maker, holding.n_cells, k_only=k_only, slides=False, mtp=mtp))
    if any(dims.slides):
        attention.window = _inputs(maker, holding.n_window_cells, k_only=k_only, slides=True, mtp=mtp)
        attention.k_first = True
    return attention


def _inputs(maker: Maker, n_cells: int, *, k_only: bool, slides: bool, mtp: bool) -> Inputs:
    g, dims, n = maker.graph, maker.dims, maker.n_tokens
    k_ids = g.input(I64, n)
    v_ids = None
    if not k_only:
        longest = max(dims.value_size(i) * h for i, h in enumerate(dims.kv_heads))
        v_ids = g.input(I64, n if maker.job.flash else n * longest)
    found = Inputs(n_cells, k_ids, v_ids, maker.mask(n_cells))
    if not k_only and maker.job.profile.rotates_cache:
        _add_rotations(maker, found, slides=slides, mtp=mtp)
    return found


def _add_rotations(maker: Maker, found: Inputs, *, slides: bool, mtp: bool) -> None:
    dims, settings, g = maker.dims, maker.job.settings, maker.graph
    blocks = range(dims.n_trunk, dims.n_blocks) if mtp else trunk_with_cache(dims)
    keys = {dims.key_size(i) for i in blocks if dims.slides[i] == slides and dims.kv_heads[i]}
    values = {dims.value_size(i) for i in blocks if dims.slides[i] == slides and dims.kv_heads[i]}
    if settings.cache_k.is_quantized and len(keys) == 1 and dims.key_size(0) % _ROTATED == 0:
        n = _ROTATED
        while min(keys) % (2 * n) == 0:
            n *= 2
        found.k_rotation = g.input(F32, n, n)
    if settings.cache_v.is_quantized and len(values) == 1 and dims.value_size(0) % _ROTATED == 0:
        found.v_rotation = g.input(F32, _ROTATED, _ROTATED)


# --- Projections -------------------------------------------------------------------------------------


def queries_keys_values(
    maker: Maker, x: Tensor, block: int, *, shaped: bool = True, doubled: bool = False, clamped: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values: of three matrices or of one. `doubled`: queries come with gates."""
    g, dims, n = maker.graph, maker.dims, maker.n_tokens
    p = f"blk.{block}."
    heads, kv_heads = dims.heads[block], dims.kv_heads[block]
    head_k, head_v = dims.key_size(block), dims.value_size(block)
    head_q = head_k * (2 if doubled else 1)
    if maker.has(f"{p}attn_qkv.weight"):
        all_three = maker.biased(maker.project(x, f"{p}attn_qkv"), f"{p}attn_qkv")
        if clamped and shaped:
            all_three = g.like("clamp", all_three)
        row = all_three.strides[1]
        if shaped:
            return (
                g.slice(all_three, (head_q, heads, n), head_q * 4, row),
                g.slice(all_three, (head_k, kv_heads, n), head_k * 4, row),
                g.slice(all_three, (head_v, kv_heads, n), head_v * 4, row),
            )
        sizes = (head_q * heads, head_k * kv_heads, head_v * kv_heads)
        parts = [g.contiguous(g.slice(all_three, (size, n), row)) for size in sizes]
        return parts[0], parts[1], parts[2]
    found = []
    for name in ("attn_q", "attn_k", "attn_v"):
        y = maker.biased(maker.project(x, p + name), p + name)
        found.append(g.like("clamp", y) if clamped and shaped else y)
    q, k, v = found
    if not shaped:
        return q, k, v
    return (
        g.reshape(q, head_q, heads, n),
        g.reshape(k, head_k, kv_heads, n),
        g.reshape(v, head_v, kv_heads, n),
    )


# --- The cache ---------------------------------------------------------------------------------------


def cache_of(attention: Attention, block: int) -> Cache:
    """A block's cache: its own, or that of an earlier block."""
    maker, dims = attention.maker, attention.maker.dims
    owner = block
    if block >= dims.n_own_cache:
        owner = dims.n_own_cache - (2 if dims.slides[block] else 1)
    found = attention.caches.get(owner)
    if found is None:
        settings, inputs = maker.job.settings, attention.inputs(owner)
        device = maker.job.blocks[owner] if settings.cache_on_gpu else maker.job.cpu
        n = dims.kv_heads[owner]
        shape = (dims.key_size(owner) * n, inputs.n_cells, maker.n_streams)
        k = maker.graph.given(settings.cache_k, shape, device)
        v = None
        if not dims.is_mla:
            row = dims.value_size(owner) * n
            if not maker.job.flash:
                row = max(dims.value_size(i) * h for i, h in enumerate(dims.kv_heads))
            v = maker.graph.given(settings.cache_v, (row, inputs.n_cells, maker.n_streams), device)
        found = attention.caches[owner] = Cache(k, v, inputs.n_cells)
    return found


def _store_keys(maker: Maker, cache: Tensor, keys: Tensor, ids: Tensor) -> None:
    g = maker.graph
    merged = g.slice(keys, (keys.shape[0] * keys.shape[1], keys.shape[2]), keys.strides[2])
    if cache.shape[2] > 1:
        cache = g.reshape(cache, cache.shape[0], cache.shape[1] * cache.shape[2])
    g.expand(g.set_rows(cache, merged, ids))


def _store_values(maker: Maker, cache: Tensor, values: Tensor, ids: Tensor) -> None:
    if maker.job.flash:
        _store_keys(maker, cache, values, ids)
        return
    g = maker.graph
    row, n = values.shape[0] * values.shape[1], values.shape[2]
    merged = (
        g.reshape(values, row, n)
        if values.strides[2] == row * values.type.block_bytes
        else g.contiguous(values, row, n)
    )
    if row < cache.shape[0]:
        merged = g.op("pad", (cache.shape[0], n), merged)
    n_all = cache.shape[0] * cache.shape[1] * cache.shape[2]
    into = g.reshape(cache, 1, n_all)
    g.expand(g.set_rows(into, g.reshape(merged, 1, merged.shape[0] * merged.shape[1]), ids))


def _cached_keys(maker: Maker, cache: Tensor, head: int, n_heads: int, n_cells: int) -> Tensor:
    kind = cache.type
    row = kind.row_bytes(cache.shape[0])
    strides = (kind.block_bytes, _row(kind, head), row, row * n_cells)
    return maker.graph.view(cache, (head, n_heads, n_cells, maker.n_streams), strides)


def _cached_values(maker: Maker, cache: Tensor, head: int, n_heads: int, n_cells: int) -> Tensor:
    if maker.job.flash:
        return _cached_keys(maker, cache, head, n_heads, n_cells)
    kind = cache.type
    whole = n_cells * cache.shape[0]
    strides = (kind.block_bytes, _row(kind, n_cells * head), _row(kind, n_cells), _row(kind, whole))
    return maker.graph.view(cache, (n_cells, n_heads, head, maker.n_streams), strides)


def _row(kind: GgmlType, n: int) -> int:
    return n // kind.block_size * kind.block_bytes


# --- What is computed over the cells -----------------------------------------------------------------


def rotated(maker: Maker, x: Tensor, matrix: Tensor) -> Tensor:
    """Heads times a Hadamard matrix."""
    g, n = maker.graph, matrix.shape[0]
    n_rows = x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3] // n
    flat = g.reshape(x, n, n_rows) if x.is_contiguous else g.contiguous(x, n, n_rows)
    return g.reshape(g.mul_mat(matrix, flat), *x.shape)


@dataclass(frozen=True, slots=True)
class Reading:
    """What `attend` reads besides queries, keys and values.

    Attributes
    ----------
    mask
        Which cells a token sees.
    sinks
        Weights of attention's sinks.
    decompress
        The matrix that takes latent values to those of the heads.
    capped
        Scores are kept small by a tanh.
    """

    mask: Tensor
    sinks: Tensor | None = None
    decompress: Tensor | None = None
    capped: bool = False


def attend(maker: Maker, q: Tensor, k: Tensor, v: Tensor, reading: Reading) -> Tensor:
    """Attention of queries over cells: `[values of all heads, tokens]`."""
    g = maker.graph
    n_streams = k.shape[3]
    per = q.shape[2] // n_streams
    strides = (q.strides[0], q.strides[1], q.strides[2], q.strides[2] * per)
    is_transposed = v.strides[1] > v.strides[2]
    q = g.permute(g.view(q, (q.shape[0], q.shape[1], per, n_streams), strides), 0, 2, 1, 3)
    k = g.permute(k, 0, 2, 1, 3)
    v = g.permute(v, 0, 2, 1, 3)
    if maker.job.flash:
        k, v = (_as_half(maker, one) for one in (k, v))
        out = read_flash(maker, q, k, v, reading.mask, reading.sinks)
        if reading.decompress is not None:
            out = g.mul_mat(reading.decompress, g.permute(out, 0, 2, 1, 3))
            out = g.contiguous(g.permute(out, 0, 2, 1, 3))
        out = g.reshape(out, out.shape[0] * out.shape[1], out.shape[2] * out.shape[3])
        g.expand(out)
        return out
    scores = g.mul_mat(k, q)
    if reading.capped:
        scores = g.like("scale", g.like("unary", g.like("scale", scores)))
    scores = g.like("soft max", scores, reading.mask, reading.sinks)
    if not is_transposed:
        v = g.contiguous(g.transpose(v))
    out = g.mul_mat(v, scores)
    if reading.decompress is not None:
        out = g.mul_mat(reading.decompress, out)
    out = g.permute(out, 0, 2, 1, 3)
    out = g.contiguous(out, out.shape[0] * out.shape[1], out.shape[2] * out.shape[3])
    g.expand(out)
    return out


def read_flash(
    maker: Maker, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor | None = None
) -> Tensor:
    """Flash attention: `[width, heads, tokens, sequences]`."""
    shape = (v.shape[0], q.shape[2], q.shape[1], q.shape[3])
    out = maker.graph.op("flash attention", shape, q, k, v, mask, sinks)
    out.runs_on_gpu = has_kernel(k.shape[0], v.shape[0], q.shape[2], k.shape[2], (k.type, v.type))
    if maker.job.profile.keeps_fused:
        out.gpu_extra = _copies_for_kernel(out.n_bytes, q, k, v)
    return out


def _as_half(maker: Maker, x: Tensor) -> Tensor:
    """The program itself makes f16 of float32: no kernel reads it."""
    return maker.graph.op("cpy", x.shape, x, kind=F16) if x.type is F32 else x


def _copies_for_kernel(n_bytes: int, q: Tensor, k: Tensor, v: Tensor) -> int:
    """Bytes behind the result for K and V as f16."""
    if _reads_vectors(q, k, v):
        return 0
    end = n_bytes
    for tensor, is_copied in ((k, True), (v, v.viewed is not k.viewed)):
        if is_copied and tensor.type is not F16:
            n = tensor.shape[0] * tensor.shape[1] * tensor.shape[2] * tensor.shape[3]
            end = -(-end // 128) * 128 + n * 2
    return end - n_bytes


def _reads_vectors(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel for very few tokens is used, which reads the cache as it is."""
    if q.shape[1] > 2 or q.shape[0] > 256 or q.shape[0] % 64 or q.shape[0] == 192 or k.shape[1] % 256:
        return False
    return k.type is v.type and k.type.name in _VECTOR_TYPES and (k.type.is_quantized or q.shape[1] == 1)


def grouped(
    attention: Attention,
    block: int,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    *,
    sinks: Tensor | None = None,
    capped: bool = False,
) -> Tensor:
    """Attention with keys and values: store them, then attend. Without them, an earlier block's are read."""
    maker, inputs = attention.maker, attention.inputs(block)
    q, keys, values = store_and_view(attention, block, q, k, v, k_first=attention.k_first)
    out = attend(maker, q, keys, values, Reading(inputs.mask, sinks, capped=capped))
    if inputs.v_rotation is not None:
        out = rotated(maker, out, inputs.v_rotation)
    return out


def store_and_view(
    attention: Attention, block: int, q: Tensor, k: Tensor | None, v: Tensor | None, *, k_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Write keys and values into the cache; the queries, and what is cached of all cells."""
    maker, g = attention.maker, attention.maker.graph
    inputs = attention.inputs(block)
    if inputs.k_rotation is not None:
        q = rotated(maker, q, inputs.k_rotation)
        k = None if k is None else rotated(maker, k, inputs.k_rotation)
    if inputs.v_rotation is not None:
        v = None if v is None else rotated(maker, v, inputs.v_rotation)
    for tensor in (q, k, v) if k_first else (q, v, k):
        if tensor is not None:
            g.expand(tensor)
    cache = cache_of(attention, block)
    assert cache.v is not None
    if k is not None:
        _store_keys(maker, cache.k, k, inputs.k_ids)
    if v is not None and inputs.v_ids is not None:
        _store_values(maker, cache.v, v, inputs.v_ids)
    dims = maker.dims
    owner = min(block, dims.n_own_cache - 1)
    n_heads = dims.kv_heads[block if block < dims.n_own_cache else owner]
    keys = _cached_keys(maker, cache.k, dims.key_size(block), n_heads, cache.n_cells)
    values = _cached_values(maker, cache.v, dims.value_size(block), n_heads, cache.n_cells)
    return q, keys, values


def latent(
    attention: Attention, block: int, q: Tensor, k: Tensor, values: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Attention over compressed keys, whose first numbers are the values; with a mask, they are stored."""
    maker, g = attention.maker, attention.maker.graph
    inputs = attention.inputs(block)
    cache = cache_of(attention, block)
    if mask is None:
        store_latent(attention, block, q, values, k)
    keys = _cached_keys(maker, cache.k, k.shape[0], 1, cache.n_cells)
    v = g.view(keys, (values.shape[0], *keys.shape[1:]), keys.strides)
    decompress = maker.block_weight(block, "attn_v_b")
    return attend(maker, q, keys, v, Reading(mask or inputs.mask, decompress=decompress))


def store_latent(attention: Attention, block: int, q: Tensor, v: Tensor, k: Tensor) -> None:
    """Write compressed keys into the cache, before a mask is made."""
    maker = attention.maker
    for tensor in (q, v, k):
        maker.graph.expand(tensor)
    _store_keys(maker, cache_of(attention, block).k, k, attention.inputs(block).k_ids)


def store_indexer_keys(maker: Maker, cache: Tensor, keys: Tensor, ids: Tensor) -> Tensor:
    """Write an indexer's keys, and return what is cached of all cells."""
    _store_keys(maker, cache, keys, ids)
    return _cached_keys(maker, cache, cache.shape[0], 1, cache.shape[1])


__all__ = ["F32", "I32", "Attention", "Inputs", "attend", "attention_inputs", "grouped", "latent"]
