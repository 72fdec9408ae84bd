"""The tensors of public models: names as llama.cpp has them, shapes rows first."""

from collections.abc import Iterator

Tensors = dict[str, tuple[int, ...]]


def glm4moe(
    layers: int, hidden: int, dense: int, n_dense: int, expert: int, n_experts: int, qk_norm: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    vocabulary, heads, kv = 151552, 12288, 1024
    yield from head(vocabulary, hidden)
    for i in range(layers):
        b = f"blk.{i}"
        yield f"{b}.attn_norm.weight", (hidden,)
        yield f"{b}.post_attention_norm.weight", (hidden,)
        for name, rows in (("q", heads), ("k", kv), ("v", kv)):
            yield f"{b}.attn_{name}.weight", (rows, hidden)
            yield f"{b}.attn_{name}.bias", (rows,)
        if qk_norm:
            yield f"{b}.attn_q_norm.weight", (128,)
            yield f"{b}.attn_k_norm.weight", (128,)
        yield f"{b}.attn_output.weight", (hidden, heads)
        yield from feed_forward(b, hidden, dense if i < n_dense else 0, expert, n_experts, shared=True)
    nextn = f"blk.{layers - 1}.nextn"
    yield f"{nextn}.eh_proj.weight", (hidden, 2 * hidden)
    yield f"{nextn}.embed_tokens.weight", (vocabulary, hidden)
    yield f"{nextn}.shared_head_head.weight", (vocabulary, hidden)
    for name in ("enorm", "hnorm", "shared_head_norm"):
        yield f"{nextn}.{name}.weight", (hidden,)


def deepseek2() -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = 7168
    yield from head(129280, hidden)
    for i in range(61):
        b = f"blk.{i}"
        yield f"{b}.attn_norm.weight", (hidden,)
        yield f"{b}.ffn_norm.weight", (hidden,)
        yield f"{b}.attn_q_a.weight", (1536, hidden)
        yield f"{b}.attn_q_a_norm.weight", (1536,)
        yield f"{b}.attn_q_b.weight", (24576, 1536)
        yield f"{b}.attn_kv_a_mqa.weight", (576, hidden)
        yield f"{b}.attn_kv_a_norm.weight", (512,)
        yield f"{b}.attn_k_b.weight", (128, 512, 128)
        yield f"{b}.attn_v_b.weight", (128, 128, 512)
        yield f"{b}.attn_output.weight", (hidden, 16384)
        yield from feed_forward(b, hidden, 18432 if i < 3 else 0, 2048, 256, shared=True)


def qwen3moe(
    layers: int, hidden: int, heads: int, kv: int, expert: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from head(151936, hidden)
    for i in range(layers):
        b = f"blk.{i}"
        yield f"{b}.attn_norm.weight", (hidden,)
        yield f"{b}.ffn_norm.weight", (hidden,)
        yield f"{b}.attn_q_norm.weight", (128,)
        yield f"{b}.attn_k_norm.weight", (128,)
        for name, rows in (("q", heads), ("k", kv), ("v", kv)):
            yield f"{b}.attn_{name}.weight", (rows, hidden)
        yield f"{b}.attn_output.weight", (hidden, heads)
        yield from feed_forward(b, hidden, 0, expert, 128, shared=False)


def head(vocabulary: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (vocabulary, hidden)
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (vocabulary, hidden)


def feed_forward(
    b: str, hidden: int, dense: int, expert: int, n_experts: int, shared: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    if dense:
        yield f"{b}.ffn_gate.weight", (dense, hidden)
        yield f"{b}.ffn_up.weight", (dense, hidden)
        yield f"{b}.ffn_down.weight", (hidden, dense)
        return
    yield f"{b}.ffn_gate_inp.weight", (n_experts, hidden)
    yield f"{b}.ffn_gate_exps.weight", (n_experts, expert, hidden)
    yield f"{b}.ffn_up_exps.weight", (n_experts, expert, hidden)
    yield f"{b}.ffn_down_exps.weight", (n_experts, hidden, expert)
    if shared:
        yield f"{b}.exp_probs_b.bias", (n_experts,)
        yield f"{b}.ffn_gate_shexp.weight", (expert, hidden)
        yield f"{b}.ffn_up_shexp.weight", (expert, hidden)
        yield f"{b}.ffn_down_shexp.weight", (hidden, expert)


MODELS: dict[str, Tensors] = {
    "GLM-4.5-Air": dict(glm4moe(47, 4096, 10944, 1, 1408, 128, qk_norm=False)),
    "GLM-4.6": dict(glm4moe(93, 5120, 12288, 3, 1536, 160, qk_norm=True)),
    "DeepSeek-V3.1": dict(deepseek2()),
    "Qwen3-235B-A22B": dict(qwen3moe(94, 4096, 8192, 512, 1536)),
    "Qwen3-30B-A3B": dict(qwen3moe(48, 2048, 4096, 512, 768)),
}
