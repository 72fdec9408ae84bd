"""Predicted speeds against published reports: the figures that the documentation states."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

from memory_rows import headers

_ROOT = Path(__file__).parents[2]


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_speed", _ROOT / "tools" / "compare_speed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_TOOL = _tool()


@cache
def _reports() -> list[object]:
    reports, unclear = _TOOL.read_reports(_TOOL.DATA / "reports.csv", headers("models"))
    assert unclear == []
    return list(reports)


def _of_generation() -> list[object]:
    found = [r for r in _reports() if r.generated is not None and r.has_bandwidth]  # type: ignore[attr-defined]
    assert len(found) >= 35
    return found


def _median(errors: Iterable[float]) -> float:
    return statistics.median(abs(error) for error in errors)


def test_generation_on_the_reports_that_the_factors_are_fitted_on() -> None:
    errors = [_TOOL.error_of(report, _TOOL.FITTED) for report in _of_generation()]
    assert _median(errors) <= 0.14
    assert sum(abs(error) <= 0.25 for error in errors) >= 0.6 * len(errors)


def test_the_factors_are_those_that_a_fit_gives() -> None:
    assert _TOOL.fitted(_of_generation(), sweeps=1) == _TOOL.FITTED


def test_generation_on_machines_that_the_factors_are_not_fitted_on() -> None:
    errors = _TOOL.without_their_machine(_of_generation())
    assert _median(errors) <= 0.20
    assert sum(abs(error) <= 0.25 for error in errors) >= 0.6 * len(errors)


def test_generation_with_one_report_to_calibrate_by() -> None:
    assert _median(_TOOL.calibrated(_of_generation())) <= 0.12


def test_generation_on_gpus_alone() -> None:
    found = [r for r in _reports() if r.row["placement"] == "all GPU"]  # type: ignore[attr-defined]
    assert len(found) >= 7
    assert _median(_TOOL.error_of(report, _TOOL.FITTED) for report in found) <= 0.2


def test_prompts() -> None:
    ratios = [_TOOL.prompt_ratio(r) for r in _reports() if r.read is not None]  # type: ignore[attr-defined]
    assert len(ratios) >= 30
    assert sum(1 / 1.5 <= ratio <= 1.5 for ratio in ratios) >= 2 / 3 * len(ratios)


def test_four_of_five_lie_within_the_range() -> None:
    inside = 0
    for report in _of_generation():
        rate = _TOOL.generation(report.active, report.machine, report.profile, report.settings)  # type: ignore[attr-defined]
        inside += rate.low <= report.generated <= rate.high  # type: ignore[attr-defined]
    assert inside >= 0.8 * len(_of_generation())
