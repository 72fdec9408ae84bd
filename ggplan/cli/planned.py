"""From command-line arguments to a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggplan.planning import FallbackTable, Nonfinite, Plan


def plan_from(
    model_path: str,
    recipe_name: str | None,
    imatrix_path: str | None,
    fallback: FallbackTable,
    strict: bool,
    pre: str | None,
    nonfinite: Nonfinite = "refuse",
) -> Plan:
    """Open the model, load recipe and imatrix, and plan."""
    from ggplan.opening import open_model
    from ggplan.planning import make_plan
    from ggplan.rules import load_recipe

    recipe = load_recipe(recipe_name) if recipe_name else None
    model = open_model(model_path, pre=pre)
    imatrix = None
    if imatrix_path:
        from ggplan.imatrix import load_imatrix

        imatrix = load_imatrix(imatrix_path)
    return make_plan(model, recipe, imatrix=imatrix, fallback=fallback, strict=strict, nonfinite=nonfinite)
