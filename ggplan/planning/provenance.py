"""The key-value pairs of the output: the model's own, and those that say how the file was made.

    ggplan.recipe.text   the recipe; so the file can be made again from its checkpoint
    ggplan.inputs        array of strings, `SHA-256 NAME`, in the order of the names
    ggplan.plan.sha256   the SHA-256 of the output's header without this key and `ggplan.version`

Hashes have a fixed length, so a plan keeps their place with zeros, and they are filled in when the file is
written (see `ggplan.conversion.input_hashes`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ggplan.ggml_types import GgmlType
from ggplan.metadata import Metadata, MetadataType, array, string, uint32
from ggplan.model import Model
from ggplan.rules import Recipe
from ggplan.rules.loading import record_parts
from ggplan.stock import PURE, find_mix, is_mix
from ggplan.version import __version__

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION of llama.cpp b11434: the layout of the quantized types."""

# llama.cpp names a file after one type (enum llama_ftype, include/llama.h); a mixed file takes the name
# of the type that holds most of its weights. The k-quants have no pure name; llama-quantize takes `Q4_K`
# to mean Q4_K_M.
_FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_K": 10, "q3_K": 12,
    "q4_K": 15, "q5_K": 17, "q6_K": 18, "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq1_s": 24,
    "iq4_nl": 25, "iq3_s": 26, "iq2_s": 28, "iq4_xs": 30, "iq1_m": 31, "bf16": 32, "tq1_0": 36,
    "tq2_0": 37, "mxfp4": 38, "nvfp4": 39, "q1_0": 40, "q2_0": 41,
}  # fmt: skip
INPUTS, PLAN, VERSION = "ggplan.inputs", "ggplan.plan.sha256", "ggplan.version"
TENSORS, METADATA, IMATRIX = "tensors", "metadata", "imatrix"
"""Names of inputs that are no files of the checkpoint's folder."""
NOT_HASHED = "0" * 64
SETTINGS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
"""The small files of a Hugging Face folder, which are inputs by their own names."""
_SOURCE_ONLY = ("general.alignment", "split.no", "split.count", "split.tensors.count")


def output_metadata(
    model: Model,
    recipe: Recipe | None,
    imatrix: Imatrix | None,
    weights_by_type: Iterable[tuple[GgmlType, int]],
    nonfinite: str = "refuse",
    fallback: str = "llama.cpp",
    effort: str = "default",
) -> Metadata:
    """The output's metadata, in the model's order with new keys at the end.

    Parameters
    ----------
    weights_by_type
        A type and a number of weights for each tensor, to name the file's type.
    nonfinite, fallback, effort
        The plan's; recorded where they are not the default.
    """
    metadata = {
        key: value
        for key, value in model.metadata.items()
        if key not in _SOURCE_ONLY and not key.startswith("ggplan.")
    }
    metadata["general.quantization_version"] = uint32(QUANTIZATION_VERSION)
    totals: dict[str, int] = {}
    for type_, n_weights in weights_by_type:
        totals[type_.name] = totals.get(type_.name, 0) + n_weights
    largest = max(totals, key=lambda name: totals[name], default="f32")
    named = recipe.name.removesuffix(PURE) if recipe is not None else ""
    if is_mix(named):  # also where its recorded recipe stands for it
        metadata["general.file_type"] = uint32(find_mix(named).file_type)
    elif largest in _FILE_TYPES:
        metadata["general.file_type"] = uint32(_FILE_TYPES[largest])
    if imatrix is not None:
        metadata["quantize.imatrix.file"] = string(imatrix.path.name)
        if imatrix.datasets:
            metadata["quantize.imatrix.dataset"] = string(imatrix.datasets[0])
        metadata["quantize.imatrix.entries_count"] = uint32(len(imatrix.entries))
        if imatrix.chunk_count:
            metadata["quantize.imatrix.chunks_count"] = uint32(imatrix.chunk_count)
    metadata[VERSION] = string(__version__)
    if recipe is not None:
        metadata["ggplan.recipe.name"] = string(recipe.name)
        metadata["ggplan.recipe.text"] = string(recipe.text)
        metadata["ggplan.recipe.sha256"] = string(recipe.sha256)
        if parts := record_parts(recipe):
            metadata["ggplan.recipe.parts"] = string(parts)
    if fallback != "llama.cpp":
        metadata["ggplan.fallback"] = string(fallback)
    if nonfinite != "refuse":
        metadata["ggplan.nonfinite"] = string(nonfinite)
    if effort != "default":
        metadata["ggplan.effort"] = string(effort)
    if model.kind != "inventory":  # whose weights and settings are not there to be hashed
        lines = [f"{NOT_HASHED} {name}" for name in input_names(model, imatrix)]
        metadata[INPUTS] = array(MetadataType.STRING, lines)
        metadata[PLAN] = string(NOT_HASHED)
    return metadata


def input_names(model: Model, imatrix: Imatrix | None) -> list[str]:
    """The names of the inputs whose hashes the output records, sorted."""
    if model.kind == "hf":
        names = [TENSORS, *(name for name in SETTINGS if (model.path / name).is_file())]
    else:
        names = [TENSORS, METADATA]
    return sorted(names if imatrix is None else [*names, IMATRIX])
