"""Make the inventories that ship with ggplan: names, types and shapes of public models, from their configs.

    python tools/make_inventories.py

writes `ggplan/inventories/data/*.txt`. The numbers are those of each model's `config.json` on the Hub; the
names and types are what llama.cpp's converter makes of them (b11434). `tests/inventories` holds the
results against published files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
DATA = ROOT / "ggplan" / "inventories" / "data"

Line = tuple[str, str, tuple[int, ...]]
"""Name behind `blk.N.` (or whole), type, shape with rows first."""


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention."""

    heads: int
    kv_heads: int
    head_size: int
    bias: bool = False
    head_norms: bool = False  # one norm for each head's queries and keys
    row_norms: bool = False  # one norm over all of them
    output_columns: int = 0  # of attn_output, where queries have more rows

    def lines(self, hidden: int) -> Iterator[Line]:  # noqa: D102
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"attn_{name}.weight", "bf16", (rows, hidden)
            if self.bias:
                yield f"attn_{name}.bias", "f32", (rows,)
        yield "attn_output.weight", "bf16", (hidden, self.output_columns or q)
        if self.head_norms or self.row_norms:
            yield "attn_q_norm.weight", "f32", (q if self.row_norms else self.head_size,)
            yield "attn_k_norm.weight", "f32", (kv if self.row_norms else self.head_size,)


@dataclass(frozen=True)
class Latent:
    """DeepSeek's multi-head latent attention, with k_b and v_b apart as llama.cpp wants them."""

    heads: int
    kv_heads: int = 1
    q_rank: int = 1536
    kv_rank: int = 512
    nope: int = 128
    rope: int = 64
    value: int = 128
    indexer_heads: int = 0

    def lines(self, hidden: int) -> Iterator[Line]:  # noqa: D102
        yield "attn_q_a.weight", "bf16", (self.q_rank, hidden)
        yield "attn_q_a_norm.weight", "f32", (self.q_rank,)
        yield "attn_q_b.weight", "bf16", (self.heads * (self.nope + self.rope), self.q_rank)
        yield "attn_kv_a_mqa.weight", "bf16", (self.kv_rank + self.rope, hidden)
        yield "attn_kv_a_norm.weight", "f32", (self.kv_rank,)
        yield "attn_k_b.weight", "bf16", (self.heads, self.kv_rank, self.nope)
        yield "attn_v_b.weight", "bf16", (self.heads, self.value, self.kv_rank)
        yield "attn_output.weight", "bf16", (hidden, self.heads * self.value)
        if self.indexer_heads:
            yield "indexer.k_norm.weight", "f32", (128,)
            yield "indexer.k_norm.bias", "f32", (128,)
            yield "indexer.proj.weight", "f32", (self.indexer_heads, hidden)
            yield "indexer.attn_k.weight", "bf16", (128, hidden)
            yield "indexer.attn_q_b.weight", "bf16", (self.indexer_heads * 128, self.q_rank)


@dataclass(frozen=True)
class Gated(Attention):
    """Qwen3.5: a gated delta net in three of four layers, attention with gated queries in the fourth."""

    state_heads: int = 0  # of the delta net, each of `state_size`
    key_heads: int = 16
    state_size: int = 128
    interval: int = 4

    def lines_of(self, layer: int, hidden: int) -> Iterator[Line]:  # noqa: D102
        if layer % self.interval == self.interval - 1:
            columns = self.heads * self.head_size
            yield from replace(self, heads=2 * self.heads, output_columns=columns).lines(hidden)
            return
        inner = self.state_heads * self.state_size
        convolved = inner + 2 * self.key_heads * self.state_size
        yield "attn_qkv.weight", "bf16", (convolved, hidden)
        yield "attn_gate.weight", "bf16", (inner, hidden)
        yield "ssm_conv1d.weight", "f32", (convolved, 4)
        yield "ssm_dt.bias", "f32", (self.state_heads,)
        yield "ssm_a", "f32", (self.state_heads,)
        yield "ssm_beta.weight", "bf16", (self.state_heads, hidden)
        yield "ssm_alpha.weight", "bf16", (self.state_heads, hidden)
        yield "ssm_norm.weight", "f32", (self.state_size,)
        yield "ssm_out.weight", "bf16", (hidden, inner)

    def numbers(self) -> dict[str, int]:  # noqa: D102
        return {
            "attention.key_length": self.head_size,
            "attention.value_length": self.head_size,
            "rope.dimension_count": self.head_size // 4,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": self.state_heads * self.state_size,
            "ssm.state_size": self.state_size,
            "ssm.time_step_rank": self.state_heads,
            "ssm.group_count": self.key_heads,
            "full_attention_interval": self.interval,
        }


@dataclass(frozen=True)
class Experts:
    """Routed experts, perhaps with a shared one beside them and a bias on the router."""

    count: int
    used: int
    width: int
    shared: bool = False
    router_bias: bool = False
    shared_gate: bool = False

    def lines(self, hidden: int) -> Iterator[Line]:  # noqa: D102
        yield "ffn_gate_inp.weight", "f32", (self.count, hidden)
        if self.router_bias:
            yield "exp_probs_b.bias", "f32", (self.count,)
        for name in ("gate", "up"):
            yield f"ffn_{name}_exps.weight", "bf16", (self.count, self.width, hidden)
        yield "ffn_down_exps.weight", "bf16", (self.count, hidden, self.width)
        if self.shared_gate:
            yield "ffn_gate_inp_shexp.weight", "f32", (hidden,)
        if self.shared:
            for name in ("gate", "up"):
                yield f"ffn_{name}_shexp.weight", "bf16", (self.width, hidden)
            yield "ffn_down_shexp.weight", "bf16", (hidden, self.width)


@dataclass(frozen=True)
class Dimensions:
    """What names and shapes follow from. `dense_layers` have a plain FFN of width `dense`."""

    hub: str
    architecture: str
    layers: int
    hidden: int
    vocabulary: int
    attention: Attention | Latent
    dense: int = 0
    dense_layers: int = 0
    experts: Experts | None = None
    norms: tuple[str, str] = ("attn_norm", "ffn_norm")
    nextn: str = ""  # "" none; "whole" with its own embeddings and head; "bare" without
    also: tuple[str, ...] = ()
    head: tuple[Line, ...] = field(default=())
    more: tuple[tuple[str, int], ...] = ()  # metadata


GLM_NORMS = ("attn_norm", "post_attention_norm")


def glm(hub: str, layers: int, hidden: int, dense: int, dense_layers: int, experts: Experts, nextn: str,
        head_norms: bool) -> Dimensions:  # fmt: skip
    attention = Attention(96, 8, 128, bias=True, head_norms=head_norms)
    return Dimensions(hub, "glm4moe", layers, hidden, 151552, attention, dense, dense_layers, experts,
                      GLM_NORMS, nextn)  # fmt: skip


def qwen3moe(hub: str, layers: int, hidden: int, heads: int, kv: int, experts: Experts,
             also: tuple[str, ...] = ()) -> Dimensions:  # fmt: skip
    attention = Attention(heads, kv, 128, head_norms=True)
    return Dimensions(hub, "qwen3moe", layers, hidden, 151936, attention, experts=experts, also=also)


def dense(hub: str, architecture: str, layers: int, hidden: int, heads: int, width: int, vocabulary: int,
          also: tuple[str, ...] = ()) -> Dimensions:  # fmt: skip
    qwen = architecture == "qwen3"
    attention = Attention(heads, 8, 128, head_norms=qwen)
    head = () if qwen else (("rope_freqs.weight", "f32", (64,)),)
    return Dimensions(
        hub, architecture, layers, hidden, vocabulary, attention, width, layers, also=also, head=head
    )


def qwen35(hub: str, layers: int, hidden: int, attention: Gated, also: tuple[str, ...] = (), *,
           dense: int = 0, experts: Experts | None = None, nextn: str = "") -> Dimensions:  # fmt: skip
    more = dict(attention.numbers())
    more["feed_forward_length" if dense else "expert_feed_forward_length"] = dense or (
        experts.width if experts else 0
    )
    return Dimensions(
        hub, "qwen35moe" if experts else "qwen35", layers, hidden, 248320, attention, dense,
        layers if dense else 0, experts, GLM_NORMS, nextn, also, more=tuple(more.items()),
    )  # fmt: skip


_GLM_LARGE = Experts(160, 8, 1536, shared=True, router_bias=True)
_DEEPSEEK = Experts(256, 8, 2048, shared=True, router_bias=True)

_GLM_5 = tuple({
    "attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 256,
    "attention.value_length_mla": 256, "attention.q_lora_rank": 2048, "attention.kv_lora_rank": 512,
    "rope.dimension_count": 64, "attention.indexer.head_count": 32, "attention.indexer.key_length": 128,
    "attention.indexer.top_k": 2048, "expert_feed_forward_length": 2048, "expert_shared_count": 1,
    "leading_dense_block_count": 3, "feed_forward_length": 12288,
}.items())  # fmt: skip

MODELS = {
    "GLM-4.5-Air": glm("zai-org/GLM-4.5-Air", 47, 4096, 10944, 1,
                       Experts(128, 8, 1408, shared=True, router_bias=True), "whole", False),
    "GLM-4.5": glm("zai-org/GLM-4.5", 93, 5120, 12288, 3, _GLM_LARGE, "whole", True),
    "GLM-4.6": glm("zai-org/GLM-4.6", 93, 5120, 12288, 3, _GLM_LARGE, "bare", True),
    "GLM-4.7": glm("zai-org/GLM-4.7", 93, 5120, 12288, 3, _GLM_LARGE, "whole", True),
    "DeepSeek-V3": Dimensions("deepseek-ai/DeepSeek-V3", "deepseek2", 61, 7168, 129280, Latent(128), 18432, 3,
                          _DEEPSEEK,
                          also=("DeepSeek-V3-0324", "DeepSeek-R1", "DeepSeek-R1-0528", "DeepSeek-V3.1",
                                "DeepSeek-V3.1-Terminus")),
    "Kimi-K2": Dimensions("moonshotai/Kimi-K2-Instruct", "deepseek2", 61, 7168, 163840, Latent(64), 18432, 1,
                      Experts(384, 8, 2048, shared=True, router_bias=True),
                      also=("Kimi-K2-Instruct", "Kimi-K2-Instruct-0905", "Kimi-K2-Thinking")),
    "Qwen3-235B-A22B": qwen3moe("Qwen/Qwen3-235B-A22B", 94, 4096, 64, 4, Experts(128, 8, 1536),
                                ("Qwen3-235B-A22B-Instruct-2507", "Qwen3-235B-A22B-Thinking-2507")),
    "Qwen3-Coder-480B-A35B": qwen3moe("Qwen/Qwen3-Coder-480B-A35B-Instruct", 62, 6144, 96, 8,
                                      Experts(160, 8, 2560),
                                      ("Qwen3-Coder-480B", "Qwen3-Coder-480B-A35B-Instruct")),
    "Qwen3-30B-A3B": qwen3moe("Qwen/Qwen3-30B-A3B", 48, 2048, 32, 4, Experts(128, 8, 768),
                              ("Qwen3-30B-A3B-Instruct-2507", "Qwen3-30B-A3B-Thinking-2507",
                               "Qwen3-Coder-30B-A3B", "Qwen3-Coder-30B-A3B-Instruct")),
    "MiniMax-M2": Dimensions("MiniMaxAI/MiniMax-M2", "minimax-m2", 62, 3072, 200064,
                         Attention(48, 8, 128, row_norms=True),
                         experts=Experts(256, 8, 1536, router_bias=True)),
    "gpt-oss-20b": Dimensions("openai/gpt-oss-20b", "gpt-oss", 24, 2880, 201088, Attention(64, 8, 64),
                          experts=Experts(32, 4, 2880)),
    "gpt-oss-120b": Dimensions("openai/gpt-oss-120b", "gpt-oss", 36, 2880, 201088, Attention(64, 8, 64),
                           experts=Experts(128, 4, 2880)),
    "Llama-3.1-8B": dense("meta-llama/Llama-3.1-8B", "llama", 32, 4096, 32, 14336, 128256,
                          ("Llama-3.1-8B-Instruct",)),
    "Llama-3.3-70B": dense("meta-llama/Llama-3.3-70B-Instruct", "llama", 80, 8192, 64, 28672, 128256,
                           ("Llama-3.1-70B", "Llama-3.1-70B-Instruct", "Llama-3.3-70B-Instruct")),
    "GLM-5": Dimensions("zai-org/GLM-5", "glm-dsa", 79, 6144, 154880,
                        Latent(64, 1, 2048, 512, 192, 64, 256, indexer_heads=32), 12288, 3, _DEEPSEEK,
                        nextn="bare", also=("GLM-5.1",), more=_GLM_5),
    "Qwen3.5-27B": qwen35("Qwen/Qwen3.5-27B", 64, 5120, Gated(24, 4, 256, head_norms=True, state_heads=48),
                          ("Qwen3.6-27B",), dense=17408),
    "Qwen3.5-35B-A3B": qwen35("Qwen/Qwen3.5-35B-A3B", 40, 2048,
                              Gated(16, 2, 256, head_norms=True, state_heads=32), ("Qwen3.6-35B-A3B",),
                              experts=Experts(256, 8, 512, shared=True, shared_gate=True)),
    "Qwen3.5-397B-A17B": qwen35("Qwen/Qwen3.5-397B-A17B", 61, 4096,
                                Gated(32, 2, 256, head_norms=True, state_heads=64), nextn="bare",
                                experts=Experts(512, 10, 1024, shared=True, shared_gate=True)),
    "Qwen3-8B": dense("Qwen/Qwen3-8B", "qwen3", 36, 4096, 32, 12288, 151936),
    "Qwen3-14B": dense("Qwen/Qwen3-14B", "qwen3", 40, 5120, 40, 17408, 151936),
    "Qwen3-32B": dense("Qwen/Qwen3-32B", "qwen3", 64, 5120, 64, 25600, 151936),
}  # fmt: skip


def main() -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    for name, dimensions in MODELS.items():
        (DATA / f"{name}.txt").write_text(text(dimensions), encoding="utf-8")


def text(dimensions: Dimensions) -> str:
    """The file of one model."""
    lines = [
        f"# {dimensions.hub}; made by tools/make_inventories.py",
        f"architecture {dimensions.architecture}",
        *(f"also {name}" for name in dimensions.also),
        *(f"{key} {value}" for key, value in numbers(dimensions).items()),
        "",
    ]
    outside = [
        ("token_embd.weight", "bf16", (dimensions.vocabulary, dimensions.hidden)),
        ("output_norm.weight", "f32", (dimensions.hidden,)),
        ("output.weight", "bf16", (dimensions.vocabulary, dimensions.hidden)),
        *dimensions.head,
    ]
    lines += [_line(*line) for line in outside]
    runs: dict[Line, list[int]] = {}
    for layer in range(dimensions.layers):
        for line in block(dimensions, layer):
            runs.setdefault(line, []).append(layer)
    for (name, type_, shape), layers in runs.items():
        for first, last in _together(layers):
            lines.append(f"{first}..{last} {_line(name, type_, shape)}")
    return "\n".join(lines) + "\n"


def _together(layers: list[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each run of layers."""
    first = last = layers[0]
    for layer in layers[1:]:
        if layer != last + 1:
            yield first, last
            first = layer
        last = layer
    yield first, last


def _line(name: str, type_: str, shape: tuple[int, ...]) -> str:
    return " ".join((name, type_, *map(str, shape)))


def numbers(dimensions: Dimensions) -> dict[str, int]:
    """The metadata that plans depend on, without the architecture before each key."""
    found = {
        "block_count": dimensions.layers,
        "embedding_length": dimensions.hidden,
        "attention.head_count": dimensions.attention.heads,
        "attention.head_count_kv": dimensions.attention.kv_heads,
    }
    if dimensions.experts:
        found |= {"expert_count": dimensions.experts.count, "expert_used_count": dimensions.experts.used}
    if dimensions.nextn:
        found["nextn_predict_layers"] = 1
    return found | dict(dimensions.more)


def block(dimensions: Dimensions, layer: int) -> Iterator[Line]:
    """The tensors of one block."""
    hidden = dimensions.hidden
    if dimensions.architecture == "gpt-oss":
        yield from gpt_oss_block(dimensions)
        return
    for norm in dimensions.norms:
        yield f"{norm}.weight", "f32", (hidden,)
    is_drafting = bool(dimensions.nextn) and layer == dimensions.layers - 1
    if isinstance(dimensions.attention, Gated):  # a block that drafts has attention
        at = dimensions.attention.interval - 1 if is_drafting else layer
        yield from dimensions.attention.lines_of(at, hidden)
    else:
        yield from dimensions.attention.lines(hidden)
    if layer < dimensions.dense_layers:
        yield "ffn_gate.weight", "bf16", (dimensions.dense, hidden)
        yield "ffn_up.weight", "bf16", (dimensions.dense, hidden)
        yield "ffn_down.weight", "bf16", (hidden, dimensions.dense)
    elif dimensions.experts:
        yield from dimensions.experts.lines(hidden)
    if dimensions.nextn and layer == dimensions.layers - 1:
        yield "nextn.eh_proj.weight", "bf16", (hidden, 2 * hidden)
        for norm in ("enorm", "hnorm", "shared_head_norm"):
            yield f"nextn.{norm}.weight", "f32", (hidden,)
        if dimensions.nextn == "whole":
            yield "nextn.embed_tokens.weight", "bf16", (dimensions.vocabulary, hidden)
            yield "nextn.shared_head_head.weight", "bf16", (dimensions.vocabulary, hidden)


def gpt_oss_block(dimensions: Dimensions) -> Iterator[Line]:
    """gpt-oss has biases everywhere, attention sinks, and experts that were trained in MXFP4."""
    hidden, attention, experts = dimensions.hidden, dimensions.attention, dimensions.experts
    assert isinstance(attention, Attention)
    assert experts is not None
    for norm in GLM_NORMS:
        yield f"{norm}.weight", "f32", (hidden,)
    q, kv = attention.heads * attention.head_size, attention.kv_heads * attention.head_size
    for name, rows, columns in (
        ("q", q, hidden),
        ("k", kv, hidden),
        ("v", kv, hidden),
        ("output", hidden, q),
    ):
        yield f"attn_{name}.weight", "bf16", (rows, columns)
        yield f"attn_{name}.bias", "f32", (rows,)
    yield "attn_sinks.weight", "f32", (attention.heads,)
    yield "ffn_gate_inp.weight", "f32", (experts.count, hidden)
    yield "ffn_gate_inp.bias", "f32", (experts.count,)
    for name in ("gate", "up", "down"):
        yield f"ffn_{name}_exps.weight", "mxfp4", (experts.count, hidden, experts.width)
        yield f"ffn_{name}_exps.bias", "f32", (experts.count, hidden)


if __name__ == "__main__":
    main()
