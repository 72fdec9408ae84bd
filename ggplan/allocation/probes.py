"""Probes: sensitivities measured with an engine, a group of tensors at a time.

A group is a kind of tensor in a band of layers (`ffn_down_exps` of layers 0 to 15). A probe is the model in
which exactly one group has a low type, and its figure the KL divergence from the model without. One probe
more has all tensors at q5_K.

    KLD_g = A_g + c sqrt(A_g)                             A_g the damage of the group, c sqrt(A_g) flips
    k_g   = A_g / sum over the group of w_t error_t(low)  w_t the root of the prior's sensitivity
    D(q)  = k_g w_t error_t(q)                            the damage of a tensor of the group

A low type is probed, about two bits, because finer ones mostly show flips: tokens that are routed to other
experts, whatever is changed. They do not add up, so to probe every type of every tensor gives worse recipes
than this. What they do together the last probe tells: c is such that the damages of the groups, carried over
to q5_K, give its figure. Without c in the first line, two bits are predicted to lose a fifth too much and six
bits a seventh too little (a mixture of experts of 28 million weights); with it, both are right to 8 %.

A figure whose standard error is below a fifth of it is taken as it is; a noisier one is drawn to the prior,
whose logarithm is off by 0.7. Tensors of no group get the prior's values at the level of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from ggplan.allocation.forecast import damage_of
from ggplan.allocation.grouping import joined_kind
from ggplan.allocation.prior import REFERENCE_ERROR, Level
from ggplan.allocation.scales import Scales, scales_by_prior
from ggplan.allocation.type_errors import TABLE, type_error
from ggplan.errors import PlanError
from ggplan.model import Model, TensorInfo
from ggplan.planning.protection import protection_of
from ggplan.planning.roles import Role, roles_in
from ggplan.rules.roles import block_of
from ggplan.text import names_in_words

LOW, ALL = "q2_K", "q5_K"
"""The type of a group's probe, and of the one of all tensors."""

_HARMONISED = (("gate", "up"),)
_BANDS, _FEW_BANDS = 3, 2
_MANY_LAYERS = 12
_SMALL = 0.005  # of the model's weights: such kinds have one band
_PRIOR_VARIANCE = 0.5
_GOOD = 0.2
_HALVINGS = 50
_SPREAD = 0.1  # of forecasts between recipes on one text, as a logarithm


@dataclass(frozen=True, slots=True)
class ProbeGroup:
    """Tensors that are probed together.

    Attributes
    ----------
    name
        `ffn_down_exps 0-15`.
    tensors
        Their names, in the order of the model.
    """

    name: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """A measured probe.

    Attributes
    ----------
    name
        The group's; "all" of the probe of all tensors.
    errors
        By tensor, the relative squared error that it had.
    kld, error
        The mean KL divergence, in nats, and its standard error; NaN where the engine gave no number.
    """

    name: str
    errors: Mapping[str, float]
    kld: float
    error: float


@dataclass(frozen=True, slots=True)
class Probes:
    """All probes of a model.

    Attributes
    ----------
    groups
        Those of the groups.
    whole
        The one of all tensors.
    source
        What was measured on what by what, in a few words.
    errors
        By tensor, the errors of types by name, where they were measured.
    """

    groups: tuple[Probe, ...]
    whole: Probe | None
    source: str
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def probe_groups(model: Model) -> tuple[ProbeGroup, ...]:
    """The groups of a model whose probes tell most: a kind in two or three bands of the layers that have it.

    Gate and up are one kind. What is never quantized is in no group, nor blocks that only draft tokens, nor
    what has no more bits than the low type.
    """
    roles = roles_in(model)
    kinds: dict[str, dict[int, list[TensorInfo]]] = {}
    for tensor in model.tensors:
        if is_probed(tensor, roles[tensor.name]):
            block = block_of(tensor.name)
            kind = joined_kind(tensor.name, _HARMONISED).removesuffix(".weight")
            kinds.setdefault(kind, {}).setdefault(-1 if block is None else block, []).append(tensor)
    n_blocks = len({b for layers in kinds.values() for b in layers if b >= 0})
    total = sum(t.n_weights for t in model.tensors)
    most = _BANDS if n_blocks >= _MANY_LAYERS else _FEW_BANDS
    found = []
    for kind, layers in kinds.items():
        own = sum(t.n_weights for tensors in layers.values() for t in tensors)
        bands = _bands(sorted(layers), most if own >= _SMALL * total else 1)
        for band in bands:
            names = tuple(t.name for layer in band for t in layers[layer])
            found.append(ProbeGroup(_name(kind, band), names))
    return tuple(found)


def is_probed(tensor: TensorInfo, role: Role) -> bool:
    """Whether a tensor's type is a matter of choice, and can become the low one."""
    if role is Role.NEXTN or tensor.type.kind == "integer" or protection_of(tensor) is not None:
        return False
    if not tensor.type.is_quantized:
        return True
    return TABLE.knows(tensor.type) and type_error(LOW) > 4 * TABLE.of_type(tensor.type)


def _bands(layers: Sequence[int], n: int) -> list[Sequence[int]]:
    """Layers in at most `n` bands of equal length."""
    n = min(n, len(layers))
    ends = [len(layers) * i // n for i in range(n + 1)]
    return [layers[a:b] for a, b in pairwise(ends)]


def _name(kind: str, band: Sequence[int]) -> str:
    if band[0] < 0:
        return kind
    return f"{kind} {band[0]}" if len(band) == 1 else f"{kind} {band[0]}-{band[-1]}"


def scales_by_probes(model: Model, probes: Probes, *, prior: Scales | None = None) -> Scales:
    """The scales that probes tell.

    Parameters
    ----------
    prior
        What tensors of one group are told apart by, and what stands in for noise; by default the shipped one.

    Raises
    ------
    PlanError
        If no probe has a figure, or they are of other tensors.
    """
    prior = prior or scales_by_prior(model)
    names = {t.name for t in model.tensors}
    strange = sorted({n for p in probes.groups for n in p.errors} - names)
    if strange:
        raise PlanError(
            f"the probes are of another model: this one has no {names_in_words(strange)}",
            hint="give the record of this model's probes",
        )
    notes: list[str] = []
    used = [p for p in probes.groups if _is_usable(p)]
    if not used:
        raise PlanError("no probe has a KL divergence above 0", hint="probe again, with more --chunks")
    dropped = [p.name for p in probes.groups if not _is_usable(p)]
    if dropped:
        notes.append(f"{names_in_words(dropped)}: no KL divergence above 0 was measured; the prior stands in")
    noisy = [p.name for p in used if _noise(p) > _GOOD]
    if noisy:
        notes.append(f"{names_in_words(noisy)}: measured to no better than a fifth, so drawn to the prior")
    whole, spread = probes.whole, _SPREAD
    if whole is None or not _is_usable(whole):
        whole, spread = None, prior.level.spread
        notes.append("the probe of all tensors is missing: what small errors do together is not known")
    flips = _flips(used, whole, prior)
    values = _values(used, prior, flips)
    return Scales(values, Level(0.0, spread, flips), probes.source, prior.credit, tuple(notes))


def _values(used: Sequence[Probe], prior: Scales, flips: float) -> dict[str, float]:
    """The sensitivity of each tensor, if so much of every probe's figure is flips."""
    level = Level(0.0, 0.0, flips)
    weights = {p.name: _weights(p, prior) for p in used}
    factors = {p.name: damage_of(p.kld, level) / _sum(weights[p.name], p) for p in used}
    guesses = {p.name: _sum(prior.values, p) / REFERENCE_ERROR / _sum(weights[p.name], p) for p in used}
    middle = median(factors[p.name] / guesses[p.name] for p in used)
    values = {name: middle * value for name, value in prior.values.items()}
    for p in used:
        factor = factors[p.name]
        if (noise := _noise(p)) > _GOOD:
            weight = noise**2 / (noise**2 + _PRIOR_VARIANCE)
            factor = math.exp((1 - weight) * math.log(factor) + weight * math.log(middle * guesses[p.name]))
        values |= {n: factor * w * REFERENCE_ERROR for n, w in weights[p.name].items()}
    return values


def _flips(used: Sequence[Probe], whole: Probe | None, prior: Scales) -> float:
    """The c with which the damages of the probes of groups give the probe of all tensors, by bisection."""
    if whole is None:
        return 0.0

    def is_enough(flips: float) -> bool:
        damage = _sum(_values(used, prior, flips), whole) / REFERENCE_ERROR
        return damage + flips * math.sqrt(damage) >= whole.kld

    low, high = 0.0, math.sqrt(whole.kld)
    if is_enough(low):
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _is_usable(probe: Probe) -> bool:
    return math.isfinite(probe.kld) and probe.kld > 0 and sum(probe.errors.values()) > 0


def _noise(probe: Probe) -> float:
    """The standard error of a figure as a part of it."""
    return probe.error / probe.kld if math.isfinite(probe.error) else 0.0


def _weights(probe: Probe, prior: Scales) -> dict[str, float]:
    """How tensors of a group share its damage: by the root of the prior, alike in a group of one layer."""
    if len({block_of(name) for name in probe.errors}) == 1:
        return dict.fromkeys(probe.errors, 1.0)
    return {name: math.sqrt(max(prior.values[name], 1e-30)) for name in probe.errors}


def _sum(weights: Mapping[str, float], probe: Probe) -> float:
    return sum(weights[name] * error for name, error in probe.errors.items())
