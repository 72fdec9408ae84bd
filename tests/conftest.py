"""What holds for all tests."""

from __future__ import annotations

import os
from pathlib import Path

# The runner of parallel tests tells its workers a width of 80; tables are tested at the width of a pipe.
os.environ.pop("COLUMNS", None)

# Kernels are compiled as the command line does it (`ggplan.quants.compiling`), in three quarters of the time.
os.environ.setdefault("NUMBA_OPT", "0")


def pytest_pycollect_makemodule(module_path: Path) -> None:
    """Before a module that has examples made is imported, set what holds for them.

    To import Hypothesis takes a third of a second, which three files of four have no need of.
    """
    if b"hypothesis" in module_path.read_bytes():
        import hypothesis

        # How long an example takes says how busy the machine is. Tests about time have limits of their own.
        hypothesis.settings.register_profile("ggplan", deadline=None)
        hypothesis.settings.load_profile("ggplan")
