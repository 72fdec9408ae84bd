"""The calibration of a model that was reshaped: which input each of its tensors has, found by what it is.

Reshaping renames layers and experts, and joins and cuts tensors (`ggplan.reshaping`). So names say nothing by
themselves: `blk.3` of a pruned model was another layer before. For each tensor there are these candidates:

    as it is named        the calibration is of the model as it is now
    as it was named       it is of the model that was opened: layers and experts by their numbers there
    in its other form     gate and up, or q, k and v, joined or apart: they have one input in either form

The marks of the weights (see `ggplan.calibration.marks`) tell which of the first two is true, of the model as
a whole; without any that agree, a calibration is of the model that was opened.

What the moments of a model say of one without some layers or experts is less than they say of itself: what
comes after them gets other inputs, and the other experts get the tokens of those that are gone. The inputs
are near to what they were, so they are used, and a note says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggplan.calibration.marks import is_of_shape, mark_of
from ggplan.errors import Error
from ggplan.imatrix.entries import Imatrix, ImatrixEntry, ReadOnDemand
from ggplan.metadata import string
from ggplan.model import Model, TensorInfo
from ggplan.planning.guidance import SecondMoments
from ggplan.quants.linear_algebra import Moments
from ggplan.reshaping import Reshaping, recorded_reshaping
from ggplan.reshaping.blocks import numbered
from ggplan.reshaping.experts import is_expert_stack
from ggplan.reshaping.fusing import other_forms
from ggplan.reshaping.importance import sliced

if TYPE_CHECKING:
    from ggplan.calibration.inputs import Input

_MOVING = ("pruned_layers", "kept_experts")  # the others are forms, looked up for any model
_BLOCK = re.compile(r"blk\.(\d{1,9})\.", re.ASCII)


class OnDisk(SecondMoments, Protocol):
    """A calibration as it is on disk (`ggplan.calibration.folder`), as far as it is needed here."""

    @property
    def weights(self) -> Mapping[str, str]:
        """For each tensor a mark of the weights that the model had."""

    def input_of(self, tensor: str) -> Input | None:
        """The input of a tensor."""


_OnDisk = TypeVar("_OnDisk", bound=OnDisk)


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of a calibration, and those of its slices that are meant; None for all."""

    tensor: str
    slices: tuple[int, ...] | None = None

    def of(self, slice_: int) -> int:
        """The slice in the calibration."""
        return slice_ if self.slices is None else self.slices[slice_]


@dataclass(frozen=True)
class ReshapedCalibration:
    """A calibration, for `ggplan.planning.Feedback`, whose tensors have other names or fewer slices.

    Attributes
    ----------
    original
        The calibration on disk, whose path and digest it keeps.
    sources
        By the name of each tensor, whose input it has.
    weights
        The marks of the weights that a tensor should have, as `Calibration.weights`.
    notes
        What is to be said of it.
    """

    original: OnDisk
    sources: Mapping[str, Source]
    weights: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The folder."""
        return self.original.path

    @property
    def digest(self) -> str:
        """The identity of what is in the folder."""
        return self.original.digest

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What it was made of."""
        return self.original.provenance

    @cached_property
    def imatrix(self) -> Imatrix:
        """The mean squares of the inputs, under the names of the model."""
        own = self.original.imatrix
        readers: dict[str, Callable[[], ImatrixEntry]] = {
            name: partial(self._entry, own.entries, name, source)
            for name, source in self.sources.items()
            if source.tensor in own.entries
        }
        return replace(own, entries=ReadOnDemand(readers), n_measured=own.n_measured or len(own.entries))

    def _entry(self, entries: Mapping[str, ImatrixEntry], name: str, source: Source) -> ImatrixEntry:
        if source.slices is None:
            return replace(entries[source.tensor], name=name)
        n_slices = len(self.original.tokens(source.tensor))
        return replace(sliced(entries, source.tensor, source.slices, n_slices), name=name)

    def for_model(self, model: Model) -> SecondMoments:
        """The calibration for a model, as `Calibration.for_model`."""
        return self.original.for_model(model)

    def tokens(self, tensor: str) -> tuple[int, ...]:
        """How many tokens each slice of a tensor saw."""
        source = self.sources.get(tensor)
        if source is None:
            return ()
        found = self.original.tokens(source.tensor)
        return found if source.slices is None else tuple(found[slice_] for slice_ in source.slices)

    def input_of(self, tensor: str) -> tuple[Input, tuple[int, ...] | None] | None:
        """The input of a tensor and its slices; equal for tensors that share both."""
        source = self.sources.get(tensor)
        found = None if source is None else self.original.input_of(source.tensor)
        return None if source is None or found is None else (found, source.slices)

    def moments(self, tensor: str, slice: int = 0) -> Moments | None:
        """The second moments of a slice, as `Calibration.moments`."""
        source = self.sources.get(tensor)
        found: Moments | None = None
        if source is not None:
            found = self.original.moments(source.tensor, source.of(slice))
        return found

    def layer_moments(self, tensor: str) -> Moments | None:
        """Those of all tokens of the layer, as `Calibration.layer_moments`."""
        source = self.sources.get(tensor)
        found: Moments | None = None if source is None else self.original.layer_moments(source.tensor)
        return found

    def verify(self) -> None:
        """Check every file."""
        self.original.verify()

    def tokens_of_run(self) -> NDArray[np.int32]:
        """The tokens that were run."""
        found: NDArray[np.int32] = self.original.tokens_of_run()
        return found


def of_reshaped(calibration: _OnDisk, model: Model) -> _OnDisk | ReshapedCalibration:
    """A calibration for a model that may have been reshaped since the calibration was made, or before.

    Raises
    ------
    PlanError
        If the keys in which a file says how it was reshaped are damaged.
    CheckpointError
        If weights cannot be read.
    """
    candidates = _candidates(model)
    if len(candidates) == 1:
        chosen, undone = candidates[0]
        if not any(_is_in_another_form(calibration, t) for t in model.tensors):
            return calibration
    else:
        marks = {t.name: mark for t in model.tensors if len(t.shape) > 1 and (mark := _mark_of(t))}
        found = [_agreeing(calibration, sources, model, marks) for sources, _ in candidates]
        chosen, undone = candidates[found.index(max(found))]
    sources = {t.name: s for t in model.tensors if (s := _there(calibration, chosen[t.name], t)) is not None}
    known = calibration.weights
    weights = {  # a router that lost rows has another shape
        t.name: mark
        for t in model.tensors
        if (source := chosen[t.name]).slices is None and is_of_shape(mark := known.get(source.tensor, ""), t)
    }
    return ReshapedCalibration(calibration, sources, weights, _notes(undone))


_Candidate = tuple[Mapping[str, Source], tuple[Reshaping, ...]]


def _candidates(model: Model) -> list[_Candidate]:
    """The ways in which names may be meant, and what was done to the model since; the likeliest first."""
    as_it_is = {t.name: Source(t.name) for t in model.tensors}
    here = recorded_reshaping(
        {f"ggplan.{key}": string(model.reshaped[key]) for key in _MOVING if key in model.reshaped}
    )
    before = recorded_reshaping(
        {k: value for k, value in model.metadata.items() if k.removeprefix("ggplan.") in _MOVING}
    )
    found: list[_Candidate] = [(as_it_is, ())]
    if _moves(here):
        as_opened = {name: _before(source, here) for name, source in as_it_is.items()}
        found.insert(0, (as_opened, (here,)))
    if _moves(before):
        likeliest, undone = found[0]
        as_before = {name: _before(source, before) for name, source in likeliest.items()}
        found.append((as_before, (*undone, before)))
    return found


def _moves(wishes: Reshaping) -> bool:
    """Whether names or experts are others than before."""
    return bool(wishes.prune_layers) or wishes.keep_experts is not None


def _before(source: Source, wishes: Reshaping) -> Source:
    """What a tensor was before layers and experts were left out."""
    found = _BLOCK.match(source.tensor)
    if found is None:
        return source
    layer = int(found[1])
    for gone in sorted(set(wishes.prune_layers)):
        layer += gone <= layer
    name = f"blk.{layer}.{source.tensor[found.end() :]}"
    experts = wishes.keep_experts
    kept = experts.get(layer) if isinstance(experts, Mapping) and is_expert_stack(name) else None
    if kept is None:
        return Source(name, source.slices)
    later = range(len(kept)) if source.slices is None else source.slices
    return Source(name, tuple(kept[slice_] for slice_ in later if slice_ < len(kept)))


def _agreeing(
    calibration: OnDisk, sources: Mapping[str, Source], model: Model, marks: Mapping[str, str]
) -> tuple[int, int]:
    """For how many tensors the weights are those of their sources; and how many have an input at all."""
    same = sum(
        source.slices is None and marks.get(name, "") == calibration.weights.get(source.tensor)
        for name, source in sources.items()
    )
    return same, sum(_fits(calibration, sources[t.name], t) for t in model.tensors)


def _mark_of(tensor: TensorInfo) -> str:
    try:
        return mark_of(tensor)
    except Error:
        return ""  # told where it is read for its own sake


def _there(calibration: OnDisk, source: Source, tensor: TensorInfo) -> Source | None:
    """A tensor's source in the calibration, in its own form or another; None if it has none."""
    if calibration.input_of(source.tensor) is not None:
        # A whole one that does not fit is refused where it is used.
        return source if source.slices is None or _fits(calibration, source, tensor) else None
    others = (replace(source, tensor=name) for name in other_forms(source.tensor))
    return next((other for other in others if _fits(calibration, other, tensor)), None)


def _is_in_another_form(calibration: OnDisk, tensor: TensorInfo) -> bool:
    source = _there(calibration, Source(tensor.name), tensor)
    return source is not None and source.tensor != tensor.name


def _fits(calibration: OnDisk, source: Source, tensor: TensorInfo) -> bool:
    """Whether a source has the columns and slices that a tensor's input must have."""
    found = calibration.input_of(source.tensor)
    if found is None or found.n_columns != tensor.n_columns:
        return False
    n_slices = math.prod(tensor.shape[:-2])
    if source.slices is None:
        return found.n_slices == n_slices
    return len(source.slices) == n_slices and max(source.slices, default=0) < found.n_slices


def _notes(undone: Sequence[Reshaping]) -> tuple[str, ...]:
    """What is less certain of a model that lost layers or experts since it was calibrated."""
    notes = []
    if layers := sorted({layer for wishes in undone for layer in wishes.prune_layers}):
        notes.append(
            f"the calibration is of the model with {numbered('layer', layers)}: the layers after the pruned "
            "ones get other inputs than it has; `ggplan calibrate`, which takes --prune-layers too, makes "
            "one of the pruned model"
        )
    if any(wishes.keep_experts is not None for wishes in undone):
        notes.append(
            "the calibration is of the model with all its experts: those that are kept also get the tokens "
            "of the others, which it does not show; `ggplan calibrate`, which takes --keep-experts FILE too, "
            "makes one of the model that is left"
        )
    return tuple(notes)
