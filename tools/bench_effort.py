"""Compare `effort="best"` with the default: what is left of the error, and how many times as long it takes.

    python tools/bench_effort.py                         every type that has a search
    python tools/bench_effort.py q4_K q2_K --json out.json
    python tools/bench_effort.py --model MODEL --imatrix FILE --docs     into docs/performance.md

Weights are of real matrices, of the demo model or of any model that ggplan opens, as much of each as fits
into a few million; and heavy-tailed random ones. Importances are the model's imatrix where one is given, and
log-normal random ones else. What an error counts is told twice: as `best` sees it, importance * error^2 or
error^2; and as ggml's encoders of most types do, that times sqrt(energy + x^2), with the mean square of 256
weights for energy. Times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "quants"), str(ROOT / "tools")]

import distributions  # noqa: E402
from bench_page import machine, write_table  # noqa: E402

import ggplan  # noqa: E402
from ggplan.ggml_types import TYPES, GgmlType, parse_type  # noqa: E402
from ggplan.imatrix import Imatrix  # noqa: E402
from ggplan.model import Model  # noqa: E402
from ggplan.quants import decode_into, encode_into  # noqa: E402

F32Array = NDArray[np.float32]
Sample = tuple[F32Array, F32Array]  # rows, and the importance of their columns

COLUMNS = 256
MOST_WEIGHTS = 4_000_000
LARGEST_SAMPLE = 512  # rows of 256 weights of one matrix


def real_samples(model: Model, imatrix: Imatrix | None) -> list[Sample]:
    """The first rows of each matrix or expert, in pieces of 256 columns, with their importances."""
    rng = np.random.default_rng(0)
    samples = []
    for tensor in model.tensors:
        if len(tensor.shape) < 2 or tensor.n_columns % COLUMNS or tensor.rows is None:
            continue
        entry = None if imatrix is None else imatrix.entries.get(tensor.name)
        if imatrix is not None and entry is None:
            continue
        n_slices = tensor.n_rows // tensor.shape[-2]
        values = None if entry is None else entry.for_tensor(tensor.shape)
        for number in range(0, n_slices, max(1, n_slices // 4)):
            start = number * tensor.shape[-2]
            rows = tensor.rows.read_float32(start, start + min(tensor.shape[-2], LARGEST_SAMPLE))
            at = int(rng.integers(tensor.n_columns // COLUMNS)) * COLUMNS
            rows = np.ascontiguousarray(rows[:, at : at + COLUMNS])
            random = np.exp(rng.standard_normal(COLUMNS)).astype(np.float32)
            columns = random if values is None else np.ascontiguousarray(values[number, at : at + COLUMNS])
            samples.append((rows, columns))
    order = rng.permutation(len(samples))
    chosen: list[Sample] = []
    total = 0
    for index in order:
        if total < MOST_WEIGHTS:
            chosen.append(samples[index])
            total += samples[index][0].size
    return chosen


def random_samples() -> list[Sample]:
    rng = np.random.default_rng(1)
    rows = distributions.like_a_model(rng, 1 << 20).reshape(-1, COLUMNS)
    return [(rows, np.exp(rng.standard_normal(COLUMNS)).astype(np.float32))]


def compare(name: str, weights: str, samples: list[Sample], guided: bool, repeats: int) -> dict[str, Any]:
    """One line of the table."""
    type_ = parse_type(name)
    errors = np.zeros((2, 2))
    worse_rows = 0
    for rows, columns in samples:
        importance = columns if guided else None
        squares = [squared_errors(rows, type_, importance, effort) for effort in ("default", "best")]
        energy = np.mean(rows * rows, axis=1, dtype=np.float64)[:, np.newaxis]
        as_ggml = np.sqrt(energy + rows.astype(np.float64) ** 2)
        for which, square in enumerate(squares):
            errors[which] += square.sum(), (square * as_ggml).sum()
        worse_rows += int((squares[1].sum(axis=1) > squares[0].sum(axis=1)).sum())
    rows = np.concatenate([rows for rows, _ in samples])
    importance = samples[0][1] if guided else None
    seconds = [cpu_seconds(rows, importance, type_, effort, repeats) for effort in ("default", "best")]
    return {
        "type": name,
        "weights": weights,
        "imatrix": guided,
        "error_ratio": errors[1, 0] / errors[0, 0],
        "error_ratio_as_ggml_weighs": errors[1, 1] / errors[0, 1],
        "worse_rows": worse_rows,
        "time_ratio": seconds[1] / seconds[0],
        "best_mw_s": rows.size / seconds[1] / 1e6,
    }


def squared_errors(
    rows: F32Array, type_: GgmlType, importance: F32Array | None, effort: str
) -> NDArray[np.float64]:
    blocks = np.empty((len(rows), type_.row_bytes(rows.shape[1])), np.uint8)
    encode_into(rows, type_, importance, blocks, effort)
    decoded = np.empty_like(rows)
    decode_into(blocks, type_, decoded)
    errors: NDArray[np.float64] = (decoded.astype(np.float64) - rows) ** 2
    return errors if importance is None else errors * importance


def cpu_seconds(
    rows: F32Array, importance: F32Array | None, type_: GgmlType, effort: str, repeats: int
) -> float:
    """The least of some repetitions."""
    blocks = np.empty((len(rows), type_.row_bytes(rows.shape[1])), np.uint8)
    seconds = []
    for _ in range(repeats):
        start = time.thread_time()
        encode_into(rows, type_, importance, blocks, effort)
        seconds.append(time.thread_time() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "types",
        nargs="*",
        default=[t.name for t in TYPES if t.best_encoder],
        help="ggml types (default: all)",
    )
    parser.add_argument("--model", help="a model that ggplan opens (default: the demo model)")
    parser.add_argument("--imatrix", help="its importance matrix; matrices that it lacks are left out")
    parser.add_argument("--pre", help="its pre-tokenizer, where that is not recognised")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()

    path = options.model or str(importlib.resources.files("ggplan") / "demo_model")
    model = ggplan.open_model(path, pre=options.pre if options.model else "glm4")
    imatrix = ggplan.load_imatrix(options.imatrix) if options.imatrix else None
    kinds = {"real": real_samples(model, imatrix), "random": random_samples()}
    lines = []
    print(f"{'':31}error left{'as ggml weighs':>16}{'time':>8}{'M weights/s':>13}")
    for name in options.types:
        for weights, samples in kinds.items():
            for guided in (True,) if parse_type(name).requires_imatrix else (False, True):
                line = compare(name, weights, samples, guided, options.repeats)
                lines.append(line)
                print(
                    f"{name:8}{weights:8}{'imatrix' if guided else '':12}{line['error_ratio']:13.4f}"
                    f"{line['error_ratio_as_ggml_weighs']:16.4f}{line['time_ratio']:7.1f}x"
                    f"{line['best_mw_s']:13.1f}"
                    + (f"  {line['worse_rows']} ROWS ARE WORSE" if line["worse_rows"] else ""),
                    flush=True,
                )
    name = Path(path).resolve().name
    if options.json:
        report = {"machine": machine(), "model": name, "types": lines}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.docs:
        write_table("effort", page_table(name, lines))
    if any(line["worse_rows"] for line in lines):
        sys.exit(1)


def page_table(model: str, lines: list[dict[str, Any]]) -> str:
    """The table of docs/performance.md: real weights only."""
    by_mode = {(line["type"], line["imatrix"]): line for line in lines if line["weights"] == "real"}

    def cell(name: str, guided: bool) -> str:
        line = by_mode.get((name, guided))
        return f"{line['error_ratio']:.3f} | {line['time_ratio']:.1f}" if line else "|"

    return (
        f"{machine()}; weights of {model}.\n\n"
        "| type | error left | time | error left with an imatrix | time |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
    ) + "".join(
        f"| {name} | {cell(name, False)} | {cell(name, True)} |\n"
        for name in dict.fromkeys(name for name, _ in by_mode)
    )


if __name__ == "__main__":
    main()
