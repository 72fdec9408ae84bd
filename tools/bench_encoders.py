"""Compare ggplan's encoders with ggml's: speed on one thread and all, bytes, distance to memory, first use.

    python tools/bench_encoders.py                          every type, without and with an imatrix
    python tools/bench_encoders.py q4_K q6_K --json out.json
    python tools/bench_encoders.py --model MODEL --docs     on a model's weights, into docs/performance.md

Both take the same rows, alternating, so that other work on the machine affects both. One thread: rows that
stay in cache, the thread's CPU time, the median of the ratios of neighbours. All threads: rows of its own for
each thread, wall time. "Of memory" is how much of the machine's speed at copying a large array remains when
an encoder streams through rows that are in no cache, alternating with copies, counting bytes read and
written; it can be more than 100 %, since reading is cheaper than writing. First use is a fresh process from
its first line to the first row, with an empty cache folder and with a full one, the best of three. ggml is
the wheel `libggml-python`, or another with --library.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "quants"), str(ROOT / "tools")]

import distributions  # noqa: E402
import ggml_reference  # noqa: E402
from bench_page import machine, write_table  # noqa: E402

from ggplan.ggml_types import F32, TYPES, GgmlType, parse_type  # noqa: E402
from ggplan.quants import encode_into  # noqa: E402

Rows = NDArray[np.float32]

COLUMNS = 2048
CACHED_ROWS = 256
STREAMED_ROWS = 16384
FIRST_CALL = """
import time
start = time.perf_counter()
import numpy as np
from ggplan.quants import warm_up
from ggplan.ggml_types import parse_type
warm_up([parse_type({name!r})], with_imatrix={guided})
print(time.perf_counter() - start)
"""


def main() -> None:
    options = parse_arguments()
    rows = model_rows(options.model) if options.model else synthetic_rows()
    report: dict[str, Any] = {
        "machine": machine(),
        "weights": str(options.model.name) if options.model else "made up, heavy-tailed",
        "encoders": [],
    }
    every = [type_ for type_ in TYPES if type_.encodable and type_ != F32]
    for type_ in map(parse_type, options.types) if options.types else every:
        for guided in (False, True):
            if (guided and not type_.uses_imatrix) or (not guided and type_.requires_imatrix):
                continue
            line = compare(type_, guided, rows, options)
            report["encoders"].append(line)
            print(describe(line), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.docs:
        write_table("encoders", page_table(report))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("types", nargs="*", help="ggml types (default: all that can be encoded)")
    parser.add_argument("--model", type=Path, help="take weights of this model, not made-up ones")
    parser.add_argument("--library", type=Path, help="ggml's libggml-base, if not the wheel's")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-start", action="store_true", help="leave out the first uses")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/performance.md")
    return parser.parse_args()


def synthetic_rows() -> Rows:
    rng = np.random.default_rng(0)
    return distributions.like_a_model(rng, CACHED_ROWS * COLUMNS).reshape(-1, COLUMNS)


def model_rows(path: Path) -> Rows:
    """Weights of all the model's matrices, in equal shares."""
    from ggplan import open_model
    from ggplan.sources import huggingface

    if path.is_dir():
        tensors: Iterable[Any] = huggingface.open_checkpoint(path).tensors.values()
    else:
        tensors = open_model(path).tensors
    matrices = [t for t in tensors if len(t.shape) > 1 and t.n_rows * t.n_columns >= 1 << 14]
    share = CACHED_ROWS * COLUMNS // len(matrices) + 1
    parts = []
    for tensor in matrices:
        assert tensor.rows is not None
        n_rows = min(tensor.n_rows, -(-share // tensor.n_columns))
        start = (tensor.n_rows - n_rows) // 2
        parts.append(tensor.rows.read_float32(start, start + n_rows).reshape(-1))
    weights = np.concatenate(parts)
    return np.ascontiguousarray(np.resize(weights, (CACHED_ROWS, COLUMNS)))


def compare(type_: GgmlType, guided: bool, rows: Rows, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one encoder."""
    rng = np.random.default_rng(1)
    importance = np.exp(rng.standard_normal(COLUMNS)).astype(np.float32) if guided else None
    name = type_.name

    def ours(source: Rows, target: NDArray[np.uint8]) -> None:
        encode_into(source, type_, importance, target)

    def ggmls(source: Rows, target: NDArray[np.uint8]) -> None:
        ggml_reference.quantize(source, name, importance, target, options.library)

    out = np.empty((len(rows), type_.row_bytes(COLUMNS)), np.uint8)
    theirs = np.empty_like(out)
    ours(rows, out)
    ggmls(rows, theirs)
    line: dict[str, Any] = {"type": name, "imatrix": guided, "identical": bool((out == theirs).all())}

    # About a tenth of a second for each of ggml's turns.
    few = rows[: max(16, min(len(rows), int(len(rows) * 0.1 / max(cpu_seconds(ggmls, rows, theirs), 1e-9))))]
    ratios, speeds = [], []
    for _ in range(options.repeats):
        seconds = min(cpu_seconds(ours, few, out[: len(few)]) for _ in range(5))
        ratios.append(cpu_seconds(ggmls, few, theirs[: len(few)]) / seconds)
        speeds.append(few.size / seconds / 1e6)
    line["mw_s"], line["ratio"] = float(np.median(speeds)), float(np.median(ratios))

    n = options.threads
    turns = max(1, round(0.1 * line["mw_s"] * 1e6 / few.size))
    ggmls_turns = max(1, round(turns / line["ratio"]))
    pairs = [
        (in_threads(ours, few, type_, n, turns), in_threads(ggmls, few, type_, n, ggmls_turns))
        for _ in range(max(3, options.repeats // 3))
    ]
    line["threads"] = n
    line["all_mw_s"] = max(our for our, _ in pairs) / 1e6
    line["all_ratio"] = float(np.median([our / their for our, their in pairs]))

    line["memory_gb_s"], line["of_memory"] = against_memory(ours, rows, type_)
    if not options.no_start:
        starts = [first_calls(name, guided) for _ in range(3)]
        line["cold_start_s"], line["warm_start_s"] = (min(each) for each in zip(*starts, strict=True))
    return line


def cpu_seconds(work: Callable[[Rows, NDArray[Any]], None], rows: Rows, out: NDArray[Any]) -> float:
    start = time.thread_time()
    work(rows, out)
    return time.thread_time() - start


def in_threads(
    encode: Callable[[Rows, NDArray[np.uint8]], None], rows: Rows, type_: GgmlType, n_threads: int, turns: int
) -> float:
    """Weights per second of several threads, each with rows of its own."""
    work = [
        (rows.copy(), np.empty((len(rows), type_.row_bytes(COLUMNS)), np.uint8)) for _ in range(n_threads)
    ]
    gate = threading.Barrier(n_threads + 1)

    def run(source: Rows, target: NDArray[np.uint8]) -> None:
        gate.wait()
        for _ in range(turns):
            encode(source, target)

    threads = [threading.Thread(target=run, args=pair) for pair in work]
    for thread in threads:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return n_threads * turns * rows.size / (time.perf_counter() - start)


def against_memory(
    encode: Callable[[Rows, NDArray[np.uint8]], None], rows: Rows, type_: GgmlType
) -> tuple[float, float]:
    """How fast one thread copies memory, GB/s read and written, and an encoder's share of that.

    Both go through rows that are in no cache, alternating; the best of each counts.
    """
    many = np.tile(rows, (STREAMED_ROWS // len(rows), 1))
    copy = np.zeros_like(many)
    out = np.zeros((len(many), type_.row_bytes(COLUMNS)), np.uint8)

    def copy_all(source: Rows, target: Rows) -> None:
        np.copyto(target, source)

    copies, encodings, start = [], [], time.thread_time()
    while not copies or (len(copies) < 40 and time.thread_time() - start < 2):
        copies.append(cpu_seconds(copy_all, many, copy))
        encodings.append(cpu_seconds(encode, many, out))
    copied = 2 * many.nbytes / min(copies)
    return copied / 1e9, (many.nbytes + out.nbytes) / min(encodings) / copied


def first_calls(name: str, guided: bool) -> tuple[float, float]:
    """Seconds of fresh processes from their first line to the first row: cache folder empty, and full."""
    program = FIRST_CALL.format(name=name, guided=guided)
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
        cold, warm = (
            float(subprocess.check_output([sys.executable, "-c", program], env=environment)) for _ in range(2)
        )
    return cold, warm


def describe(line: dict[str, Any]) -> str:
    start = f"{line['cold_start_s']:6.1f} {line['warm_start_s']:5.2f} s" if "cold_start_s" in line else ""
    return (
        f"{line['type']:8}{'imatrix' if line['imatrix'] else '':8}"
        f"{line['mw_s']:9.1f} Mw/s {line['ratio']:7.2f}x"
        f"{line['all_mw_s']:10.1f} Mw/s {line['all_ratio']:7.2f}x {line['of_memory']:6.0%} of memory {start}"
        f"{'' if line['identical'] else '  BYTES DIFFER'}"
    )


def page_table(report: dict[str, Any]) -> str:
    """The table of docs/performance.md."""
    lines = report["encoders"]
    copied = np.median([line["memory_gb_s"] for line in lines])
    head = (
        f"{report['machine']}; weights of {report['weights']}. "
        f"One thread copies memory at {copied:.0f} GB/s, read and written together.\n\n"
        f"| type | imatrix | one thread, Mw/s | times ggml | {lines[0]['threads']} threads, Mw/s "
        "| times ggml | of memory | first use | later |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    return head + "".join(
        f"| {line['type']} | {'yes' if line['imatrix'] else ''} | {line['mw_s']:.0f} | {line['ratio']:.1f}"
        f"{'' if line['identical'] else ' (other bytes)'} | {line['all_mw_s']:.0f} | {line['all_ratio']:.1f} "
        f"| {line['of_memory']:.0%} | {_seconds(line, 'cold_start_s')} | {_seconds(line, 'warm_start_s')} |\n"
        for line in lines
    )


def _seconds(line: dict[str, Any], key: str) -> str:
    return f"{line[key]:.2f} s" if key in line else ""


if __name__ == "__main__":
    main()
