"""Where scales can be folded: a table of architectures, and each of their tensors by what it reads.

A norm can take scales only if every tensor that reads it is known. So the names of a layer are looked up, and
one that is not known is refused: a norm's bias, a second norm after attention, experts with biases.
Architectures that are not in the table are refused by name, as are those whose graph reads a norm in two
places (parallel attention and FFN), has norms behind the matrices (olmo2), or weights with 1 added (gemma).
"""

from __future__ import annotations

from dataclasses import dataclass

from ggplan.errors import PlanError
from ggplan.model import Model, TensorInfo
from ggplan.text import printable

# The norm before the FFN. From the graphs of llama.cpp b11434, `src/models/*.cpp`: both norms are RMS norms
# without a bias, and read by nothing but the matrices below.
_FFN_NORMS = {
    "glm4moe": "post_attention_norm",
    "llama": "ffn_norm",
    "mistral3": "ffn_norm",
    "qwen2": "ffn_norm",
    "qwen2moe": "ffn_norm",
    "qwen3": "ffn_norm",
    "qwen3moe": "ffn_norm",
    "seed_oss": "post_attention_norm",
    "smollm3": "ffn_norm",
}

# The first that the calibration has tells the energy of the norm's columns.
_READ_ATTN_NORM = ("attn_q", "attn_k", "attn_v", "attn_qkv")
_READ_FFN_NORM = (
    "ffn_gate", "ffn_up", "ffn_gate_shexp", "ffn_up_shexp", "ffn_gate_inp", "ffn_gate_inp_shexp",
    "ffn_gate_exps", "ffn_up_exps",
)  # fmt: skip
# gate, up and down: up's rows meet down's columns through a product with gate's activation alone.
_GATED = tuple((f"ffn_gate{kind}", f"ffn_up{kind}", f"ffn_down{kind}") for kind in ("", "_exps", "_shexp"))
_UNTOUCHED = frozenset({
    "attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_qkv.bias", "attn_q_norm.weight", "attn_k_norm.weight",
    "attn_output.weight", "attn_output.bias", "ffn_gate.bias", "ffn_down.bias", "exp_probs_b.bias",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """One place for scales.

    Attributes
    ----------
    divided
        The norm, one row, whose columns are divided; or the up projection and its bias, if it has one: the
        rows of the first and the elements of the second are divided.
    multiplied
        The matrices whose columns are multiplied.
    is_norm
        Whether it is a norm.
    """

    divided: tuple[TensorInfo, ...]
    multiplied: tuple[TensorInfo, ...]
    is_norm: bool

    @property
    def title(self) -> str:
        """The name of what is divided, without its ending: `blk.0.attn_norm`."""
        return self.divided[0].name.removesuffix(".weight")


def sites_of(model: Model) -> list[Site]:
    """The places in the layers of a model, in their order. Layers that predict further tokens have none.

    Raises
    ------
    PlanError
        If the architecture is not known, or a layer has a tensor of which it is not known what it reads.
    """
    ffn_norm = _FFN_NORMS.get(model.architecture)
    if ffn_norm is None:
        raise PlanError(
            f"it is not known where scales can be folded in {printable(model.architecture) or 'this model'}",
            hint=f"leave out --fold; it knows {', '.join(_FFN_NORMS)}",
        )
    layers: dict[int, dict[str, TensorInfo]] = {}
    for tensor in model.tensors:
        blk, _, rest = tensor.name.partition(".")
        layer, _, rest = rest.partition(".")
        if blk == "blk" and layer.isdecimal():
            layers.setdefault(int(layer), {})[rest] = tensor
    found = []
    for _, tensors in sorted(layers.items()):
        if not any(name.startswith("nextn.") for name in tensors):
            found += _of_layer(tensors, ffn_norm, model.architecture)
    if not found:
        raise PlanError("no layer of the model has a place for scales", hint="leave out --fold")
    return found


def _of_layer(tensors: dict[str, TensorInfo], ffn_norm: str, architecture: str) -> list[Site]:
    readers = {"attn_norm": _READ_ATTN_NORM, ffn_norm: _READ_FFN_NORM}
    known = {f"{name}.weight" for names in readers.values() for name in names}
    known |= {f"{name}.weight" for name in (*readers, *(down for _, _, down in _GATED))}
    known |= _UNTOUCHED | {"ffn_up.bias"}
    for name in sorted(tensors.keys() - known):
        raise PlanError(
            f"{printable(tensors[name].name)} is no tensor that layers of {architecture} are known to have",
            hint="leave out --fold: it is not known whether it reads a norm",
        )
    found = []
    for norm, names in readers.items():
        matrices = tuple(tensors[f"{name}.weight"] for name in names if f"{name}.weight" in tensors)
        if matrices and (weight := tensors.get(f"{norm}.weight")) is not None:
            found.append(Site((weight,), matrices, True))
    for gate, up, down in _GATED:
        if all(f"{name}.weight" in tensors for name in (gate, up, down)):
            divided = (tensors[f"{up}.weight"], tensors.get(f"{up}.bias"))
            present = tuple(tensor for tensor in divided if tensor is not None)
            found.append(Site(present, (tensors[f"{down}.weight"],), False))
    return found
