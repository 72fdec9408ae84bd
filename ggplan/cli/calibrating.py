"""The benchmarks in a log, for `ggplan fit --calibrate LOG`."""

from __future__ import annotations

from pathlib import Path

from ggplan.errors import MachineError
from ggplan.offload.calibrating import Benchmark
from ggplan.text import decode_text, printable

_LARGEST_LOG = 64 << 20


def benchmarks_in(path: Path) -> tuple[list[Benchmark], list[str]]:
    """The speeds in a log of llama-bench or llama-sweep-bench, and notes about what is left out.

    Raises
    ------
    MachineError
        If there are none, or several files or settings were measured: a calibration is of one.
    MeasureError
        If a table in it is damaged.
    OSError
        If it cannot be read.
    """
    from ggplan.measure.logs import read_log

    shown = printable(str(path))
    with path.open("rb") as file:
        raw = file.read(_LARGEST_LOG + 1)
    if len(raw) > _LARGEST_LOG:
        raise MachineError(f"{shown} is no log of a benchmark: it has more than 64 MiB")
    log = read_log(decode_text(raw))
    runs = [run for run in log.runs if run.speeds]
    if not runs:
        raise MachineError(
            f"{shown} has no result of a benchmark",
            hint="give the output of llama-bench or llama-sweep-bench",
        )
    if len(runs) > 1:
        names = [
            f"line {run.line}" + (f" ({printable(run.settings)})" if run.settings else "") for run in runs
        ]
        raise MachineError(
            f"{shown} has {len(runs)} benchmarks: {', '.join(names[:4])}{', ...' if len(runs) > 4 else ''}",
            hint="give a log with one file and one placement",
        )
    notes = [f"{shown}:{left.line}: {left.why}" for left in log.left_out]
    return [Benchmark(s.n_kv, s.pp, s.tg) for s in runs[0].speeds], notes
