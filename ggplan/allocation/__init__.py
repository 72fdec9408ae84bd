"""The types that lose least within a budget: sensitivities, candidates, the solver, and a readable recipe.

sensitivities.py   published tables of measurements        prior.py    what is known without measuring
scales.py          the sensitivity of each tensor          type_errors.py   the error of each type
candidates.py      what each tensor may get                grouping.py      tensors that get one type
solving.py         the least damage within the rows        recipe_text.py   the answer as a recipe
optimizing.py      all of it: `optimize`
"""

from ggplan.allocation.optimizing import Forecast, Optimized, OptimizeOptions, optimize
from ggplan.allocation.sensitivities import (
    FIGURES,
    Figure,
    Sensitivities,
    Sensitivity,
    is_sensitivity_table,
    read_sensitivities,
    sensitivities_json,
)

__all__ = [
    "FIGURES",
    "Figure",
    "Forecast",
    "OptimizeOptions",
    "Optimized",
    "Sensitivities",
    "Sensitivity",
    "is_sensitivity_table",
    "optimize",
    "read_sensitivities",
    "sensitivities_json",
]
