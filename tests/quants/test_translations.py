"""Kernels come translated: first uses need no Numba, and what is shipped is what the sources make."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import llvmlite.binding as llvm
import numba
import pytest

from ggplan.quants import machine_code

ROOT = Path(__file__).parents[2]
TRANSLATED = ROOT / "ggplan" / "quants" / "translated"
TOOL = ROOT / "tools" / "make_translations.py"
PROCESSORS = runpy.run_path(str(TOOL))["PROCESSORS"]


def about(archive: str) -> dict[str, object]:
    with zipfile.ZipFile(TRANSLATED / archive) as opened:
        loaded: dict[str, object] = json.loads(opened.comment)
        return loaded


def require(archive: str) -> None:
    """Skip where the kernels of this archive cannot be run."""
    features = llvm.get_host_cpu_features()
    if not features.get("avx512f" if archive == "avx512.zip" else "avx2"):
        pytest.skip("not with this processor")
    if about(archive)["llvm"] != llvm.llvm_version_info[0]:
        pytest.skip("not with this LLVM")


def run(code: str, cache: Path, root: Path = ROOT, **environment: str) -> str:
    everything = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(root), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=everything, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("archive", PROCESSORS)
def test_translations_are_of_these_sources(archive: str) -> None:
    assert about(archive)["sources"] == machine_code.sources_digest(), "run tools/make_translations.py"


ALL_KERNELS = f"""
import runpy, sys
runpy.run_path("{TOOL}")["call_all_kernels"]()
assert "numba" not in sys.modules
"""


@pytest.mark.parametrize("archive", PROCESSORS)
def test_no_kernel_needs_numba(archive: str, tmp_path: Path) -> None:
    require(archive)
    run(ALL_KERNELS, tmp_path, **PROCESSORS[archive])
    with zipfile.ZipFile(TRANSLATED / archive) as opened:
        assert len(opened.namelist()) == len(list(tmp_path.glob("*/*.o")))


SOME_KERNELS = f"""
import runpy, sys, zipfile

def call():
    from ggplan.ggml_types import parse_type
    from ggplan.quants import warm_up
    for name in ("q8_0", "q4_0", "q6_K"):
        warm_up([parse_type(name)], with_imatrix=False, bf16=name != "q4_0")

found = runpy.run_path("{TOOL}")["translated"](call)
with zipfile.ZipFile(sys.argv[1]) as archive:
    for name, text in found.items():
        assert archive.read(name).decode() == text, name
print(len(found))
"""


@pytest.mark.parametrize("archive", PROCESSORS)
def test_numba_makes_the_same_of_these_sources(archive: str, tmp_path: Path) -> None:
    require(archive)
    if about(archive)["numba"] != numba.__version__:
        pytest.skip("not with this Numba")
    code = SOME_KERNELS.replace("sys.argv[1]", repr(str(TRANSLATED / archive)))
    assert run(code, tmp_path, **PROCESSORS[archive]) == "3"


ONE_KERNEL = """
import sys
import numpy as np
import ggplan
weights = np.random.default_rng(5).standard_normal((64, 512), np.float32)
encoded = ggplan.quantize(weights, "q8_0").tobytes()
print("numba" in sys.modules, encoded.hex())
"""


def change_sources(package: Path) -> None:
    with (package / "quants" / "half.py").open("a") as source:
        source.write("# one line more\n")


def remove_archive(package: Path) -> None:
    shutil.rmtree(package / "quants" / "translated")


def cut_archive(package: Path) -> None:
    for archive in (package / "quants" / "translated").iterdir():
        archive.write_bytes(archive.read_bytes()[:-5000])


def damage_entries(package: Path) -> None:
    for archive in (package / "quants" / "translated").iterdir():
        content = bytearray(archive.read_bytes())
        for at in range(100, len(content) - 20_000, 1000):  # what follows is the directory of entries
            content[at] ^= 0xFF
        archive.write_bytes(content)


@pytest.mark.parametrize("change", [change_sources, remove_archive, cut_archive, damage_entries])
def test_numba_translates_where_nothing_that_fits_is_shipped(change: object, tmp_path: Path) -> None:
    require("avx2.zip")
    expected = run(ONE_KERNEL, tmp_path / "as-it-is").split()
    assert expected[0] == "False"
    shutil.copytree(
        ROOT / "ggplan", tmp_path / "ggplan", ignore=shutil.ignore_patterns("__pycache__", "demo*")
    )
    change(tmp_path / "ggplan")  # type: ignore[operator]
    changed = run(ONE_KERNEL, tmp_path / "changed", root=tmp_path).split()
    assert changed == ["True", *expected[1:]]
