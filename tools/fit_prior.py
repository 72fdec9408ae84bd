"""Fit the prior of `ggplan.allocation.prior` to published measurements, and write `prior.csv`.

    python tools/fit_prior.py FOLDER             write ggplan/allocation/prior.csv
    python tools/fit_prior.py FOLDER --report    leave one family out after the other: how good is it?
    python tools/fit_prior.py FOLDER --nested    are the settings chosen too well for these models?

FOLDER has a CSV for each model, with the KL divergence of the model when one tensor alone is at about 2 bits:

    # source: ...                            comments, which credit the authors
    tensor,columns,rows,slices,kld

and `whole-model.csv`, `model,TYPE,...`, with the KL divergence of the whole model at each type.

The fit, for model m and tensor t, is the mean of two regressions of

    log s = level_m + role_t + depth_t                      s = kld - floor; all models weighted alike

`floor` is what a run shows whatever is changed (other kernels, tokens routed elsewhere): the 0.5 % quantile.

1. Least squares of log(max(s, LEAST floor)). Each tensor counts alike, so the shape of the many small ones is
   found well; but what drowns in noise is as good as any.
2. A log link, by iteratively reweighted least squares, with the variance (NOISE floor)^2 + (SPREAD s)^2. It
   takes measurements below the floor as they are, noise around a small value, but the large ones decide.

Each is best for some families; of the mean no family is bad. The pull toward 0 is small for `output` and
`token_embd`, of which a model has one: otherwise it would hide how far they are from the rest. `output tied`
is pulled toward `output`. `--nested` chooses among settings by all families but one and judges with that one.

Left out: values of 0 or 404 (not measured), and blocks of which all tensors have one value (those that only
predict further tokens, which are not run).
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggplan.allocation import OptimizeOptions, optimize
from ggplan.allocation import prior as shipped
from ggplan.allocation.prior import CLASSES, REFERENCE_ERROR, TERMS, Level, Prior
from ggplan.allocation.scales import Scales, scales_by_prior
from ggplan.allocation.solving import Item, Solution, solve
from ggplan.allocation.type_errors import Errors, type_error
from ggplan.errors import Error
from ggplan.ggml_types import BF16, parse_type
from ggplan.metadata import Metadata
from ggplan.model import Model, TensorInfo

OUTPUT = Path(shipped.__file__).with_name("prior.csv")
_PULLED_LITTLE = 0.005
_TIED = "output tied"
_ONE_OF_A_MODEL = ("output", "token_embd")
_ROUNDS = 30
_LEVEL_TYPES = ("iq2_xs", "q2_K", "iq3_xxs", "q3_K", "iq4_xs", "q4_K")
_FINE_TYPE = "q5_K"
_CURVE_FLOOR = 0.9  # of the KL divergence of q8_0: what a run of the whole model shows whatever is changed
# What the report judges with.
BUDGETS = (2.8, 3.5, 4.5, 5.5)
TYPES = ("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs", "q5_K", "q6_K", "q8_0")

FAMILIES = {
    "deepseek": r"DeepSeek|Kimi",
    "glm-4": r"GLM-4",
    "glm-5": r"GLM-5",
    "qwen3": r"Qwen3-",
    "qwen3.5": r"Qwen3\.",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of one model.

    Attributes
    ----------
    type
        At which each tensor was measured.
    names, sizes, signals
        Of each tensor: its name, its weights, and its KL divergence less the floor.
    n_blocks
        Without those that only predict further tokens.
    whole
        The KL divergence of the whole model, by type.
    """

    model: str
    type: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    signals: NDArray[np.float64]
    floor: float
    n_blocks: int
    whole: Mapping[str, float]

    @property
    def family(self) -> str:
        """Which models are left out together with this one."""
        return family_of(self.model)

    @property
    def kind(self) -> str:
        """Whether it has routed experts."""
        return "experts" if any("_exps" in name for name in self.names) else "dense"


def family_of(model: str) -> str:
    """The family of a model by its name; of an unknown one the name."""
    return next((f for f, pattern in FAMILIES.items() if re.match(pattern, model)), model)


def read_folder(folder: Path) -> list[Measured]:
    """The measurements of all models of a folder."""
    whole = {row["model"]: row for row in _rows(folder / "whole-model.csv")}
    found = []
    for path in sorted(folder.glob("*.csv")):
        if path.name != "whole-model.csv":
            curve = {
                t: float(v) for t, v in whole.get(path.stem, {}).items() if t != "model" and float(v) > 0
            }
            found.append(_measured(path, curve))
    return found


def _measured(path: Path, whole: Mapping[str, float]) -> Measured:
    rows = [row for row in _rows(path) if float(row["kld"]) not in (0.0, 404.0)]
    values = np.array([float(row["kld"]) for row in rows])
    floor = float(np.quantile(values, 0.005))
    blocks: dict[int, set[float]] = {}
    for row, value in zip(rows, values, strict=True):
        blocks.setdefault(_block(row["tensor"]), set()).add(float(value))
    run = {block for block, seen in blocks.items() if block < 0 or len(seen) > 1}
    kept = [
        i for i, row in enumerate(rows) if _block(row["tensor"]) in run and ".nextn." not in row["tensor"]
    ]
    return Measured(
        model=path.stem,
        type=_type_of(path),
        names=tuple(rows[i]["tensor"] for i in kept),
        sizes=tuple(int(rows[i]["columns"]) * int(rows[i]["rows"]) * int(rows[i]["slices"]) for i in kept),
        signals=values[kept] - floor,
        floor=floor,
        n_blocks=max(run) + 1,
        whole=whole,
    )


def _type_of(path: Path) -> str:
    """The type that a comment of the table names."""
    found = re.search(r"^#.*\bis (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{path}: no comment says which type the tensors had")
    return found[1]


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def _block(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a fit; the defaults are those of the prior that ships.

    Attributes
    ----------
    least
        The least signal of the first regression, as a part of the floor.
    noise, spread
        Of the second one's variance.
    ridges
        How strongly either is pulled toward 0, in units of a hundredth of a model.
    part
        The weight of the first in the mean.
    """

    least: float = 0.2
    noise: float = 0.4
    spread: float = 0.4
    ridges: tuple[float, float] = (4.0, 6.0)
    part: float = 0.5


def fit(models: Sequence[Measured], settings: Settings | None = None) -> Prior:
    """The prior of these models."""
    settings = settings or Settings()
    roles = sorted({role for m in models for role in _roles(m)} | {"output"})
    tables = [_features(m, roles) for m in models]
    pull = np.array([_PULLED_LITTLE if role in _ONE_OF_A_MODEL else 1.0 for role in roles])
    pull = np.concatenate([pull, np.ones(len(CLASSES) * len(TERMS))])
    of_logs = _fit_logs(models, tables, settings.least, pull * settings.ridges[0])
    linked = _fit_linked(models, tables, settings, pull * settings.ridges[1])
    numbers = settings.part * of_logs + (1 - settings.part) * linked
    depth = numbers[len(roles) :].reshape(len(CLASSES), len(TERMS))
    of_roles = dict(zip(roles, map(float, numbers), strict=False))
    if _TIED in of_roles:
        of_roles[_TIED] += of_roles["output"]
    prior = Prior(
        of_roles,
        {kind: tuple(map(float, row)) for kind, row in zip(CLASSES, depth, strict=True)},
        {},
        (),
    )
    return Prior(prior.roles, prior.depth, _levels(models, prior), ())


def _fit_logs(
    models: Sequence[Measured], tables: Sequence[NDArray[np.float64]], least: float, pull: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least squares of the logarithms; the level of a model is its mean."""
    normal, right = np.diag(pull), np.zeros(len(pull))
    for m, table in zip(models, tables, strict=True):
        logs = np.log(np.maximum(m.signals, least * m.floor))
        centred = table - table.mean(0)
        normal += _products(centred, centred) * (100 / len(logs))
        right += centred.T @ (logs - logs.mean()) * (100 / len(logs))
    return np.asarray(np.linalg.solve(normal, right), np.float64)


def _products(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """A transposed times b; both are so small that BLAS's threads would only wait for each other."""
    return np.asarray(np.einsum("ij,ik->jk", a, b), np.float64)


def _fit_linked(
    models: Sequence[Measured],
    tables: Sequence[NDArray[np.float64]],
    settings: Settings,
    pull: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The regression with a log link."""
    n_terms, n_models = len(pull), len(models)
    numbers = np.zeros(n_terms)
    levels = np.array([np.log(m.signals.mean()) for m in models])
    ridge = np.diag(np.concatenate([pull, np.full(n_models, 1e-6)]))
    for _ in range(_ROUNDS):
        normal, right = np.zeros((n_terms + n_models,) * 2), np.zeros(n_terms + n_models)
        for j, (m, table) in enumerate(zip(models, tables, strict=True)):
            log = np.clip(table @ numbers + levels[j], -16, 4)
            expected = np.exp(log)
            variance = (settings.noise * m.floor) ** 2 + (settings.spread * expected) ** 2
            weights = expected**2 / variance * (100 / len(expected))
            target = weights * (log + np.clip((m.signals - expected) / expected, -10, 10))
            weighted = table * weights[:, None]
            at = n_terms + j
            normal[:n_terms, :n_terms] += _products(table, weighted)
            normal[at, :n_terms] = normal[:n_terms, at] = weighted.sum(0)
            normal[at, at] = weights.sum()
            right[:n_terms] += table.T @ target
            right[at] = target.sum()
        found = np.linalg.solve(normal + ridge, right)
        numbers = (numbers + found[:n_terms]) / 2  # half a step: whole ones may swing
        levels = (levels + found[n_terms:]) / 2
    return numbers


def _roles(m: Measured) -> list[str]:
    tied = "output.weight" not in m.names
    found = [shipped.role_in_prior(name) for name in m.names]
    return [_TIED if role == "token_embd" and tied else role for role in found]


def _features(m: Measured, roles: Sequence[str]) -> NDArray[np.float64]:
    table = np.zeros((len(m.names), len(roles) + len(CLASSES) * len(TERMS)))
    for i, (name, role) in enumerate(zip(m.names, _roles(m), strict=True)):
        table[i, roles.index(role)] = 1
        if role == _TIED:
            table[i, roles.index("output")] = 1
        if (block := _block(name)) >= 0:
            at = len(roles) + CLASSES.index(shipped.class_of(role)) * len(TERMS)
            table[i, at : at + len(TERMS)] = shipped.depth_terms(block, m.n_blocks)
    return table


def _levels(models: Sequence[Measured], prior: Prior) -> dict[str, Level]:
    """The levels of models with experts and without, from the whole model's KL divergence at several types.

    A(type) = level * sum of sensitivities * error(type) / REFERENCE_ERROR. Of the prior the sensitivities are
    exp(role + depth); of measurements the signals themselves, whose level should be 1, and by how much it is
    not says how far a forecast from measurements is off. The KL divergence at a fine type says what c sqrt(A)
    adds.
    """
    logs: dict[str, list[float]] = {}
    flips: dict[str, list[float]] = {}
    for m in models:
        by_prior = sum(shipped.sensitivities_by_prior(m.names, prior, n_blocks=m.n_blocks).values())
        measured = float(m.signals.clip(0).sum()) * REFERENCE_ERROR / type_error(m.type)
        for kind, total in ((m.kind, by_prior), (f"{m.kind} measured", measured)):
            per_type = {t: total * type_error(t) / REFERENCE_ERROR for t in (*_LEVEL_TYPES, _FINE_TYPE)}
            # A type at which a model falls apart is a fault of an encoder, not a level.
            near = [np.log(m.whole[t] / per_type[t]) for t in _LEVEL_TYPES if m.whole.get(t, 9.0) < 1]
            if not near:
                continue
            level = float(np.median(near))
            logs.setdefault(kind, []).append(level)
            if _FINE_TYPE in m.whole:
                fine = np.exp(level) * per_type[_FINE_TYPE]
                flips.setdefault(kind, []).append(float((m.whole[_FINE_TYPE] - fine) / np.sqrt(fine)))
    return {
        kind: Level(
            statistics.median(found), statistics.pstdev(found), max(0.0, statistics.median(flips[kind]))
        )
        for kind, found in sorted(logs.items())
    }


def write(prior: Prior, models: Sequence[Measured], path: Path) -> None:
    """Write a prior as the table that ships."""
    names = ", ".join(m.model for m in models)
    lines = [
        "# Sensitivity by role and depth; made by tools/fit_prior.py, read by ggplan/allocation/prior.py.",
        "# Fitted to measurements of Thireus, the GGUF Tool Suite and its contributors",
        f"# (github.com/Thireus/GGUF-Tool-Suite), of {len(models)} models.",
        f"# The models: {names}.",
        "what,name,term,value",
    ]
    lines += [f"role,{role},,{value:.3f}" for role, value in sorted(prior.roles.items())]
    for kind, values in prior.depth.items():
        lines += [f"depth,{kind},{term},{value:.3f}" for term, value in zip(TERMS, values, strict=True)]
    for kind, level in prior.levels.items():
        parts = {"level": level.log_level, "spread": level.spread, "flips": level.flips}
        lines += [f"level,{kind},{term},{value:.3f}" for term, value in parts.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def model_of(m: Measured) -> Model:
    """The model of a table, with rows of 256, so that all its tensors may get all types."""
    tensors = tuple(
        TensorInfo(name, (max(size // 256, 1), 256), BF16, m.model, "BF16")
        for name, size in zip(m.names, m.sizes, strict=True)
    )
    return Model(Path(m.model), "inventory", "", Metadata(), tensors)


def curve_of(m: Measured) -> dict[str, float]:
    """The damage of each of `TYPES` by the KL divergence of the whole model, less what a run shows anyway.

    Types that were not measured are not in it.
    """
    least = _CURVE_FLOOR * m.whole.get("q8_0", 0.0)
    return {t: max(m.whole[t] - least, 1e-6) for t in TYPES if t in m.whole}


def damage_over_optimum(
    m: Measured, scales: Scales, bpw: float, bands: int | None = 3, *, own_curve: bool = False
) -> float:
    """The damage of the optimiser's allocation over the least one, both by the measured values.

    damage = sum of signals times what the types do. The allocation has not seen the signals. The least one is
    free for each tensor.

    Parameters
    ----------
    own_curve
        Whether types do what `curve_of` says, to both; else the errors of `ggplan.allocation.type_errors`.
    """
    by_type = curve_of(m) if own_curve else {name: type_error(name) for name in TYPES}
    options = OptimizeOptions(bpw=bpw, types=tuple(by_type), bands=bands)
    errors = Errors("judge", by_type=by_type)
    plan = optimize(model_of(m), options, scales=scales, errors=errors).plan
    signals = dict(zip(m.names, np.maximum(m.signals, 1e-6).tolist(), strict=True))
    found = sum(signals[t.name] * by_type[t.type.name] for t in plan.tensors)
    types = [parse_type(name) for name in by_type]
    items = [
        Item(
            tuple(signals[t.name] * by_type[type_.name] for type_ in types),
            (tuple(float(type_.tensor_bytes(t.tensor.shape)) for type_ in types),),
        )
        for t in plan.tensors
    ]
    least = solve(items, [bpw * plan.n_weights / 8])
    assert isinstance(least, Solution)
    return float(found / least.damage)


def left_out(
    models: Sequence[Measured], settings: Settings | None = None
) -> Iterator[tuple[Measured, Prior]]:
    """Each model with the prior of the other families."""
    for family in dict.fromkeys(m.family for m in models):
        prior = fit([m for m in models if m.family != family], settings)
        yield from ((m, prior) for m in models if m.family == family)


def report(models: Sequence[Measured], bands: int | None) -> None:
    """Print, for each model, what the prior of the other families costs against the measured values."""
    how = "free for each tensor" if bands is None else f"{bands} bands"
    print(f"damage over the optimum of the measured values, {how}: one curve of errors | the model's own")
    print(f"{'':28}" + "".join(f"{b:>7}" for b in BUDGETS) + "  |" + "".join(f"{b:>7}" for b in BUDGETS))
    found: dict[bool, list[float]] = {False: [], True: []}
    for m, prior in left_out(models):
        scales = scales_by_prior(model_of(m), prior)
        shown = []
        for own_curve, ratios in found.items():
            least = min(parse_type(t).bits_per_weight for t in (curve_of(m) if own_curve else TYPES))
            fits = [bpw for bpw in BUDGETS if bpw > least]
            now = {bpw: damage_over_optimum(m, scales, bpw, bands, own_curve=own_curve) for bpw in fits}
            ratios += now.values()
            shown.append("".join(f"{now[b]:7.2f}" if b in now else f"{'-':>7}" for b in BUDGETS))
        print(f"{m.model:28}{shown[0]}  |{shown[1]}", flush=True)
    for own_curve, ratios in found.items():
        middle, mean = statistics.median(ratios), statistics.mean(ratios)
        by = "own curve" if own_curve else "one curve"
        print(f"{by}: median {middle:.3f}, mean {mean:.3f}, largest {max(ratios):.2f}")


def nested(models: Sequence[Measured]) -> None:
    """Print what the settings chosen without a family are for that family.

    For each family: the settings that are best for the *others* (each of these left out of its fit in turn),
    and the mean ratio of the family with them and with the settings that ship.
    """
    choices = [
        Settings(least=least, ridges=(ridge, 1.5 * ridge), part=part)
        for least in (0.05, 0.2)
        for ridge in (1.0, 4.0, 16.0)
        for part in (0.0, 0.5, 1.0)
    ]
    logs = {choice: {m.model: float(np.log(relaxed_ratios(m, p)).mean()) for m, p in left_out(models, choice)}
            for choice in (*choices, Settings())}  # fmt: skip
    for family in dict.fromkeys(m.family for m in models):
        inside = [m.model for m in models if m.family == family]
        outside = [m.model for m in models if m.family != family]
        best = min(choices, key=lambda choice: statistics.mean(logs[choice][name] for name in outside))
        found, ships = (
            float(np.exp(statistics.mean(logs[choice][name] for name in inside)))
            for choice in (best, Settings())
        )
        print(f"{family:10} chosen without it {found:.3f}, as shipped {ships:.3f}   {best}", flush=True)


def relaxed_ratios(m: Measured, prior: Prior) -> list[tuple[float, float]]:
    """Damage over optimum at each of `BUDGETS`, by one curve of errors and by the model's own.

    Free for each tensor, and as if tensors could be divided: the multiplier's solution, without a solver.
    """
    by_name = shipped.sensitivities_by_prior(m.names, prior, n_blocks=m.n_blocks)
    guess, signals = np.array([by_name[name] for name in m.names]), m.signals.clip(1e-6)
    common, own = ({t: type_error(t) for t in TYPES}, curve_of(m))
    return [
        (
            _relaxed(m, guess, common, bpw) / _relaxed(m, signals, common, bpw),
            _relaxed(m, guess, own, bpw) / _relaxed(m, signals, own, bpw),
        )
        for bpw in BUDGETS
    ]


def _relaxed(m: Measured, guess: NDArray[np.float64], curve: Mapping[str, float], bpw: float) -> float:
    """The measured damage of the allocation of a guess, where each tensor takes one price for a byte."""
    hull: list[tuple[float, float]] = []
    for bits, damage in sorted((parse_type(t).bits_per_weight, d) for t, d in curve.items()):
        if hull and damage >= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], (bits, damage)):
            hull.pop()
        hull.append((bits, damage))
    slopes = -np.log([_slope(a, b) for a, b in pairwise(hull)])
    bits_of, damage_of = np.array(hull).T
    sizes = np.array(m.sizes, float)
    ratios, limit = np.log(guess / sizes), bpw * sizes.sum()
    low, high = -80.0, 80.0
    for _ in range(60):
        middle = (low + high) / 2
        spent = (sizes * bits_of[np.searchsorted(slopes, ratios - middle)]).sum()
        low, high = (low, middle) if spent <= limit else (middle, high)
    under, over = (np.searchsorted(slopes, ratios - price) for price in (high, low))
    room, step = limit - (sizes * bits_of[under]).sum(), (sizes * (bits_of[over] - bits_of[under])).sum()
    part = min(1.0, room / step) if step else 0.0
    signals = m.signals.clip(1e-6)
    return float((signals * ((1 - part) * damage_of[under] + part * damage_of[over])).sum())


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    """How much damage a bit takes off between two points of a curve."""
    return (a[1] - b[1]) / (b[0] - a[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--report", action="store_true", help="print how good it is, and write nothing")
    parser.add_argument("--bands", type=int, default=3, help="of the report; 0: free for each tensor")
    parser.add_argument("--nested", action="store_true", help="print how well the settings were chosen")
    options = parser.parse_args()
    models = read_folder(options.folder)
    if not models:
        raise SystemExit(f"{options.folder} has no tables")
    if options.report:
        report(models, options.bands or None)
        return
    if options.nested:
        nested(models)
        return
    write(fit(models), models, OUTPUT)
    print(f"{OUTPUT} written")


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        raise SystemExit(f"error: {error}") from None
