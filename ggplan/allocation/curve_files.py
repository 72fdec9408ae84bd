"""Curves of the best files as files: JSON and CSV, written and read."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from ggplan.allocation.forecast import Forecast
from ggplan.allocation.pareto import Curve, CurvePoint
from ggplan.errors import PlanError
from ggplan.substitutes import read_limited
from ggplan.text import decode_text, printable

SCHEMA = "ggplan.pareto/1"
_HEAD = ("name", "file_bytes", "bits_per_weight", "kld", "kld_low", "kld_high", "damage", "gap")
_SPEED = "tokens_per_second"  # a column and key of curves for a machine
_OWN, _CAVEAT = "optimized", "Note: "
_MAX_BYTES = 16 << 20
_START = 4096
_SAID = {"model": "Best files of all sizes, predicted, and stock mixes: ", "source": "Sensitivities: ",
         "n_weights": "Weights: "}  # fmt: skip


def curve_json(curve: Curve) -> dict[str, object]:
    """A curve as an object of plain JSON types."""
    return {
        "schema": SCHEMA,
        "model": curve.model,
        "n_weights": curve.n_weights,
        "points": [_point_json(p) for p in curve.points],
        "mixes": [{"name": p.name, **_point_json(p)} for p in curve.mixes],
        "sensitivities": {"source": curve.source, "credit": list(curve.credit)},
        "caveats": list(curve.caveats),
        "notes": list(curve.notes),
    }


def _point_json(point: CurvePoint) -> dict[str, object]:
    forecast = point.forecast
    return {
        "file_bytes": point.file_bytes,
        "bits_per_weight": point.bits_per_weight,
        "damage": point.damage,
        "gap": point.gap,
        "forecast": {"kld": forecast.kld, "low": forecast.low, "high": forecast.high},
        **({} if point.tps is None else {_SPEED: point.tps}),
    }


def curve_csv(curve: Curve) -> str:
    """A curve as a CSV table; its comments say where it is from."""
    lines = [
        f"# {' '.join(text.split())}"
        for text in (
            _SAID["model"] + curve.model,
            _SAID["n_weights"] + str(curve.n_weights),
            _SAID["source"] + curve.source,
            *(_CAVEAT + caveat for caveat in curve.caveats),
            *curve.credit,
        )
    ]
    is_for_machine = any(p.tps is not None for p in curve.points)
    lines.append(",".join((*_HEAD, _SPEED) if is_for_machine else _HEAD))
    for p in (*curve.points, *curve.mixes):
        tps = "" if p.tps is None else f"{p.tps:.6g}"
        f = p.forecast
        gap = "" if p.gap is None else f"{p.gap:.6g}"
        lines.append(
            f"{p.name or _OWN},{p.file_bytes},{p.bits_per_weight:.6g},{f.kld:.6g},{f.low:.6g},"
            f"{f.high:.6g},{p.damage:.6g},{gap}" + (f",{tps}" if is_for_machine else "")
        )
    return "\n".join(lines) + "\n"


def is_curve(start: bytes) -> bool:
    """Whether a file that begins with these bytes begins as a curve does."""
    text = start[:_START].decode("utf-8", "replace")
    rows = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return (text.lstrip().startswith("{") and SCHEMA in text) or (
        bool(rows) and rows[0].strip() in (",".join(_HEAD), ",".join((*_HEAD, _SPEED)))
    )


def read_curve(path: str | Path) -> Curve:
    """Read a curve that was written as JSON or CSV.

    Raises
    ------
    PlanError
        If the file cannot be read or is no whole curve.
    """
    shown = printable(str(path))
    raw = read_limited(Path(path), _MAX_BYTES, "curve", PlanError)
    try:
        text = decode_text(raw) if isinstance(raw, bytes) else raw
        found = _of_json(json.loads(text)) if text.lstrip().startswith("{") else _of_csv(text)
        if not found.points:
            raise ValueError("it has no point")
        for point in (*found.points, *found.mixes):
            numbers = [point.bits_per_weight, point.damage, point.forecast.kld, point.forecast.low]
            numbers += [] if point.tps is None else [point.tps]
            if not all(map(math.isfinite, numbers)) or point.file_bytes <= 0 or min(numbers) < 0:
                raise ValueError(f"{point.name or 'a point'} has a number that cannot be")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise PlanError(
            f"{shown} is no whole curve: {printable(str(error))[:120]}",
            hint="`ggplan optimize MODEL --pareto -o CURVE.json` writes one",
        ) from None
    return found


def _of_json(value: dict[str, Any]) -> Curve:
    if value["schema"] != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    points = tuple(_read_point("", item) for item in value["points"])
    mixes = tuple(_read_point(str(item["name"]), item) for item in value["mixes"])
    basis = value["sensitivities"]
    credit = tuple(map(str, basis["credit"]))
    caveats, notes = tuple(map(str, value["caveats"])), tuple(map(str, value["notes"]))
    n_weights = int(value["n_weights"])
    return Curve(str(value["model"]), n_weights, points, mixes, str(basis["source"]), credit, caveats, notes)


def _read_point(name: str, item: dict[str, Any]) -> CurvePoint:
    kld = item["forecast"]
    forecast = Forecast(float(kld["kld"]), float(kld["low"]), float(kld["high"]))
    gap = None if item["gap"] is None else float(item["gap"])
    n_bytes, bpw = int(item["file_bytes"]), float(item["bits_per_weight"])
    tps = None if item.get(_SPEED) is None else float(item[_SPEED])
    return CurvePoint(name, n_bytes, bpw, float(item["damage"]), gap, forecast, tps)


def _of_csv(text: str) -> Curve:
    lines = [line for line in text.splitlines() if line.strip()]
    remarks = [line.lstrip("# ").strip() for line in lines if line.startswith("#")]
    said = {}
    for word, start in _SAID.items():
        said[word] = next((r.removeprefix(start) for r in remarks if r.startswith(start)), "")
    caveats = tuple(r.removeprefix(_CAVEAT) for r in remarks if r.startswith(_CAVEAT))
    credit = tuple(r for r in remarks if not r.startswith((*_SAID.values(), _CAVEAT)))
    points: list[CurvePoint] = []
    mixes: list[CurvePoint] = []
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        forecast = Forecast(float(row["kld"]), float(row["kld_low"]), float(row["kld_high"]))
        name = "" if row["name"] == _OWN else row["name"]
        gap = float(row["gap"]) if row["gap"] else None
        n_bytes, bpw = int(row["file_bytes"]), float(row["bits_per_weight"])
        tps = float(row[_SPEED]) if row.get(_SPEED) else None
        point = CurvePoint(name, n_bytes, bpw, float(row["damage"]), gap, forecast, tps)
        (mixes if name else points).append(point)
    n_weights = int(said["n_weights"] or 0)
    return Curve(said["model"], n_weights, tuple(points), tuple(mixes), said["source"], credit, caveats, ())
