"""Learning: what a benchmark on a machine teaches about it.

A benchmark (llama-bench, llama-sweep-bench) states tokens per second at some numbers of tokens in the cache.
Each is compared with what is reckoned for the same file, placement and depth. What is kept is the median of
time measured over time reckoned, for generation and for prompts: later ranges of that file are stretched by
it, those of other files by a part of it (`speed`).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ggplan.errors import MachineError
from ggplan.offload.active import active_bytes
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.machine import Learned, Machine
from ggplan.offload.profiles import Profile
from ggplan.offload.settings import Settings
from ggplan.offload.speed import Rate, generation, prompt
from ggplan.offload.weights import Weights
from ggplan.text import printable

_FAR = 2.0  # a machine that is so much slower or faster than reckoned: the log is probably of something else
_IMPOSSIBLE = 3.0
_UNEVEN = 1.5


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Tokens per second with `depth` tokens in the cache: of a prompt, and written; None if not measured."""

    depth: int
    read: float | None
    written: float | None


def learn_from(
    machine: Machine,
    weights: Weights,
    dimensions: Dimensions,
    settings: Settings,
    profile: Profile,
    benchmarks: Sequence[Benchmark],
    source: str,
) -> tuple[Machine, tuple[str, ...]]:
    """The machine with what benchmarks of a placement taught, and notes.

    Raises
    ------
    MachineError
        If the benchmarks hold no speed, or one that no machine with these bandwidths can have.
    """
    plain = replace(machine, learned=None)
    written, read = [], []
    file_bytes = 0
    for one in benchmarks:
        active = active_bytes(weights, dimensions, settings, depth=one.depth)
        file_bytes = active.file_bytes
        if one.written:
            written.append(_stretch(generation(active, plain, profile, settings), one.written))
        if one.read:
            read.append(_stretch(prompt(active, plain, profile, settings), one.read))
    if not (written or read):
        raise MachineError(
            f"{printable(source)} has no tokens per second",
            hint="give the output of llama-bench or llama-sweep-bench",
        )
    found = Learned(
        source,
        round(statistics.median(written), 4) if written else None,
        round(statistics.median(read), 4) if read else None,
        file_bytes,
    )
    _refuse_impossible("generation", written, source)
    notes = [*_notes("generation", written), *_notes("prompts", read)]
    return replace(machine, learned=found), tuple(notes)


def _stretch(reckoned: Rate, measured: float) -> float:
    # Within what a machine's file may hold; beyond it a log is of something else.
    return min(max(reckoned.likely / measured, 1e-3), 1e3)


def _refuse_impossible(what: str, stretches: list[float], source: str) -> None:
    """A token cannot be written several times faster than memory gives what it reads."""
    middle = statistics.median(stretches) if stretches else 1.0
    if middle < 1 / _IMPOSSIBLE:
        raise MachineError(
            f"{printable(source)}: {what} is {1 / middle:.1f} times faster than memory allows: it is a log "
            "of another placement or machine, and nothing is kept",
            hint="state the line that was measured with `--command`, or measure what `ggplan fit` prints",
        )


def _notes(what: str, stretches: list[float]) -> list[str]:
    """What is odd about stretches of one kind."""
    if not stretches:
        return []
    middle, notes = statistics.median(stretches), []
    if not 1 / _FAR <= middle <= _FAR:
        word = "slower" if middle > 1 else "faster"
        times = middle if middle > 1 else 1 / middle
        asked = "is the log of this file, this placement and this machine?"
        notes.append(f"{what}: {times:.1f} times {word} than reckoned; {asked}")
    if max(stretches) > _UNEVEN * min(stretches):
        apart = max(stretches) / min(stretches)
        notes.append(f"{what}: the rows are {apart:.1f} times apart; the median counts")
    return notes
