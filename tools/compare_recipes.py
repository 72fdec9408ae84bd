"""Hold published recipes against the best allocation of their own bytes and types.

    python tools/compare_recipes.py --table kld_results.csv [--curve group0/kld_results.csv] RECIPE|FOLDER ...

    --model MODEL     where the table has no shapes: an inventory, a map, a GGUF file, a checkpoint
    --fit FOLDER      fit the prior to the tables of a folder, the family of this one left out; by default the
                      prior that ships, which may have been fitted to this very table

For each recipe, over the tensors that the table has:

    theirs    damage of the recipe
    prior     damage of the least damage by the prior, within the recipe's bytes, of its types
    optimum   the same by the table itself

each counted by the table: the KL divergence with that tensor alone at a low type, less the floor of the run,
times what the type does. That is the KL divergence of the whole model at the type, less 0.9 of q8_0's, if
there is a `--curve`, else the error of the type. Tensors that the table lacks keep their types; a type may
be given to any tensor whose rows hold it, or what ik_llama.cpp puts in its place. All are free for each
tensor, as the recipes are. The optimum is never above the recipe: it is one of its candidates.

Recipes that are of another model, or have types of which nothing is known, are named and left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fit_prior import family_of, fit, read_folder

from ggplan.allocation.curves import curve_of, errors_by_curve
from ggplan.allocation.prior import Prior
from ggplan.allocation.scales import scales_by_prior
from ggplan.allocation.sensitivities import Sensitivities
from ggplan.allocation.sensitivity_tables import read_sensitivities
from ggplan.allocation.solving import Item, Solution, solve
from ggplan.allocation.type_errors import TABLE, Errors
from ggplan.errors import Error, PlanError
from ggplan.ggml_types import BF16, GgmlType
from ggplan.metadata import Metadata
from ggplan.model import Model, TensorInfo
from ggplan.opening import open_model
from ggplan.planning import Decision, decide
from ggplan.planning.fitting import fitted
from ggplan.rules import load_recipe

_FLOOR_QUANTILE = 0.005
_LEAST = 1e-6  # a signal below the floor
_MOST_WITHOUT_RULE = 0.02  # of the measured tensors; of more the recipe is of another model


@dataclass(frozen=True, slots=True)
class Judge:
    """What damage is counted by.

    Attributes
    ----------
    model
        With the measured tensors at least.
    signals
        The table's, by tensor.
    errors
        What the types do.
    guesses
        The prior's sensitivities, by tensor.
    """

    model: Model
    signals: Mapping[str, float]
    errors: Errors
    guesses: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Compared:
    """Damages of a recipe, of the prior and of the optimum; bytes and bits are of the measured tensors."""

    n_bytes: int
    bits_per_weight: float
    theirs: float
    prior: float
    optimum: float


def judge_of(
    table: Sensitivities, model: Model | None, errors: Errors = TABLE, prior: Prior | None = None
) -> Judge:
    """The judge of a table of single tensors.

    Raises
    ------
    PlanError
        If the table is no such, or has no shapes and there is no model.
    """
    if table.figure != "kld" or table.of != "tensor":
        raise PlanError(f"the table has {table.figure} of {table.of}s, not KL divergences of single tensors")
    figures = {place.name: next(iter(place.figures.values())) for place in table.places if place.figures}
    if not figures:
        raise PlanError("the table has no figures")
    if model is None:
        if not all(place.shape for place in table.places):
            raise PlanError("the table has no shapes", hint="name the model with --model")
        tensors = [TensorInfo(p.name, p.shape, BF16, "table", "BF16") for p in table.places]
        model = Model(Path("table"), "inventory", "", Metadata(), tuple(tensors))
    names = {t.name for t in model.tensors}
    if lacking := [name for name in figures if name not in names]:
        raise PlanError(f"{len(lacking)} tensors of the table are not in the model ({lacking[0]}, …)")
    floor = float(np.quantile(list(figures.values()), _FLOOR_QUANTILE))
    signals = {name: max(value - floor, _LEAST) for name, value in figures.items()}
    return Judge(model, signals, errors, scales_by_prior(model, prior).values)


def compare(path: Path, judge: Judge) -> Compared:
    """Compare a recipe.

    Raises
    ------
    Error
        If it cannot be read, is of another model, or has a type of which nothing is known.
    """
    theirs = _types_of(path, judge)
    tensors = [t for t in judge.model.tensors if t.name in judge.signals]
    allowed = tuple(dict.fromkeys(theirs[t.name] for t in tensors))
    choices = [_choices(t, theirs[t.name], allowed) for t in tensors]
    own = [types.index(theirs[t.name]) for t, types in zip(tensors, choices, strict=True)]
    n_bytes = sum(theirs[t.name].tensor_bytes(t.shape) for t in tensors)

    def damage(chosen: Sequence[int]) -> float:
        told = zip(tensors, choices, chosen, strict=True)
        return sum(judge.signals[t.name] * judge.errors.of(t, types[i]) for t, types, i in told)

    def best(sensitivities: Mapping[str, float]) -> Sequence[int]:
        items = [
            Item(
                tuple(sensitivities[t.name] * judge.errors.of(t, type_) for type_ in types),
                (tuple(float(type_.tensor_bytes(t.shape)) for type_ in types),),
            )
            for t, types in zip(tensors, choices, strict=True)
        ]
        found = solve(items, [float(n_bytes)])
        if not isinstance(found, Solution):  # their own types are within their own bytes
            return own
        return min((own, found.chosen), key=lambda chosen: _sum(items, chosen))

    return Compared(
        n_bytes,
        8 * n_bytes / sum(t.n_weights for t in tensors),
        damage(own),
        damage(best(judge.guesses)),
        damage(best(judge.signals)),
    )


def _sum(items: Sequence[Item], chosen: Sequence[int]) -> float:
    return sum(item.damages[i] for item, i in zip(items, chosen, strict=True))


def _types_of(path: Path, judge: Judge) -> dict[str, GgmlType]:
    """The types that a recipe gives the measured tensors."""
    decided = decide(judge.model, load_recipe(path)).decisions
    without = [name for name in judge.signals if decided[name].reason not in ("rule", "default")]
    if len(without) > _MOST_WITHOUT_RULE * len(judge.signals):
        raise PlanError(
            f"it is of another model: {len(without)} of {len(judge.signals)} tensors have no rule"
            f" ({without[0]}, …)"
        )
    types = {}
    for tensor in judge.model.tensors:
        if tensor.name in judge.signals:
            found = fitted(tensor, decided[tensor.name], "ik")
            if found.fault is not None:
                raise found.error()
            judge.errors.of(tensor, found.type)
            types[tensor.name] = found.type
    return types


def _choices(tensor: TensorInfo, own: GgmlType, allowed: Sequence[GgmlType]) -> tuple[GgmlType, ...]:
    found = [own]
    for type_ in allowed:
        got = fitted(tensor, Decision(type_, "optimiser"), "ik")
        if got.fault is None:
            found.append(got.type)
    return tuple(dict.fromkeys(found))


def recipes_in(places: Sequence[Path]) -> Iterator[Path]:
    """The recipes of files and folders."""
    for place in places:
        yield from sorted(place.rglob("*.recipe")) if place.is_dir() else [place]


def report(paths: Sequence[Path], judge: Judge) -> None:
    """Print a line for each recipe, and how many are above."""
    print(f"{'recipe':72} {'bpw':>6} {'theirs/optimum':>15} {'prior/optimum':>14} {'theirs/prior':>13}")
    found: list[Compared] = []
    left_out = 0
    for path in paths:
        try:
            one = compare(path, judge)
        except Error as error:
            left_out += 1
            print(f"{path.name[:72]:72} left out: {error.message}")
            continue
        found.append(one)
        ratios = one.theirs / one.optimum, one.prior / one.optimum, one.theirs / one.prior
        shown = f"{ratios[0]:15.2f} {ratios[1]:14.2f} {ratios[2]:13.2f}"
        print(f"{path.name[:72]:72} {one.bits_per_weight:6.3f} {shown}", flush=True)
    if not found:
        raise SystemExit("no recipe could be compared")
    theirs, prior = ([getattr(one, name) / one.optimum for one in found] for name in ("theirs", "prior"))
    print(
        f"{len(found)} recipes, {left_out} left out; over the optimum: theirs median"
        f" {statistics.median(theirs):.2f}, prior median {statistics.median(prior):.2f}; the prior is lower"
        f" in {sum(one.prior < one.theirs for one in found)}, the table in"
        f" {sum(one.optimum < one.theirs for one in found)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", type=Path, nargs="+", metavar="RECIPE|FOLDER")
    parser.add_argument("--table", type=Path, required=True, metavar="CSV")
    parser.add_argument("--curve", type=Path, metavar="CSV")
    parser.add_argument("--model", metavar="MODEL")
    parser.add_argument("--fit", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    name = options.model or options.table.stem
    (table,) = read_sensitivities(options.table)
    errors = TABLE
    if options.curve is not None:
        tables = read_sensitivities(options.curve)
        errors = errors_by_curve(curve_of(tables, Path(name).name, str(options.curve)))
    prior = None
    if options.fit is not None:
        prior = fit([m for m in read_folder(options.fit) if m.family != family_of(Path(name).name)])
    model = None if options.model is None else open_model(options.model)
    paths = list(recipes_in(options.recipes))
    if not paths:
        raise SystemExit("there are no recipes")
    report(paths, judge_of(table, model, errors, prior))


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit(f"error: {error}")
