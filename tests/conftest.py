"""What holds for all tests."""

from __future__ import annotations

import os
import sys

import pytest

# The runner of parallel tests tells its workers a width of 80; tables are tested at the width of a pipe.
os.environ.pop("COLUMNS", None)

# Kernels are compiled as the command line does it (`ggplan.quants.compiling`), in three quarters of the time.
os.environ.setdefault("NUMBA_OPT", "0")


def pytest_make_collect_report(collector: pytest.Collector) -> None:
    """Before a module that has examples made is imported, set what holds for them.

    To import Hypothesis takes a third of a second, which three files of four have no need of. Modules are
    made of all files of a folder, but only those asked for are collected.
    """
    if isinstance(collector, pytest.Module) and b"hypothesis" in collector.path.read_bytes():
        import hypothesis

        # How long an example takes says how busy the machine is. Tests about time have limits of their own.
        hypothesis.settings.register_profile("ggplan", deadline=None)
        hypothesis.settings.load_profile("ggplan")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Spare a run without examples Hypothesis' part of the summary, which imports Hypothesis."""
    plugins = session.config.pluginmanager
    if "hypothesis" not in sys.modules and (plugin := plugins.get_plugin("hypothesispytest")) is not None:
        plugins.unregister(plugin)
