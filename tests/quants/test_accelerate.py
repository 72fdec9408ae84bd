"""Kernels are compiled once, kept where the user wants them, and found again, by one process or many."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

MODULE = """
import sys
from typing import NamedTuple
import numpy as np
from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.memory import new_floats

class Pair(NamedTuple):
    first: object
    second: object

@inline
def half(x):
    return x / 2

@inline
def memory(count):
    return new_floats(count + 1), np.empty(count, np.int64)

@kernel
def halve(numbers, pair, flag):
    floats, integers = memory(numbers.size)
    for i in range(numbers.size):
        floats[i] = half(numbers[i])
        integers[i] = pair.second
    for i in range(numbers.size):
        pair.first[i] = floats[i] + integers[i] if flag else 0

def halved(n):
    numbers = np.ones(n, np.float32)
    result = np.empty(n, np.float32)
    halve(numbers, Pair(result, 7), True)
    numbers.flags.writeable = False
    halve(numbers, Pair(result, np.int32(7)), np.bool_(True))
    assert result.tolist() == [7.5] * n
    assert half(3) == 1.5

halved(3)
halved(1000)
try:
    halve(np.ones(4, np.float32)[::2], Pair(np.ones(2, np.float32), 1), 0)
    raise SystemExit("taken")
except TypeError:
    pass
print("numba" in sys.modules)
"""


def start(module: Path, **environment: str) -> subprocess.Popen[str]:
    everything = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NUMBA_CACHE_DIR": "", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", f"import {module.stem}"],
        cwd=module.parent,
        env=everything,
        stdout=subprocess.PIPE,
        text=True,
    )


def has_compiled(process: subprocess.Popen[str]) -> bool:
    output, _ = process.communicate()
    assert process.returncode == 0
    return output.strip() == "True"


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "halving.py"
    path.write_text(MODULE)
    return path


@pytest.mark.parametrize("variable", ["NUMBA_CACHE_DIR", "XDG_CACHE_HOME"])
def test_kernels_are_kept_where_the_user_wants_them(variable: str, module: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert has_compiled(start(module, **{variable: str(cache)}))
    [kept] = cache.glob("**/*.o")
    # Found again, and Numba not even imported; what is damaged is made anew.
    assert not has_compiled(start(module, **{variable: str(cache)}))
    whole = kept.read_bytes()
    for damaged in (b"", whole[:1000] + b"?" + whole[1001:]):
        kept.write_bytes(damaged)
        assert has_compiled(start(module, **{variable: str(cache)}))
        assert kept.stat().st_size > 1000
    assert not has_compiled(start(module, **{variable: str(cache)}))


def test_kernels_work_where_nothing_can_be_kept(module: Path) -> None:
    assert has_compiled(start(module, XDG_CACHE_HOME="/dev/null"))
    assert not list(module.parent.glob("**/*.o"))


def test_several_processes_may_start_with_an_empty_cache(module: Path, tmp_path: Path) -> None:
    processes = [start(module, NUMBA_CACHE_DIR=str(tmp_path / "cache")) for _ in range(4)]
    for process in processes:
        has_compiled(process)
    assert len(list(tmp_path.glob("cache/*/*"))) == 1


def test_a_change_of_processor_or_source_makes_another_kernel(module: Path, tmp_path: Path) -> None:
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert has_compiled(start(module, **cache))
    assert has_compiled(start(module, **cache, NUMBA_CPU_NAME="generic"))
    assert not has_compiled(start(module, **cache))
    assert not has_compiled(start(module, **cache, NUMBA_CPU_NAME="generic"))
    module.write_text(MODULE.replace("x / 2", "x * 0.5"))
    assert has_compiled(start(module, **cache))


def test_folders_that_nobody_uses_are_removed(module: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "ggplan"
    old = time.time() - 31 * 24 * 3600
    for name in ("numba-0123456789abcdef", "kernels-0123456789abcdef", "kernels-mine", "else"):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (old, old))
    (cache / "kernels-fedcba9876543210").mkdir()
    has_compiled(start(module, XDG_CACHE_HOME=str(tmp_path / "cache")))
    left = {path.name for path in cache.iterdir()}
    assert {"kernels-mine", "else", "kernels-fedcba9876543210"} < left
    assert not left & {"numba-0123456789abcdef", "kernels-0123456789abcdef"}
    assert len(left) == 4


WARM_START = """
import sys
from ggplan.ggml_types import parse_type
from ggplan.quants import warm_up
for name in ("f16", "q8_0", "q4_0", "q4_K", "iq2_xs"):
    warm_up([parse_type(name)], with_imatrix=name != "q4_0")
print("numba" in sys.modules)
"""


def test_encoders_start_without_numba_once_they_are_kept(tmp_path: Path) -> None:
    module = tmp_path / "warm_start.py"
    module.write_text(WARM_START)
    kept = {"NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", "")}
    has_compiled(start(module, **kept))
    assert not has_compiled(start(module, **kept))
