"""What a scheme is: a way of storing weights in several tensors, such as codes and scales.

A scheme is a module with the name and the two functions of `Scheme`:

    NAME                         what messages call it
    recognise(tensors, config)   which tensors of the checkpoint belong together, by name, type and shape
    join(group, config)          the rows that one such group of tensors stands for

The tensors decide, not the config: published configs name modules that are stored plainly and leave out some
that are not. The config gives what tensors cannot say (the shape of blocks, how zero points are counted), and
every key of it must be accounted for. Several schemes may recognise groups in one checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ggplan.errors import CheckpointError
from ggplan.model import RowSource
from ggplan.sources.files import shown
from ggplan.sources.tensors import StoredTensor


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a checkpoint's config.json says about how its weights are stored.

    Attributes
    ----------
    folder
        The checkpoint's, where some forms keep files of their own (`hf_quant_config.json`).
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
        """The `quant_method`, which may be absent or no text."""
        return self.values.get("quant_method")


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of the files that hold one tensor of weights together.

    Attributes
    ----------
    name
        What the weights are called where they are stored plainly: `model.layers.0.mlp.down_proj.weight`.
    stored_as
        How they are stored, for tables and messages: `F8_E4M3`.
    parts
        The tensors, by what the scheme calls them. The first gives the tensor's place among the others and
        its file.
    """

    name: str
    stored_as: str
    parts: Mapping[str, StoredTensor]


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a scheme found in a checkpoint.

    Attributes
    ----------
    groups
        The tensors that it joins.
    unused
        Names of tensors that the weights do not depend on, such as scales of activations.
    keys
        The keys of the config that the scheme obeys, or that do not change what the weights are. A key
        that no scheme names is refused. What stands inside a key is for the scheme to check.
    """

    groups: Sequence[Group]
    unused: Collection[str] = ()
    keys: Collection[str] = ()


class Scheme(Protocol):
    """What the module of a scheme has."""

    NAME: str

    def recognise(self, tensors: Mapping[str, StoredTensor], config: Quantization) -> Recognised | None:
        """What of a checkpoint is stored in this way; None where the config names another way for all of it.

        Parameters
        ----------
        tensors
            All tensors of the files, by name.

        Raises
        ------
        CheckpointError
            If tensors of this scheme lack a part, or the config contradicts itself.
        """

    def join(self, group: Group, config: Quantization) -> RowSource:
        """The rows of a group; no weight is read.

        A scheme whose scales can be damaged gives the rows a `fault`.

        Raises
        ------
        CheckpointError
            If a type or shape does not fit.
        """


def read_quantization(config: Mapping[str, object], folder: Path) -> Quantization:
    """The quantization of a config.json, its own or that of its `text_config`.

    Raises
    ------
    CheckpointError
        If it is no object, or both have one and these differ.
    """
    where = shown(folder)
    values = config.get("quantization_config")
    text_config = config.get("text_config")
    inner = text_config.get("quantization_config") if isinstance(text_config, dict) else None
    if values is not None and inner is not None and values != inner:
        raise CheckpointError(
            f"{where}: config.json and its text_config have different objects quantization_config"
        )
    values = inner if values is None else values
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: quantization_config in config.json is no object")
    return Quantization(folder, values)
