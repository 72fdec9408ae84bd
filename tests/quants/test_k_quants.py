"""q2_K to q6_K give ggml's bytes, whatever the weights, the importance and the shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ggml_reference
import numpy as np
import pytest
from distributions import DISTRIBUTIONS, importances
from numpy.typing import NDArray

from ggplan.ggml_types import parse_type
from ggplan.quants import encode_into
from ggplan.quants.searches import affine, symmetric

TYPES = ["q2_K", "q3_K", "q4_K", "q5_K", "q6_K"]
KERNELS = [
    affine._plain,
    affine._plain_q2_k,
    affine._with_importance,
    symmetric._q3_k,
    symmetric._q3_k_with_importance,
    symmetric._q6_k,
]

# Nine superblocks a row: tiles of sixteen begin and end anywhere in a row.
COLUMNS = 9 * 256

with_and_without_importance = pytest.mark.parametrize("guided", [False, True], ids=["plain", "imatrix"])
each_type = pytest.mark.parametrize("type_name", TYPES)


def encode(
    rows: NDArray[np.float32], type_name: str, importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    ggml_type = parse_type(type_name)
    out = np.full((len(rows), ggml_type.row_bytes(rows.shape[1])), 0xA5, np.uint8)
    encode_into(rows, ggml_type, importance, out)
    return out


def difference(rows: NDArray[np.float32], type_name: str, importance: NDArray[np.float32] | None) -> str:
    """Where ggplan's blocks begin to differ from ggml's, or ""."""
    block_bytes = parse_type(type_name).block_bytes
    ours = encode(rows, type_name, importance).reshape(-1, block_bytes)
    ggmls = ggml_reference.quantize(rows, type_name, importance).reshape(-1, block_bytes)
    wrong = np.flatnonzero((ours != ggmls).any(axis=1))
    if not wrong.size:
        return ""
    first = wrong[0]
    return (
        f"{wrong.size} of {len(ours)} blocks differ, the first is block {first}, in bytes"
        f" {np.flatnonzero(ours[first] != ggmls[first]).tolist()}:"
        f"\n  ours   {ours[first].tobytes().hex()}\n  ggml's {ggmls[first].tobytes().hex()}"
        f"\n  weights {rows.reshape(-1, 256)[first].tolist()}"
    )


def differences(type_name: str, guided: bool, n_rows: int, seed: int) -> list[str]:
    """The differences on all kinds of weights."""
    found = []
    for number, (name, make) in enumerate(DISTRIBUTIONS.items()):
        rng = np.random.default_rng([seed, number])
        rows = make(rng, n_rows * COLUMNS).reshape(n_rows, COLUMNS)
        importance = importances(rng, COLUMNS) if guided else None
        if where := difference(rows, type_name, importance):
            found.append(f"{type_name}, {name}: {where}")
    return found


@each_type
@with_and_without_importance
def test_bytes_are_ggmls_on_every_kind_of_weights(type_name: str, guided: bool) -> None:
    assert not differences(type_name, guided, n_rows=8, seed=1)


@each_type
@with_and_without_importance
@pytest.mark.parametrize("n_superblocks", range(1, 18))
def test_any_number_of_superblocks(type_name: str, guided: bool, n_superblocks: int) -> None:
    rng = np.random.default_rng(n_superblocks)
    weights = DISTRIBUTIONS["like a model"](rng, n_superblocks * 256)
    for rows in (weights.reshape(1, -1), weights.reshape(-1, 256)):
        importance = importances(rng, rows.shape[1]) if guided else None
        assert not difference(rows, type_name, importance)


@each_type
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_the_same_importance_everywhere(type_name: str, value: float) -> None:
    rows = DISTRIBUTIONS["magnitude by sub-block"](np.random.default_rng(3), 20 * 768).reshape(20, 768)
    assert not difference(rows, type_name, np.full(768, value, np.float32))


@each_type
def test_no_rows(type_name: str) -> None:
    assert encode(np.empty((0, 256), np.float32), type_name, None).size == 0


def test_one_kernel_serves_all_callers() -> None:
    """Read-only and writable rows, few and many, with and without importance: nothing compiles twice."""
    used = [set(kernel.variants) for kernel in KERNELS]  # by other tests, with bfloat16
    rng = np.random.default_rng(5)
    importance = importances(rng, 512)
    for n_rows in (1, 20):
        rows = rng.standard_normal((n_rows, 512), np.float32)
        for writable in (True, False):
            rows.flags.writeable = importance.flags.writeable = writable
            for type_name in TYPES:
                encode(rows, type_name, None)
                encode(rows, type_name, importance)
    assert [set(kernel.variants) for kernel in KERNELS] == [own | {np.dtype(np.float32)} for own in used]


def test_a_machine_of_another_width_gives_the_same_bytes() -> None:
    """`generic` has neither AVX nor fused multiply-add, and kernels take half as many lanes at once."""
    program = "from test_k_quants import differences; print(*sum((differences(t, g, 1, 7) for t, g in"
    program += " (('q3_K', True), ('q4_K', False))), []), 'done')"
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "NUMBA_CPU_NAME": "generic", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout.strip() == "done", finished.stdout + finished.stderr
