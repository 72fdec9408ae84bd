"""No search writes beyond the memory it has asked for, whatever the width of its lanes."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ggplan import quants
from ggplan.ggml_types import TYPES, parse_type
from ggplan.quants import efforts_of, kernels, quantize
from ggplan.quants.feedback import takes_moments
from ggplan.quants.vector import WIDTH

BEYOND = 1 << 14
MARK = np.float32(-1.5e-33)
BLOCK_TYPES = [t.name for t in TYPES if t.encodable and t.is_quantized]


def assert_stays_inside(work: Callable[[], object]) -> None:
    """Let `work` have memory with marks behind it, and look at these."""
    for module in pkgutil.walk_packages(
        quants.__path__, "ggplan.quants."
    ):  # also what is imported at its use
        importlib.import_module(module.name)
    beyond: list[NDArray[np.float32]] = []
    real = kernels.scratch

    def marked(n_numbers: int) -> NDArray[np.float32]:
        room = real(n_numbers + BEYOND)
        room[n_numbers:] = MARK
        beyond.append(room[n_numbers:])
        return room[:n_numbers]

    with pytest.MonkeyPatch.context() as patch:
        for name, loaded in list(sys.modules.items()):
            if name.startswith("ggplan.quants") and getattr(loaded, "scratch", None) is real:
                patch.setattr(loaded, "scratch", marked)
        work()
    assert beyond
    for marks in beyond:
        written = np.flatnonzero(marks != MARK)
        assert not written.size, f"{written[-1] + 1} numbers too few"


def encode_all(types: list[str]) -> None:
    """Encode few and many rows, of one superblock and of several, with all that searches are told."""
    rng = np.random.default_rng(1)
    for n_rows, n in ((1, 256), (17, 1536)):
        rows = rng.standard_normal((n_rows, n), np.float32)
        imatrix = rng.random(n, np.float32)
        for type in types:
            for effort in efforts_of(parse_type(type)):
                quantize(rows, type, imatrix, effort=effort)
                if not parse_type(type).requires_imatrix:
                    quantize(rows, type, effort=effort)
            if takes_moments(parse_type(type)):
                quantize(rows, type, hessian=np.diag(imatrix))


@pytest.mark.parametrize("type", BLOCK_TYPES)
def test_searches_stay_in_their_memory(type: str) -> None:
    assert_stays_inside(lambda: encode_all([type]))


def test_searches_of_the_other_width_stay_in_their_memory(tmp_path: Path) -> None:
    """Lanes as processors with AVX-512 have them, or without, in iq4_xs, whose search keeps most for each."""
    program = (
        f"from ggplan.quants import machine_code; machine_code.has_wide_registers = lambda: {WIDTH != 32};"
        " from test_scratch import assert_stays_inside; from ggplan.quants import quantize, vector;"
        " import numpy as np; rows = np.random.default_rng(1).standard_normal((17, 512), np.float32);"
        f" assert vector.WIDTH != {WIDTH}; assert_stays_inside(lambda: quantize(rows, 'iq4_xs'));"
        " print('done')"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout.strip() == "done", finished.stdout + finished.stderr
