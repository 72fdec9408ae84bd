"""From the checkpoint's tensors to the GGUF's, by a table of names.

An architecture has a table of `TensorSpec`. Each says which name in the checkpoint becomes which name in the
GGUF, which shape the config requires, how the rows are transformed, and which kind of layers has the tensor.
`{}` in a name of the checkpoint stands for a number, first the layer's and then the expert's; in a name of
the GGUF for the layer's. The table shows all errors before a weight is read: a tensor that is not in it, a
missing one, a wrong shape.

One name may have several specs: in the same layers, if several GGUF tensors are made from one tensor; in
different kinds of layers, with other shapes and other GGUF tensors, if the layers of a model differ.

The order is that of llama.cpp's converter, so that the same types give the same file: computed tensors, then
the checkpoint's files by name, in each the tensors by name; a layer's experts stand in the place of the last
of them.

Types (`ModelBase.prepare_tensors`, `conversion/base.py` of llama.cpp b11434): vectors, `*_norm.weight`,
routers, convolutions and tensors not called `*.weight` stay f32; all others keep the checkpoint's float type,
and fp8 becomes bf16. Codes of a quantized checkpoint that a ggml type holds exactly are moved (see `moving`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ggplan.arch.moving import with_codes, without_collisions
from ggplan.arch.transforms import plain, stacked
from ggplan.errors import CheckpointError
from ggplan.ggml_types import BF16, F32, GgmlType
from ggplan.model import RowSource, TensorInfo
from ggplan.sources.files import shown
from ggplan.sources.schemes import READABLE
from ggplan.sources.tensors import CheckpointTensor

# A shape, rows first; None for a size, or for all, that must be the same in all layers.
Shape = tuple[int | None, ...] | None

# The kinds of layers: dense or with experts ("moe"), and possibly one that predicts further tokens ("mtp"). A
# model whose layers differ in another way adds kinds of its own.
Kinds = frozenset[str]
DENSE: Kinds = frozenset({"dense"})
MOE: Kinds = frozenset({"moe"})
MTP: Kinds = frozenset({"moe", "mtp"})

# Buffers that old versions of transformers saved beside the weights; every engine computes them itself.
_BUFFERS = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_BLOCK = re.compile(r"blk\.[0-9]+\.")
# Routers, convolutions and small matrices that the converter leaves in f32, by their name in the layer.
_ALWAYS_F32 = frozenset(
    (
        *("ffn_gate_inp", "ffn_gate_inp_shexp", "position_embd", "token_types", "indexer.proj"),
        *("ssm_conv1d", "ssm_conv1d_q", "ssm_conv1d_k", "ssm_conv1d_v", "shortconv.conv"),
        *("altup_correct_coef", "altup_predict_coef"),
        *("time_mix_first", "time_mix_w1", "time_mix_w2", "time_mix_lerp_fused"),
        *("time_mix_decay_w1", "time_mix_decay_w2"),
    )
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of the checkpoint and the GGUF tensor made of it.

    Attributes
    ----------
    source
        The checkpoint's name, with `{}` for the layer and for the expert.
    target
        The GGUF's name, with `{}` for the layer.
    shape
        The shape the checkpoint's tensor must have. Sizes that config.json does not say are None; they, and a
        shape that is None as a whole, must be the same in all layers.
    kind
        The kind of layer that has it, "" for all layers.
    optional
        Whether it may be absent, but only from all layers of this kind.
    transform
        Makes the rows and the shape of the GGUF tensor from those of the checkpoint's tensor. Experts are
        stacked instead.
    bias
        Whether a matrix `X.weight` may have a vector `X.bias` beside it, which becomes the `.bias` of the
        same GGUF tensor. Configs announce biases (`attention_bias`, `mlp_bias`), but the converter writes
        those that are there.
    type
        The type it keeps, whatever the checkpoint's is; None for the rules of all architectures.
    """

    source: str
    target: str
    shape: Shape
    kind: str = ""
    optional: bool = False
    transform: Callable[[RowSource], RowSource] = plain
    bias: bool = True
    type: GgmlType | None = None

    def of_bias(self) -> TensorSpec | None:
        """The spec of the bias, which has the same transform; None where there can be none."""
        is_weight = self.source.endswith(".weight") and self.target.endswith(".weight")
        is_matrix = self.shape is None or len(self.shape) == 2
        if not (self.bias and is_weight and is_matrix) or self.per_expert:
            return None
        source, target = (f"{name.removesuffix('.weight')}.bias" for name in (self.source, self.target))
        shape = (None,) if self.shape is None else self.shape[:1]
        return replace(self, source=source, target=target, shape=shape, optional=True)

    @property
    def per_layer(self) -> bool:
        """Whether each layer has one."""
        return "{}" in self.source

    @property
    def per_expert(self) -> bool:
        """Whether each expert of a layer has one."""
        return self.source.count("{}") == 2


@dataclass(frozen=True, slots=True)
class Table:
    """The tensors of an architecture.

    Attributes
    ----------
    specs
        All specs; those of experts in the order in which the converter writes a layer's experts.
    layers
        The kinds of each layer; a layer of kind "mtp" may be absent as a whole.
    n_experts
        Experts in each layer of kind "moe".
    computed
        Tensors of the GGUF that the checkpoint does not hold.
    ignore
        Whether a tensor of this name is left out, as llama.cpp's converter does.
    is_first
        Whether what is made of a tensor of this name comes before all others.
    """

    specs: Sequence[TensorSpec]
    layers: Sequence[Kinds]
    n_experts: int = 0
    computed: Sequence[TensorInfo] = ()
    ignore: Callable[[str], bool] = lambda name: False
    is_first: Callable[[str], bool] = lambda name: False


def convert_tensors(
    tensors: Mapping[str, CheckpointTensor], table: Table, where: str, *, is_whole: bool = True
) -> tuple[TensorInfo, ...]:
    """The GGUF's tensors, in order; no weight is read.

    Parameters
    ----------
    tensors
        By the names that the table has, whatever the checkpoint calls them.
    is_whole
        False for a checkpoint of which shards are missing: the result has the tensors whose parts are there.

    Raises
    ------
    CheckpointError
        If a tensor is missing, unknown, of a wrong shape or of a type that holds no weights.
    """
    assembly = _Assembly(table, where)
    for name, tensor in sorted(tensors.items(), key=lambda item: not table.is_first(item[0])):
        if not name.endswith(_BUFFERS) and not table.ignore(name):
            assembly.add(name, tensor)
    if is_whole:
        assembly.check_complete()
    return without_collisions((*table.computed, *assembly.done))


@dataclass(slots=True)
class _Assembly:
    """The tensors added so far."""

    table: Table
    where: str
    done: list[TensorInfo] = field(default_factory=list)
    met: set[tuple[str, int, int]] = field(default_factory=set)  # source, layer, expert
    experts: dict[int, dict[tuple[str, int], CheckpointTensor]] = field(default_factory=dict)
    specs: list[TensorSpec] = field(init=False)
    by_source: dict[str, list[TensorSpec]] = field(init=False)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)  # by the spec's identity: the first met

    def __post_init__(self) -> None:
        self.by_source = {}
        self.specs = [*self.table.specs, *filter(None, (spec.of_bias() for spec in self.table.specs))]
        for spec in self.specs:
            self.by_source.setdefault(spec.source, []).append(spec)

    def add(self, name: str, tensor: CheckpointTensor) -> None:
        source, layer, expert = split_numbers(name)
        specs = [s for s in self.by_source.get(source, ()) if self._has_place(s, layer, expert)]
        if not specs:
            raise CheckpointError(
                f"{self.where} holds the tensor '{shown(tensor.name)}', which config.json has no place for",
                hint="the config may be another model's, or the model a variant that ggplan does not know",
            )
        for spec in specs:
            self._check(spec, tensor)
        self.met.add((source, layer, expert))
        if not specs[0].per_expert:
            self.done += [_info(spec, layer, [tensor]) for spec in specs]
            return
        group = self.experts.setdefault(layer, {})
        group[source, expert] = tensor
        in_layer = [s for s in self.table.specs if s.per_expert and self._stands_in(s, layer)]
        if len(group) == len({s.source for s in in_layer}) * self.table.n_experts:
            for spec in in_layer:
                parts = [group[spec.source, e] for e in range(self.table.n_experts)]
                self.done.append(_info(spec, layer, parts))
            del self.experts[layer]

    def _has_place(self, spec: TensorSpec, layer: int, expert: int) -> bool:
        if not spec.per_layer:
            return True
        in_layer = 0 <= layer < len(self.table.layers) and self._stands_in(spec, layer)
        return in_layer and (not spec.per_expert or 0 <= expert < self.table.n_experts)

    def _stands_in(self, spec: TensorSpec, layer: int) -> bool:
        return not spec.kind or spec.kind in self.table.layers[layer]

    def _check(self, spec: TensorSpec, tensor: CheckpointTensor) -> None:
        stated = spec.shape or (None,) * len(tensor.shape)
        fits = len(stated) == len(tensor.shape) and all(
            n in (None, m) for n, m in zip(stated, tensor.shape, strict=True)
        )
        if not fits or 0 in tensor.shape:
            raise CheckpointError(
                f"{shown(tensor.file)}: tensor '{shown(tensor.name)}' has the shape {_by(tensor.shape)}, "
                f"but config.json makes it {_by(stated)}"
            )
        if (first := self.shapes.setdefault(id(spec), tensor.shape)) != tensor.shape:
            raise CheckpointError(
                f"{shown(tensor.file)}: tensor '{shown(tensor.name)}' has the shape {_by(tensor.shape)}, "
                f"but in other layers it is {_by(first)}"
            )
        if tensor.rows is None:
            raise CheckpointError(
                f"{shown(tensor.file)}: tensor '{shown(tensor.name)}' is stored as {tensor.stored_as}; "
                f"ggplan reads weights of {READABLE}"
            )

    def check_complete(self) -> None:
        """Raise for the first tensor that the table requires and the checkpoint lacks."""
        present = {layer for _, layer, _ in self.met}
        layers = [k for k, kinds in enumerate(self.table.layers) if "mtp" not in kinds or k in present]
        for spec in self.specs:
            if spec.optional and not any((spec.source, *p) in self.met for p in self._places(spec, layers)):
                continue
            for place in self._places(spec, layers):
                if (spec.source, *place) not in self.met:
                    name = spec.source.format(*place)
                    others = ", though other layers have it" if spec.optional else ""
                    raise CheckpointError(
                        f"{self.where} lacks the tensor '{name}'{others}",
                        hint="the download may be incomplete: compare it with the model's list of files",
                    )

    def _places(self, spec: TensorSpec, layers: Iterable[int]) -> Iterable[tuple[int, int]]:
        """Each layer and expert that has a tensor of the spec; -1 for a spec without them."""
        if not spec.per_layer:
            return iter([(-1, -1)])
        experts = range(self.table.n_experts) if spec.per_expert else (-1,)
        return ((k, expert) for k in layers if self._stands_in(spec, k) for expert in experts)


def split_numbers(name: str) -> tuple[str, int, int]:
    """A name without its first two numbers, and these numbers; -1 for a missing one."""
    numbers = [-1, -1]
    parts = name.split(".")
    found = 0
    for k, part in enumerate(parts):
        if found < 2 and _NUMBER.fullmatch(part):
            numbers[found] = int(part)
            parts[k] = "{}"
            found += 1
    return ".".join(parts), numbers[0], numbers[1]


def _info(spec: TensorSpec, layer: int, parts: Sequence[CheckpointTensor]) -> TensorInfo:
    name = spec.target.format(layer)
    files = list(dict.fromkeys(part.file.name for part in parts))
    form = ", ".join(dict.fromkeys(part.stored_as for part in parts))
    sources = [part.rows for part in parts if part.rows is not None]
    rows = stacked(sources) if spec.per_expert else spec.transform(sources[0])
    n_dims = len(rows.shape) - spec.per_expert
    type_ = gguf_type(name, n_dims, {part.type for part in parts if part.type is not None}, spec.type)
    origin = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    info = TensorInfo(name, rows.shape, type_, origin, form, rows)
    if not any(part.is_quantized for part in parts):
        return info
    is_float = gguf_type(name, n_dims, {BF16}, spec.type) == F32
    return with_codes(info, parts, None if spec.per_expert else spec.transform, is_float=is_float)


def gguf_type(
    name: str, n_dims: int, types: Collection[GgmlType], wanted: GgmlType | None = None
) -> GgmlType:
    """The type of a GGUF tensor whose parts would keep the given types; experts may be stored in several.

    `wanted` is the one that the family gives it, if any.
    """
    if n_dims <= 1 or name.endswith("_norm.weight"):
        return F32
    if wanted is not None:
        return wanted
    if not name.endswith(".weight") or _BLOCK.sub("", name).removesuffix(".weight") in _ALWAYS_F32:
        return F32
    return next(iter(types)) if len(types) == 1 else F32


def _by(shape: Sequence[int | None]) -> str:
    return " x ".join("n" if n is None else str(n) for n in shape) or "of a scalar"
