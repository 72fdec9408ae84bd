"""Kernels are compiled once, kept where the user wants them, and found again, by one process or many."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggplan.quants import machine_code
from ggplan.quants.kernels import scratch

MODULE = """
from __future__ import annotations
import sys
from typing import NamedTuple
import numpy as np
from ggplan.quants.kernels import F32, F32s, I32s, I64, Weights, inline, kernel, scratch
from ggplan.quants.memory import integers_at, load_weights
from ggplan.quants.vector import lane

class Pair(NamedTuple):
    first: object
    second: object

@inline
def half(x):
    return x / 2

@inline
def parts(room, count):
    return Pair(room, integers_at(room, count))

def halving(step):
    @kernel
    def halve(numbers: Weights, count: I64, result: F32s, added: F32, flag: I64, room: F32s) -> None:
        memory = parts(room, count)
        for i in range(count):
            memory.first[i] = step(lane(load_weights(numbers, i, 1), 0))
            memory.second[i] = int(added)
        for i in range(count):
            result[i] = memory.first[i] + memory.second[i] if flag else 0

    return halve

halve = halving(half)

def halved(n):
    numbers = np.ones(n, np.float32)
    result = np.empty(n, np.float32)
    halve(numbers, n, result, 7, True, scratch(2 * n))
    assert result.tolist() == [7.5] * n
    numbers.flags.writeable = False
    halve(numbers, n, result, np.float32(7), np.bool_(True), scratch(2 * n))
    assert result.tolist() == [7.5] * n
    halve((numbers.view(np.uint32) >> 16).astype(np.uint16), n, result, 7, 1, scratch(2 * n))
    assert result.tolist() == [7.5] * n
    halve(None, 0, result, 7, 1, None)
    assert half(3) == 1.5

halved(3)
halved(1000)
ones = np.ones(4, np.float32)
for wrong in (ones[::2], ones.astype(np.float64), ones.astype(np.int32)):
    for read_only in (False, True):
        wrong.flags.writeable = not read_only
        try:
            halve(wrong, 2, ones, 1, 0, ones)
        except TypeError:
            continue
        raise SystemExit("taken")
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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module and a cache of its kernels, for tests to copy."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "halving.py").write_text(MODULE)
    assert has_compiled(start(folder / "halving.py", NUMBA_CACHE_DIR=str(folder / "cache")))
    return folder


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> dict[str, str]:
    """A cache with the module's kernels, as the environment names it."""
    shutil.copytree(made / "cache", tmp_path / "cache")
    return {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "halving.py"
    path.write_text(MODULE)
    return path


def test_kernels_are_kept_where_the_user_wants_them(made: Path) -> None:
    assert len(list(made.glob("cache/**/*.o"))) == 2  # for float32 and for bfloat16
    # Found again, and Numba not even imported.
    assert not has_compiled(start(made / "halving.py", NUMBA_CACHE_DIR=str(made / "cache")))


def test_what_is_damaged_is_made_anew(module: Path, tmp_path: Path, cache: dict[str, str]) -> None:
    kept = sorted(tmp_path.glob("cache/**/*.o"))
    whole = kept[1].read_bytes()
    damaged = (b"", whole[:1000] + b"?" + whole[1001:])
    for path, data in zip(kept, damaged, strict=True):
        path.write_bytes(data)
    assert has_compiled(start(module, **cache))
    for path, data in zip(kept, damaged, strict=True):
        assert path.read_bytes() != data
        assert path.stat().st_size > 1000
    assert not has_compiled(start(module, **cache))


def test_kernels_work_where_nothing_can_be_kept(module: Path) -> None:
    assert has_compiled(start(module, XDG_CACHE_HOME="/dev/null"))
    assert not list(module.parent.glob("**/*.o"))


COMPILING = """
import sys, time
import ggplan.quants.compiling as compiling
whole = compiling.compile_kernel
def slowly(function, *rest):
    print("compiles", flush=True)
    time.sleep(1)
    return whole(function, *rest)
compiling.compile_kernel = slowly
import halving
"""


def test_of_several_processes_with_an_empty_cache_one_compiles_and_the_others_wait(
    module: Path, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(COMPILING)
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    processes = [start(tmp_path / "slow.py", **cache) for _ in range(3)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    # Two kernels, for float32 and for bfloat16, and each of them once.
    assert sum(output.count("compiles") for output in outputs) == 2
    assert len(list(tmp_path.glob("cache/*/*"))) == 2


def test_a_lock_that_a_dead_process_left_holds_nobody_up(
    module: Path, tmp_path: Path, cache: dict[str, str]
) -> None:
    kept = list(tmp_path.glob("cache/*/*.o"))
    kept[0].with_suffix(".lock").touch()
    kept[0].unlink()
    began = time.monotonic()
    assert has_compiled(start(module, **cache))
    assert time.monotonic() - began < 25
    assert sorted(tmp_path.glob("cache/*/*")) == sorted(kept)


def test_a_change_of_processor_or_source_makes_another_kernel(module: Path, cache: dict[str, str]) -> None:
    assert has_compiled(start(module, **cache, NUMBA_CPU_NAME="generic"))
    assert not has_compiled(start(module, **cache))
    assert not has_compiled(start(module, **cache, NUMBA_CPU_NAME="generic"))
    module.write_text(MODULE.replace("x / 2", "x * 0.5"))
    assert has_compiled(start(module, **cache))


def test_unused_folders_are_removed_where_kernels_are_kept_by_default(module: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "ggplan"
    old = time.time() - 31 * 24 * 3600
    for name in ("numba-0123456789abcdef", "kernels-0123456789abcdef", "kernels-mine", "else"):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (old, old))
    (cache / "kernels-fedcba9876543210").mkdir()
    assert has_compiled(start(module, XDG_CACHE_HOME=str(tmp_path / "cache")))
    assert len(list(cache.glob("**/*.o"))) == 2
    assert not has_compiled(start(module, XDG_CACHE_HOME=str(tmp_path / "cache")))
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


WRONG = """
from __future__ import annotations
from ggplan.quants.kernels import F32s, I64, kernel

def fail(name, *types):
    try:
        name()
    except types as error:
        print(error)
    else:
        raise SystemExit("taken")

def unknown():
    @kernel
    def without_types(numbers, count: I64) -> None:
        pass

@kernel
def raising(numbers: F32s, count: I64) -> None:
    for i in range(0, 10, count):  # which raises an exception where count is 0
        numbers[i] = 0

fail(unknown, TypeError)
fail(lambda: raising(None, 1), TypeError)
fail(lambda: raising(None), ValueError)
"""


def test_what_is_no_kernel_is_refused(tmp_path: Path) -> None:
    module = tmp_path / "wrong.py"
    module.write_text(WRONG)
    process = start(module, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    output, _ = process.communicate()
    assert process.returncode == 0
    assert (
        output.splitlines()[0]
        == "unknown.<locals>.without_types: its annotations are no signature of a kernel"
    )
    assert output.splitlines()[1].startswith("raising needs Numba's runtime: ")


def test_importing_makes_no_folder(tmp_path: Path) -> None:
    module = tmp_path / "importing.py"
    module.write_text("from ggplan.quants.formats import q45_k\nprint(False)")
    assert not has_compiled(start(module, XDG_CACHE_HOME=str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()


def test_out_of_memory_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="allocate"):
        scratch(1 << 50)


HOLDING = """
import sys
from pathlib import Path
from ggplan.quants.machine_code import compiling_alone

with compiling_alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a kernel is kept, in a cache of the test's own."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    machine_code.cache_folder.cache_clear()
    machine_code.make_cache_folder()
    yield machine_code.cache_folder() / "kernel.o"
    machine_code.cache_folder.cache_clear()


def test_who_has_given_up_waits_no_more_and_leaves_the_lock_to_its_holder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_code, "_WAITED_SECONDS", 0.5)
    monkeypatch.setattr(machine_code, "_has_given_up", False)
    places = [place, place.with_name("another.o")]
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLDING, str(held)], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
        for held in places
    ]  # fmt: skip
    try:
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
        waited = []
        for held in places:
            began = time.monotonic()
            with machine_code.compiling_alone(held):
                waited.append(time.monotonic() - began)
            assert held.with_suffix(".lock").exists()
        assert waited[0] >= 0.5 > 0.3 > waited[1]
    finally:
        for holder in holders:
            holder.communicate("")
    assert [held.with_suffix(".lock").exists() for held in places] == [False, False]


def test_a_lock_made_anew_is_not_deleted_by_who_held_the_old_one(place: Path) -> None:
    lock = place.with_suffix(".lock")
    with machine_code.compiling_alone(place):
        lock.unlink()
        lock.touch()
    assert lock.exists()


def test_a_link_in_the_place_of_a_lock_is_not_followed(place: Path, tmp_path: Path) -> None:
    lock, precious, absent = place.with_suffix(".lock"), tmp_path / "precious", tmp_path / "absent"
    precious.write_text("precious")
    for target in (precious, absent):
        lock.symlink_to(target)
        with machine_code.compiling_alone(place):
            pass
        assert precious.read_text() == "precious"
        assert not absent.exists()
        lock.unlink()
