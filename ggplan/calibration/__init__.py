"""Calibration: what a text does to a model, kept so that weights can be chosen by it.

A matrix W turns an input x into W x. What an error in W does to the output depends on the inputs: it is
`E W H` with the second moments H = mean of x x^T over the tokens of a text. An imatrix is the diagonal of H;
this room keeps all of it, or the inputs that it can be made of, for each matrix and each expert.

`folder` is what is on disk, `reshaped` fits it to a model with other layers, experts or forms, `collecting`
adds inputs up while an engine runs the model, `llama_cpp` is one engine.
"""

from __future__ import annotations

from ggplan.calibration.folder import Calibration, open_calibration
from ggplan.calibration.reshaped import ReshapedCalibration

__all__ = ["Calibration", "ReshapedCalibration", "open_calibration"]
