"""Compare encoders with ggml's on millions of weights of each kind, by several threads and processors.

    python tools/bytes_campaign.py --weights 10000000 --seed 1 [q4_K iq2_xs ...]
    python tools/bytes_campaign.py ... --processors host,haswell,generic
    python tools/bytes_campaign.py ... --from "zero blocks"

For every kind of weights in tests/quants/distributions.py, and every type without and with an imatrix, ggml
encodes the rows, and ggplan does, cut at random into chunks that one to four threads take. On the other
processors (Numba's names, which LLVM compiles for) ggplan's bytes are compared with those of the first.

Ten million weights of each kind take a processor a day or so. So each kind is reported when it is done, in
their order, and a run that was stopped goes on with `--from` and the first kind that it did not report: what
is drawn depends on the seed and the kind alone.

ggml stops the whole process where a grid search of its own fails, on weights of about 1e18 and more. So it
runs in processes of its own, and rows it did not survive are left out and counted; after a hundred, so are
those behind them.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import mmap
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "quants")]

import ggml_reference  # noqa: E402
from distributions import DISTRIBUTIONS, importances  # noqa: E402

from ggplan.ggml_types import F32, TYPES, GgmlType, parse_type  # noqa: E402
from ggplan.quants import encode_into  # noqa: E402

Rows = NDArray[np.float32]
Bytes = NDArray[np.uint8]

PIECE_ROWS = 64
DEATHS = 100


def main() -> int:
    given = parse_arguments()
    if given.kind:
        return work(given)
    kinds = list(DISTRIBUTIONS)
    if given.start not in kinds:
        print(f"no kind is named {given.start!r}: {', '.join(kinds)}", file=sys.stderr)
        return 2
    kinds = kinds[kinds.index(given.start) :]
    print(f"seed {given.seed}, {given.weights / 1e6:g} M weights of each of {len(kinds)} kinds", flush=True)
    failures = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.processes) as pool:
        for kind, reports in zip(
            kinds, pool.map(lambda kind: run_kind(given, kind, folder), kinds), strict=True
        ):
            for report in reports:
                failures += len(report.differing)
                print(f"{kind}: {report.summary()}", flush=True)
    print("all equal" if not failures else f"{failures} comparisons DIFFER", flush=True)
    return 1 if failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("types", nargs="*", help="ggml types (default: all that can be encoded)")
    parser.add_argument("--weights", type=int, default=1_000_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--library", type=Path, help="ggml's libggml-base, if not the wheel's")
    parser.add_argument("--processors", default="host", help="host, or names that LLVM knows")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--from",
        dest="start",
        metavar="KIND",
        default=next(iter(DISTRIBUTIONS)),
        help="leave out those before it",
    )
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--digests", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class Report:
    """What came of one kind of weights on one processor.

    Attributes
    ----------
    compared
        How many types, with and without an imatrix.
    differing, aborted
        A line for each whose bytes differ, and for each on which ggml aborts.
    seconds
        By the clock.
    """

    processor: str
    compared: int
    differing: list[str]
    aborted: list[str]
    seconds: float

    def summary(self) -> str:
        """One line."""
        n_equal = self.compared - len(self.differing)
        notes = "".join(f"; {line}" for line in (*self.differing, *self.aborted))
        return f"{self.processor}, {n_equal} of {self.compared} types equal, {self.seconds:.0f} s{notes}"


def run_kind(given: argparse.Namespace, kind: str, folder: str) -> list[Report]:
    """Have a process for each processor compare all types on one kind of weights."""
    digests = Path(folder) / f"{list(DISTRIBUTIONS).index(kind)}.json"
    command = [sys.executable, __file__, *given.types, "--kind", kind, "--digests", str(digests)]
    command += ["--weights", str(given.weights), "--seed", str(given.seed)]
    if given.library:
        command += ["--library", str(given.library)]
    reports = []
    for processor in given.processors.split(","):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if processor != "host":
            environment["NUMBA_CPU_NAME"] = processor
        started = time.monotonic()
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        found = [line.partition("\t")[::2] for line in done.stdout.splitlines()]
        differing = [f"{name}: {fault}" for name, fault in found if "DIFFER" in fault]
        aborted = [f"{name}: {fault}" for name, fault in found if fault and "DIFFER" not in fault]
        if done.returncode:
            differing.append(f"failed with status {done.returncode} after {len(found)} types")
        n_compared = len(found) + bool(done.returncode)
        reports.append(Report(processor, n_compared, differing, aborted, time.monotonic() - started))
    return reports


def work(given: argparse.Namespace) -> int:
    """Compare all types on one kind: with ggml, or with the digests that an earlier processor left."""
    known = json.loads(given.digests.read_text()) if given.digests.exists() else None
    digests = {}
    for type_, guided in modes(given.types):
        name = f"{type_.name}{' imatrix' if guided else ''}"
        rng = np.random.default_rng([given.seed, list(DISTRIBUTIONS).index(given.kind), type_.id, guided])
        columns = 256 * int(rng.integers(1, 12))
        n_rows = max(1, given.weights // columns)
        rows = DISTRIBUTIONS[given.kind](rng, n_rows * columns).reshape(n_rows, columns)
        importance = importances(rng, columns) if guided else None
        ours = encode_in_threads(rows, type_, importance, rng)
        digests[name] = hashlib.sha256(ours).hexdigest()
        fault = ""
        if known is not None:
            fault = "" if known[name] == digests[name] else "BYTES DIFFER"
        else:
            theirs, survived = ggmls(rows, type_, importance, given.library)
            wrong = (ours != theirs).any(axis=1) & survived
            if wrong.any():
                fault = f"{int(wrong.sum())} of {n_rows} rows DIFFER"
            elif not survived.all():
                fault = f"ggml aborts on {int((~survived).sum())} of {n_rows} rows"
        print(f"{name}\t{fault}", flush=True)
    if known is None:
        given.digests.write_text(json.dumps(digests))
    return 0


def modes(names: list[str]) -> Iterator[tuple[GgmlType, bool]]:
    """The types, without and with an imatrix."""
    every = [type_ for type_ in TYPES if type_.encodable and type_ != F32]
    for type_ in map(parse_type, names) if names else every:
        for guided in (False, True):
            if type_.uses_imatrix if guided else not type_.requires_imatrix:
                yield type_, guided


def encode_in_threads(
    rows: Rows, type_: GgmlType, importance: Rows | None, rng: np.random.Generator
) -> Bytes:
    """Encode rows in random chunks by one to four threads."""
    out = np.empty((len(rows), type_.row_bytes(rows.shape[1])), np.uint8)
    n_cuts = int(rng.integers(0, min(len(rows), 40)))
    cuts = [0, *sorted(rng.choice(np.arange(1, len(rows)), n_cuts, replace=False).tolist()), len(rows)]
    with ThreadPoolExecutor(int(rng.integers(1, 5))) as pool:
        jobs = [
            pool.submit(encode_into, rows[start:stop], type_, importance, out[start:stop])
            for start, stop in itertools.pairwise(cuts)
        ]
    for job in jobs:
        job.result()
    return out


def ggmls(
    rows: Rows, type_: GgmlType, importance: Rows | None, library: Path | None
) -> tuple[Bytes, NDArray[np.bool_]]:
    """What ggml makes of the rows, and which of them it survived."""
    row_bytes = type_.row_bytes(rows.shape[1])
    shared = mmap.mmap(-1, 8 + len(rows) * row_bytes)
    done = np.frombuffer(shared, np.int64, 1)
    out = np.frombuffer(shared, np.uint8, len(rows) * row_bytes, 8).reshape(len(rows), row_bytes)
    survived = np.ones(len(rows), np.bool_)
    step = PIECE_ROWS
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["GGML_NO_BACKTRACE"] = "1"  # or each abort would start a debugger
    # Its tables are built once here, not in each child.
    block = np.ones((1, type_.block_size), np.float32)
    ggml_reference.quantize(block, type_.name, block[0], None, library)
    while done[0] < len(rows):
        child = os.fork()
        if child == 0:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())  # ggml says there which points are on no grid
            os.dup2(nowhere, sys.stderr.fileno())
            while done[0] < len(rows):
                piece = slice(int(done[0]), int(done[0]) + step)
                target = np.empty((len(rows[piece]), row_bytes), np.uint8)
                ggml_reference.quantize(rows[piece], type_.name, importance, target, library)
                out[piece] = target
                done[0] += len(target)
            os._exit(0)
        os.waitpid(child, 0)
        if done[0] < len(rows):
            # It crashed: from here on row by row, without the row that caused it.
            survived[done[0]] = step > 1
            done[0] += step == 1
            step = 1
            if np.count_nonzero(~survived) == DEATHS:
                survived[done[0] :] = False
                break
    return out.copy(), survived


if __name__ == "__main__":
    sys.exit(main())
