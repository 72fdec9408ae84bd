"""From the checkpoint's tensors to the GGUF's, by a table of names.

An architecture states its tensors as a table. A row says which name of the checkpoint becomes which name of
the GGUF, what shape the config demands, how rows are read, and in which kinds of layers it stands. `{}` in a
name of the checkpoint stands for a number, the layer's and then the expert's; in a name of the GGUF for the
layer's. From the table follow all errors before a weight is read: a tensor nobody knows, a missing one, a
wrong shape.

The order is that of llama.cpp's converter, so that the same types give the same file: computed tensors, then
the checkpoint's files by name, in each the tensors by name; a layer's experts follow where the last of them
is met.

Types (`ModelBase.prepare_tensors`, `conversion/base.py` of llama.cpp b11434): vectors, `*_norm.weight`, the
router and whatever is not called `*.weight` stay f32; all else keeps the checkpoint's float type, and bf16
takes the place of fp8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, cast

from ggplan.arch.transforms import plain, stacked
from ggplan.errors import CheckpointError
from ggplan.ggml_types import BF16, F16, F32, GgmlType
from ggplan.model import Bf16Reader, RowReader, TensorInfo
from ggplan.sources.files import shown
from ggplan.sources.fp8 import ScaledTensor
from ggplan.sources.tensors import CheckpointTensor, StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The kinds of layers: dense or with experts ("moe"), and maybe one that predicts further tokens ("mtp").
Kinds = frozenset[str]
DENSE: Kinds = frozenset({"dense"})
MOE: Kinds = frozenset({"moe"})
MTP: Kinds = frozenset({"moe", "mtp"})

# Buffers that old versions of transformers saved beside the weights; every engine computes them anew.
_BUFFERS = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_FLOAT_TYPES = {"BF16": BF16, "F16": F16, "F32": F32, "F8_E4M3": BF16}


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a table of names.

    Attributes
    ----------
    source
        The checkpoint's name, with `{}` for the layer and for the expert.
    target
        The GGUF's name, with `{}` for the layer.
    shape
        The shape the checkpoint's tensor must have.
    kind
        The kind of layer it stands in, "" for all layers.
    optional
        Whether it may be absent, then from all layers.
    target_shape
        The GGUF's shape where it is another; experts need none.
    read
        Makes the reader from the checkpoint's tensor.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    kind: str = ""
    optional: bool = False
    target_shape: tuple[int, ...] | None = None
    read: Callable[[CheckpointTensor], RowReader] = plain

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
    entries
        Its rows. Rows of experts stand in the order in which the converter writes a layer's experts.
    layers
        For each layer its kinds; a layer of kind "mtp" may be absent as a whole.
    n_experts
        Experts in each layer of kind "moe".
    computed
        Tensors of the GGUF that the checkpoint does not hold.
    ignore
        Whether a name of the checkpoint is left out on purpose.
    """

    entries: Sequence[Entry]
    layers: Sequence[Kinds]
    n_experts: int = 0
    computed: Sequence[TensorInfo] = ()
    ignore: Callable[[str], bool] = lambda name: False


def convert_tensors(
    tensors: Mapping[str, CheckpointTensor], table: Table, where: str
) -> tuple[TensorInfo, ...]:
    """The GGUF's tensors, in order; no weight is read.

    Raises
    ------
    CheckpointError
        If a tensor is missing, unknown, of a wrong shape or of a type that holds no weights.
    """
    assembly = _Assembly(table, where)
    for name, tensor in tensors.items():
        if not name.endswith(_BUFFERS) and not table.ignore(name):
            assembly.add(tensor)
    assembly.check_complete()
    return (*table.computed, *assembly.done)


@dataclass(slots=True)
class _Assembly:
    """The tensors met so far."""

    table: Table
    where: str
    done: list[TensorInfo] = field(default_factory=list)
    met: set[tuple[str, int, int]] = field(default_factory=set)  # source, layer, expert
    experts: dict[int, dict[tuple[str, int], CheckpointTensor]] = field(default_factory=dict)
    by_source: dict[str, list[Entry]] = field(init=False)
    expert_entries: list[Entry] = field(init=False)

    def __post_init__(self) -> None:
        self.by_source = {}
        for entry in self.table.entries:
            self.by_source.setdefault(entry.source, []).append(entry)
        self.expert_entries = [entry for entry in self.table.entries if entry.per_expert]

    def add(self, tensor: CheckpointTensor) -> None:
        source, layer, expert = split_numbers(tensor.name)
        entries = self.by_source.get(source)
        if entries is None or not self._has_place(entries[0], layer, expert):
            raise CheckpointError(
                f"{self.where} holds the tensor '{shown(tensor.name)}', which config.json has no place for",
                hint="the config may be another model's, or the model a variant that ggplan does not know",
            )
        self._check(entries[0], tensor)
        self.met.add((source, layer, expert))
        if not entries[0].per_expert:
            self.done += [_info(entry, layer, [tensor]) for entry in entries]
            return
        group = self.experts.setdefault(layer, {})
        group[source, expert] = tensor
        if len(group) == len(self.expert_entries) * self.table.n_experts:
            for entry in self.expert_entries:
                parts = [group[entry.source, e] for e in range(self.table.n_experts)]
                self.done.append(_info(entry, layer, parts))
            del self.experts[layer]

    def _has_place(self, entry: Entry, layer: int, expert: int) -> bool:
        if not entry.per_layer:
            return True
        in_layer = 0 <= layer < len(self.table.layers) and self._stands_in(entry, layer)
        return in_layer and (not entry.per_expert or 0 <= expert < self.table.n_experts)

    def _stands_in(self, entry: Entry, layer: int) -> bool:
        return not entry.kind or entry.kind in self.table.layers[layer]

    def _check(self, entry: Entry, tensor: CheckpointTensor) -> None:
        if tensor.shape != entry.shape:
            raise CheckpointError(
                f"{shown(tensor.file)}: tensor '{shown(tensor.name)}' has the shape {_by(tensor.shape)}, "
                f"but config.json makes it {_by(entry.shape)}"
            )
        if tensor.dtype not in _FLOAT_TYPES:
            raise CheckpointError(
                f"{shown(tensor.file)}: tensor '{shown(tensor.name)}' is stored as {tensor.dtype}; "
                f"ggplan reads weights of {', '.join(_FLOAT_TYPES)}"
            )

    def check_complete(self) -> None:
        """Raise for the first tensor that the table demands and that was not met."""
        present = {layer for _, layer, _ in self.met}
        layers = [k for k, kinds in enumerate(self.table.layers) if "mtp" not in kinds or k in present]
        for entry in self.table.entries:
            if entry.optional and not any(
                (entry.source, *p) in self.met for p in self._places(entry, layers)
            ):
                continue
            for place in self._places(entry, layers):
                if (entry.source, *place) not in self.met:
                    name = entry.source.format(*place)
                    others = ", though other layers have it" if entry.optional else ""
                    raise CheckpointError(
                        f"{self.where} lacks the tensor '{name}'{others}",
                        hint="the download may be incomplete: compare it with the model's list of files",
                    )

    def _places(self, entry: Entry, layers: Iterable[int]) -> Iterable[tuple[int, int]]:
        """Each layer and expert that the entry stands for; -1 where it has none."""
        if not entry.per_layer:
            return iter([(-1, -1)])
        experts = range(self.table.n_experts) if entry.per_expert else (-1,)
        return ((k, expert) for k in layers if self._stands_in(entry, k) for expert in experts)


def split_numbers(name: str) -> tuple[str, int, int]:
    """A name with its first two numbers taken out, and these numbers; -1 where there is none."""
    numbers = [-1, -1]
    parts = name.split(".")
    found = 0
    for k, part in enumerate(parts):
        if found < 2 and _NUMBER.fullmatch(part):
            numbers[found] = int(part)
            parts[k] = "{}"
            found += 1
    return ".".join(parts), numbers[0], numbers[1]


@dataclass(frozen=True, slots=True)
class _Bits:
    """A BF16 tensor whose rows are the bits it is stored in."""

    tensor: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def n_columns(self) -> int:
        return self.tensor.n_columns

    @property
    def n_rows(self) -> int:
        return self.tensor.n_rows

    def read_rows(self, start: int, stop: int) -> NDArray[np.uint16]:
        return self.tensor.read_bf16(start, stop)


def _reader(entry: Entry, parts: Sequence[CheckpointTensor]) -> RowReader:
    return stacked(parts) if entry.per_expert else entry.read(parts[0])


def _bf16_reader(entry: Entry, parts: Sequence[CheckpointTensor]) -> Bf16Reader | None:
    """The same of the bits, where all parts are BF16: readers move rows, whatever these consist of."""
    bits = [_Bits(part) for part in parts if isinstance(part, StoredTensor) and part.dtype == "BF16"]
    if len(bits) < len(parts):
        return None
    return cast(Bf16Reader, _reader(entry, cast(Sequence[CheckpointTensor], bits)))


def _info(entry: Entry, layer: int, parts: Sequence[CheckpointTensor]) -> TensorInfo:
    shape = entry.target_shape or entry.shape
    name = entry.target.format(layer)
    files = list(dict.fromkeys(part.file.name for part in parts))
    dtypes = list(dict.fromkeys(part.dtype for part in parts))
    return TensorInfo(
        name,
        (len(parts), *shape) if entry.per_expert else shape,
        gguf_type(name, len(shape), dtypes),
        files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more",
        ", ".join(dtypes),
        _reader(entry, parts),
        scale_fault=partial(_scale_fault, parts) if any(isinstance(p, ScaledTensor) for p in parts) else None,
        read_bf16=_bf16_reader(entry, parts),
    )


def _scale_fault(parts: Sequence[CheckpointTensor]) -> str:
    """What is wrong with the scales of the first tensor that has wrong ones, or ""."""
    faults = (part.scale_fault() for part in parts if isinstance(part, ScaledTensor))
    return next((fault for fault in faults if fault), "")


def gguf_type(name: str, n_dims: int, dtypes: Collection[str]) -> GgmlType:
    """The type of a GGUF tensor that is stored in the given types; experts may be stored in several."""
    router = name.endswith(".ffn_gate_inp.weight")
    if n_dims <= 1 or router or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return F32
    types = {_FLOAT_TYPES[dtype] for dtype in dtypes}
    return types.pop() if len(types) == 1 else F32


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape) or "of a scalar"
