"""Folding: scales of columns moved from matrices into what feeds them, as AWQ and SmoothQuant do.

    model, calibration ─► fold ─► model, calibration ─► plan, conversion

A norm's weights are divided by scales s, and the columns of all matrices that read it are multiplied by s;
the rows of the up projection are divided, and the columns of the down projection multiplied. The product of
both is as before, up to the rounding of float32. So the model's function stays, and other weights are
quantized.

    sites      where scales can be folded, by a table of architectures
    scales     which scales: those of AWQ and of SmoothQuant, and the search for an exponent
    calibrated the calibration of the folded model
    steps      the model itself
"""

from __future__ import annotations

from ggplan.folding.calibrated import FoldedCalibration
from ggplan.folding.scales import Fold, parse_fold
from ggplan.folding.steps import FOLD, fold

__all__ = ["FOLD", "Fold", "FoldedCalibration", "fold", "parse_fold"]
