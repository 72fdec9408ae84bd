"""A scheme is a way of storing weights in several tensors, such as codes and scales.

A scheme is a module with the name and the two functions of `Scheme`:

    NAME                         its name in messages
    recognise(tensors, config)   which tensors of the checkpoint belong together, by name, type and shape
    join(group, config)          the weights that one such group of tensors stands for

The tensors decide, not the config: published configs name modules that are not quantized and leave out some
that are. The config gives facts that tensors do not have (the shape of blocks, how zero points are counted),
and every key of it must be used or known to be irrelevant. Several schemes may recognise groups in one
checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ggplan.errors import CheckpointError
from ggplan.model import Integers, RowSource
from ggplan.sources.files import exists, shown
from ggplan.sources.json_files import load_object
from ggplan.sources.tensors import StoredTensor


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """The quantization settings in a checkpoint's config.json.

    Attributes
    ----------
    folder
        The checkpoint's folder; some schemes have files of their own there (`hf_quant_config.json`).
    values
        The object `quantization_config`; empty where there is none.
    """

    folder: Path
    values: Mapping[str, object]

    @property
    def where(self) -> str:
        """The folder, for messages."""
        return shown(self.folder)

    @property
    def method(self) -> object:
        """The `quant_method`, which may be absent or not a text."""
        return self.values.get("quant_method")


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of the files that together hold one tensor of weights.

    Attributes
    ----------
    name
        The name of the weights in an unquantized checkpoint: `model.layers.0.mlp.down_proj.weight`.
    stored_as
        How they are stored, for tables and messages: `F8_E4M3`.
    parts
        The tensors, by the scheme's names for them. The first gives the tensor's place among the others and
        its file.
    form
        What the scheme learned of the group in `recognise` and needs in `join`; of its own type.
    """

    name: str
    stored_as: str
    parts: Mapping[str, StoredTensor]
    form: object = None


@dataclass(frozen=True, slots=True)
class Weights:
    """What a group of tensors stands for.

    Attributes
    ----------
    rows
        The weights: the exact product of codes and scales, in f32.
    codes
        The same weights as rows of the ggml type that holds the codes exactly, bytes as a GGUF has them: q4_0
        of symmetric 4-bit integers. Its `fault` says that a scale has no place there (float16 does not hold
        it). None where no type holds the codes.
    why_decoded
        Why there are no `codes`, for people: "group_size 16 is no multiple of 32"; "" where there are.
    companions
        Tensors that belong to `codes` and to nothing else, by the end of their GGUF names: {"scale": rows}
        of nvfp4, whose global scale llama.cpp applies after the product.
    nearly
        4-bit codes with zero points, whose `codes` are q5_0, as rows of q4_1 (`sources.codes.nearly_q4_1`),
        which rounds the minimum of each block; else None.
    integers
        Of codes that are integers, from which their type is chosen once the zero points are read, and they
        may be there where `codes` are not; else None.
    full_activations
        Whether the config says that the weights are not for activations of 4 bits, though they could be.
    bits
        Bits of a weight's code, where the tensors have more for it (int4 in bytes); else 0.
    """

    rows: RowSource
    codes: RowSource | None = None
    why_decoded: str = ""
    companions: Mapping[str, RowSource] = field(default_factory=dict)
    nearly: RowSource | None = None
    full_activations: bool = False
    bits: float = 0.0
    integers: Integers | None = None


@dataclass(frozen=True, slots=True)
class Recognised:
    """The tensors of a scheme in a checkpoint.

    Attributes
    ----------
    groups
        The tensors that it joins.
    unused
        Names of tensors that the weights do not depend on, such as scales of activations.
    keys
        The keys of the config that the scheme uses, or that do not change the weights. A key that no scheme
        names is refused. The scheme itself checks the value of a key.
    notes
        What a user should know of the way in which they are read, a sentence each.
    """

    groups: Sequence[Group]
    unused: Collection[str] = ()
    keys: Collection[str] = ()
    notes: Sequence[str] = ()


class Scheme(Protocol):
    """The contents of a scheme's module."""

    NAME: str

    def recognise(self, tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> Recognised | None:
        """The tensors that are stored in this way; None if the config names another way for all tensors.

        Parameters
        ----------
        tensors
            All tensors of the files, by name.

        Raises
        ------
        CheckpointError
            If tensors of this scheme lack a part, or the config contradicts itself.
        """

    def join(self, group: Group, config: QuantizationConfig) -> Weights:
        """The weights of a group; none is read.

        A scheme whose scales can be damaged gives the rows a `fault`.

        Raises
        ------
        CheckpointError
            If a type or shape does not fit.
        """


_OF_ACTIVATIONS = (
    "input_scale", "input_global_scale", "input_zero_point", "input_scale_ub", "activation_scale",
    "output_scale", "output_zero_point", ".qscale_act", ".q_scale", ".k_scale", ".v_scale", ".k_zero_point",
    ".v_zero_point",
)  # fmt: skip


def of_activations(tensors: Iterable[str]) -> list[str]:
    """The names that scales and zero points of activations and of caches have: no weights depend on them."""
    return [name for name in tensors if name.endswith(_OF_ACTIVATIONS)]


# Files with the settings that are otherwise in config.json, and the method that they mean if they name none.
_FILES_BESIDE = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "quantization_config.json": "auto-round",
}
# What tensors do not show, and config.json may lack though the file beside it has it.
_GPTQ_FORMATS = ("checkpoint_format", "format")


def read_quantization_config(config: Mapping[str, object], folder: Path) -> QuantizationConfig:
    """The quantization of a config.json, its own or that of its `text_config`, or of a file beside it.

    Raises
    ------
    CheckpointError
        If it is not an object, or two places have one and these differ.
    """
    where = shown(folder)
    values = config.get("quantization_config")
    if values is None:  # the name that compressed-tensors had for it until 0.6
        values = config.get("compression_config")
    text_config = config.get("text_config")
    inner = text_config.get("quantization_config") if isinstance(text_config, dict) else None
    if values is not None and inner is not None and values != inner:
        raise CheckpointError(
            f"{where}: config.json and its text_config have different objects quantization_config"
        )
    values = inner if values is None else values
    if values is None:
        values = _config_beside(folder)
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: quantization_config in config.json is not an object")
    if values.get("quant_method") == "gptq":
        values = _with_gptq_format(values, folder)
    if values.get("quant_method") in (None, "modelopt"):
        stated = {key: value for key, value in values.items() if key != "quant_method" or value is not None}
        values = {**_modelopt_config(folder), **stated}
    return QuantizationConfig(folder, values)


def _config_beside(folder: Path) -> dict[str, object]:
    """The settings of a checkpoint whose config.json has none: those of old GPTQ and AWQ tools."""
    for name, method in _FILES_BESIDE.items():
        stated = load_object(folder / name) if exists(folder / name) else {}
        if type(stated.get("bits", stated.get("w_bit"))) is int:  # other tools have files of these names
            return {"quant_method": method, **stated}
    return {}


def _with_gptq_format(values: dict[str, object], folder: Path) -> dict[str, object]:
    """The settings with the form of zero points that only `quantize_config.json` states."""
    path = folder / "quantize_config.json"
    beside = load_object(path) if exists(path) else {}
    said = {key: beside[key] for key in _GPTQ_FORMATS if key in beside}
    for key in said.keys() & values.keys():
        if said[key] != values[key]:
            raise CheckpointError(
                f"{shown(path)} says {key}: {shown(said[key])}, config.json says {shown(values[key])}",
                hint="keep the file that belongs to these weights",
            )
    return {**said, **values}


def _modelopt_config(folder: Path) -> dict[str, object]:
    """What NVIDIA's ModelOpt says in `hf_quant_config.json`; old versions say it only there.

    It holds `{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", ...}}`.
    """
    path = folder / "hf_quant_config.json"
    document = load_object(path) if exists(path) else {}
    producer, values = document.get("producer"), document.get("quantization")
    name = producer.get("name") if isinstance(producer, dict) else None
    if not isinstance(values, dict) or not isinstance(name, str):
        return {}
    return {"quant_method": name.lower(), **values}
