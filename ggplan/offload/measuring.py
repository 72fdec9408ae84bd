"""Measuring the machine at hand, in seconds: how fast all cores read RAM, and how fast one core multiplies.

**RAM.** Each core sums memory of its own that no cache holds, all at once. What they read together per second
is the bandwidth. Memory is first written by the core that reads it, so on a machine of several nodes each
reads its own; an engine that is not told so (`--numa`) gets less.

**Cores.** One core unpacks 4-bit codes and multiplies them with 8-bit activations within its cache, in code
that LLVM makes for the processor's own instructions. It is not an engine's kernel. It says how this core
compares with the one on which llama.cpp's rates by type were timed (`speed.RATES`), and these are scaled by
that.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np

from ggplan.errors import MachineError
from ggplan.offload.speed import RATES
from ggplan.quants.kernels import I64, I32s, U8s, U64s, kernel

# Weights per second of the core that `RATES` were timed on, by `_multiply`: what another core gave (7.74e9),
# times the median of how much faster llama.cpp's kernels were on the former (1.8).
_REFERENCE = 14.0e9
_MIB = 1 << 20
_PER_CORE = 256 * _MIB
_LEAST_PER_CORE = 32 * _MIB
_SHARE_OF_FREE = 4
_PASSES = 6
_N_CODES = 16_384  # two weights a byte, and their activations: 48 KiB, which no core fetches from RAM
_TIMES = 300
_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured.

    Attributes
    ----------
    bandwidth
        Bytes per second that all cores together read.
    core
        Speed of a core against that of `RATES`.
    """

    bandwidth: float
    core: float


@kernel
def _sum_words(words: U64s, n: I64, result: U64s) -> None:
    total = words[0]
    for i in range(n):
        total += words[i]
    result[0] = total


@kernel
def _multiply(codes: U8s, activations: U8s, n: I64, times: I64, result: I32s) -> None:
    for _ in range(times):
        total = result[0]
        for i in range(n):
            code = np.int32(codes[i])
            total += (code & np.int32(15)) * np.int32(activations[i])
            total += (code >> np.int32(4)) * np.int32(activations[n + i])
        result[0] = total


def measure(cores: int, free: int) -> Measured:
    """Read RAM with `cores` threads, and multiply with one.

    Parameters
    ----------
    free
        Bytes of RAM that are free; at most a quarter of them is used.

    Raises
    ------
    MachineError
        If less is free than what caches may hold.
    """
    return Measured(_bandwidth(cores, free), _multiplied_per_second() / _REFERENCE)


def rates_of(core: float) -> dict[str, float]:
    """Bytes of weights per second of a core, by ggml type, for its speed against that of `RATES`."""
    return {kind: rate * core for kind, rate in RATES.items()}


def _bandwidth(cores: int, free: int) -> float:
    size = min(_PER_CORE, free // _SHARE_OF_FREE // cores) // _MIB * _MIB
    if size < _LEAST_PER_CORE:
        raise MachineError(
            f"with {free // _MIB:,} MiB free, RAM cannot be told from the caches of {cores} cores",
            hint="end other programs, or state it (`--bandwidth 80G`)",
        )
    start = threading.Barrier(cores)
    passes: list[list[tuple[float, float]]] = [[] for _ in range(cores)]
    failures: list[BaseException] = []

    def read(times: list[tuple[float, float]]) -> None:
        try:
            words = np.ones(size // 8, np.uint64)
            result = np.zeros(1, np.uint64)
            for _ in range(_PASSES):
                start.wait()
                begin = time.perf_counter()
                _sum_words(words, words.size, result)
                times.append((begin, time.perf_counter()))
        except BaseException as error:
            failures.append(error)
            start.abort()

    threads = [threading.Thread(target=read, args=(times,), daemon=True) for times in passes]
    _sum_words(np.ones(8, np.uint64), 8, np.zeros(1, np.uint64))  # compiled before the clock runs
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    causes = [e for e in failures if not isinstance(e, threading.BrokenBarrierError)]
    if causes:
        raise causes[0]
    seconds = min(
        max(end for _, end in one) - min(begin for begin, _ in one) for one in zip(*passes, strict=True)
    )
    return float(cores * size / seconds)


def _multiplied_per_second() -> float:
    """Weights that one core multiplies per second of its own time, in the best of some rounds."""
    codes = np.arange(_N_CODES, dtype=np.uint32).astype(np.uint8)
    activations = np.ones(2 * _N_CODES, np.uint8)
    result = np.zeros(1, np.int32)
    _multiply(codes, activations, _N_CODES, 1, result)
    best = float("inf")
    for _ in range(_ROUNDS):
        begin = time.thread_time()
        _multiply(codes, activations, _N_CODES, _TIMES, result)
        best = min(best, time.thread_time() - begin)
    return 2 * _N_CODES * _TIMES / best
