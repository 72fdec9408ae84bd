"""What second moments cost: CPU seconds of one thread for a million weights, and hours for whole models.

    python tools/bench_feedback.py                              every type, rows of 256 to 4096 columns
    python tools/bench_feedback.py q4_K iq3_xxs --columns 2048 4096
    python tools/bench_feedback.py q4_K --models --experts 2    hours, from two experts of a layer of 128

Weights are heavy-tailed random ones, inputs random ones whose second moments fall off by a power law, as
those of trained models do. Each step is timed by itself: the moments of N inputs; preparing them (regularize,
factor, pack); `effort="best"`, which every row is compared with; and a method in all. A model's hours are
those of its experts' matrices, from the time that sampled experts take and how many there are; the text's way
through the model comes on top. Memory is what a worker holds at most beside its weights and blocks, with
the moments: what the process holds more than before (Linux).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from bench_page import machine  # noqa: E402

from ggplan.ggml_types import TYPES, GgmlType, parse_type  # noqa: E402
from ggplan.quants import encode_into  # noqa: E402
from ggplan.quants.feedback import METHODS, encode_with_moments, takes_moments  # noqa: E402
from ggplan.quants.linear_algebra import Moments, second_moments  # noqa: E402
from ggplan.quants.prepared import Prepared, prepare  # noqa: E402

F32Array = NDArray[np.float32]

COLUMNS = (256, 768, 1408, 2048, 4096)
TOKENS_PER_COLUMN = 2
MOST_WEIGHTS = 1 << 20


class Experts(NamedTuple):
    """A model's matrices of experts: layers, experts of a layer, columns of the stream and of an expert."""

    layers: int
    experts: int
    stream: int
    inside: int
    tokens: int
    """How many an expert sees of 64k tokens."""


MODELS = {
    "30B-A3B": Experts(48, 128, 2048, 768, 4096),
    "GLM-4.5-Air": Experts(45, 128, 4096, 1408, 4096),
}


def inputs(tokens: int, n: int, seed: int = 0) -> F32Array:
    """Inputs of a matrix: directions that all columns share, each smaller than the last, and noise."""
    rng = np.random.default_rng(seed)
    roots = (np.arange(1, n // 2 + 1) ** -0.5).astype(np.float32)
    x: F32Array = rng.standard_normal((tokens, n // 2), np.float32) * roots
    x = x @ rng.standard_normal((n // 2, n), np.float32)
    x /= x.std()
    x += np.float32(0.35) * rng.standard_normal((tokens, n), np.float32)
    x *= np.exp(rng.standard_normal(n) / 2).astype(np.float32)
    return x


def weights(m: int, n: int) -> F32Array:
    """Rows of weights."""
    return (np.random.default_rng(1).standard_t(5, (m, n)) * 0.02).astype(np.float32)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds that `work` takes, and what it returns."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def held(reset: bool = False) -> int:
    """The most memory of this process, in bytes, since it was last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


def prepared_for(n: int, tokens: int) -> tuple[float, float, Prepared]:
    """Seconds for the moments of `tokens` inputs and for preparing them; and what is prepared."""
    x = inputs(tokens, n)
    moments_s, matrix = seconds(lambda: second_moments(x))
    prepare_s, prepared = seconds(lambda: prepare(Moments(matrix, tokens)))
    return moments_s, prepare_s, prepared


def timed(type: GgmlType, rows: F32Array, prepared: Prepared, method: str) -> tuple[float, float]:
    """Seconds that `effort="best"` takes, and a method in all."""
    out = np.empty((len(rows), type.row_bytes(rows.shape[1])), np.uint8)
    encode_with_moments(rows[:1], type, prepared, out[:1], method=method)  # compiles
    best_s, _ = seconds(lambda: encode_into(rows, type, prepared.importance, out, "best"))
    all_s, _ = seconds(lambda: encode_with_moments(rows, type, prepared, out, method=method))
    return best_s, all_s


def bench_types(types: list[GgmlType], columns: list[int], method: str) -> list[dict[str, Any]]:
    """A row for each type and number of columns, printed as it is measured."""
    print(
        f"{'type':8} {'columns':>7} {'moments s':>9} {'prepare s':>9} {'best s/Mw':>9} {method + ' s/Mw':>14}"
    )
    found = []
    for n in columns:
        moments_s, prepare_s, prepared = prepared_for(n, TOKENS_PER_COLUMN * n)
        for type in types:
            if not type.fits(n):
                continue
            rows = weights(max(16, MOST_WEIGHTS // n), n)
            best_s, all_s = (s / rows.size * 1e6 for s in timed(type, rows, prepared, method))
            print(
                f"{type.name:8} {n:7} {moments_s:9.2f} {prepare_s:9.2f} {best_s:9.3f} {all_s:14.3f}",
                flush=True,
            )
            found.append(
                {"type": type.name, "columns": n, "moments": moments_s, "prepare": prepare_s}
                | {"best": best_s, method: all_s}
            )
    return found


def bench_model(name: str, types: list[GgmlType], n_sampled: int, method: str) -> list[dict[str, Any]]:
    """The hours that a model's experts take one thread in each type, from some of one layer."""
    model = MODELS[name]
    moments_s = prepare_s = 0.0
    encode_s = dict.fromkeys(types, 0.0)
    memory = dict.fromkeys(types, 0)
    for n, m in ((model.stream, 2 * model.inside), (model.inside, model.stream)):
        rows = weights(m, n)
        for seed in range(n_sampled):
            x = inputs(model.tokens, n, seed)
            one, matrix = seconds(partial(second_moments, x))
            del x
            before = held(reset=True) - matrix.nbytes
            other, prepared = seconds(partial(prepare, Moments(matrix, model.tokens), overwrite=True))
            moments_s, prepare_s = moments_s + one, prepare_s + other
            del matrix
            to_prepare = held() - before
            for type in types:
                used = type if type.fits(n) else parse_type("q4_0")
                held(reset=True)
                encode_s[type] += timed(used, rows, prepared, method)[1]
                memory[type] = max(memory[type], to_prepare, held() - before)
    found = []
    for type in types:
        steps = dict(
            zip(("moments", "prepare", "encode"), (moments_s, prepare_s, encode_s[type]), strict=True)
        )
        hours = {step: s / n_sampled * model.experts * model.layers / 3600 for step, s in steps.items()}
        of_weights = 3 * model.stream * model.inside * n_sampled / 1e6
        per_million = (prepare_s + encode_s[type]) / of_weights
        print(
            f"{name} {type.name}: {sum(hours.values()):.1f} h of one core"
            f" (moments {hours['moments']:.1f}, preparing {hours['prepare']:.1f},"
            f" encoding {hours['encode']:.1f}), {sum(hours.values()) / 16:.1f} h of sixteen;"
            f" preparing and encoding {per_million:.2f} s/Mw; memory {memory[type] / 2**20:.0f} MiB,"
            f" a Hessian being {model.stream**2 / 2**18:.0f} MiB",
            flush=True,
        )
        found.append({"model": name, "type": type.name, "hours": hours, "memory": memory[type]})
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", help="all that take moments, unless given")
    parser.add_argument("--columns", type=int, nargs="+", default=list(COLUMNS))
    parser.add_argument("--method", choices=METHODS, default="feedback")
    parser.add_argument("--models", nargs="*", choices=MODELS, help="predict whole models, or one, instead")
    parser.add_argument("--experts", type=int, default=1, help="experts of a layer that are timed")
    parser.add_argument("--json", type=Path, help="write what was measured to a file")
    options = parser.parse_args()
    types = [parse_type(name) for name in options.types] or [t for t in TYPES if takes_moments(t)]
    print(machine())
    prepared_for(256, 64)  # compiles
    if options.models is not None:
        names = options.models or list(MODELS)
        rows = [r for name in names for r in bench_model(name, types, options.experts, options.method)]
    else:
        rows = bench_types(types, options.columns, options.method)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
