"""Recurrent blocks: Mamba 1 and 2, Gated DeltaNet, short convolutions.

All read the last inputs of a convolution and a state, write both back, and compute all tokens at once.

Source: llama.cpp b11434, `src/llama-graph.cpp` (build_rs), `src/models/mamba-base.cpp`,
`src/models/delta-net-base.cpp`, `src/models/qwen3next.cpp`, `src/models/qwen35.cpp`, `src/models/lfm2.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ggplan.ggml_types import F32
from ggplan.offload.cache.recurrent import conv_row, state_row
from ggplan.offload.graph.maker import I32, Maker
from ggplan.offload.graph.tensors import Tensor


@dataclass(slots=True)
class States:
    """The inputs of recurrent blocks: which rows of state the sequences have."""

    maker: Maker
    main: Tensor
    rest: Tensor

    def rows(self, block: int, role: str) -> Tensor:
        """A block's tensor of state: `r` or `s`."""
        maker = self.maker
        key = f"state {role} {block}"
        found = maker.made.get(key)
        if found is None:
            row = conv_row(maker.dims) if role == "r" else state_row(maker.dims)
            settings = maker.job.settings
            device = maker.job.blocks[block] if settings.cache_on_gpu else maker.job.cpu
            found = maker.graph.given(F32, (row, maker.n_slots * maker.job.holding.n_planes), device)
            maker.made[key] = found
        return found


def states(maker: Maker) -> States:
    """The inputs."""
    g, n = maker.graph, maker.n_slots
    ids = g.input(I32, n)
    return States(maker, g.view(ids, (n,)), g.view(ids, (0,), ids.strides))


def load(found: States, all_rows: Tensor, read: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """The rows of the batch's sequences; those of others are moved along."""
    g = found.maker.graph
    row = all_rows.shape[0]
    table = g.reshape(all_rows, row, all_rows.shape[1])
    cleared = g.view(table, (0,), table.strides)
    g.expand(_in_place(found.maker, "scale", cleared))
    out = g.get_rows(table, found.main) if read is None else read(table, found.main)
    g.expand(out)
    others = g.get_rows(table, found.rest)
    g.expand(g.copy_into(others, g.slice(all_rows, (row, 0), all_rows.strides[1])))
    return out


def _in_place(maker: Maker, op: str, x: Tensor) -> Tensor:
    tensor = maker.graph.view(x, x.shape, x.strides)
    tensor.op = op
    return tensor


def _store(maker: Maker, source: Tensor, all_rows: Tensor, n_rows: int) -> None:
    g = maker.graph
    target = g.slice(all_rows, (all_rows.shape[0], n_rows), all_rows.strides[1])
    g.expand(g.copy_into(source, target))


def short_convolution(found: States, x: Tensor, block: int) -> Tensor:
    """LFM2: a gated convolution over a few tokens."""
    maker, g = found.maker, found.maker.graph
    p, dims = f"blk.{block}.", maker.dims
    n = maker.n_slots
    per, taps = maker.n_tokens // n, dims.state.short_conv
    x = g.reshape(x, x.shape[0], per, n)
    three = maker.project(x, f"{p}shortconv.in_proj")
    width = three.shape[0] // 3
    strides = (three.strides[1], three.strides[2])
    b, c, inner = (g.slice(three, (width, per, n), *strides) for _ in range(3))
    mixed = g.transpose(g.like("mul", b, inner))
    all_rows = found.rows(block, "r")
    before = g.reshape(load(found, all_rows), taps - 1, width, n)
    joined = g.concat(before, mixed, 0)
    last = g.slice(joined, (taps - 1, width, n), joined.strides[1], joined.strides[2])
    _store(maker, last, all_rows, n)
    out = g.op("conv", (width, per, n), joined, maker.need(f"{p}shortconv.conv.weight"))
    out.runs_on_gpu = width % 128 == 0
    y = maker.project(g.like("mul", c, out), f"{p}shortconv.out_proj")
    return g.reshape(y, y.shape[0], per * n)


def mamba(found: States, x: Tensor, block: int) -> Tensor:
    """Mamba 1."""
    maker, g = found.maker, found.maker.graph
    p, state = f"blk.{block}.", found.maker.dims.state
    n = maker.n_slots
    per, inner, size, taps = maker.n_tokens // n, state.inner, state.size, state.conv
    all_conv, all_states = found.rows(block, "r"), found.rows(block, "s")
    before = g.reshape(load(found, all_conv), taps - 1, inner, n)
    x = g.reshape(x, x.shape[0], per, n)
    xz = maker.project(x, f"{p}ssm_in")
    half, z = (g.slice(xz, (inner, per, n), xz.strides[1], xz.strides[2]) for _ in range(2))
    joined = g.concat(before, g.transpose(half), 0)
    last = g.slice(joined, (taps - 1, inner, n), joined.strides[1], joined.strides[2])
    flat = g.view(all_conv, ((taps - 1) * inner * n,))
    g.expand(g.copy_into(last, flat))
    y = g.op("conv", (inner, per, n), joined, maker.need(f"{p}ssm_conv1d.weight"))
    y.runs_on_gpu = inner % 128 == 0
    y = g.like("unary", maker.biased(y, f"{p}ssm_conv1d"))
    parts = maker.project(y, f"{p}ssm_x")
    s1, s2 = parts.strides[1], parts.strides[2]
    dt = g.slice(parts, (state.rank, per, n), s1, s2)
    b, c = (g.slice(parts, (size, 1, per, n), size * 4, s1, s2) for _ in range(2))
    if maker.has(f"{p}ssm_dt_norm.weight"):
        dt = maker.norm(dt, f"{p}ssm_dt_norm.weight")
        b = maker.norm(b, f"{p}ssm_b_norm.weight")
        c = maker.norm(c, f"{p}ssm_c_norm.weight")
    else:
        dt = g.contiguous(dt)
    dt = maker.biased(maker.project(dt, f"{p}ssm_dt"), f"{p}ssm_dt")
    heads = g.reshape(y, 1, inner, per, n)
    decay = maker.weight(f"{p}ssm_a")

    def scan(table: Tensor, ids: Tensor) -> Tensor:
        rows = g.reshape(table, size, 1, inner, table.shape[1])
        out = g.op("scan", (inner * per * n + size * inner * n,), rows, heads, dt, decay, b, c, ids)
        out.runs_on_gpu = size == 16 and inner % 128 == 0
        return out

    scanned = load(found, all_states, scan)
    n_state = size * inner * n
    g.expand(g.copy_into(g.view(scanned, (n_state,)), g.view(all_states, (n_state,))))
    out = g.slice(scanned, (inner, per, n), heads.strides[2], heads.strides[3])
    out = g.like("add", out, g.like("mul", y, maker.weight(f"{p}ssm_d")))
    out = g.op("glu", out.shape, g.contiguous(z), out)
    out = maker.project(out, f"{p}ssm_out")
    return g.reshape(out, out.shape[0], per * n)


def mamba2(found: States, x: Tensor, block: int) -> Tensor:
    """Mamba 2."""
    maker, g = found.maker, found.maker.graph
    p, state = f"blk.{block}.", found.maker.dims.state
    n = maker.n_slots
    per, inner, size = maker.n_tokens // n, state.inner, state.size
    heads, groups, taps = state.rank, state.groups, state.conv
    width, channels = inner // heads, inner + 2 * groups * size
    all_conv, all_states = found.rows(block, "r"), found.rows(block, "s")
    before = g.reshape(load(found, all_conv), taps - 1, channels, n)
    parts = maker.project(x, f"{p}ssm_in")
    parts = g.reshape(parts, parts.shape[0], per, n)
    s1, s2 = parts.strides[1], parts.strides[2]
    z = g.slice(parts, (width, heads, per, n), width * 4, s1, s2)
    mixed = g.slice(parts, (channels, per, n), s1, s2)
    dt = g.slice(parts, (heads, per, n), s1, s2)
    joined = g.concat(before, g.transpose(mixed), 0)
    last = g.slice(joined, (taps - 1, channels, n), joined.strides[1], joined.strides[2])
    _store(maker, last, all_conv, n)
    y = g.op("conv", (channels, per, n), joined, maker.need(f"{p}ssm_conv1d.weight"))
    y.runs_on_gpu = channels % 128 == 0
    y = g.like("unary", maker.biased(y, f"{p}ssm_conv1d"))
    s1, s2 = y.strides[1], y.strides[2]
    inputs = g.slice(y, (width, heads, per, n), width * 4, s1, s2)
    b, c = (g.slice(y, (size, groups, per, n), size * 4, s1, s2) for _ in range(2))
    dt = g.like("add", g.contiguous(dt), maker.weight(f"{p}ssm_dt.bias"))
    decay = maker.weight(f"{p}ssm_a")

    def scan(table: Tensor, ids: Tensor) -> Tensor:
        rows = g.reshape(table, size, width, heads, table.shape[1])
        out = g.op("scan", (inner * per * n + size * inner * n,), rows, inputs, dt, decay, b, c, ids)
        out.runs_on_gpu = size in (96, 128, 256) and width % 16 == 0
        return out

    scanned = load(found, all_states, scan)
    row = size * inner
    _store(maker, g.slice(scanned, (row, n, 1), row * 4, row * 4 * n), all_states, n)
    strides = (width * 4, heads * width * 4, per * heads * width * 4)
    out = g.slice(scanned, (width, heads, per, n), *strides)
    out = g.like("add", out, g.like("mul", inputs, maker.weight(f"{p}ssm_d")))
    out = g.op("glu", out.shape, g.contiguous(z), out)
    if maker.has(f"{p}ssm_norm.weight"):
        out = maker.norm(g.reshape(out, inner // groups, groups, per, n), f"{p}ssm_norm.weight")
    return maker.project(g.reshape(out, inner, per * n), f"{p}ssm_out")


def delta_net(found: States, x: Tensor, block: int) -> Tensor:
    """Gated DeltaNet, as Qwen3-Next and Qwen3.5 have it."""
    maker, g = found.maker, found.maker.graph
    p, state = f"blk.{block}.", found.maker.dims.state
    n = maker.n_slots
    per, heads, keys = maker.n_tokens // n, state.rank, state.groups
    size, width = state.size, state.inner // state.rank
    mixed, z = _mixed(maker, x, p)
    beta, gate = _gates(maker, x, p)
    channels = state.inner + 2 * state.groups * state.size
    all_states = found.rows(block, "s")
    _, convolved = _convolved_after(found, block, mixed, channels)
    before = g.reshape(load(found, all_states), width, width, heads, n)
    y = g.like("unary", convolved())
    row = y.strides[1]
    strides = (row, row * per)
    q = g.slice(y, (size, keys, per, n), size * 4, *strides)
    k = g.slice(y, (size, keys, per, n), size * 4, *strides)
    v = g.slice(y, (width, heads, per, n), width * 4, *strides)
    q, k = (g.like("scale", g.like("rms norm", one)) for one in (q, k))
    if keys != heads and maker.dims.architecture == "qwen3next":
        q, k = (_repeated(maker, one, heads // keys) for one in (q, k))
    out = g.op("delta net", (width * heads, per * n + width * n), q, k, v, gate, beta, before)
    strides_out = (width * 4, width * heads * 4, width * heads * per * 4)
    result = g.slice(out, (width, heads, per, n), *strides_out)
    kept = g.slice(out, (width, width, heads, n), width * 4, width * width * 4, width * width * heads * 4)
    _store(maker, kept, all_states, n)
    gates = g.reshape(z, width, heads, per, n)
    normed = maker.norm(result, f"{p}ssm_norm.weight")
    gated = g.like("mul", normed, g.like("unary", gates))
    flat = g.reshape(gated, width * heads, per, n)
    return g.reshape(maker.project(flat, f"{p}ssm_out"), maker.dims.n_embd, per * n)


def kda(found: States, x: Tensor, block: int) -> Tensor:
    """Kimi Delta Attention: a convolution each for queries, keys and values, and a gate for every channel."""
    maker, g, dims = found.maker, found.maker.graph, found.maker.dims
    p, n = f"blk.{block}.", maker.n_slots
    per, size, heads = maker.n_tokens // n, dims.state.kda_head, dims.heads[0]
    inner = size * heads
    all_conv, all_states = found.rows(block, "r"), found.rows(block, "s")
    before = load(found, all_conv)
    inputs = _kda_inputs(maker, x, p, inner)
    q, k, v = (
        _kda_convolved(found, block, one, name, before, all_conv)
        for one, name in zip(inputs, "qkv", strict=True)
    )
    gate = g.mul_mat(maker.need(f"{p}ssm_f_b.weight"), g.mul_mat(maker.need(f"{p}ssm_f_a.weight"), x))
    gate = g.like("unary", g.like("add", gate, maker.weight(f"{p}ssm_dt.bias")))
    gate = g.reshape(gate, size, heads, per * n)
    gate = g.like("mul", gate, g.reshape(maker.need(f"{p}ssm_a"), 1, heads, 1))
    gate = g.reshape(gate, size, heads, per, n)
    beta = g.mul_mat(maker.need(f"{p}ssm_beta.weight"), x)
    beta = g.like("unary", g.reshape(beta, 1, heads, per, n))
    state = g.reshape(load(found, all_states), size, size, heads, n)
    q, k = (g.like("scale", g.like("rms norm", one)) for one in (q, k))
    out = g.op("delta net", (inner, per * n + size * n), q, k, v, gate, beta, state)
    result = g.contiguous(g.slice(out, (size, heads, per, n), size * 4, inner * 4, inner * per * 4))
    kept = g.slice(out, (size, size, heads, n), size * 4, size * size * 4, size * inner * 4)
    flat = size * inner * n
    g.expand(g.copy_into(kept, g.view(all_states, (flat,))))
    second = g.mul_mat(maker.need(f"{p}ssm_g_b.weight"), g.mul_mat(maker.need(f"{p}ssm_g_a.weight"), x))
    second = g.reshape(second, size, heads, per * n)
    normed = maker.norm(g.reshape(result, size, heads, per * n), f"{p}ssm_norm.weight")
    gated = g.like("mul", normed, g.like("unary", second))
    return g.mul_mat(maker.need(f"{p}attn_output.weight"), g.contiguous(gated, inner, per * n))


def _kda_inputs(maker: Maker, x: Tensor, p: str, inner: int) -> list[Tensor]:
    g = maker.graph
    if maker.has(f"{p}attn_qkv.weight"):
        joined = g.mul_mat(maker.need(f"{p}attn_qkv.weight"), x)
        return [g.contiguous(g.slice(joined, (inner, x.shape[1]), joined.strides[1])) for _ in "qkv"]
    return [g.mul_mat(maker.need(f"{p}attn_{name}.weight"), x) for name in "qkv"]


def _kda_convolved(
    found: States, block: int, x: Tensor, name: str, before: Tensor, all_rows: Tensor
) -> Tensor:
    maker, g, dims = found.maker, found.maker.graph, found.maker.dims
    n = maker.n_slots
    per, inner, taps = maker.n_tokens // n, x.shape[0], dims.state.conv
    strides = ((taps - 1) * 4, all_rows.shape[0] * 4)
    old = g.slice(before, (taps - 1, inner, n), *strides)
    joined = g.concat(old, g.transpose(g.reshape(x, inner, per, n)), 0)
    last = g.slice(joined, (taps - 1, inner, n), joined.strides[1], joined.strides[2])
    g.expand(g.copy_into(last, g.slice(all_rows, (taps - 1, inner, n), *strides)))
    kernel = g.reshape(maker.need(f"blk.{block}.ssm_conv1d_{name}.weight"), taps, inner)
    out = g.op("conv", (inner, per, n), joined, kernel)
    out.runs_on_gpu = inner % 128 == 0
    out = g.like("unary", g.reshape(out, inner, per * n))
    return g.reshape(out, dims.state.kda_head, inner // dims.state.kda_head, per, n)


def _mixed(maker: Maker, x: Tensor, p: str) -> tuple[Tensor, Tensor]:
    """Queries, keys and values before the convolution, and gates of the output."""
    g, n = maker.graph, maker.n_slots
    per = maker.n_tokens // n
    if maker.has(f"{p}attn_qkv.weight"):
        mixed = maker.project(x, f"{p}attn_qkv")
        return g.reshape(mixed, mixed.shape[0], per, n), maker.project(x, f"{p}attn_gate")
    state = maker.dims.state
    size, keys = state.size, state.groups
    width = state.inner // state.rank * state.rank // keys
    joined = maker.project(x, f"{p}ssm_in")
    joined = g.reshape(joined, 2 * size + 2 * width, keys, per, n)
    q, k, v, z = (
        g.slice(joined, (part, keys, per, n), *joined.strides[1:]) for part in (size, size, width, width)
    )
    z = g.contiguous(z)
    flat = [g.contiguous(one, one.shape[0] * keys, per, n) for one in (q, k, v)]
    return g.concat(g.concat(flat[0], flat[1], 0), flat[2], 0), z


def _gates(maker: Maker, x: Tensor, p: str) -> tuple[Tensor, Tensor]:
    """How much of the state is overwritten, and how much is kept."""
    g, n, heads = maker.graph, maker.n_slots, maker.dims.state.rank
    per = maker.n_tokens // n
    if maker.has(f"{p}ssm_ba.weight"):
        keys = maker.dims.state.groups
        each = heads // keys
        both = g.reshape(maker.project(x, f"{p}ssm_ba"), 2 * each, keys, per, n)
        b, a = (g.slice(both, (each, keys, per, n), *both.strides[1:]) for _ in range(2))
        beta = g.like("unary", g.contiguous(b))
        alpha = g.contiguous(a, heads, per, n)
        alpha = g.like("unary", g.like("add", alpha, maker.weight(f"{p}ssm_dt.bias")))
        gate = g.like("mul", alpha, maker.weight(f"{p}ssm_a"))
        beta = g.reshape(beta, 1, heads, per, n)
        return beta, g.reshape(gate, 1, heads, per, n)
    beta = maker.project(x, f"{p}ssm_beta")
    beta = g.like("unary", g.reshape(beta, 1, heads, per, n))
    alpha = g.reshape(maker.project(x, f"{p}ssm_alpha"), heads, per, n)
    alpha = g.like("unary", g.like("add", alpha, maker.weight(f"{p}ssm_dt.bias")))
    gate = g.like("mul", alpha, maker.weight(f"{p}ssm_a"))
    return beta, g.reshape(gate, 1, heads, per, n)


def _convolved_after(
    found: States, block: int, mixed: Tensor, channels: int
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The convolution's inputs now, its result when it is asked for."""
    maker, g = found.maker, found.maker.graph
    n, taps = maker.n_slots, maker.dims.state.conv
    all_rows = found.rows(block, "r")
    before = g.reshape(load(found, all_rows), taps - 1, channels, n)
    joined = g.concat(before, g.transpose(mixed), 0)
    last = g.slice(joined, (taps - 1, channels, n), joined.strides[1], joined.strides[2])
    _store(maker, last, all_rows, n)

    def result() -> Tensor:
        kernel = maker.need(f"blk.{block}.ssm_conv1d.weight")
        out = g.op("conv", (channels, maker.n_tokens // n, n), joined, kernel)
        out.runs_on_gpu = channels % 128 == 0
        return out

    return joined, result


def _repeated(maker: Maker, x: Tensor, times: int) -> Tensor:
    g = maker.graph
    size, keys, per, n = x.shape
    wide = g.op("repeat", (size, times, keys, per * n), g.reshape(x, size, 1, keys, per * n))
    return g.reshape(wide, size, keys * times, per, n)
