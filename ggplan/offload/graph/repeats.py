"""Blocks that repeat: a graph needs only some of them to need the same buffers.

Where a sequence of blocks repeats, the allocator soon comes back to a state that it was in, after one round
or after a few; from there on it repeats itself. So rounds in the middle can be left out, as many as bring it
back to the same state. Blocks are alike if they have weights of the same names and shapes on the same
devices, and of the same types where these are copied to a GPU.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from ggplan.offload.graph.maker import Job

_LONGEST = 12  # blocks of one round
_FEW = 7  # rounds that are tried first
# An indexer's block makes a tensor that is there from the graph's start, so no round is like another.
_WITHOUT = frozenset({"deepseek32", "glm-dsa"})


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks that repeat: the first, how many make a round, and how many rounds there are."""

    first: int
    length: int
    rounds: int

    def blocks(self, rounds: int) -> list[int]:
        """The blocks of so many rounds: the last one is the real last one."""
        head = range(self.first, self.first + (rounds - 1) * self.length)
        end = self.first + self.rounds * self.length
        return [*head, *range(end - self.length, end)]

    def end_of(self, at: int) -> int:
        """The last block of a round, counted from 0."""
        return self.first + (at + 1) * self.length - 1


def runs_of(job: Job) -> list[Run]:
    """The trunk as runs; a block that is like none of its neighbours is a run of one round."""
    n = job.dimensions.n_trunk
    if job.dimensions.architecture in _WITHOUT:
        return [Run(i, 1, 1) for i in range(n)]
    return _runs(_signatures(job)[:n])


def first_rounds(runs: Sequence[Run]) -> list[int]:
    """Rounds of each run to try."""
    return [min(run.rounds, _FEW) for run in runs]


def enough_rounds(runs: Sequence[Run], tried: Sequence[int], states: Mapping[int, Hashable]) -> list[int]:
    """Rounds of each run that need the same buffers as all: those that were tried, if they do.

    Parameters
    ----------
    states
        What the allocator's state was behind a block.
    """
    found = []
    for run, rounds in zip(runs, tried, strict=True):
        if rounds == run.rounds:
            found.append(rounds)
            continue
        seen = [states.get(run.end_of(i)) for i in range(rounds - 1)]
        cycle = next((n for n in range(1, len(seen)) if seen[-1] is not None and seen[-1] == seen[-1 - n]), 0)
        found.append(rounds + (run.rounds - rounds) % cycle if cycle else run.rounds)
    return found


def _signatures(job: Job) -> list[Hashable]:
    parts: list[list[Hashable]] = [[] for _ in range(job.dimensions.n_blocks)]
    streams = job.cpu > 0 and job.settings.op_offload
    for name, placed in job.weights.items():
        if not name.startswith("blk."):
            continue
        _, number, rest = name.split(".", 2)
        is_copied = streams and placed.device == job.cpu and placed.is_streamed
        kind = placed.tensor.type.name if is_copied else ""
        block = min(int(number), len(parts) - 1)
        parts[block].append((rest, placed.device, placed.is_streamed, placed.tensor.shape, kind))
    dims = job.dimensions
    found: list[Hashable] = []
    for i, part in enumerate(parts):
        sizes = (
            dims.recurrent[i],
            dims.slides[i],
            dims.heads[i],
            dims.kv_heads[i],
            dims.n_ff[i],
            dims.used[i],
        )
        found.append((tuple(part), job.blocks[i], sizes, i < dims.n_own_cache, i == dims.n_trunk - 1))
    return found


def _runs(signatures: Sequence[Hashable]) -> list[Run]:
    numbers: dict[Hashable, int] = {}
    ids = [numbers.setdefault(signature, len(numbers)) for signature in signatures]
    found: list[Run] = []
    at = 0
    while at < len(ids):
        length, rounds = _repetition(ids, at)
        if rounds <= _FEW:
            length, rounds = 1, 1
        found.append(Run(at, length, rounds))
        at += length * rounds
    return found


def _repetition(ids: Sequence[int], at: int) -> tuple[int, int]:
    """The round that begins here and saves most: its length, and how often it comes."""
    best, saved = (1, 1), 0
    for length in range(1, min(_LONGEST, (len(ids) - at) // 2) + 1):
        end = at + length
        while end < len(ids) and ids[end] == ids[end - length]:
            end += 1
        rounds = (end - at) // length
        if (rounds - _FEW) * length > saved:
            best, saved = (length, rounds), (rounds - _FEW) * length
    return best
