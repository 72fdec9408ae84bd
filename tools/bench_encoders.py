"""Compare ggplan's encoders with ggml's, one thread each: speed, compile time, bytes.

    python tools/bench_encoders.py                      all encoders that compute something
    python tools/bench_encoders.py q4_K q6_K --json     some, as JSON
    python tools/bench_encoders.py iq1_m --ggml PATH    compared with another libggml-base

Both run in this process by turns, on the same million weights (heavy-tailed, rounded to bf16), and are timed
by the thread's CPU time, so other work on the machine disturbs the ratio little. ggml is that of the wheel
`libggml-python`, which is older than 0.25 and has other bytes of iq1_m. Compile times are wall times of fresh
processes: with an empty cache, and with a full one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "quants")]

import distributions  # noqa: E402
import ggml_reference  # noqa: E402

from ggplan.ggml_types import parse_type  # noqa: E402
from ggplan.quants import encode_into  # noqa: E402

TYPES = [
    "q8_0",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "iq4_nl",
    "iq4_xs",
    "iq3_s",
    "iq3_xxs",
    "iq2_s",
    "iq2_xs",
    "iq2_xxs",
    "iq1_m",
    "iq1_s",
    "q2_K",
    "q3_K",
    "q4_K",
    "q5_K",
    "q6_K",
]
IGNORE_IMPORTANCE = {"q8_0"}
COLUMNS = 4096

FIRST_CALL = """
import time
start = time.perf_counter()
import numpy as np
from ggplan.quants import warm_up
from ggplan.ggml_types import parse_type
warm_up([parse_type({name!r})], with_imatrix={guided})
print(time.perf_counter() - start)
"""


def compare(
    name: str, guided: bool, n_rows: int, repeats: int, with_start: bool, library: Path | None
) -> dict[str, Any]:
    """One line of the table."""
    rng = np.random.default_rng(0)
    rows = distributions.like_a_model(rng, n_rows * COLUMNS).reshape(n_rows, COLUMNS)
    importance = np.exp(rng.standard_normal(COLUMNS)).astype(np.float32) if guided else None
    ggml_type = parse_type(name)
    ours = np.empty((n_rows, ggml_type.row_bytes(COLUMNS)), np.uint8)
    ggmls = ggml_reference.quantize(rows, name, importance, library=library)
    encode_into(rows, ggml_type, importance, ours)
    line: dict[str, Any] = {"type": name, "imatrix": guided, "identical": bool((ours == ggmls).all())}
    our_seconds, ggml_seconds = [], []
    for _ in range(repeats):
        for _ in range(3):
            our_seconds.append(cpu_seconds(lambda: encode_into(rows, ggml_type, importance, ours)))
        ggml_seconds.append(
            cpu_seconds(lambda: ggml_reference.quantize(rows, name, importance, ggmls, library))
        )
    line["ours_mw_s"] = rows.size / min(our_seconds) / 1e6
    line["ggml_mw_s"] = rows.size / min(ggml_seconds) / 1e6
    line["ratio"] = min(ggml_seconds) / min(our_seconds)
    line["ratio_of_medians"] = float(np.median(ggml_seconds) / np.median(our_seconds))
    if with_start:
        with tempfile.TemporaryDirectory() as cache:
            line["cold_start_s"] = first_call(name, guided, cache)
            line["warm_start_s"] = first_call(name, guided, cache)
    return line


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def first_call(name: str, guided: bool, cache: str) -> float:
    """Seconds of a fresh process from importing ggplan.quants to the first encoded row."""
    program = FIRST_CALL.format(name=name, guided=guided)
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    return float(subprocess.check_output([sys.executable, "-c", program], env=environment))


def machine() -> dict[str, Any]:
    import llvmlite.binding
    import numba

    from ggplan.quants.vector import WIDTH

    return {
        "cpu": llvmlite.binding.get_host_cpu_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numba": numba.__version__,
        "lanes": WIDTH,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("types", nargs="*", default=TYPES, help="ggml types (default: all)")
    parser.add_argument("--rows", type=int, default=256, help=f"rows of {COLUMNS} weights (default 256)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-start", action="store_true", help="leave out the compile times")
    parser.add_argument("--ggml", type=Path, help="a libggml-base to compare with (default: the wheel's)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    lines = []
    if not options.json:
        print(
            f"{'':15}{'ours':>8}{'ggml':>8}  M weights/s{'ratio':>8}{'medians':>9}{'cold':>8}{'warm':>7}  s"
        )
    for name in options.types:
        for guided in (False, True):
            if name in IGNORE_IMPORTANCE if guided else parse_type(name).requires_imatrix:
                continue
            line = compare(name, guided, options.rows, options.repeats, not options.no_start, options.ggml)
            lines.append(line)
            if not options.json:
                print(
                    f"{name:7}{'imatrix' if guided else '':8}{line['ours_mw_s']:8.1f}{line['ggml_mw_s']:8.1f}"
                    f"{line['ratio']:21.2f}{line['ratio_of_medians']:9.2f}"
                    f"{line.get('cold_start_s', math.nan):8.2f}{line.get('warm_start_s', math.nan):7.2f}"
                    f"{'' if line['identical'] else '  BYTES DIFFER'}",
                    flush=True,
                )
    if options.json:
        print(json.dumps({"machine": machine(), "encoders": lines}, indent=2))
    if not all(line["identical"] for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
