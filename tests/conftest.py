"""What holds for all tests."""

from __future__ import annotations

import os
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

# The runner of parallel tests tells its workers a width of 80; tables are tested at the width of a pipe.
os.environ.pop("COLUMNS", None)

# Kernels are compiled as the command line does it (`ggplan.quants.compiling`), in three quarters of the time.
os.environ.setdefault("NUMBA_OPT", "0")
# How long an example takes says how busy the machine is. Tests about time have limits of their own.
hypothesis.settings.register_profile("ggplan", deadline=None)
hypothesis.settings.load_profile("ggplan")

# ggml makes its tables of grids, for half a minute, in each process that encodes to them.
_OF_GGMLS_GRIDS = {
    f"tests/quants/test_{name}.py" for name in ("decode", "decode_grids", "encode_grids", "iq1")
}


class ByFile(LoadFileScheduling):  # type: ignore[misc]
    """The tests of a file go to one worker, and those of all files that need ggml's grids to the same."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "ggml's grids" if file in _OF_GGMLS_GRIDS else file


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    """Use it for `--dist loadfile`."""
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None
