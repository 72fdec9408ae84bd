"""fold: the model with scales in it. Only scales are kept in memory: rows are scaled as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggplan.errors import PlanError
from ggplan.folding.calibrated import FoldedCalibration
from ggplan.folding.scales import Chosen, Fold, choose
from ggplan.folding.sites import Site, sites_of
from ggplan.ggml_types import F32, GgmlType
from ggplan.model import Model, RowSource, TensorInfo
from ggplan.quants.prepared import LAMBDA
from ggplan.text import names_in_words, printable

if TYPE_CHECKING:
    from ggplan.calibration import Calibration

F32Array = NDArray[np.float32]

FOLD = "fold"
"""The key in `Model.reshaped` of what was folded; FOLD + "_alphas" has the exponent of each place."""


@dataclass(slots=True)
class _Change:
    """What is done to the rows of one tensor; columns first.

    `times` is (slices, n) or (1, n), `over_columns` (n,), `over_rows` (n_rows,), all float32.
    """

    times: F32Array | None = None
    over_columns: F32Array | None = None
    over_rows: F32Array | None = None


def fold(
    model: Model,
    wish: Fold,
    calibration: Calibration,
    types: Mapping[str, GgmlType],
    lam: float = LAMBDA,
) -> tuple[Model, FoldedCalibration]:
    """The model with scales folded into it, and the calibration that fits it.

    Its function is the same up to the rounding of float32; where a tensor stays in bf16 or f16, its scaled
    weights are rounded to that. Notes of the model say what was done.

    Parameters
    ----------
    types
        The type that each tensor will have, by name. Places where no matrix gets a quantized one stay.
    lam
        The damping of the moments in the search for exponents.

    Raises
    ------
    PlanError
        If the model was reshaped, or it is not known where its graph takes scales, or a tensor that takes
        them is quantized already or has no weights here.
    CalibrationError, CheckpointError, ImatrixError
        If the calibration or weights cannot be read, or the calibration is of another model.
    """
    if moved := sorted(model.reshaped.keys() - {"mtp"}):
        raise PlanError(
            "a calibration is of the model as it is, and "
            f"{printable(moved[0]).replace('_', '-')} makes another one of it",
            hint="write that model first, without -r, and calibrate and convert it",
        )
    sites = sites_of(model)
    _refuse_unreadable(sites)
    changes: dict[str, _Change] = {}
    scales: dict[str, F32Array] = {}
    done: dict[str, Chosen] = {}
    for site in sites:
        chosen = choose(site, wish, calibration, types, lam)
        if chosen is not None:
            done[site.title] = chosen
            scales |= {t.name: chosen.scales for t in site.multiplied}
            _enter(changes, site, chosen.scales)
    reshaped = {**model.reshaped, FOLD: str(wish)}
    if wish.method == "awq" and wish.alpha is None:
        reshaped[f"{FOLD}_alphas"] = "\n".join(f"{title} {each.alpha:g}" for title, each in done.items())
    folded = replace(
        model,
        tensors=tuple(_changed(t, changes[t.name]) if t.name in changes else t for t in model.tensors),
        notes=(*model.notes, *_notes(wish, sites, done)),
        reshaped=reshaped,
    )
    return folded, FoldedCalibration(calibration, scales)


def _refuse_unreadable(sites: list[Site]) -> None:
    tensors = [t for site in sites for t in (*site.divided, *site.multiplied)]
    if names := sorted({t.name for t in tensors if t.is_quantized}):
        raise PlanError(
            f"{names_in_words(names)}: quantized already, and scales would have it quantized again",
            hint="start from the original weights, or leave out --fold",
        )
    for tensor in tensors:
        if tensor.rows is None:
            raise PlanError(f"{printable(tensor.name)} has no weights here that could be scaled")


def _enter(changes: dict[str, _Change], site: Site, scales: F32Array) -> None:
    for tensor in site.multiplied:
        changes.setdefault(tensor.name, _Change()).times = scales
    for tensor in site.divided:
        change = changes.setdefault(tensor.name, _Change())
        if len(tensor.shape) == 1:  # a norm, or a bias
            change.over_columns = scales.reshape(-1)
        else:
            change.over_rows = scales.reshape(-1)


def _changed(tensor: TensorInfo, change: _Change) -> TensorInfo:
    source = tensor.rows
    assert source is not None
    return replace(tensor, rows=_scaled(source, change), stored=None)


def _scaled(source: RowSource, change: _Change) -> RowSource:
    n_slices = 1 if change.times is None else len(change.times)
    of_slice = max(1, source.n_rows // n_slices)

    def read(start: int, stop: int) -> NDArray[Any]:
        rows = source.read_float32(start, stop)
        if change.times is not None:
            times = change.times
            rows = rows * (times if n_slices == 1 else times[np.arange(start, stop) // of_slice])
        if change.over_columns is not None:
            rows = rows / change.over_columns
        if change.over_rows is not None:
            rows = rows / change.over_rows[start:stop, None]
        return np.ascontiguousarray(rows, np.float32)

    return RowSource(F32, source.shape, read, source.fault)


def _notes(wish: Fold, sites: list[Site], done: Mapping[str, Chosen]) -> list[str]:
    told = f"{wish} is folded into {len(done):,} of {len(sites):,} places"
    if done:
        alphas = sorted({each.alpha for each in done.values()})
        told += f", alpha {alphas[0]:g}" + (f" to {alphas[-1]:g}" if len(alphas) > 1 else "")
    if len(done) < len(sites):
        why = ["the calibration has no input", "no matrix gets quantized"]
        why += ["no exponent helps"] if wish.method == "awq" and wish.alpha is None else []
        told += f"; at the others {', '.join(why[:-1])} or {why[-1]}"
    notes = [told]
    if by_rms := sum(each.by_rms for each in done.values()):
        notes.append(
            f"at {by_rms:,} places the calibration does not keep the inputs: the root mean square of a "
            "column stands for its largest input"
        )
    return notes
