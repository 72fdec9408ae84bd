"""Curves: what each type does to a whole model, measured on this very model.

    QTYPE,group0          as group0/kld_results.csv of the GGUF Tool Suite, or a line of `model,q4_K,q8_0,...`
    q4_K,0.023768

A curve takes the place of the table of errors by type: c(type) = KLD(type) - 0.9 KLD(q8_0), for most of what
q8_0 shows, other kernels do. It also tells the level of all sensitivities together, which neither the prior
nor single tensors know well: those of all tensors add up to the curve.

Types that the curve lacks have the table's errors. Where rows do not hold a type, the whole model was
measured with the type that took its place in some tensors, so a curve flatters types of large blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from ggplan.allocation.prior import REFERENCE_ERROR, Level
from ggplan.allocation.scales import Scales
from ggplan.allocation.sensitivities import Sensitivities
from ggplan.allocation.type_errors import ERRORS, Errors
from ggplan.errors import PlanError
from ggplan.ggml_types import parse_type
from ggplan.model import Model
from ggplan.planning.roles import Role, roles_in
from ggplan.text import printable

_FLOOR_TYPE, _FLOOR_PART = "q8_0", 0.9
_LEAST_PART = 0.02  # of that of the floor's type: only unquantized types lose nothing
_SPREAD = 0.2
_LEVEL_BETWEEN = (
    0.004,
    0.12,
)  # errors of types that tell the level
_UNQUANTIZED = ("f32", "f16", "bf16")


@dataclass(frozen=True, slots=True)
class Curve:
    """The damage of each type to a whole model, in nats, and the level of that.

    Attributes
    ----------
    damages
        By type.
    level
        What an error of 1 does to the whole model: the median over types of damage / error.
    source, credit, notes
        As of `Scales`.
    """

    damages: dict[str, float]
    level: float
    source: str
    credit: tuple[str, ...]
    notes: tuple[str, ...]


def curve_of(tables: Sequence[Sensitivities], model: str, name: str) -> Curve:
    """The curve in a table.

    Parameters
    ----------
    tables
        Of the file; of several models' the one of this model's name.
    name
        What messages call the table.

    Raises
    ------
    PlanError
        If it has no KL divergences of whole models, or none of this model.
    """
    table = _own(tables, model, name)
    if table.figure != "kld" or table.of != "model":
        raise PlanError(
            f"{name}: its figures are {table.figure} of {table.of}s, not KL divergences of whole models",
            hint="group0/kld_results.csv of the GGUF Tool Suite; single tensors are for `--table`"
            if table.of == "tensor"
            else "group0/kld_results.csv of the GGUF Tool Suite",
        )
    figures = {
        t: value
        for t, value in table.places[0].figures.items()
        if parse_type(t).plain.name not in _UNQUANTIZED and value > 0
    }
    notes = []
    floor = figures.get(_FLOOR_TYPE)
    if floor is None:
        notes.append(f"{name}: {_FLOOR_TYPE} was not measured, so no noise of the run is taken off")
        floor = 0.0
    least = _LEAST_PART * floor or 1e-6
    damages = {t: max(value - _FLOOR_PART * floor, least) for t, value in figures.items()}
    errors = {t: ERRORS[parse_type(t).plain.name] for t in damages if parse_type(t).plain.name in ERRORS}
    between = [t for t, e in errors.items() if _LEVEL_BETWEEN[0] <= e <= _LEVEL_BETWEEN[1]] or list(errors)
    if not between:
        raise PlanError(f"{name}: it has no type whose error is known", hint="give a curve with q4_K, say")
    level = median(damages[t] / errors[t] for t in between)
    worse = [t for t, e in errors.items() if damages[t] > 4 * level * e and _LEVEL_BETWEEN[0] <= e]
    if worse:
        shown = ", ".join(sorted(worse, key=lambda t: -damages[t] / errors[t])[:4])
        notes.append(f"{name}: far worse than its bits in this model: {shown}")
    source = f"KL divergence of the whole model at {len(damages)} types ({name})"
    return Curve(damages, level, source, table.remarks, tuple(notes))


def errors_by_curve(curve: Curve) -> Errors:
    """The errors of the types, in units of the table's."""
    return Errors(curve.source, by_type={t: damage / curve.level for t, damage in curve.damages.items()})


def scaled_to_curve(scales: Scales, curve: Curve, model: Model) -> Scales:
    """The scales with the level at which those of all tensors add up to the curve."""
    roles = roles_in(model)
    counted = [t.name for t in model.tensors if roles[t.name] not in (Role.NEXTN, Role.SMALL)]
    total = sum(scales.values.get(name, 0.0) for name in counted)
    if total <= 0:
        return scales
    factor = curve.level * REFERENCE_ERROR / total
    values = {name: factor * value for name, value in scales.values.items()}
    level = Level(scales.level.log_level + math.log(factor), _SPREAD, 0.0)
    credit = tuple(dict.fromkeys((*scales.credit, *curve.credit)))
    return replace(scales, values=values, level=level, credit=credit, notes=(*scales.notes, *curve.notes))


def _own(tables: Sequence[Sensitivities], model: str, name: str) -> Sensitivities:
    if len(tables) == 1:
        return tables[0]
    found = [table for table in tables if _plain(table.model) == _plain(model)]
    if not found:
        names = [printable(table.model) for table in tables]
        shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        raise PlanError(
            f"{name}: it has no line of a model called {printable(model)}", hint=f"it has lines of {shown}"
        )
    return found[0]


def _plain(name: str) -> str:
    """A model's name without what differs from place to place: case, separators, the ending of a file."""
    stem = re.sub(r"\.(gguf|map|json|txt|safetensors)$", "", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", stem).strip("-")
