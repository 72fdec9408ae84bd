"""The types that lose least within a budget: sensitivities, candidates, the solver, and a readable recipe.

sensitivities.py, sensitivity_tables.py   measurements, and the tables that are published
prior.py           what is known without measuring
scales.py          the sensitivity of each tensor          type_errors.py   the error of each type
options.py         what is asked for                       budget.py        each limit a linear row
candidates.py      what each tensor may get                grouping.py      tensors that get one type
problem.py         all of these, prepared for the solver   forecast.py      the KL divergence of a damage
solving.py         the least damage within the rows        banding.py       where the type of a kind changes
measured_errors.py errors of types, on some rows           probes.py        sensitivities by an engine
standing.py        pins and a base recipe                  patterns.py      patterns for exactly some tensors
pareto.py, curve_files.py   the best files of all sizes    improving.py     a given recipe at its bytes
explaining.py      why a tensor has its type
machine_rows.py    the limits of a machine as rows         on_machine.py   types and places in turn
promises.py        what a recipe says of a machine
recipe_text.py     the answer as a recipe                  optimizing.py    all of it: `optimize`
"""

from ggplan.allocation.curve_files import read_curve
from ggplan.allocation.explaining import Explained, explain
from ggplan.allocation.forecast import Forecast
from ggplan.allocation.improving import Improved, improve
from ggplan.allocation.machine_rows import Target
from ggplan.allocation.measured_errors import measured_errors
from ggplan.allocation.optimizing import Optimized, answer_of, optimize
from ggplan.allocation.options import OptimizeOptions
from ggplan.allocation.pareto import Curve, CurvePoint, pareto
from ggplan.allocation.probes import Probes, scales_by_probes
from ggplan.allocation.problem import prepare
from ggplan.allocation.sensitivities import (
    FIGURES,
    Figure,
    Sensitivities,
    Sensitivity,
    sensitivities_json,
)
from ggplan.allocation.sensitivity_tables import is_sensitivity_table, read_sensitivities

__all__ = [
    "FIGURES",
    "Curve",
    "CurvePoint",
    "Explained",
    "Figure",
    "Forecast",
    "Improved",
    "OptimizeOptions",
    "Optimized",
    "Probes",
    "Sensitivities",
    "Sensitivity",
    "Target",
    "answer_of",
    "explain",
    "improve",
    "is_sensitivity_table",
    "measured_errors",
    "optimize",
    "pareto",
    "prepare",
    "read_curve",
    "read_sensitivities",
    "scales_by_probes",
    "sensitivities_json",
]
