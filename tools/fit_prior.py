"""Fit the prior of `ggplan.allocation.prior` to published measurements, and write `prior.csv`.

    python tools/fit_prior.py FOLDER             write ggplan/allocation/prior.csv
    python tools/fit_prior.py FOLDER --report    leave one family out after the other: how good is it?

FOLDER has a CSV for each model, with the KL divergence of the model when one tensor alone is at about 2 bits:

    # source: ...                            comments, which credit the authors
    tensor,columns,rows,slices,kld

and `whole-model.csv`, `model,TYPE,...`, with the KL divergence of the whole model at each type.

The fit, for model m and tensor t, by iteratively reweighted least squares:

    E[kld - floor] = exp(level_m + role_t + depth_t)
    variance       = (NOISE floor)^2 + (SPREAD E)^2          all models weighted alike

`floor` is what a run shows whatever is changed (other kernels, tokens routed elsewhere): the 0.5 % quantile.
A log link with this variance takes measurements below the floor as they are, noise around a small value,
where a regression on logarithms has to invent a number for them. Of families left out, free for each tensor
and by each model's own curve of types, the allocation was at 1.23 times the optimum in the mean with it, and
at 1.36 with the regression on logarithms. NOISE, SPREAD and RIDGE were chosen among some fifteen by it.

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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggplan.allocation import OptimizeOptions, optimize
from ggplan.allocation import prior as shipped
from ggplan.allocation.prior import CLASSES, REFERENCE_ERROR, TERMS, Level, Prior
from ggplan.allocation.scales import Scales, scales_by_prior
from ggplan.allocation.solving import Item, Solution, solve
from ggplan.allocation.type_errors import type_error
from ggplan.errors import Error
from ggplan.ggml_types import BF16, parse_type
from ggplan.metadata import Metadata
from ggplan.model import Model, TensorInfo

OUTPUT = Path(shipped.__file__).with_name("prior.csv")
NOISE = 0.1
SPREAD = 0.4
RIDGE = 0.3
_ROUNDS = 30
_LEVEL_TYPES = ("iq2_xs", "q2_K", "iq3_xxs", "q3_K", "iq4_xs", "q4_K")
_FINE_TYPE = "q5_K"
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
        return next((f for f, pattern in FAMILIES.items() if re.match(pattern, self.model)), self.model)

    @property
    def kind(self) -> str:
        """Whether it has routed experts."""
        return "experts" if any("_exps" in name for name in self.names) else "dense"


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


def fit(models: Sequence[Measured]) -> Prior:
    """The prior of these models."""
    roles = sorted({role for m in models for role in _roles(m)})
    n_terms, n_models = len(roles) + len(CLASSES) * len(TERMS), len(models)
    tables = [_features(m, roles) for m in models]
    numbers = np.zeros(n_terms)
    levels = np.array([np.log(m.signals.mean()) for m in models])
    ridge = np.diag([RIDGE] * n_terms + [1e-6] * n_models)
    for _ in range(_ROUNDS):
        normal, right = np.zeros((n_terms + n_models,) * 2), np.zeros(n_terms + n_models)
        for j, (m, table) in enumerate(zip(models, tables, strict=True)):
            log = np.clip(table @ numbers + levels[j], -16, 4)
            expected = np.exp(log)
            variance = (NOISE * m.floor) ** 2 + (SPREAD * expected) ** 2
            weights = expected**2 / variance * (100 / len(expected))
            target = weights * (log + np.clip((m.signals - expected) / expected, -10, 10))
            weighted = table * weights[:, None]
            at = n_terms + j
            normal[:n_terms, :n_terms] += table.T @ weighted
            normal[at, :n_terms] = normal[:n_terms, at] = weighted.sum(0)
            normal[at, at] = weights.sum()
            right[:n_terms] += table.T @ target
            right[at] = target.sum()
        found = np.linalg.solve(normal + ridge, right)
        numbers = (numbers + found[:n_terms]) / 2  # half a step: whole ones may swing
        levels = (levels + found[n_terms:]) / 2
    depth = numbers[len(roles) :].reshape(len(CLASSES), len(TERMS))
    prior = Prior(
        dict(zip(roles, map(float, numbers), strict=False)),
        {kind: tuple(map(float, row)) for kind, row in zip(CLASSES, depth, strict=True)},
        {},
        (),
    )
    return Prior(prior.roles, prior.depth, _levels(models, prior), ())


def _roles(m: Measured) -> list[str]:
    tied = "output.weight" not in m.names
    found = [shipped.role_in_prior(name) for name in m.names]
    return ["output" if role == "token_embd" and tied else role for role in found]


def _features(m: Measured, roles: Sequence[str]) -> NDArray[np.float64]:
    table = np.zeros((len(m.names), len(roles) + len(CLASSES) * len(TERMS)))
    for i, (name, role) in enumerate(zip(m.names, _roles(m), strict=True)):
        table[i, roles.index(role)] = 1
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


def damage_over_optimum(m: Measured, scales: Scales, bpw: float, bands: int | None = 3) -> float:
    """The damage of the optimiser's allocation over the least one, both by the measured values.

    damage = sum of signals times errors of types. The allocation has not seen the signals. The least one is
    free for each tensor.
    """
    by_type = {name: type_error(name) for name in TYPES}
    options = OptimizeOptions(bpw=bpw, types=TYPES, bands=bands)
    plan = optimize(model_of(m), options, scales=scales).plan
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
    return found / least.damage


def left_out(models: Sequence[Measured]) -> Iterator[tuple[Measured, Prior]]:
    """Each model with the prior of the other families."""
    for family in dict.fromkeys(m.family for m in models):
        prior = fit([m for m in models if m.family != family])
        yield from ((m, prior) for m in models if m.family == family)


def report(models: Sequence[Measured]) -> None:
    """Print, for each model, what the prior of the other families costs against the measured values."""
    print(f"{'damage over the optimum of the measured values':50}" + "".join(f"{b:>7}" for b in BUDGETS))
    ratios = []
    for m, prior in left_out(models):
        scales = scales_by_prior(model_of(m), prior)
        found = [damage_over_optimum(m, scales, bpw) for bpw in BUDGETS]
        ratios += found
        print(f"{m.model:50}" + "".join(f"{ratio:7.2f}" for ratio in found), flush=True)
    middle, mean = statistics.median(ratios), statistics.mean(ratios)
    print(f"median {middle:.3f}, mean {mean:.3f}, largest {max(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--report", action="store_true", help="print how good it is, and write nothing")
    options = parser.parse_args()
    models = read_folder(options.folder)
    if not models:
        raise SystemExit(f"{options.folder} has no tables")
    if options.report:
        report(models)
        return
    write(fit(models), models, OUTPUT)
    print(f"{OUTPUT} written")


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        raise SystemExit(f"error: {error}") from None
