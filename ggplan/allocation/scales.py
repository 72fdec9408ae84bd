"""Scales: the sensitivity of each tensor of a model, and how far it is to be believed.

    the prior        nothing is measured: `ggplan.allocation.prior`
    a table          single-tensor measurements of this very model (`ggplan.allocation.sensitivities`)

A table's figures are cleaned before they are used. Whatever is changed in a run, it shows some KL divergence
(other kernels, tokens that are routed elsewhere). This floor, the 0.5 % quantile, is taken off. On big
mixtures of experts it is several times what most tensors do, so what is left is partly noise. How much, the
differences between tensors of one kind in neighbouring layers show, where both are small: they should be
nearly alike. Where a table has standard errors, these are taken. A measurement with the relative error e is
shrunk to the prior, whose own logarithm is off by 0.7, with the weight e^2 / (e^2 + 0.7^2); below e = 0.2 it
is taken as it is, for to shrink good measurements only hurts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from ggplan.allocation.type_errors import TABLE, Errors
from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import Model
from ggplan.planning.protection import protection_of
from ggplan.planning.roles import nextn_layers
from ggplan.rules.roles import block_of
from ggplan.text import printable

_FLOOR_QUANTILE = 0.005
_ENOUGH_FOR_FLOOR = 100
_PRIOR_VARIANCE = 0.5
_GOOD = 0.2
_COARSEST = 0.25  # the error of a type at which a single tensor's damage is still in proportion to it
_MOST_UNKNOWN = 0.5  # of a table's tensors: more that the model lacks, and the table is of another model


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


def scales_by_table(
    model: Model, tables: Sequence[Sensitivities], name: str, errors: Errors = TABLE
) -> Scales:
    """The scales of a table of single-tensor measurements, with the prior where it has noise or nothing.

    Parameters
    ----------
    name
        What messages call the table.
    errors
        Of the types at which was measured.

    Raises
    ------
    PlanError
        If it is no table of KL divergences of single tensors, or is of another model.
    """
    table = tables[0]
    if table.figure != "kld" or table.of != "tensor":
        raise PlanError(
            f"{name}: its figures are {table.figure} of {table.of}s, not KL divergences of single tensors",
            hint="whole models are for `--curve`"
            if table.of == "model"
            else "a line for each tensor, `tensor,type,kld`, or a kld_results.csv of the GGUF Tool Suite",
        )
    prior = scales_by_prior(model)
    names = [t.name for t in model.tensors]
    notes = _of_this_model(model, table, name)
    signals, noises, more = _cleaned(table, names, errors)
    notes = (*notes, *more)
    if not signals:
        raise PlanError(
            f"{name}: no tensor of it was measured at a type whose error is known",
            hint="figures of 0, 404 or nothing were not measured; types of about two bits tell most",
        )
    ratios = [math.log(signal / prior.values[n]) for n, signal in signals.items() if signal > 0]
    factor = math.exp(median(ratios)) if ratios else 1.0
    if lost := [n for n, signal in signals.items() if signal <= 0 and noises[n] <= 0]:
        what = "figure is 0 or less" if len(lost) == 1 else "figures are 0 or less"
        notes += (f"{len(lost):,} {what} and taken from the prior ({printable(lost[0])})",)
    level = load_prior().levels[f"{_kind(names)} measured"]
    together = math.exp(level.log_level)  # single tensors' damages add up to more than that of all together
    values = {
        n: together * _combined(signals.get(n), noises.get(n, 0.0), factor * prior.values[n]) for n in names
    }
    credit = tuple(dict.fromkeys((*table.remarks, *prior.credit)))  # the prior's, for its part is in it
    source = f"measurements of {len(signals):,} tensors ({name})"
    if rest := sum(t.name not in signals and protection_of(t) is None for t in model.tensors):
        source += f", the prior for {rest:,} others"
    if rest > len(signals):  # then the level is hardly known better than by the prior
        level = replace(level, spread=max(level.spread, prior.level.spread))
    return Scales(values, level, source, credit, notes)


def _kind(names: Sequence[str]) -> str:
    return "experts" if any(role_in_prior(n).endswith(("_exps", "_chexps")) for n in names) else "dense"


def _of_this_model(model: Model, table: Sensitivities, name: str) -> tuple[str, ...]:
    """Raise if a table is of another model; what is to be said of tensors that differ."""
    tensors = {t.name: t for t in model.tensors}
    strange = [place.name for place in table.places if place.name not in tensors]
    hint = "give the table that was made of this model"
    if len(strange) == len(table.places):
        raise PlanError(f"{name}: it has no tensor of this model", hint=hint)
    if len(strange) > _MOST_UNKNOWN * len(table.places):
        raise PlanError(
            f"{name}: {len(strange):,} of its {len(table.places):,} tensors are not in this model"
            f" ({printable(strange[0])}, …)",
            hint=hint,
        )
    for place in table.places:
        if place.shape and place.name in tensors:
            shape = tuple(n for n in tensors[place.name].shape if n > 1)
            if math.prod(shape) != math.prod(place.shape) or shape[-1:] != place.shape[-1:]:
                theirs, ours = (" x ".join(map(str, s)) for s in (place.shape, shape))
                raise PlanError(
                    f"{name}: it is of another model: its {printable(place.name)} is {theirs},"
                    f" and this model's {ours}",
                    hint=hint,
                )
    if not strange:
        return ()
    return (f"{len(strange):,} tensors of the table are not in the model ({printable(strange[0])}, …)",)


def _cleaned(
    table: Sensitivities, names: Sequence[str], errors: Errors
) -> tuple[dict[str, float], dict[str, float], tuple[str, ...]]:
    """Of each tensor measured: its signal at `REFERENCE_ERROR`, and the standard error of that; and notes."""
    figures: dict[GgmlType, dict[str, float]] = {}
    told: dict[GgmlType, dict[str, float]] = {}
    unknown: set[str] = set()
    for place in table.places:
        for name, value in place.figures.items():
            type_ = parse_type(name)
            if not errors.knows(type_):
                unknown.add(name)
            elif type_.is_quantized:
                figures.setdefault(type_, {})[place.name] = value
                if name in place.errors:
                    told.setdefault(type_, {})[place.name] = place.errors[name]
    notes = [
        f"the figures of {type_} are left out: the error of the type is not known"
        for type_ in sorted(unknown)
    ]
    signals: dict[str, float] = {}
    noises: dict[str, float] = {}
    # Of several types the coarsest: differences between finer ones are of tokens that are routed elsewhere.
    for type_ in sorted(figures, key=lambda t: _usefulness(errors.of_type(t))):
        values = figures[type_]
        floor = _quantile(list(values.values()), _FLOOR_QUANTILE) if len(values) >= _ENOUGH_FOR_FLOOR else 0.0
        own = {n: values[n] - floor for n in names if n in values}
        noise = _noise(own)
        unit = REFERENCE_ERROR / errors.of_type(type_)
        signals |= {n: value * unit for n, value in own.items()}
        noises |= {n: unit * told.get(type_, {}).get(n, noise) for n in own}
        if floor:
            notes.append(f"{type_}: a floor of {floor:.3g} is taken off, the noise left is {noise:.2g}")
    return signals, noises, tuple(notes)


def _usefulness(error: float) -> tuple[bool, float]:
    """The order of types by their errors: the coarsest, but those at which a tensor falls apart."""
    return error <= _COARSEST, error if error <= _COARSEST else -error


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
        return signal if signal > 0 else guess  # a loss of nothing is lost in a noise that is not known
    # A signal below its noise says "at most so much": it is believed to be about the noise.
    seen = max(signal, noise / 2)
    error = (noise / seen) ** 2
    weight = error / (error + _PRIOR_VARIANCE)
    return math.exp((1 - weight) * math.log(seen) + weight * math.log(guess))
