"""Scales: the sensitivity of each tensor of a model, and how far it is to be believed.

    the prior        nothing is measured: `ggplan.allocation.prior`
    a table          single-tensor measurements of this very model (`ggplan.allocation.sensitivities`)

A table's figures are cleaned before they are used. Whatever is changed in a run, it shows some KL divergence
(other kernels, tokens that are routed elsewhere). This floor, the 0.5 % quantile, is taken off. On big
mixtures of experts it is several times what most tensors do, so what is left is partly noise. How much, the
differences between tensors of one kind in neighbouring layers show, where both are small: they should be
nearly alike. A measurement with the relative error e is shrunk to the prior, whose own logarithm is off by
0.7, with the weight e^2 / (e^2 + 0.7^2); below e = 0.2 it is taken as it is, for to shrink good measurements
only hurts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ggplan.allocation.prior import (
    REFERENCE_ERROR,
    Level,
    Prior,
    load_prior,
    role_in_prior,
    sensitivities_by_prior,
)
from ggplan.allocation.sensitivities import Sensitivities
from ggplan.allocation.type_errors import ERRORS, type_error
from ggplan.errors import PlanError
from ggplan.ggml_types import parse_type
from ggplan.model import Model
from ggplan.planning.roles import nextn_layers
from ggplan.rules.roles import block_of

_FLOOR_QUANTILE = 0.005
_ENOUGH_FOR_FLOOR = 100
_PRIOR_VARIANCE = 0.5
_GOOD = 0.2


@dataclass(frozen=True, slots=True)
class Scales:
    """The sensitivities of a model's tensors.

    Attributes
    ----------
    values
        By tensor, nats at `REFERENCE_ERROR`.
    level
        Of the forecast: how far the level of all values together may be off, and the flips.
    source
        Where they are from, in a few words.
    credit
        Who measured, in lines.
    notes
        What was left out of a table and why.
    """

    values: Mapping[str, float]
    level: Level
    source: str
    credit: tuple[str, ...]
    notes: tuple[str, ...] = ()


def scales_by_prior(model: Model, prior: Prior | None = None) -> Scales:
    """The scales of a prior, by default the shipped one."""
    prior = prior or load_prior()
    nextn = nextn_layers(model)
    names = [t.name for t in model.tensors]
    blocks = {block for name in names if (block := block_of(name)) is not None and block not in nextn}
    raw = sensitivities_by_prior(names, prior, n_blocks=max(blocks, default=0) + 1)
    level = prior.levels[_kind(names)]
    factor = math.exp(level.log_level)
    values = {name: factor * value for name, value in raw.items()}
    return Scales(values, level, "prior by role and depth", prior.credit[1:3])


def scales_by_table(model: Model, tables: Sequence[Sensitivities], name: str) -> Scales:
    """The scales of a table of single-tensor measurements, with the prior where it has noise or nothing.

    Parameters
    ----------
    name
        What messages call the table.

    Raises
    ------
    PlanError
        If it is no table of KL divergences of single tensors, or is of another model.
    """
    table = tables[0]
    if table.figure != "kld" or table.of != "tensor":
        raise PlanError(
            f"{name}: its figures are {table.figure} of {table.of}s, not KL divergences of single tensors",
            hint="a line for each tensor, `tensor,type,kld`, or a kld_results.csv of the GGUF Tool Suite",
        )
    prior = scales_by_prior(model)
    known = {place.name for place in table.places}
    names = [t.name for t in model.tensors]
    if not known.intersection(names):
        raise PlanError(
            f"{name}: it has no tensor of this model", hint="give the table that was made of this model"
        )
    signals, noises, notes = _cleaned(table, names)
    strange = sorted(known.difference(names))
    if strange:
        notes = (*notes, f"{len(strange):,} tensors of the table are not in the model ({strange[0]}, …)")
    ratios = [math.log(signal / prior.values[n]) for n, signal in signals.items() if signal > 0]
    factor = math.exp(median(ratios)) if ratios else 1.0
    level = load_prior().levels[f"{_kind(names)} measured"]
    together = math.exp(level.log_level)  # single tensors' damages add up to more than that of all together
    values = {
        n: together * _combined(signals.get(n), noises.get(n, 0.0), factor * prior.values[n]) for n in names
    }
    return Scales(values, level, f"measurements of {len(signals):,} tensors ({name})", table.remarks, notes)


def _kind(names: Sequence[str]) -> str:
    return "experts" if any(role_in_prior(n).endswith(("_exps", "_chexps")) for n in names) else "dense"


def _cleaned(
    table: Sensitivities, names: Sequence[str]
) -> tuple[dict[str, float], dict[str, float], tuple[str, ...]]:
    """Of each tensor measured: its signal at `REFERENCE_ERROR`, and the standard error of that; and notes."""
    figures: dict[str, dict[str, float]] = {}
    unknown: set[str] = set()
    for place in table.places:
        for type_, value in place.figures.items():
            if parse_type(type_).plain.name not in ERRORS:
                unknown.add(type_)
            elif type_error(type_) > 0:
                figures.setdefault(type_, {})[place.name] = value
    notes = [
        f"the figures of {type_} are left out: the error of the type is not known"
        for type_ in sorted(unknown)
    ]
    signals: dict[str, float] = {}
    noises: dict[str, float] = {}
    # Of several types the coarsest: differences between finer ones are of tokens that are routed elsewhere.
    for type_ in sorted(figures, key=type_error):
        values = figures[type_]
        floor = _quantile(list(values.values()), _FLOOR_QUANTILE) if len(values) >= _ENOUGH_FOR_FLOOR else 0.0
        own = {n: values[n] - floor for n in names if n in values}
        noise = _noise(own)
        unit = REFERENCE_ERROR / type_error(type_)
        signals |= {n: value * unit for n, value in own.items()}
        noises |= dict.fromkeys(own, noise * unit)
        if floor:
            notes.append(f"{type_}: a floor of {floor:.3g} is taken off, the noise left is {noise:.2g}")
    return signals, noises, tuple(notes)


def _quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    at = part * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _noise(signals: Mapping[str, float]) -> float:
    """The standard error of a measurement, from neighbours of one kind whose signals are small."""
    kinds: dict[str, dict[int, float]] = {}
    for name, signal in signals.items():
        if (block := block_of(name)) is not None:
            kinds.setdefault(role_in_prior(name), {})[block] = signal
    pairs = [
        (abs(layers[b]) + abs(layers[b + 1]), abs(layers[b] - layers[b + 1]))
        for layers in kinds.values()
        for b in layers
        if b + 1 in layers
    ]
    if len(pairs) < _ENOUGH_FOR_FLOOR // 4:
        return 0.0
    smallest = sorted(pairs)[: len(pairs) // 2]
    return median(difference for _, difference in smallest) / (0.6745 * math.sqrt(2))


def _combined(signal: float | None, noise: float, guess: float) -> float:
    """A measurement and the prior's guess of it, by what each is worth."""
    if signal is None:
        return guess
    if noise <= 0 or noise <= _GOOD * signal:
        return max(signal, 0.0)
    # A signal below its noise says "at most so much": it is believed to be about the noise.
    seen = max(signal, noise / 2)
    error = (noise / seen) ** 2
    weight = error / (error + _PRIOR_VARIANCE)
    return math.exp((1 - weight) * math.log(seen) + weight * math.log(guess))
