"""What `ggplan calibrate CALIB --outliers` prints: outlier columns, and rules for a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.options import note

if TYPE_CHECKING:
    from ggplan.calibration.outliers import Outliers

SCHEMA = "ggplan.outliers/1"
_MOST = 3


def print_outliers(path: str, tau: float, *, as_json: bool, quiet: bool) -> None:
    """Read the calibration of a folder and print its outlier columns.

    Raises
    ------
    CalibrationError
        If it is none, or is damaged.
    """
    from ggplan.calibration import open_calibration
    from ggplan.calibration.outliers import outliers_of, suggested_rules
    from ggplan.cli.output import echo_wrapped, print_json, print_table
    from ggplan.imatrix.coverage import FEW_TOKENS
    from ggplan.text import printable

    calibration = open_calibration(path)
    found = outliers_of(calibration, tau)
    rules = suggested_rules(found)
    if as_json:
        print_json(
            {
                "schema": SCHEMA,
                "path": str(calibration.path),
                "digest": calibration.digest,
                "tau": tau,
                "inputs": [_json(one) for one in found],
                "rules": rules,
            }
        )
    else:
        tensors = [(name, one) for one in found if one.n_outliers for name in one.tensors]
        if tensors:
            columns = [("tensor", "left"), ("columns", "right"), ("matrices", "right")]
            columns += [("outliers", "right"), ("share of energy", "right"), ("largest, in medians", "right")]
            columns += [("which", "left")]
            least = ("matrices", "columns", "which", "largest, in medians")
            print_table(columns, (_row(name, one) for name, one in tensors), least=least, quiet=quiet)
        every = sum(len(one.tensors) for one in found)
        echo_wrapped(
            f"{printable(path)}: {len(tensors):,} of {every:,} tensors have columns beyond {tau:g} times the "
            "median"
        )
        for line in [*_ABOUT, *rules] if rules else ["no outliers have a tenth of a matrix's energy"]:
            click.echo(printable(line))
    left_out = sum(len(one.left_out) for one in found)
    if left_out:
        total = sum(one.n_slices for one in found)
        note(
            f"{left_out:,} of {total:,} matrices with inputs of their own are left out: they saw fewer than "
            f"{FEW_TOKENS} tokens a column",
            quiet=quiet,
        )


_ABOUT = (
    "# rules that give them a finer type, to stand before the others of a recipe; in the one model where",
    "# they were measured they gained nothing (docs/calibrating.md), so measure them: `ggplan measure`",
)


def _row(name: str, one: Outliers) -> list[str]:
    shown = [
        f"{f'{number}: ' if one.n_slices > 1 else ''}{', '.join(map(str, columns[:_MOST]))}"
        + (", …" if len(columns) > _MOST else "")
        for number, columns in enumerate(one.columns)
        if columns
    ]
    return [
        name,
        f"{one.n_columns:,}",
        f"{one.n_slices:,}",
        f"{one.n_outliers:,}",
        f"{100 * one.share:.1f} %",
        f"{one.largest:.1f}",
        "; ".join(shown[:1]) + ("; …" if len(shown) > 1 else ""),
    ]


def _json(one: Outliers) -> dict[str, Any]:
    return {
        "tensors": list(one.tensors),
        "columns": one.n_columns,
        "matrices": one.n_slices,
        "left_out": list(one.left_out),
        "outliers": [list(columns) for columns in one.columns],
        "share": one.share,
        "largest": one.largest,
    }
