"""The key-value pairs of the output: the model's own, and those that say how the file was made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ggplan.ggml_types import F32, QUANTIZATION_VERSION, GgmlType
from ggplan.metadata import Metadata, string, uint32
from ggplan.rules import Recipe
from ggplan.rules.recording import record_parts
from ggplan.stock import PURE, find_mix
from ggplan.version import __version__

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

_SOURCE_ONLY = ("general.alignment", "split.no", "split.count", "split.tensors.count")


def output_metadata(
    source: Metadata,
    recipe: Recipe | None,
    imatrix: Imatrix | None,
    weights_by_type: Iterable[tuple[GgmlType, int]],
    nonfinite: str = "refuse",
    fallback: str = "llama.cpp",
    effort: str = "default",
) -> Metadata:
    """The output's metadata, in the source's order with new keys at the end.

    Parameters
    ----------
    weights_by_type
        A type and a number of weights for each tensor, to name the file's type.
    nonfinite, fallback, effort
        The plan's; recorded where they are not the default.
    """
    metadata = {
        key: value
        for key, value in source.items()
        if key not in _SOURCE_ONLY and not key.startswith("ggplan.")
    }
    metadata["general.quantization_version"] = uint32(QUANTIZATION_VERSION)
    totals: dict[GgmlType, int] = {}
    for type_, n_weights in weights_by_type:
        totals[type_] = totals.get(type_, 0) + n_weights
    # A mixed file is named after the type that holds most of its weights.
    largest = max(totals, key=lambda type_: totals[type_], default=F32)
    mix = find_mix(recipe.name.removesuffix(PURE)) if recipe is not None else None
    file_type = largest.file_type if mix is None else mix.file_type
    if file_type is not None:
        metadata["general.file_type"] = uint32(file_type)
    if imatrix is not None:
        metadata["quantize.imatrix.file"] = string(imatrix.path.name)
        if imatrix.datasets:
            metadata["quantize.imatrix.dataset"] = string(imatrix.datasets[0])
        metadata["quantize.imatrix.entries_count"] = uint32(len(imatrix.entries))
        if imatrix.chunk_count:
            metadata["quantize.imatrix.chunks_count"] = uint32(imatrix.chunk_count)
    metadata["ggplan.version"] = string(__version__)
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
    return metadata
