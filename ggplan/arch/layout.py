"""The tensors of a family, told by the names that transformers gives them.

    layout = Layout("qwen2", config)
    layout.outside("model.embed_tokens model.norm lm_head?")
    layout.layer("self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj")

A name is that of a module, whose `.weight` must be there and whose `.bias` may be; with `?` behind it the
module may be absent from all layers. The GGUF's name comes from the gguf package's tables. The shape comes
from the GGUF's name and the sizes in config.json (`SHAPES`); where it cannot, the family states it or all
layers must have the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

from ggplan.arch.architecture import LAYER, head_width, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.metadata import n_experts
from ggplan.arch.names import gguf_name
from ggplan.arch.tensors import Shape, TensorSpec
from ggplan.arch.transforms import plain, sliced
from ggplan.errors import CheckpointError
from ggplan.ggml_types import GgmlType
from ggplan.model import RowSource

# What a letter in SHAPES stands for: vocabulary, width of the model, of a head, of all heads of Q, of all
# heads of K; columns of a dense feed-forward part, of an expert, of the shared expert; experts. 1 is one.
SIZES = "VEHQKFMSX"
_GATED = {"gate": "{}E", "up": "{}E", "down": "E{}"}
# The shape of the checkpoint's matrix or vector that becomes a GGUF tensor, without the experts it is
# stacked of.
SHAPES: Mapping[str, str] = {
    "token_embd": "VE",
    "output": "VE",
    "output_norm": "E",
    **{f"blk.{{}}.{norm}": "E" for norm in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")},
    "blk.{}.attn_q": "QE",
    "blk.{}.attn_k": "KE",
    "blk.{}.attn_v": "KE",
    "blk.{}.attn_output": "EQ",
    "blk.{}.attn_q_norm": "H",
    "blk.{}.attn_k_norm": "H",
    "blk.{}.ffn_gate_inp": "XE",
    "blk.{}.ffn_gate_inp_shexp": "1E",
    "blk.{}.exp_probs_b": "X",
    **{f"blk.{{}}.ffn_{part}": shape.format("F") for part, shape in _GATED.items()},
    **{f"blk.{{}}.ffn_{part}_exps": shape.format("M") for part, shape in _GATED.items()},
    **{f"blk.{{}}.ffn_{part}_shexp": shape.format("S") for part, shape in _GATED.items()},
    "blk.{}.nextn.embed_tokens": "VE",
    "blk.{}.nextn.shared_head_head": "VE",
    "blk.{}.nextn.shared_head_norm": "E",
    "blk.{}.nextn.enorm": "E",
    "blk.{}.nextn.hnorm": "E",
}


class Layout:
    """Makes the `TensorSpec` of a family's tensors.

    Parameters
    ----------
    architecture
        The GGUF's `general.architecture`, whose names are used.
    config
        The model's config.
    sizes
        Sizes by letter that are not what config.json's usual keys say; None leaves one open.
    """

    def __init__(self, architecture: str, config: Config, **sizes: int | None) -> None:
        unknown = sizes.keys() - set(SIZES)
        if unknown:
            raise ValueError(f"SHAPES has no size called {', '.join(unknown)}")
        self.architecture = architecture
        self.config = config
        self.sizes = _usual_sizes(config) | sizes

    def outside(
        self,
        names: str,
        *,
        shape: Shape = None,
        transform: Callable[[RowSource], RowSource] = plain,
        type: GgmlType | None = None,
    ) -> list[TensorSpec]:
        """The modules outside the layers, by their whole names; see `layer`."""
        specs = self.layer(names, prefix="", shape=shape, transform=transform, type=type)
        return [replace(spec, bias=spec.target != "token_embd.weight") for spec in specs]

    def layer(
        self,
        names: str,
        kind: str = "",
        *,
        shape: Shape = None,
        transform: Callable[[RowSource], RowSource] = plain,
        bias: bool = True,
        type: GgmlType | None = None,
        like: str = "",
        to: str = "",
        prefix: str = LAYER,
    ) -> list[TensorSpec]:
        """The modules of each layer of a kind, by their names in the layer.

        Parameters
        ----------
        names
            With a space between them; `?` behind one that may be absent from all these layers.
        kind
            The kind of layers that have them, "" for all.
        shape
            Of the checkpoint's tensor; None for what follows from the GGUF's name.
        transform
            Makes the GGUF tensor's rows of the checkpoint's.
        bias
            Whether a bias may stand beside the weight.
        type
            The type of the GGUF tensor, whatever the checkpoint's is.
        like, to
            The name under which the tables have it, or the GGUF's name in the layer where they do not.
        prefix
            What stands before the names.
        """
        specs = []
        for written in names.split():
            name = written.removesuffix("?")
            target = self._target(prefix, like or name, to)
            specs.append(
                TensorSpec(
                    f"{prefix}{name}.weight",
                    f"{target}.weight",
                    shape or self._shape(target),
                    kind,
                    optional=written.endswith("?"),
                    transform=transform,
                    bias=bias,
                    type=type,
                )
            )
        return specs

    def parameter(
        self,
        name: str,
        kind: str = "",
        *,
        shape: Shape = None,
        transform: Callable[[RowSource], RowSource] = plain,
        type: GgmlType | None = None,
        like: str = "",
        to: str = "",
        prefix: str = LAYER,
    ) -> list[TensorSpec]:
        """A tensor of each layer whose name is no module's `.weight` or `.bias`.

        `like` or `to` says its name with that ending: `like="mlp.gate.e_score_correction.bias"`;
        `prefix` what stands before the names.
        """
        target = self._target(prefix, like or name.removesuffix("?"), to)
        return [
            TensorSpec(
                prefix + name.removesuffix("?"),
                target,
                shape or self._shape(target.rpartition(".")[0]),
                kind,
                optional=name.endswith("?"),
                transform=transform,
                type=type,
            )
        ]

    def experts(
        self,
        names: Collection[str],
        modules: str = "mlp.experts.down_proj mlp.experts.gate_proj mlp.experts.up_proj",
        kind: str = "moe",
    ) -> list[TensorSpec]:
        """The routed experts of a layer, in the order in which the converter writes them.

        They are stored one by one, or fused as transformers 5 keeps them: `experts.gate_up_proj` of all
        experts, the rows of gate first, and `experts.down_proj`.

        Parameters
        ----------
        names
            The checkpoint's tensors, which show how they are stored.
        modules
            Their names in the layer, without the expert's number.
        """
        if any(name.removesuffix(".weight").endswith(".experts.gate_up_proj") for name in names):
            return self._fused_experts(names, kind)
        specs = []
        for module in modules.split():
            source = module.replace(".experts.", ".experts.{}.")
            (spec,) = self.layer(source, kind, like=module)
            specs.append(spec)
        return specs

    def _fused_experts(self, names: Collection[str], kind: str) -> list[TensorSpec]:
        n, columns, width = self.sizes["X"], self.sizes["M"], self.sizes["E"]
        if n is None or columns is None:
            raise CheckpointError(f"{self.config.where} lacks the number of experts or their columns")
        prefix, shape = LAYER + "mlp.experts.", (n, 2 * columns, width)
        suffix = ".weight" if any(name.endswith(".experts.gate_up_proj.weight") for name in names) else ""
        half = partial(sliced, group=2 * columns, length=columns)
        return [
            TensorSpec(
                f"{prefix}{source}_proj{suffix}",
                self._target(LAYER, f"mlp.experts.{part}_proj.weight", ""),
                shape_,
                kind,
                transform=transform,
                bias=False,
            )
            for source, part, shape_, transform in (
                ("gate_up", "gate", shape, partial(half, offset=0)),
                ("gate_up", "up", shape, partial(half, offset=columns)),
                ("down", "down", (n, width, columns), plain),
            )
        ]

    def shared_experts(self, prefix: str = "mlp.shared_experts.", kind: str = "moe") -> list[TensorSpec]:
        """The expert that all tokens pass through; none where config.json says so."""
        if self.sizes["S"] == 0:
            return []
        return self.layer(" ".join(f"{prefix}{part}_proj" for part in ("down", "gate", "up")), kind)

    def next_tokens(self, kind: str = "mtp") -> list[TensorSpec]:
        """What a layer that predicts further tokens has beside that of a layer."""
        width = self.config.count("hidden_size")
        return [
            *self.layer("eh_proj", kind, shape=(width, 2 * width), bias=False),
            *self.layer("embed_tokens? enorm hnorm shared_head.head? shared_head.norm?", kind, bias=False),
        ]

    def _target(self, prefix: str, name: str, to: str) -> str:
        return f"{prefix and 'blk.{}.'}{to}" if to else gguf_name(self.architecture, prefix + name)

    def _shape(self, target: str) -> Shape:
        letters = SHAPES.get(target)
        return (
            None
            if letters is None
            else tuple(1 if letter == "1" else self.sizes[letter] for letter in letters)
        )


def n_next_tokens(config: Config) -> int:
    """Layers that predict further tokens, after the others."""
    key = "num_nextn_predict_layers"
    return 0 if config.values.get(key) is None else config.layers(key, least=0)


def _usual_sizes(config: Config) -> dict[str, int | None]:
    """The sizes by letter; None for one that each layer has its own of."""

    def one(key: str, *, least: int = 1) -> int | None:
        is_of_layers = isinstance(config.values.get(key), list)
        return None if is_of_layers else config.optional_count(key, least=least)

    heads_differ = any(
        isinstance(config.values.get(key), list) for key in ("num_attention_heads", "num_key_value_heads")
    )
    head = config.optional_count("head_dim") if heads_differ else head_width(config)
    expert, shared = one("moe_intermediate_size"), one("shared_expert_intermediate_size", least=0)
    n_shared = one("n_shared_experts", least=0)
    if shared is None and n_shared is not None and expert is not None:
        shared = n_shared * expert
    return {
        "V": config.count("vocab_size"),
        "E": config.count("hidden_size"),
        "H": head,
        "Q": None if heads_differ or head is None else config.count("num_attention_heads") * head,
        "K": None if heads_differ or head is None else heads_kv(config) * head,
        "F": one("intermediate_size"),
        "M": expert,
        "S": shared,
        "X": n_experts(config),
    }
