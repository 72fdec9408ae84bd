"""Corrected targets: each layer's weights are chosen for the inputs that the quantized layers before it give.

Encoding with second moments makes good, within a matrix, what rounding does. What the matrices before it did
is made good here: `targets` has the formula, `streams` runs the original and the quantized model side by
side, `layer` corrects and encodes one layer of them, `kept` keeps the bytes of every finished layer until
the ordinary writer puts them into the file.
"""

from __future__ import annotations

from ggplan.correcting.encoding import require_correctable
from ggplan.correcting.kept import Corrected, is_ours, layer_files, refuse_foreign
from ggplan.correcting.layer import CorrectOptions
from ggplan.correcting.streams import correct, engine_versions

__all__ = [
    "CorrectOptions",
    "Corrected",
    "correct",
    "engine_versions",
    "is_ours",
    "layer_files",
    "refuse_foreign",
    "require_correctable",
]
