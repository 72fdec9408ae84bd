"""Which type a mix gives each tensor, as llama-quantize decides it.

From llama.cpp b11434, `src/llama-quant.cpp` (`llama_tensor_get_type_impl` and what calls it). The ideas:

- Attention's value and the FFN's down projection hurt most when they lose bits. The M mixes give them more
  in the first eighth of the layers, in the last eighth, and in every third between.
- A value projection that four or more heads share is small, so more bits there cost next to nothing.
- In a model with eight experts (Mixtral) attention is a small part: it gets q8_0. Models with another number
  of experts get nothing like it.
- The output (or embeddings that are tied to it) gets q6_K, q5_K in the smallest mixes.
- Below three bits, the embeddings get more than the rest.

Two details of the original change the types, so they are kept. Layers are counted by the tensors of a
category met so far, not by their names, except for FFN tensors of models with experts. And the order of
counting is that of the output file (see `ggplan.planning.layout`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum, auto
from functools import lru_cache

from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import TensorInfo
from ggplan.stock.facts import Facts
from ggplan.stock.mixes import Mix
from ggplan.text import printable


class Category(Enum):
    """The kinds of tensors that a mix treats differently."""

    OUTPUT = auto()
    EMBEDDING = auto()
    VALUE = auto()
    KEY = auto()
    QUERY = auto()
    ATTENTION_OUTPUT = auto()
    UP = auto()
    GATE = auto()
    DOWN = auto()
    OTHER = auto()


_WHOLE_NAMES = {
    "output.weight": Category.OUTPUT,
    "token_embd.weight": Category.EMBEDDING,
    "per_layer_token_embd.weight": Category.EMBEDDING,
}
# Tried in order; the first that is found anywhere in the name decides. Experts and shared experts have no
# category of their own, multi-head latent attention's parts (attn_q_a, attn_k_b, ...) are OTHER.
_PARTS = (
    ("attn_qkv.weight", Category.VALUE),
    ("attn_kv_b.weight", Category.VALUE),
    ("attn_v.weight", Category.VALUE),
    ("attn_k.weight", Category.KEY),
    ("attn_q.weight", Category.QUERY),
    ("attn_output.weight", Category.ATTENTION_OUTPUT),
    ("ffn_up", Category.UP),
    ("ffn_gate", Category.GATE),
    ("ffn_down", Category.DOWN),
)
_SMALLEST = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})
_BLOCK = re.compile(r"blk\.(\d{1,9})\.")

# GLM5-next: tensors left as they are, and tensors that get at least q8_0.
_GLM5_NEXT_KEPT = (
    r"hc_|indexer\.(attn_q_b|attn_k|proj)|indexer_compressor_(gate|ape)"
    r"|(ssm_[fg]_[ab]|ssm_beta|attn_kv_a_mqa|attn_[kv]_b)\.weight"
)
_GLM5_NEXT_FINE = r"attn_q_[ab]|nextn\.eh_proj"


@lru_cache(maxsize=1 << 14)
def category_of(name: str) -> Category:
    """The category of a tensor, by its name."""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    return next((category for part, category in _PARTS if part in name), Category.OTHER)


def needs_imatrix(mix: Mix | None, name: str, type_: GgmlType) -> bool:
    """Whether llama-quantize refuses to write this tensor in this type without an imatrix."""
    if name in _WHOLE_NAMES:
        return False
    is_q2_k_s = mix is not None and mix.name == "Q2_K_S"
    return type_.expects_imatrix or (is_q2_k_s and type_.name == "q2_K")


def choose_types(
    mix: Mix,
    tensors: Sequence[TensorInfo],
    facts: Facts,
    *,
    quantizable: Sequence[bool],
    has_imatrix: bool = False,
) -> list[GgmlType | None]:
    """The type that the mix gives each tensor, before its shape is looked at; None: it keeps its type.

    Parameters
    ----------
    tensors
        All tensors of the model, in the order of the output file.
    quantizable
        For each tensor whether it may be quantized at all (norms, vectors and routers may not).
    has_imatrix
        Whether there is an importance matrix.

    Raises
    ------
    PlanError
        If an FFN tensor of a model with experts is in no layer of the model.
    """
    chooser = _Chooser(mix, tensors, facts, has_imatrix)
    chosen: list[GgmlType | None] = []
    for tensor, allowed in zip(tensors, quantizable, strict=True):
        if not allowed or (facts.architecture == "glm5-next" and re.search(_GLM5_NEXT_KEPT, tensor.name)):
            chosen.append(None)
        elif mix.pure or not mix.type.is_quantized:
            chosen.append(mix.type)
        else:
            chosen.append(parse_type(chooser.choose(tensor)))
    return chosen


def _gets_more_bits(i: int, n: int) -> bool:
    """The first eighth of `n` layers, the last, and every third between."""
    eighth = n // 8
    return i < eighth or i >= 7 * n // 8 or (i - eighth) % 3 == 2


class _Chooser:
    """Chooses type names tensor by tensor, counting the layers as it goes."""

    def __init__(self, mix: Mix, tensors: Sequence[TensorInfo], facts: Facts, has_imatrix: bool) -> None:
        self.mix = mix.name
        self.default = mix.type
        self.facts = facts
        self.has_imatrix = has_imatrix
        categories = [category_of(t.name) for t in tensors]
        self.n_values = categories.count(Category.VALUE)
        self.is_tied = Category.OUTPUT not in categories
        self.is_falcon = facts.architecture == "falcon"
        self.is_mixtral = facts.n_experts == 8
        self.is_grouped = facts.heads_per_kv_head >= 4
        self.met = dict.fromkeys(Category, 0)

    def choose(self, tensor: TensorInfo) -> str:
        """The name of the tensor's type."""
        category = category_of(tensor.name)
        if self.facts.architecture == "glm5-next" and re.search(_GLM5_NEXT_FINE, tensor.name):
            return "q8_0"
        if category is Category.OUTPUT or (self.is_tied and category is Category.EMBEDDING):
            return self._output(tensor)
        if self.mix == "MXFP4_MOE":
            return self._mxfp4(tensor, category)
        if category is Category.EMBEDDING:
            return self._embedding()
        chosen = self._smallest(category) if self.mix in _SMALLEST else self._by_category(tensor, category)
        return chosen or self.default.name

    def _output(self, tensor: TensorInfo) -> str:
        if self.mix == "MXFP4_MOE" or self.is_falcon or not self.default.fits(tensor.n_columns):
            return "q8_0"
        if self.mix in _SMALLEST or self.mix == "IQ3_XXS":
            return "q5_K"
        return "q8_0" if self.mix == "Q8_0" else "q6_K"

    def _embedding(self) -> str:
        match self.mix:
            case "IQ1_S" | "IQ1_M" | "IQ2_XXS" | "IQ2_XS":
                return "q2_K"
            case "IQ2_S" | "IQ2_M" | "IQ3_XXS":
                return "iq3_s"
            case "TQ1_0" | "TQ2_0" | "Q2_0":
                return "q4_K"
        return self.default.name

    def _mxfp4(self, tensor: TensorInfo, category: Category) -> str:
        is_stack = len(tensor.shape) > 2 and tensor.shape[-3] > 1
        if self.facts.architecture == "bailingmoe3":  # whose latent attention is stacked, too
            is_stack = is_stack and category in (Category.UP, Category.GATE, Category.DOWN)
        return "mxfp4" if is_stack else "q8_0"

    def _smallest(self, category: Category) -> str | None:
        """The mixes below three bits, which have few exceptions."""
        better = "iq3_s" if self.mix in ("IQ2_S", "IQ2_M") else "q2_K"
        if category is Category.VALUE:
            return "q4_K" if self.is_grouped or self.facts.n_experts >= 4 else better
        if category is Category.KEY and self.is_mixtral:
            return "q4_K"
        if category is Category.DOWN:
            # Counted, never read from the name: of a layer with shared experts, two tensors count.
            return better if self._count(category) < self.facts.n_layers // 8 else None
        if category is Category.ATTENTION_OUTPUT:
            if self.is_mixtral:
                return "q5_K"
            if self.mix in ("IQ2_S", "IQ2_M"):
                return "iq3_s"
            if self.mix in ("IQ1_S", "IQ1_M"):
                return "iq2_xxs"
        return None

    def _by_category(self, tensor: TensorInfo, category: Category) -> str | None:
        match category:
            case Category.VALUE:
                return self._value()
            case Category.KEY:
                return "q8_0" if self.is_mixtral else self._query()
            case Category.QUERY:
                return self._query()
            case Category.DOWN:
                return self._down(self._layer(tensor, category))
            case Category.ATTENTION_OUTPUT:
                return self._attention_output()
            case Category.GATE | Category.UP:
                i, n = self._layer(tensor, category), self.facts.n_layers
                return "iq3_xxs" if self.mix == "IQ3_XS" and n // 8 <= i < 7 * n // 8 else None
        return None

    def _value(self) -> str | None:
        i = self._count(Category.VALUE)
        chosen = self._value_by_mix(i)
        if self.facts.is_70b and (chosen or self.default.name) in ("q3_K", "q4_K"):
            chosen = "q5_K"
        return "q8_0" if self.is_mixtral else chosen

    def _value_by_mix(self, i: int) -> str | None:
        match self.mix:
            case "Q2_K":
                return "q4_K" if self.is_grouped else "q3_K"
            case "IQ3_XXS":
                return "q4_K" if self.is_grouped else "iq3_xxs" if self.has_imatrix else "iq3_s"
            case "Q2_K_S" | "IQ3_XS" | "IQ3_S":
                return "q4_K" if self.is_grouped else None
            case "IQ4_NL" | "IQ4_XS":
                return "q5_K" if self.is_grouped else None
            case "IQ3_M":
                return "q4_K"
            case "Q3_K_M":
                return "q5_K" if i < 2 else "q4_K"
            case "Q3_K_L":
                return "q5_K"
            case "Q4_K_S":
                return "q5_K" if i < 4 else None
            case "Q4_K_M" | "Q5_K_M":
                return "q6_K" if _gets_more_bits(i, self.n_values) else None
        return None

    def _query(self) -> str | None:
        return {"IQ3_XS": "iq3_xxs", "IQ3_XXS": "iq2_s"}.get(self.mix)

    def _down(self, i: int) -> str | None:
        n = self.facts.n_layers
        first_eighth, more_bits = i < n // 8, _gets_more_bits(i, n)
        match self.mix:
            case "Q2_K":
                return "q3_K"
            case "Q2_K_S":
                return "q4_K" if first_eighth else None
            case "IQ3_XXS" if not self.has_imatrix:
                return "q4_K" if first_eighth else "q3_K"
            case "IQ3_M":
                return "q4_K" if first_eighth or (self.is_mixtral and more_bits) else None
            case "Q3_K_M":
                if i < n // 16:
                    return "q5_K"
                return "q4_K" if more_bits or not self.is_falcon else None
            case "Q3_K_L":
                return "q4_K" if self.is_falcon else "q5_K"
            case "Q4_K_M" if self.is_falcon:
                return "q6_K" if i < n // 16 else "q5_K" if more_bits else None
            case "Q4_K_M" | "Q5_K_M":
                return "q6_K" if more_bits else None
            case "Q4_K_S":
                return "q5_K" if first_eighth and not self.is_falcon else None
            case "IQ4_NL" | "IQ4_XS":
                return "q5_K" if first_eighth and not self.has_imatrix else None
            case "Q4_0" | "Q5_0":
                # With an imatrix these types can fail in the first layers; types with a minimum per block do
                # not.
                return f"{self.default.name[:3]}1" if first_eighth and self.has_imatrix else None
        return None

    def _attention_output(self) -> str | None:
        if self.is_falcon:
            return "q4_K" if self.mix == "Q3_K_L" else None
        if self.is_mixtral:
            finer = self.mix in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
            return "q5_K" if finer or self.mix.startswith("IQ3_") else None
        return {
            "Q2_K": "q3_K", "IQ3_XXS": "iq3_s", "Q3_K_M": "q4_K", "Q3_K_L": "q5_K", "IQ3_M": "q4_K",
        }.get(self.mix)  # fmt: skip

    def _count(self, category: Category) -> int:
        """How many tensors of the category came before."""
        i = self.met[category]
        self.met[category] = i + 1
        return i

    def _layer(self, tensor: TensorInfo, category: Category) -> int:
        """The layer of an FFN tensor: by name where there are experts, else by counting."""
        counted = self._count(category)
        if self.facts.n_experts <= 1:
            return counted
        found = _BLOCK.match(tensor.name)
        if found is None or int(found[1]) >= self.facts.n_layers:
            raise PlanError(
                f"{printable(tensor.name)} is in none of the model's {self.facts.n_layers} layers, "
                f"which {self.mix} has to know",
                hint="write a recipe; `ggplan rules from` begins one",
            )
        return int(found[1])
