"""Roles of tensors, by the names of every architecture."""

from ggplan.rules import ROLES, Blocks, roles_of

EXAMPLES = {
    "blk.3.attn_q_a.weight": "attention",
    "blk.3.ssm_out.weight": "attention",
    "blk.3.ffn_gate_exps.weight": "experts.gate",
    "blk.3.ffn_up_chexps.weight": "experts.up",
    "blk.3.ffn_down_exps.weight": "experts.down",
    "blk.3.ffn_up_shexp.weight": "shared",
    "blk.3.ffn_up.weight": "dense",
    "blk.3.ffn_gate_inp.weight": "router",
    "blk.3.ffn_gate_inp_shexp.weight": "router",
    "blk.3.exp_probs_b.bias": "router",
    "blk.3.attn_q.bias": "norm",
    "blk.3.attn_kv_a_norm.weight": "norm",
    "blk.3.attn_sinks.weight": "norm",
    "output_norm.weight": "norm",
    "token_embd.weight": "embeddings",
    "per_layer_token_embd.weight": "embeddings",
    "output.weight": "output",
    "blk.3.attn_output.weight": "attention",
}


def test_examples() -> None:
    assert {name: roles_of(name, Blocks())[0] for name in EXAMPLES} == EXAMPLES
    assert set(EXAMPLES.values()) | {"nextn"} == set(ROLES)


def test_a_fused_tensor_has_both_roles() -> None:
    assert roles_of("blk.3.ffn_gate_up_exps.weight", Blocks()) == ("experts.gate", "experts.up")


def test_the_blocks_of_a_model() -> None:
    names = ["blk.0.attn_q.weight", "blk.46.nextn.eh_proj.weight", "output.weight", "blk.99999999.x"]
    blocks = Blocks.of(names)
    assert blocks == Blocks(47, frozenset({46}))
    assert roles_of("blk.46.ffn_down_exps.weight", blocks) == ("nextn", "experts.down")
    assert roles_of("blk.46.nextn.enorm.weight", blocks) == ("nextn", "norm")
    assert roles_of("blk.45.ffn_down_exps.weight", blocks) == ("experts.down",)


def test_every_name_of_llama_cpp_has_a_role() -> None:
    from gguf.constants import TENSOR_NAMES

    for template in set(TENSOR_NAMES.values()):
        name = template.replace("{bid}", "3").replace("{xid}", "1") + ".weight"
        found = roles_of(name, Blocks())
        assert found, name
        assert set(found) <= set(ROLES)


def test_a_name_of_nobody_has_none() -> None:
    assert roles_of("something.else", Blocks()) == ()
