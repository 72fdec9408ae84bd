"""What an allocation is to be: `OptimizeOptions`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ggplan.allocation.machine_rows import Target
from ggplan.errors import PlanError
from ggplan.planning.fallback import FallbackTable
from ggplan.rules import Recipe
from ggplan.text import printable

HARMONISED = (("gate", "up"),)
"""Kinds that get one type unless others are asked for."""
_MOST = 1e6  # bits per weight, tokens per second; beyond, sums are no numbers any more


@dataclass(frozen=True, slots=True)
class OptimizeOptions:
    """What an allocation is to be.

    Attributes
    ----------
    size
        The most bytes that the file may have, its header included; None for no limit.
    bpw
        The most bits per weight of all tensors; None for no limit.
    max_kld
        The most predicted KL divergence, in nats: the smallest file that keeps it is wanted, within the other
        limits. None for the least KL divergence within these.
    target
        A machine that the file must fit, and how fast it must be there; None for no such limit.
    types
        The names of the types that may be given; () for those of the engine.
    engine
        "llama.cpp" or "ik_llama.cpp": whose types, and whose fallback table.
    pins
        Rules of a recipe, `PATTERN = TYPE`, that stand whatever they cost; the first that matches decides.
    base
        A recipe whose rules stand, but for what pins decide; its `@default` and its promises do not count.
    bands
        Bands of layers for each kind of tensor; None for each layer its own.
    harmonised
        Sets of words: kinds of tensors that differ by such a word alone get one type.
    table
        A table of single-tensor measurements of this model; None for the prior alone.
    curve
        A table of the KL divergence of this whole model by type, which takes the place of the errors of the
        types and says how much all sensitivities add up to; None for a table by type.
    name
        The recipe's name.
    """

    # The budget.
    size: int | None = None
    bpw: float | None = None
    max_kld: float | None = None
    target: Target | None = None
    # What may be chosen.
    types: tuple[str, ...] = ()
    engine: str = "llama.cpp"
    pins: tuple[str, ...] = ()
    base: Recipe | None = None
    bands: int | None = 3
    harmonised: tuple[tuple[str, ...], ...] = HARMONISED
    # What it rests on.
    table: str | Path | None = None
    curve: str | Path | None = None
    # The answer.
    name: str = "optimized"

    @property
    def fallback(self) -> FallbackTable:
        """The fallback table of the engine."""
        return "ik" if self.engine == "ik_llama.cpp" else "llama.cpp"


def is_limited(options: OptimizeOptions) -> bool:
    """Whether a budget is given."""
    limits = (options.size, options.bpw, options.max_kld, options.target)
    return any(limit is not None for limit in limits)


def check_options(options: OptimizeOptions) -> None:
    """Raise what is wrong with options whatever the model.

    Raises
    ------
    PlanError
        If a value cannot be.
    """
    min_tps = options.target.min_tps if options.target is not None else None
    if min_tps is not None and not 1 / _MOST <= min_tps <= _MOST:
        raise PlanError(f"{min_tps} tokens per second cannot be", hint="it looks like 8")
    if options.max_kld is not None and not (math.isfinite(options.max_kld) and options.max_kld > 0):
        raise PlanError(
            f"a KL divergence of at most {options.max_kld} cannot be had", hint="it looks like 0.02"
        )
    if options.bpw is not None and not 0 < options.bpw <= _MOST:
        raise PlanError(f"{options.bpw} bits per weight cannot be", hint="bits per weight look like 4.5")
    if options.bands is not None and options.bands < 1:
        raise PlanError(f"{options.bands} bands cannot be", hint="1 or more")
    if options.engine not in ("llama.cpp", "ik_llama.cpp"):
        raise PlanError(f"engine cannot be {printable(options.engine)}", hint="llama.cpp or ik_llama.cpp")
