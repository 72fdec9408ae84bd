"""GLM-4.5-Air's tensors: names and shapes (rows first) of the public model, as llama.cpp names them.

The totals were read from files that ik_llama.cpp's quantize really wrote with one type for all, published
as tensor maps by Thireus and the contributors of the GGUF Tool Suite.
"""

from collections.abc import Iterator
from pathlib import Path

from ggplan.ggml_types import parse_type
from ggplan.model import Model, TensorInfo

HIDDEN, VOCABULARY, HEADS, KV = 4096, 151552, 12288, 1024
DENSE, EXPERT, EXPERTS = 10944, 1408, 128
LAYERS = 47  # the last one only predicts further tokens


def tensors() -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield "token_embd.weight", (VOCABULARY, HIDDEN), "bf16"
    yield "output.weight", (VOCABULARY, HIDDEN), "bf16"
    yield "output_norm.weight", (HIDDEN,), "f32"
    for i in range(LAYERS):
        for norm in ("attn_norm", "post_attention_norm"):
            yield f"blk.{i}.{norm}.weight", (HIDDEN,), "f32"
        for name, rows in (("attn_q", HEADS), ("attn_k", KV), ("attn_v", KV)):
            yield f"blk.{i}.{name}.weight", (rows, HIDDEN), "bf16"
            yield f"blk.{i}.{name}.bias", (rows,), "f32"
        yield f"blk.{i}.attn_output.weight", (HIDDEN, HEADS), "bf16"
        if i == 0:
            yield "blk.0.ffn_gate.weight", (DENSE, HIDDEN), "bf16"
            yield "blk.0.ffn_up.weight", (DENSE, HIDDEN), "bf16"
            yield "blk.0.ffn_down.weight", (HIDDEN, DENSE), "bf16"
            continue
        yield f"blk.{i}.ffn_gate_inp.weight", (EXPERTS, HIDDEN), "f32"
        yield f"blk.{i}.exp_probs_b.bias", (EXPERTS,), "f32"
        for name in ("gate", "up"):
            yield f"blk.{i}.ffn_{name}_exps.weight", (EXPERTS, EXPERT, HIDDEN), "bf16"
            yield f"blk.{i}.ffn_{name}_shexp.weight", (EXPERT, HIDDEN), "bf16"
        yield f"blk.{i}.ffn_down_exps.weight", (EXPERTS, HIDDEN, EXPERT), "bf16"
        yield f"blk.{i}.ffn_down_shexp.weight", (HIDDEN, EXPERT), "bf16"
    nextn = f"blk.{LAYERS - 1}.nextn"
    yield f"{nextn}.eh_proj.weight", (HIDDEN, 2 * HIDDEN), "bf16"
    yield f"{nextn}.embed_tokens.weight", (VOCABULARY, HIDDEN), "bf16"
    yield f"{nextn}.shared_head_head.weight", (VOCABULARY, HIDDEN), "bf16"
    for name in ("enorm", "hnorm", "shared_head_norm"):
        yield f"{nextn}.{name}.weight", (HIDDEN,), "f32"


def model() -> Model:
    found = tuple(
        TensorInfo(name, shape, parse_type(type_), "air.map", type_) for name, shape, type_ in tensors()
    )
    return Model(Path("air.map"), "inventory", "glm4moe", {}, found)


# What was asked for all -> the types the file has: number of tensors, bytes.
REAL_FILES = {
    ("q4_0", "llama.cpp"): {"q4_0": (472, 62124539904), "f32": (331, 100793344)},
    ("q4_K", "llama.cpp"): {"q4_K": (379, 42849239040), "f32": (331, 100793344), "q5_0": (93, 23558701056)},
    ("q6_K", "llama.cpp"): {"q6_K": (379, 62488473600), "f32": (331, 100793344), "q8_0": (93, 36408901632)},
    ("q8_0", "llama.cpp"): {"q8_0": (472, 117346353152), "f32": (331, 100793344)},
    ("q2_K", "ik"): {"q2_K": (379, 24995389440), "f32": (331, 100793344), "iq4_nl": (93, 19275300864)},
    ("q3_K", "ik"): {"q3_K": (379, 32732057600), "f32": (331, 100793344), "iq4_nl": (93, 19275300864)},
    ("q5_K", "ik"): {"q5_K": (379, 52371292160), "f32": (331, 100793344), "q6_0": (93, 27842101248)},
    ("iq4_xs", "ik"): {"iq4_xs": (379, 40468725760), "f32": (331, 100793344), "iq4_nl": (93, 19275300864)},
    ("iq4_nl", "ik"): {"iq4_nl": (472, 62124539904), "f32": (331, 100793344)},
}
