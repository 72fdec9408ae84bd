"""The twelve models of llama.cpp's snapshots: architecture, sizes, and their matrices.

Sizes are those of the published models. Shapes have rows first. Each kind of tensor
comes with the blocks that have it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ggplan.ggml_types import parse_type
from ggplan.metadata import Metadata, string, uint32
from ggplan.model import Model, TensorInfo

Kinds = dict[str, tuple[Iterable[int], tuple[int, ...]]]


@dataclass(frozen=True)
class Published:
    """One model: the numbers a mix asks for, and its matrices."""

    architecture: str
    n_layers: int
    n_embd: int
    n_vocab: int
    n_heads: int
    n_kv_heads: int
    n_experts: int
    kinds: Kinds
    is_tied: bool = False

    def model(self) -> Model:
        """The model as ggplan sees it, in bf16, with a norm and a router for company."""
        shapes = {"token_embd.weight": (self.n_vocab, self.n_embd), "output_norm.weight": (self.n_embd,)}
        if not self.is_tied:
            shapes["output.weight"] = (self.n_vocab, self.n_embd)
        for layer in range(self.n_layers):
            shapes[f"blk.{layer}.attn_norm.weight"] = (self.n_embd,)
        for kind, (layers, shape) in self.kinds.items():
            for layer in layers:
                shapes[f"blk.{layer}.{kind}.weight"] = shape
                if kind == "ffn_down_exps":
                    shapes[f"blk.{layer}.ffn_gate_inp.weight"] = (self.n_experts, self.n_embd)
        arch = self.architecture
        metadata: Metadata = {
            "general.architecture": string(arch),
            f"{arch}.block_count": uint32(self.n_layers),
            f"{arch}.attention.head_count": uint32(self.n_heads),
            f"{arch}.attention.head_count_kv": uint32(self.n_kv_heads),
        }
        if self.n_experts:
            metadata[f"{arch}.expert_count"] = uint32(self.n_experts)
        bf16, f32 = parse_type("bf16"), parse_type("f32")
        tensors = (
            TensorInfo(name, shape, f32 if len(shape) == 1 or "inp" in name else bf16, "", "BF16")
            for name, shape in shapes.items()
        )
        return Model(Path("model.gguf"), "gguf", arch, metadata, tuple(tensors))


def _attention(layers: Iterable[int], n_embd: int, q: int, kv: int) -> Kinds:
    return {
        "attn_q": (layers, (q, n_embd)),
        "attn_k": (layers, (kv, n_embd)),
        "attn_v": (layers, (kv, n_embd)),
        "attn_output": (layers, (n_embd, q)),
    }


def _ffn(layers: Iterable[int], n_embd: int, n_ff: int, suffix: str = "") -> Kinds:
    return {
        f"ffn_gate{suffix}": (layers, (n_ff, n_embd)),
        f"ffn_up{suffix}": (layers, (n_ff, n_embd)),
        f"ffn_down{suffix}": (layers, (n_embd, n_ff)),
    }


def _experts(layers: Iterable[int], n_embd: int, n_ff: int, n_experts: int) -> Kinds:
    stacked = _ffn(layers, n_embd, n_ff, "_exps")
    return {kind: (layers, (n_experts, *shape)) for kind, (layers, shape) in stacked.items()}


def _dense(arch: str, n_layers: int, n_embd: int, n_vocab: int, n_heads: int, n_kv: int, head: int,
           n_ff: int, is_tied: bool = False) -> Published:  # fmt: skip
    layers = range(n_layers)
    kinds = _attention(layers, n_embd, n_heads * head, n_kv * head) | _ffn(layers, n_embd, n_ff)
    return Published(arch, n_layers, n_embd, n_vocab, n_heads, n_kv, 0, kinds, is_tied)


def _deepseek() -> Published:
    layers, n_embd, n_heads = range(61), 7168, 128
    kinds: Kinds = {
        "attn_q_a": (layers, (1536, n_embd)),
        "attn_q_b": (layers, (n_heads * 192, 1536)),
        "attn_kv_a_mqa": (layers, (576, n_embd)),
        "attn_k_b": (layers, (n_heads, 512, 128)),
        "attn_v_b": (layers, (n_heads, 128, 512)),
        "attn_output": (layers, (n_embd, n_heads * 128)),
    }
    kinds |= _ffn(range(3), n_embd, 18432)
    kinds |= _experts(range(3, 61), n_embd, 2048, 256) | _ffn(range(3, 61), n_embd, 2048, "_shexp")
    return Published("deepseek2", 61, n_embd, 129280, n_heads, 1, 256, kinds)


def _glm_4_6v() -> Published:
    n_embd, moe = 4096, range(1, 46)
    kinds = _attention(range(46), n_embd, 96 * 128, 8 * 128) | _ffn(range(1), n_embd, 10944)
    kinds |= _experts(moe, n_embd, 1408, 128) | _ffn(moe, n_embd, 1408, "_shexp")
    return Published("glm4moe", 46, n_embd, 151552, 96, 8, 128, kinds)


def _gpt_oss() -> Published:
    layers, n_embd = range(36), 2880
    kinds = _attention(layers, n_embd, 64 * 64, 8 * 64) | _experts(layers, n_embd, n_embd, 128)
    return Published("gpt-oss", 36, n_embd, 201088, 64, 8, 128, kinds)


def _nemotron() -> Published:
    n_embd, attention = 2688, (5, 12, 19, 26, 33, 42)
    # M Mamba, E experts, * attention.
    pattern = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    mamba = [i for i, letter in enumerate(pattern) if letter == "M"]
    moe = [i for i, letter in enumerate(pattern) if letter == "E"]
    assert attention == tuple(i for i, letter in enumerate(pattern) if letter == "*")
    kinds = _attention(attention, n_embd, 32 * 128, 2 * 128)
    kinds |= {"ssm_in": (mamba, (10304, n_embd)), "ssm_out": (mamba, (n_embd, 4096))}
    # Experts without a gate.
    kinds |= {"ffn_up_exps": (moe, (128, 1856, n_embd)), "ffn_down_exps": (moe, (128, n_embd, 1856))}
    kinds |= {"ffn_up_shexp": (moe, (3712, n_embd)), "ffn_down_shexp": (moe, (n_embd, 3712))}
    # The first layer has no attention.
    return Published("nemotron_h_moe", 52, n_embd, 131072, 32, 0, 128, kinds)


def _hybrid(arch: str, n_layers: int, n_embd: int, n_vocab: int, n_heads: int, n_kv: int, key: int,
            value: int, ffn: Kinds, n_experts: int, gates: tuple[str, ...]) -> Published:  # fmt: skip
    """Qwen's hybrids: three layers of gated delta net, then one of gated attention with heads of 256."""
    full = [i for i in range(n_layers) if i % 4 == 3]
    linear = [i for i in range(n_layers) if i % 4 != 3]
    kinds = _attention(full, n_embd, n_heads * 256, n_kv * 256)
    kinds["attn_q"] = (full, (2 * n_heads * 256, n_embd))
    kinds |= {
        "attn_qkv": (linear, (2 * key + value, n_embd)),
        "attn_gate": (linear, (value, n_embd)),
        "ssm_out": (linear, (n_embd, value)),
        "ssm_conv1d": (linear, (2 * key + value, 4)),
    }
    kinds |= dict.fromkeys(gates, (linear, (64, n_embd)))
    return Published(arch, n_layers, n_embd, n_vocab, n_heads, n_kv, n_experts, kinds | ffn)


def _step() -> Published:
    layers, moe, n_embd = range(45), range(3, 45), 4096
    kinds = _attention(layers, n_embd, 64 * 128, 8 * 128) | {"attn_gate": (layers, (64, n_embd))}
    kinds |= _ffn(range(3), n_embd, 11264) | _ffn(moe, n_embd, 1280, "_shexp")
    kinds |= _experts(moe, n_embd, 1280, 288)
    return Published("step35", 45, n_embd, 128896, 64, 8, 288, kinds)


def _qwen_moe(layers: range, n_embd: int, n_ff: int) -> Kinds:
    return _experts(layers, n_embd, n_ff, 512) | _ffn(layers, n_embd, n_ff, "_shexp")


PUBLISHED: dict[str, Published] = {
    "deepseek-v3.1": _deepseek(),
    "gemma-3-4b-it": _dense("gemma3", 34, 2560, 262144, 8, 4, 256, 10240, is_tied=True),
    "glm-4.6v": _glm_4_6v(),
    "gpt-oss-120b": _gpt_oss(),
    "meta-llama-3.1-70b-instruct": _dense("llama", 80, 8192, 128256, 64, 8, 128, 28672),
    "nvidia-nemotron-3-nano-30b-a3b": _nemotron(),
    "qwen3-0.6b": _dense("qwen3", 28, 1024, 151936, 16, 8, 128, 3072),
    "qwen3-14b": _dense("qwen3", 40, 5120, 151936, 40, 8, 128, 17408),
    "qwen3-coder-next": _hybrid(
        "qwen3next", 48, 2048, 151936, 16, 2, 2048, 4096, _qwen_moe(range(48), 2048, 512), 512, ("ssm_ba",)
    ),
    "qwen3.5-397b-a17b": _hybrid(
        "qwen35moe", 60, 4096, 248320, 32, 2, 2048, 8192, _qwen_moe(range(60), 4096, 1024), 512,
        ("ssm_alpha", "ssm_beta"),
    ),
    "qwen3.6-27b": _hybrid(
        "qwen35", 64, 5120, 248320, 24, 4, 2048, 6144, _ffn(range(64), 5120, 17408), 0,
        ("ssm_alpha", "ssm_beta"),
    ),
    "step-3.5-flash": _step(),
}  # fmt: skip
