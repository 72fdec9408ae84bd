"""The encoders of iq2_* and iq3_* give ggml's bytes, whatever the weights, the importance and the shape."""

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

from ggplan.errors import QuantizationError
from ggplan.ggml_types import parse_type
from ggplan.quants import dequantize, encode_into, quantize
from ggplan.quants.searches import grids

MODES = [
    ("iq3_s", False),
    ("iq3_s", True),
    ("iq3_xxs", False),
    ("iq3_xxs", True),
    ("iq2_s", False),
    ("iq2_s", True),
    ("iq2_xs", True),
    ("iq2_xxs", True),
]
TYPES = list(dict(MODES))
KERNELS = [grids.fours, grids.eights, grids.fitted_eights]

# With these ggml ends the process: some sum overflows, and no neighbour has a finite error.
FATAL = {
    "1e18",
    "1e25",
    "1e37",
    "largest",
    "wide magnitude by sub-block",
    "wide magnitude by weight",
    "random bits",
    "random bits by run",
}

# Three superblocks a row: tiles of sixteen begin and end anywhere in a row.
COLUMNS = 3 * 256

each_mode = pytest.mark.parametrize(("type_name", "guided"), MODES)
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
    ggmls = ggml_reference.quantize(rows, type_name, importance, guess=ours).reshape(-1, block_bytes)
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
    """The differences on all kinds of weights that ggml encodes."""
    found = []
    for number, (name, make) in enumerate(DISTRIBUTIONS.items()):
        if name in FATAL:
            continue
        rng = np.random.default_rng([seed, number])
        rows = make(rng, n_rows * COLUMNS).reshape(n_rows, COLUMNS)
        importance = importances(rng, COLUMNS) if guided else None
        if where := difference(rows, type_name, importance):
            found.append(f"{type_name}, {name}: {where}")
    return found


@each_mode
def test_bytes_are_ggmls_on_every_kind_of_weights(type_name: str, guided: bool) -> None:
    assert not differences(type_name, guided, n_rows=8, seed=1)


@each_mode
@pytest.mark.parametrize("n_superblocks", [1, 2, 15, 16, 17, 257, 273, 1039, 1041])
def test_any_number_of_superblocks(type_name: str, guided: bool, n_superblocks: int) -> None:
    """Below a tile of sixteen, and above a batch of 1024."""
    rng = np.random.default_rng(n_superblocks)
    weights = DISTRIBUTIONS["like a model"](rng, n_superblocks * 256)
    for rows in (weights.reshape(1, -1), weights.reshape(-1, 256)):
        importance = importances(rng, rows.shape[1]) if guided else None
        assert not difference(rows, type_name, importance)


@each_type
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e20])
def test_the_same_importance_everywhere(type_name: str, value: float) -> None:
    rows = DISTRIBUTIONS["magnitude by sub-block"](np.random.default_rng(3), 20 * 768).reshape(20, 768)
    assert not difference(rows, type_name, np.full(768, value, np.float32))


@each_mode
@pytest.mark.parametrize("kind", sorted(FATAL))
def test_what_ggml_gives_up_on_makes_blocks_that_decode(type_name: str, guided: bool, kind: str) -> None:
    rng = np.random.default_rng(4)
    rows = DISTRIBUTIONS[kind](rng, 20 * 256).reshape(20, 256)
    blocks = encode(rows, type_name, importances(rng, 256) if guided else None)
    assert dequantize(blocks, type_name).shape == rows.shape


def test_iq3_s_closes_the_gaps_of_zeros_as_ggml_does() -> None:
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((64, 8, 32), np.float32)
    rows[rng.random((64, 8)) < 0.4] = 0
    assert not difference(rows.reshape(64, 256), "iq3_s", None)


@each_type
def test_zeros_are_zeros(type_name: str) -> None:
    assert not encode(np.zeros((1, 256), np.float32), type_name, np.ones(256, np.float32)).any()


@each_type
def test_no_rows(type_name: str) -> None:
    assert encode(np.empty((0, 256), np.float32), type_name, np.ones(256, np.float32)).size == 0


@pytest.mark.parametrize("type_name", ["iq2_xs", "iq2_xxs"])
def test_some_types_say_that_they_need_an_imatrix(type_name: str) -> None:
    with pytest.raises(QuantizationError, match=f"{type_name} cannot be encoded without an imatrix"):
        quantize(np.ones(256), type_name)


def test_one_kernel_serves_all_callers() -> None:
    """Read-only and writable rows, few and many, with and without importance: nothing compiles twice."""
    before = [kernel.variants for kernel in KERNELS]
    rng = np.random.default_rng(6)
    importance = importances(rng, 512)
    for n_rows in (1, 20):
        rows = rng.standard_normal((n_rows, 512), np.float32)
        for writable in (True, False):
            rows.flags.writeable = importance.flags.writeable = writable
            for type_name, guided in MODES:
                encode(rows, type_name, importance if guided else None)
    for kernel, variants in zip(KERNELS, before, strict=True):
        assert set(kernel.variants) == {*variants, np.dtype(np.float32)}


def test_a_machine_of_another_width_gives_the_same_bytes() -> None:
    """`haswell` looks terms up eight at a time, and kernels take half as many lanes at once."""
    program = "from test_encode_grids import differences; print(*sum((differences(t, True, 1, 7) for t in"
    program += " ('iq3_xxs', 'iq2_xs')), []), 'done')"
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "NUMBA_CPU_NAME": "haswell", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout.strip() == "done", finished.stdout + finished.stderr
