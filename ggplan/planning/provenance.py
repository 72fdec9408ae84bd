"""The key-value pairs of the output: the model's own, and those that say how the file was made.

    ggplan.recipe.text   the recipe, so that the file can be made again from its checkpoint
    ggplan.inputs        array of strings, `SHA-256 NAME`, in the order of the names
    ggplan.codes         array of strings, what became of the codes of a quantized checkpoint
    ggplan.mtp and others: what was done to the model before the recipe (see `ggplan.reshaping.wishes`)
    ggplan.plan.sha256   the SHA-256 of the output's header without this key and `ggplan.version`

Hashes have a fixed length, so a plan has zeros in their place, and they are filled in when the file is
written (see `ggplan.conversion.input_hashes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ggplan.ggml_types import F32, QUANTIZATION_VERSION, GgmlType
from ggplan.metadata import Metadata, MetadataType, array, string, uint32
from ggplan.model import Model
from ggplan.planning.guidance import Feedback, feedback_metadata
from ggplan.rules import Recipe
from ggplan.rules.loading import record_parts
from ggplan.stock import PURE, find_mix, is_mix
from ggplan.version import __version__

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

INPUTS, PLAN, VERSION = "ggplan.inputs", "ggplan.plan.sha256", "ggplan.version"
CODES = "ggplan.codes"
TENSORS, METADATA, IMATRIX, CONVERTER = "tensors", "metadata", "imatrix", "converter"
"""Names of inputs that are not files in the checkpoint's folder."""
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
    codes: Sequence[str] = (),
    feedback: Feedback | None = None,
) -> Metadata:
    """The output's metadata, in the model's order with new keys at the end.

    Parameters
    ----------
    weights_by_type
        A type and a number of weights for each tensor, to name the file's type.
    nonfinite, fallback, effort
        The plan's; recorded if they are not the default.
    codes
        A line for each outcome of codes (see `ggplan.planning.outcomes`).
    feedback
        The plan's; its calibration is recorded.
    """
    metadata = {
        key: value
        for key, value in model.metadata.items()
        if key not in _SOURCE_ONLY and not key.startswith("ggplan.")
    }
    metadata["general.quantization_version"] = uint32(QUANTIZATION_VERSION)
    totals: dict[GgmlType, int] = {}
    for type_, n_weights in weights_by_type:
        totals[type_] = totals.get(type_, 0) + n_weights
    # A mixed file is named after the type that holds most of its weights.
    largest = max(totals, key=lambda type_: totals[type_], default=F32)
    named = recipe.name.removesuffix(PURE) if recipe is not None else ""
    # The mix counts too if the recipe is one that was recorded for it.
    file_type = find_mix(named).file_type if is_mix(named) else largest.file_type
    if file_type is not None:
        metadata["general.file_type"] = uint32(file_type)
    if imatrix is not None:
        metadata["quantize.imatrix.file"] = string(imatrix.path.name)
        if imatrix.datasets:
            metadata["quantize.imatrix.dataset"] = string(imatrix.datasets[0])
        metadata["quantize.imatrix.entries_count"] = uint32(imatrix.n_measured or len(imatrix.entries))
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
    if feedback is not None:
        metadata |= feedback_metadata(feedback)
    for key, text in model.reshaped.items():
        metadata[f"ggplan.{key}"] = string(text)
    if codes:
        metadata[CODES] = array(MetadataType.STRING, list(codes))
    if model.kind != "inventory":  # an inventory has no weights and settings to hash
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
    if model.converter:
        names.append(CONVERTER)
    return sorted(names if imatrix is None else [*names, IMATRIX])
