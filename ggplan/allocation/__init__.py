"""What choosing types by a budget needs: how much each tensor loses at each type."""

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
    "Sensitivities",
    "Sensitivity",
    "is_sensitivity_table",
    "read_sensitivities",
    "sensitivities_json",
]
