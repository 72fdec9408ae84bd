"""Nemotron 3 (Nano, Super) and Nemotron-H: the GGUF architectures `nemotron_h_moe` and `nemotron_h`.

Each layer is one thing behind a norm: a state space (Mamba 2), attention, experts, or a dense feed-forward
part; neither of the last two has a gate. `hybrid_override_pattern` tells which, a letter a layer ("M*E-"), or
`layers_block_type`. Q and K are permuted as Llama's, though nothing is rotated. The layer that predicts
further tokens is stored as two, `mtp.layers.0`, attention, and `mtp.layers.1`, experts.

`NemotronHModel` in `conversion/nemotron.py`, `GraniteHybridModel` in `conversion/granite.py` of llama.cpp
b11434. The converter tells a dense model by the absence of `num_experts_per_tok`, which transformers 5 fills
in; here the layers tell.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from ggplan.arch.architecture import Architecture, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout, n_next_tokens
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.state_space import state_space, state_space_specs, write_state_space
from ggplan.arch.tensors import Kinds, Table, TensorSpec
from ggplan.arch.transforms import permuted
from ggplan.errors import CheckpointError
from ggplan.ggml_types import BF16

MODELS = {
    "nemotron_h": "Nemotron-H",
    "nemotron_h_moe": "Nemotron 3 (Nano, Super)",
}

_LAYER = "backbone.layers.{}."
_MTP = "model.mtp.layers."
_SSM, _FULL, _DENSE, _MOE = "ssm", "full", "dense", "moe"
_TYPES = {
    **{"M": _SSM, "mamba": _SSM, "linear_attention": _SSM},
    **{"*": _FULL, "attention": _FULL, "full_attention": _FULL},
    **{"E": _MOE, "moe": _MOE, "-": _DENSE, "mlp": _DENSE},
}
# How the names in the first of the two parts of `mtp.` begin.
_ATTENTION = ("norm.", "enorm.", "hnorm.", "eh_proj.", *(f"mixer.{part}_proj." for part in "qkvo"))
_SIZES = "mamba_num_heads mamba_head_dim n_groups ssm_state_size conv_kernel"


def _table(config: Config, names: Collection[str]) -> Table:
    kinds = _kinds(config)
    layout = Layout("nemotron_h_moe" if _MOE in kinds else "nemotron_h", config)
    layers: list[Kinds] = [frozenset({_MOE, "routed"} if kind == _MOE else {kind}) for kind in kinds]
    last: Kinds = frozenset({_FULL, _MOE, "mtp"})
    width = config.count("hidden_size")
    return Table(
        [
            *layout.layer("backbone.embeddings", prefix="", bias=False),
            *layout.layer("backbone.norm_f", prefix=""),
            *layout.outside("lm_head?"),
            *layout.layer("norm", prefix=_LAYER),
            *state_space_specs(layout, state_space(config, _SIZES), _SSM, f"{_LAYER}mixer."),
            *_attention_specs(layout),
            *layout.layer("mixer.up_proj mixer.down_proj", _DENSE, prefix=_LAYER),
            *(_expert_specs(layout) if _MOE in kinds else ()),
            *layout.layer("eh_proj", "mtp", shape=(width, 2 * width), to="nextn.eh_proj", prefix=_LAYER),
            *layout.layer("enorm", "mtp", to="nextn.enorm", prefix=_LAYER),
            *layout.layer("hnorm", "mtp", to="nextn.hnorm", prefix=_LAYER),
            *layout.layer("final_layernorm", "mtp", to="nextn.shared_head_norm", prefix=_LAYER),
            *layout.layer("post_norm", "mtp", to="post_attention_norm", prefix=_LAYER),
        ],
        [*layers, *[last] * _n_next(config)],
        layout.sizes["X"] or 0,
    )


def _attention_specs(layout: Layout) -> list[TensorSpec]:
    of_q = partial(permuted, n_heads=layout.config.count("num_attention_heads"))
    of_k = partial(permuted, n_heads=heads_kv(layout.config))
    return [
        *layout.layer("mixer.q_proj", _FULL, transform=of_q, prefix=_LAYER),
        *layout.layer("mixer.k_proj", _FULL, transform=of_k, prefix=_LAYER),
        *layout.layer("mixer.v_proj mixer.o_proj", _FULL, prefix=_LAYER),
    ]


def _expert_specs(layout: Layout) -> list[TensorSpec]:
    config = layout.config
    columns, width = config.count("moe_intermediate_size"), config.count("hidden_size")
    latent = config.optional_count("moe_latent_size")  # None too where only names are wanted
    inside = latent or width
    mixer, shared = "mixer.", config.count("moe_shared_expert_intermediate_size", least=0)
    specs = [
        *layout.layer(f"{mixer}gate", "routed", prefix=_LAYER),
        # The converter knows routers, which stay f32, by the number of the layer; here it has that of `mtp.`
        *layout.layer(f"{mixer}gate", "mtp", type=BF16, prefix=_LAYER),
        *layout.parameter(
            f"{mixer}gate.e_score_correction_bias",
            _MOE,
            like=f"{mixer}gate.e_score_correction.bias",
            prefix=_LAYER,
        ),
        *layout.layer(
            f"{mixer}experts.{{}}.down_proj", _MOE, shape=(inside, columns), to="ffn_down_exps", prefix=_LAYER
        ),
        *layout.layer(
            f"{mixer}experts.{{}}.up_proj", _MOE, shape=(columns, inside), to="ffn_up_exps", prefix=_LAYER
        ),
        *layout.layer(f"{mixer}shared_experts.up_proj", _MOE, shape=(shared, width), prefix=_LAYER),
        *layout.layer(f"{mixer}shared_experts.down_proj", _MOE, shape=(width, shared), prefix=_LAYER),
    ]
    if latent is None and config.assumed is None:
        return specs
    return [
        *specs,
        *layout.layer(f"{mixer}fc1_latent_proj", _MOE, shape=(latent, width), prefix=_LAYER),
        *layout.layer(f"{mixer}fc2_latent_proj", _MOE, shape=(width, latent), prefix=_LAYER),
    ]


def _kinds(config: Config) -> list[str]:
    """What each layer is; one of each where only names are wanted."""
    if config.assumed is not None:
        return [_SSM, _FULL, _MOE if "moe_intermediate_size" in config.values else _DENSE]
    key = "layers_block_type"
    if not config.values.get(key) and config.values.get("layer_types"):
        key = "layer_types"
    types: list[str] | str = config.texts(key)
    if not types:
        key = "hybrid_override_pattern"
        types = config.optional_text(key) or ""
    if not types:
        raise CheckpointError(f"{config.where} lacks layers_block_type and {key}")
    if unknown := set(types) - _TYPES.keys():
        raise config.wrong(key, f"has '{min(unknown)}', which llama.cpp does not know")
    if len(types) > config.n_tensors:
        raise config.wrong(
            key, f"names {len(types)} layers, but the checkpoint has {config.n_tensors} tensors"
        )
    kinds = [_TYPES[type_] for type_ in types]
    if {_MOE, _DENSE} <= set(kinds):
        raise config.wrong(
            key, "has layers with experts and dense ones, which llama.cpp's nemotron_h_moe has not"
        )
    return kinds


def _n_next(config: Config) -> int:
    n_next = n_next_tokens(config)
    if n_next > 1:
        raise config.wrong("num_nextn_predict_layers", f"is {n_next}; llama.cpp knows one such layer")
    return n_next


def _write_keys(keys: Keys, config: Config) -> None:
    kinds = _kinds(config)
    n_next = _n_next(config)
    kinds_at = [{kind} for kind in kinds] + [{_FULL, _MOE}] * n_next
    plain = Config(
        config.where, {k: v for k, v in config.values.items() if k != "head_dim"}, config.n_tensors
    )
    text_keys(keys, plain, n_blocks=len(kinds_at))
    keys.count("vocab_size", config.count("vocab_size"))
    width, n_q = config.count("hidden_size"), config.count("num_attention_heads")
    keys.count("rope.dimension_count", max(1, width // n_q))
    write_state_space(keys, state_space(config, _SIZES))
    keys.counts("attention.head_count_kv", [heads_kv(config) if _FULL in kind else 0 for kind in kinds_at])
    keys.flag("rope.scaling.finetuned", _SSM not in kinds)
    if _SSM in kinds:
        keys.count("context_length", 1 << 20)
    head = config.optional_count("head_dim") or config.count("attention_head_dim")
    keys.count("attention.key_length", head)
    keys.count("attention.value_length", head)
    if _MOE not in kinds:
        columns = config.count("intermediate_size")
        keys.counts("feed_forward_length", [columns if _DENSE in kind else 0 for kind in kinds_at])
        return
    columns = config.count("moe_intermediate_size")
    keys.counts("feed_forward_length", [columns if _MOE in kind else 0 for kind in kinds_at])
    keys.count("expert_used_count", config.count("num_experts_per_tok"))
    keys.count("expert_feed_forward_length", columns)
    shared = config.count("moe_shared_expert_intermediate_size", least=0)
    keys.count("expert_shared_feed_forward_length", shared)
    keys.count("expert_count", config.count("n_routed_experts"))
    keys.count("expert_shared_count", config.count("n_shared_experts", least=0))
    keys.flag("expert_weights_norm", config.optional_flag("norm_topk_prob"))
    keys.number("expert_weights_scale", config.optional_number("routed_scaling_factor"))
    keys.count("expert_group_count", config.count("n_group"))
    keys.count("moe_latent_size", config.optional_count("moe_latent_size"))
    keys.count("nextn_predict_layers", n_next or None)


def _rename(config: Config, name: str) -> str:
    """`backbone.` for all, as published; `mtp.layers.0` and `.1` as one layer after the others."""
    if name.startswith(_MTP):
        number, _, last = name.removeprefix(_MTP).partition(".")
        if number not in ("0", "1"):
            return name
        if number == "1" and last == "norm.weight":
            last = "post_norm.weight"
        return f"{_LAYER.format(len(_kinds(config)))}{last}"
    return (
        name
        if name.startswith("lm_head.")
        else f"backbone.{name.removeprefix('model.').removeprefix('backbone.')}"
    )


def _published(name: str, first: int) -> str:
    """The name of a tensor of the layer that predicts further tokens, which is stored as two."""
    at = _LAYER.format(first)
    if not name.startswith(at):
        return name
    last = name.removeprefix(at)
    return f"mtp.layers.{0 if last.startswith(_ATTENTION) else 1}.{last.replace('post_norm.', 'norm.')}"


def _counted(config: Config, names: Collection[str]) -> dict[str, int]:
    """The layers that predict further tokens: none where transformers dropped them."""
    last = _LAYER.format(len(_kinds(config)))
    is_there = any(name.startswith(last) for name in names)
    return {"num_nextn_predict_layers": n_next_tokens(config) if is_there else 0}


_MOE_DEFAULTS: dict[str, object] = {
    "conv_kernel": 4,
    "head_dim": 128,
    "layer_norm_epsilon": 1e-5,
    "mamba_head_dim": 64,
    "mamba_num_heads": 128,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 7688,
    "moe_shared_expert_intermediate_size": 7688,
    "n_group": 1,
    "n_groups": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 8,
    "routed_scaling_factor": 1.0,
    "ssm_state_size": 128,
    "topk_group": 1,
}
_DENSE_MODEL = Architecture("nemotron_h", _table, _write_keys, {}, rename=_rename)


def _variant(config: Config) -> Architecture | None:
    return None if _MOE in _kinds(config) else _DENSE_MODEL


CLASSES = {
    "NemotronHForCausalLM": Architecture(
        "nemotron_h_moe",
        _table,
        _write_keys,
        _MOE_DEFAULTS,
        rename=_rename,
        published=_published,
        counted=_counted,
        variant=_variant,
    ),
    "NemotronHForCausalLM (dense)": _DENSE_MODEL,
}
