"""From a model and a recipe to a plan: every tensor's type, bytes and place, before a weight is read.

    model, recipe ─► decide ─► Assignment ─► lay_out ─► Plan
    a mix, a file's types, a table ─────►┘

`make_plan` is both steps at once.
"""

from ggplan.planning.assignment import Assignment, Decision
from ggplan.planning.decisions import decide
from ggplan.planning.devices import Memory, devices_in, memory_of
from ggplan.planning.fallback import FallbackTable
from ggplan.planning.fitting import Fitted, fit
from ggplan.planning.guidance import Feedback
from ggplan.planning.laying_out import lay_out, make_plan
from ggplan.planning.makers import (
    Chosen,
    assign,
    find_recipe,
    kept_types,
    mix_types,
    stored_types,
    types_by_hand,
)
from ggplan.planning.plan import Effort, Nonfinite, Plan, PlannedTensor
from ggplan.planning.roles import Role, role_of
from ggplan.planning.summary import Share, by_role, by_type, in_memory
from ggplan.planning.written import recipe_from_types, recipe_of

__all__ = [
    "Assignment",
    "Chosen",
    "Decision",
    "Effort",
    "FallbackTable",
    "Feedback",
    "Fitted",
    "Memory",
    "Nonfinite",
    "Plan",
    "PlannedTensor",
    "Role",
    "Share",
    "assign",
    "by_role",
    "by_type",
    "decide",
    "devices_in",
    "find_recipe",
    "fit",
    "in_memory",
    "kept_types",
    "lay_out",
    "make_plan",
    "memory_of",
    "mix_types",
    "recipe_from_types",
    "recipe_of",
    "role_of",
    "stored_types",
    "types_by_hand",
]
