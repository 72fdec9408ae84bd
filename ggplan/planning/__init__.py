"""From a model and a recipe to a plan: every tensor's type, bytes and place, before a weight is read."""

from ggplan.planning.derived import recipe_from_types, recipe_of_mix
from ggplan.planning.fallback import FallbackTable
from ggplan.planning.plan import Effort, Nonfinite, Plan, PlannedTensor
from ggplan.planning.planner import make_plan
from ggplan.planning.roles import Role, role_of
from ggplan.planning.summary import Share, by_role, by_type

__all__ = [
    "Effort",
    "FallbackTable",
    "Nonfinite",
    "Plan",
    "PlannedTensor",
    "Role",
    "Share",
    "by_role",
    "by_type",
    "make_plan",
    "recipe_from_types",
    "recipe_of_mix",
    "role_of",
]
