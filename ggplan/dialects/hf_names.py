r"""The name map between GGUF and Hugging Face, by the tables of `ggplan.arch`.

    blk.3.attn_q.weight         model.layers.3.self_attn.q_proj
    blk.3.ffn_down_exps.weight  model.layers.3.mlp.experts.*.down_proj     one module for each expert
    blk.3.attn_k_b.weight       model.layers.3.self_attn.kv_b_proj         attn_v_b is the other part of it

Names depend neither on weights nor on config.json: the tables are built from a config in which every count is
2. If an architecture has several model classes, the one whose names cover most of the model's names is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from ggplan.arch.config import Config
from ggplan.arch.families import architectures
from ggplan.dialects.flatten import NUMBER
from ggplan.errors import RecipeError
from ggplan.ggml_types import GgmlType
from ggplan.model import Model, TensorInfo
from ggplan.planning.protection import kept_type, n_dimensions, protected_reason
from ggplan.text import printable

_MANY = 1 << 10  # more tensors than the layers of a made-up config
_BLOCK = re.compile(r"blk\.(\d{1,9})\.(.+)", re.ASCII | re.DOTALL)
EMBEDDING = "Embedding"
LINEAR = "Linear"


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the Hugging Face model whose weight can be quantized.

    Attributes
    ----------
    name
        Its name, with `NUMBER` for the expert.
    tensors
        The GGUF's tensors that hold its weight.
    own
        The type they have if no rule matches.
    n_experts
        The number of modules it stands for; 1 for a module that is not an expert.
    """

    name: str
    tensors: tuple[TensorInfo, ...]
    own: GgmlType
    n_experts: int = 1

    @property
    def kind(self) -> str:
        """Its class: `Embedding` or `Linear`."""
        return EMBEDDING if self.name.endswith("embed_tokens") else LINEAR

    def names(self) -> Iterator[str]:
        """The names of all modules it stands for."""
        if NUMBER not in self.name:
            return iter((self.name,))
        return (self.name.replace(NUMBER, str(k)) for k in range(self.n_experts))


def modules_of(model: Model) -> tuple[Module, ...]:
    """The modules behind the tensors of a model that may be quantized, in the model's order.

    Raises
    ------
    RecipeError
        If ggplan has no Hugging Face names for the architecture or for one of the tensors.
    """
    tensors = [t for t in model.tensors if t.type.kind != "integer"]
    own = [kept_type(tensor) for tensor in tensors]
    wanted = [(t, o) for t, o in zip(tensors, own, strict=True) if not _protected(t)]
    templates = {_template(t.name)[0] for t, _ in wanted}
    maps = _maps(model.architecture)
    if not maps:
        raise RecipeError(
            f"ggplan has no Hugging Face names for the architecture {printable(model.architecture)}",
            hint="choose a dialect with GGUF names: llama-quantize, ik_llama.cpp, thireus",
        )
    names = max(maps, key=lambda known: len(templates & known.keys()))
    found: dict[str, list[tuple[TensorInfo, GgmlType]]] = {}
    for tensor, type_ in wanted:
        template, layer = _template(tensor.name)
        if template not in names:
            raise RecipeError(f"{printable(tensor.name)}: ggplan does not know its Hugging Face name")
        module = names[template].replace("{}", layer, 1).replace("{}", NUMBER)
        found.setdefault(module.removesuffix(".weight"), []).append((tensor, type_))
    return tuple(
        Module(name, tuple(t for t, _ in parts), parts[0][1], parts[0][0].shape[0] if NUMBER in name else 1)
        for name, parts in found.items()
    )


def _protected(tensor: TensorInfo) -> bool:
    return protected_reason(tensor.name, n_dimensions(tensor.shape)) is not None


def _template(name: str) -> tuple[str, str]:
    """A GGUF name with `{}` for its layer, and the layer."""
    found = _BLOCK.fullmatch(name)
    return (f"blk.{{}}.{found[2]}", found[1]) if found else (name, "")


# Values that give a model parts which not all of its family have.
_PARTS: Mapping[str, object] = {
    "q_lora_rank": 2,
    "n_routed_experts": 2,
    "num_nextn_predict_layers": 1,
    "enable_moe_block": True,
}


@cache
def _maps(architecture: str) -> tuple[dict[str, str], ...]:
    """For each model class of a GGUF architecture: GGUF name -> Hugging Face name, with `{}` for numbers."""
    found = []
    for known in architectures().values():
        if known.name != architecture:
            continue
        for more in ({}, _PARTS):
            config = Config("names", {"head_dim": 4, **known.defaults, **more}, _MANY, assumed=2)
            found.append({spec.target: spec.source for spec in known.table(config, {}).specs})
    return tuple(found)
