"""A mixture of experts: which experts each token gets, and what they compute.

    router          logits of all experts, weights by softmax or sigmoid; a bias or groups may decide
    experts         up, gate and down of the chosen ones, each `[width, chosen, tokens]`
    sum             one view a chosen expert, added one by one

A GPU runs the router as one operation, and the last product with the sum as another, and keeps what they read
until they are done.

Source: llama.cpp b11434, `src/llama-graph.cpp` (build_moe_ffn), `ggml/src/ggml-cuda/ggml-cuda.cu`
(ggml_cuda_topk_moe_fusion, ggml_cuda_match_moe_weighted_reduction), `ggml/src/ggml-cuda/topk-moe.cu`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggplan.offload.graph.maker import I32, Maker
from ggplan.offload.graph.tensors import Tensor

_MOST_FUSED = 15  # chosen experts whose sum is one operation


@dataclass(frozen=True, slots=True)
class Routing:
    """How a family routes.

    Attributes
    ----------
    gating
        `softmax`, `sigmoid`, `softmax of the chosen`, `sqrt softplus`.
    normalizes
        Weights of the chosen are divided by their sum.
    scales
        Weights are multiplied by a constant.
    kind
        What experts compute between up and down: see `Maker.activation`.
    weighs_input
        Weights are applied before the experts (Llama 4).
    logits
        What the router computed already; None if it is to.
    """

    gating: str
    normalizes: bool = False
    scales: bool = False
    kind: str = "glu"
    weighs_input: bool = False
    logits: Tensor | None = None


def experts(maker: Maker, x: Tensor, block: int, routing: Routing) -> Tensor:
    """The sum of the chosen experts, `[n_embd, tokens]`."""
    g, dims = maker.graph, maker.dims
    p = f"blk.{block}."
    n_tokens, used = x.shape[1], dims.used[block]
    ids, weights = _route(maker, x, block, routing)
    g.expand(weights)
    width = x.shape[0]
    x = g.reshape(x, width, 1, n_tokens)
    if routing.weighs_input:
        x = g.like("mul", g.op("repeat", (width, used, n_tokens), x), weights)
    hidden = _hidden(maker, x, p, ids, routing)
    out = _times_experts(maker, hidden, f"{p}ffn_down_exps", ids)
    if maker.job.profile.fuses_experts and not routing.weighs_input:
        out = g.op("weighted sum", (out.shape[0], n_tokens), out, weights)
        g.expand(out)
        return out
    if not routing.weighs_input:
        out = g.like("mul", out, weights)
    g.expand(out)
    if not routing.weighs_input and 2 <= used <= _MOST_FUSED and out.sources[0].op != "view":
        out.fused = 2 * used
    row = out.strides[2]
    parts = [g.slice(out, (out.shape[0], n_tokens), row) for _ in range(used)]
    for part in parts:
        g.expand(part)
    total = parts[0]
    for part in parts[1:]:
        total = g.like("add", total, part)
        g.expand(total)
    return g.contiguous(total) if used == 1 else total


def _route(maker: Maker, x: Tensor, block: int, routing: Routing) -> tuple[Tensor, Tensor]:
    """Numbers of the chosen experts and their weights."""
    g, dims = maker.graph, maker.dims
    p, n, used = f"blk.{block}.", x.shape[1], dims.used[block]
    logits = routing.logits
    if logits is None:
        logits = g.mul_mat(maker.need(f"{p}ffn_gate_inp.weight"), x)
    logits = maker.biased(logits, f"{p}ffn_gate_inp")
    n_experts = logits.shape[0]
    if routing.gating == "softmax":
        probs = g.like("soft max", logits)
    elif routing.gating == "sigmoid":
        probs = g.like("unary", logits)
    elif routing.gating == "sqrt softplus":
        probs = g.like("sqrt", g.like("unary", logits))
    else:
        probs = logits
    first, chosen_by = probs, probs
    n_fused = 4 + (routing.gating == "sqrt softplus")
    bias = maker.weight(f"{p}exp_probs_b.bias")
    if bias is not None:
        chosen_by = g.like("add", probs, bias)
        n_fused += 1
    if routing.weighs_input:
        chosen_by = logits
    is_plain = not routing.weighs_input
    if dims.n_expert_groups > 1:
        chosen_by = _best_groups(maker, chosen_by, n)
        is_plain = False
    ids = g.argsort_top(chosen_by, used, I32)
    weights = g.get_rows(g.reshape(probs, 1, n_experts, n), ids)
    n_fused += 1
    if routing.gating == "softmax of the chosen":
        weights = g.reshape(weights, used, n)
        weights = g.reshape(g.like("soft max", weights), 1, used, n)
        first, is_plain = ids.sources[0], is_plain and probs.op == "add"
        n_fused = 6
    if routing.normalizes:
        weights = g.reshape(weights, used, n)
        total = g.like("clamp", g.op("sum rows", (1, n), weights))
        weights = g.reshape(g.like("div", weights, total), 1, used, n)
        n_fused += 5
    if routing.scales:
        weights = g.like("scale", weights)
        n_fused += 1
    if is_plain and routing.gating in ("softmax", "sigmoid", "sqrt softplus") and _fuses(n_experts):
        (probs.sources[0] if routing.gating == "sqrt softplus" else first).fused = n_fused
    return ids, weights


def _fuses(n_experts: int) -> bool:
    return n_experts in (288, 576) or (n_experts <= 512 and n_experts & (n_experts - 1) == 0)


def _best_groups(maker: Maker, chosen_by: Tensor, n: int) -> Tensor:
    """Scores of the experts in the best groups; others get none."""
    g, dims = maker.graph, maker.dims
    n_experts, n_groups = chosen_by.shape[0], dims.n_expert_groups
    each = n_experts // n_groups
    groups = g.reshape(chosen_by, each, n_groups, n)
    best = g.argsort_top(groups, 2, I32)
    scores = g.get_rows(g.reshape(groups, 1, each, n_groups, n), best)
    scores = g.op("sum rows", (1, n_groups, n), g.reshape(scores, *scores.shape[1:]))
    kept = g.argsort_top(g.reshape(scores, n_groups, n), dims.n_groups_used, I32)
    rows = g.get_rows(groups, kept)
    filled = g.like("fill", groups)
    return g.reshape(g.set_rows(filled, rows, kept), n_experts, n)


def _hidden(maker: Maker, x: Tensor, p: str, ids: Tensor, routing: Routing) -> Tensor:
    """What lies between up and down."""
    g = maker.graph
    if maker.has(f"{p}ffn_gate_up_exps.weight"):
        both = _times_experts(maker, x, f"{p}ffn_gate_up_exps", ids)
        half = both.shape[0] // 2
        shape = (half, *both.shape[1:])
        gate, up = (g.view(both, shape, both.strides) for _ in range(2))
        return maker.activation(routing.kind, gate, up)
    has_gate, biased = (maker.has(f"{p}{name}") for name in ("ffn_gate_exps.weight", "ffn_up_exps.bias"))
    if maker.job.profile.fuses_experts and has_gate and not biased:
        up, gate = (maker.need(f"{p}ffn_{part}_exps.weight") for part in ("up", "gate"))
        return g.op("mul mat id", (up.shape[1], ids.shape[0], x.shape[2]), up, gate, x, ids)
    up = _times_experts(maker, x, f"{p}ffn_up_exps", ids)
    if not maker.has(f"{p}ffn_gate_exps.weight"):
        return maker.activation(routing.kind, up, None)
    gate = _times_experts(maker, x, f"{p}ffn_gate_exps", ids)
    return maker.activation(routing.kind, gate, up)


def _times_experts(maker: Maker, x: Tensor, name: str, ids: Tensor) -> Tensor:
    g = maker.graph
    y = g.mul_mat_id(maker.need(f"{name}.weight"), x, ids)
    scale = maker.weight(f"{name}.scale")
    if scale is not None:
        n = scale.shape[0]
        wide = g.op("repeat", (1, n, x.shape[2]), g.reshape(scale, 1, n, 1))
        y = g.like("mul", y, g.get_rows(wide, ids))
    bias = maker.weight(f"{name}.bias")
    return y if bias is None else g.like("add id", y, bias, ids)
