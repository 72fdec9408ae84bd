"""The ways in which checkpoints store quantized weights, one module each, and the tensors they give.

To add one, write a module as `scheme.Scheme` describes it and name it in `SCHEMES`. Nothing is ignored
silently: a tensor that two schemes claim, a quantization that no scheme reads and a key of the config that
none knows are refused by name here. A tensor that no scheme joins is given as it is stored, and an
architecture that does not have its name or type refuses it by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from ggplan.errors import CheckpointError
from ggplan.model import RowSource
from ggplan.sources.files import listed, shown
from ggplan.sources.schemes import (
    bitsandbytes,
    compressed_integers,
    fp8,
    hqq,
    mxfp4,
    nvfp4,
    qweights,
    torchao,
    w4a16_awq,
)
from ggplan.sources.schemes.scheme import (
    Group,
    QuantizationConfig,
    Recognised,
    Scheme,
    Weights,
    of_activations,
    read_quantization_config,
)
from ggplan.sources.schemes.unread import has_codes, refuse_unread, unread
from ggplan.sources.tensors import PLAIN, CheckpointTensor, StoredTensor

__all__ = [
    "READABLE",
    "SCHEMES",
    "Group",
    "QuantizationConfig",
    "Recognised",
    "Scheme",
    "Weights",
    "join_tensors",
    "read_quantization_config",
]

SCHEMES: tuple[Scheme, ...] = (
    fp8, mxfp4, nvfp4, compressed_integers, qweights, w4a16_awq, bitsandbytes, hqq, torchao,
)  # fmt: skip
READABLE = ", ".join((*PLAIN, "F64", *(scheme.NAME for scheme in SCHEMES)))
"""The ways of storing weights that ggplan reads, for messages."""


def join_tensors(
    stored: Mapping[str, StoredTensor],
    config: QuantizationConfig,
    schemes: Sequence[Scheme] = SCHEMES,
    *,
    notes: list[str] | None = None,
) -> dict[str, CheckpointTensor]:
    """The tensors of weights that the tensors of the files hold, by name, in the order of the files.

    What a user should know of the way in which they are read is added to `notes`.

    Raises
    ------
    CheckpointError
        If the config names a quantization or a key that no scheme knows, or tensors do not fit together.
    """
    refuse_unread(stored, config)
    found = [(scheme, result) for scheme in schemes if (result := scheme.recognise(stored, config))]
    _check_config(config, [result for _, result in found], stored)
    if notes is not None:
        if config.values and not any(result.groups for _, result in found):
            notes.append(
                f"{config.where}: config.json says that the weights are quantized by {shown(config.method)}, "
                "but none are; they are read as they are"
            )
        notes += [note for _, result in found for note in result.notes]
    joined: dict[str, CheckpointTensor] = {}
    claimed: set[str] = set()
    for scheme, result in found:
        for group in result.groups:
            _claim(claimed, [part.name for part in group.parts.values()], config)
            first = next(iter(group.parts.values()))
            held = scheme.join(group, config)
            joined[first.name] = CheckpointTensor(
                group.name, first.file, group.stored_as, held.rows.shape, held.rows,
                held.codes, held.why_decoded, held.companions, held.nearly, held.full_activations,
                held.bits or _bits_of(group, held.rows), held.integers,
            )  # fmt: skip
    # What one scheme has no use for, such as scales of activations, another may need, or not need either.
    unused = {name for _, result in found for name in result.unused} - claimed
    claimed |= unused
    if notes is not None and (idle := of_activations(sorted(unused))):
        many = "1 tensor that has" if len(idle) == 1 else f"{len(idle):,} tensors that have"
        notes.append(
            f"{config.where}: no weights depend on {many} scales of activations or of a cache, and the "
            f"output is without: {listed(idle)}"
        )
    tensors: dict[str, CheckpointTensor] = {}
    for name, tensor in stored.items():
        if name in joined:
            weights = joined[name]
        elif name not in claimed:
            weights = CheckpointTensor(name, tensor.file, tensor.dtype, tensor.shape, tensor.rows())
        else:
            continue
        if weights.name in tensors:
            raise CheckpointError(
                f"{shown(weights.file)}: the weights '{shown(weights.name)}' are there both plain and "
                "quantized"
            )
        tensors[weights.name] = weights
    return tensors


def _bits_of(group: Group, rows: RowSource) -> float:
    """Bits of a weight's code: of the largest tensor of a group, as scales and zero points are smaller."""
    n_weights = math.prod(rows.shape)
    return 8 * max(part.n_bytes for part in group.parts.values()) / n_weights if n_weights else 0.0


def _check_config(
    config: QuantizationConfig, found: Sequence[Recognised], stored: Mapping[str, StoredTensor]
) -> None:
    """Refuse a config with a method or key that no scheme knows."""
    is_unread = config.values and not any(result.groups for result in found)
    if is_unread and (not found or has_codes(stored)):
        raise unread(config, stored)
    known = {key for result in found for key in result.keys}
    if unknown := [key for key in config.values if key not in known]:
        raise CheckpointError(
            f"{config.where}: quantization_config in config.json says {listed(unknown)}, which ggplan does "
            "not know; the weights may not be what they seem",
            hint="use the original checkpoint in bf16",
        )


def _claim(claimed: set[str], names: Collection[str], config: QuantizationConfig) -> None:
    for name in names:
        if name in claimed:
            raise CheckpointError(
                f"{config.where}: the tensor '{shown(name)}' belongs to two quantized tensors at once"
            )
        claimed.add(name)
