"""ggplan plans and writes mixed-precision GGUF files.

The command line uses this library; its public names are these:

    >>> import ggplan
    >>> model = ggplan.open_model("GLM-4.5-Air")
    >>> plan = ggplan.make_plan(model, "glm4moe/hq4_k")
    >>> ggplan.convert(plan, "GLM-4.5-Air-HQ4_K.gguf")

    >>> blocks = ggplan.quantize(weights, "q4_K")  # (rows, n) float32 -> (rows, row bytes) uint8

    >>> placement = ggplan.place(plan, ggplan.Machine((ggplan.Gpu("", 24 << 30),), ram=128 << 30))

`ggplan.charts` draws, `ggplan.measure` measures, `ggplan.probing` probes. Names are imported at first use, so
`import ggplan` loads neither numba nor NumPy nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ggplan.version import __version__

if TYPE_CHECKING:
    from ggplan import charts as charts
    from ggplan import measure as measure
    from ggplan import probing as probing
    from ggplan.allocation import OptimizeOptions as OptimizeOptions
    from ggplan.allocation import Target as Target
    from ggplan.allocation import improve as improve
    from ggplan.allocation import optimize as optimize
    from ggplan.allocation import pareto as pareto
    from ggplan.calibrating import CalibrateOptions as CalibrateOptions
    from ggplan.calibrating import calibrate as calibrate
    from ggplan.calibration import Calibration as Calibration
    from ggplan.calibration import open_calibration as open_calibration
    from ggplan.conversion import ConvertOptions as ConvertOptions
    from ggplan.conversion import convert as convert
    from ggplan.errors import Error as Error
    from ggplan.ggml_types import GgmlType as GgmlType
    from ggplan.ggml_types import parse_type as parse_type
    from ggplan.imatrix import load_imatrix as load_imatrix
    from ggplan.model import Model as Model
    from ggplan.model import TensorInfo as TensorInfo
    from ggplan.offload.front import place as place
    from ggplan.offload.front import reckon as reckon
    from ggplan.offload.machine import Gpu as Gpu
    from ggplan.offload.machine import Machine as Machine
    from ggplan.offload.placement import Wishes as Wishes
    from ggplan.opening import open_model as open_model
    from ggplan.planning import Assignment as Assignment
    from ggplan.planning import Plan as Plan
    from ggplan.planning import decide as decide
    from ggplan.planning import lay_out as lay_out
    from ggplan.planning import make_plan as make_plan
    from ggplan.planning import recipe_from_types as recipe_from_types
    from ggplan.quants import dequantize as dequantize
    from ggplan.quants import quantize as quantize
    from ggplan.quants import quantize_error as quantize_error
    from ggplan.rules import Recipe as Recipe
    from ggplan.rules import load_recipe as load_recipe
    from ggplan.rules import parse_recipe as parse_recipe
    from ggplan.stock import find_mix as find_mix
    from ggplan.verification import verify as verify

_HOME = {
    "OptimizeOptions": "ggplan.allocation",
    "Target": "ggplan.allocation",
    "improve": "ggplan.allocation",
    "optimize": "ggplan.allocation",
    "pareto": "ggplan.allocation",
    "CalibrateOptions": "ggplan.calibrating",
    "calibrate": "ggplan.calibrating",
    "Calibration": "ggplan.calibration",
    "open_calibration": "ggplan.calibration",
    "ConvertOptions": "ggplan.conversion",
    "convert": "ggplan.conversion",
    "Error": "ggplan.errors",
    "GgmlType": "ggplan.ggml_types",
    "parse_type": "ggplan.ggml_types",
    "load_imatrix": "ggplan.imatrix",
    "Model": "ggplan.model",
    "TensorInfo": "ggplan.model",
    "place": "ggplan.offload.front",
    "reckon": "ggplan.offload.front",
    "Gpu": "ggplan.offload.machine",
    "Machine": "ggplan.offload.machine",
    "Wishes": "ggplan.offload.placement",
    "open_model": "ggplan.opening",
    "Assignment": "ggplan.planning",
    "Plan": "ggplan.planning",
    "decide": "ggplan.planning",
    "lay_out": "ggplan.planning",
    "make_plan": "ggplan.planning",
    "recipe_from_types": "ggplan.planning",
    "dequantize": "ggplan.quants",
    "quantize": "ggplan.quants",
    "quantize_error": "ggplan.quants",
    "Recipe": "ggplan.rules",
    "load_recipe": "ggplan.rules",
    "parse_recipe": "ggplan.rules",
    "verify": "ggplan.verification",
    "find_mix": "ggplan.stock",
}

# Packages whose names are public under their own.
_PACKAGES = ("charts", "measure", "probing")

__all__ = ["__version__", *_PACKAGES, *_HOME]

if not TYPE_CHECKING:  # a type checker that saw it would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name in _PACKAGES:
            return importlib.import_module(f"ggplan.{name}")
        if name not in _HOME:
            import difflib

            near = difflib.get_close_matches(name, _HOME, n=1)
            meant = f"; the nearest is {near[0]}" if near else ""
            raise AttributeError(f"module 'ggplan' has no attribute {name!r}{meant}", name=name)
        return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
