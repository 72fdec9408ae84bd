"""Compiled kernels are kept where the user wants them, and found again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import numba, numpy as np
from ggplan.quants.accelerate import inline, kernel

@inline
def half(x):
    return x / 2

@kernel
def halve(numbers):
    for i in range(numbers.size):
        numbers[i] = half(numbers[i])

numbers = np.ones(3)
halve(numbers)
assert numbers.tolist() == [0.5] * 3
assert half(3) == 1.5
print(halve.stats.cache_path)
print(sum(halve.stats.cache_hits.values()), numba.config.CACHE_DIR)
"""


def run(module: Path, **environment: str) -> list[str]:
    everything = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NUMBA_CACHE_DIR": "", **environment}
    finished = subprocess.run(
        [sys.executable, "-c", f"import {module.stem}"],
        cwd=module.parent,
        env=everything,
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.splitlines()


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "halving.py"
    path.write_text(MODULE)
    return path


@pytest.mark.parametrize("variable", ["NUMBA_CACHE_DIR", "XDG_CACHE_HOME"])
def test_kernels_are_kept_where_the_user_wants_them(variable: str, module: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    setting = str(cache) if variable == "NUMBA_CACHE_DIR" else ""
    folder, hits_and_setting = run(module, **{variable: str(cache)})
    assert Path(folder).is_relative_to(cache)
    assert list(Path(folder).glob("*.nbc"))
    assert hits_and_setting == f"0 {setting}"
    assert run(module, **{variable: str(cache)}) == [folder, f"1 {setting}"]


def test_kernels_work_where_nothing_can_be_kept(module: Path) -> None:
    folder, hits_and_setting = run(module, XDG_CACHE_HOME="/dev/null")
    assert folder == "None"
    assert hits_and_setting == "0 "
    assert not list(module.parent.glob("**/*.nbc"))
