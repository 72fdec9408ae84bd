"""From command-line arguments to a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ggplan.planning import Effort, FallbackTable, Nonfinite, Plan
    from ggplan.rules import Recipe
    from ggplan.stock import Mix


def plan_from(
    model_path: str,
    recipe_name: str | None,
    imatrix_path: str | None,
    fallback: FallbackTable | None,
    strict: bool,
    pre: str | None,
    nonfinite: Nonfinite = "refuse",
    effort: Effort = "default",
    pure: bool = False,
) -> Plan:
    """Open the model, load recipe and imatrix, and plan."""
    from ggplan.opening import open_model_or_inventory
    from ggplan.planning import make_plan

    recipe = recipe_or_mix(recipe_name, pure=pure)
    model = open_model_or_inventory(model_path, pre=pre)
    imatrix = None
    if imatrix_path:
        from ggplan.imatrix import load_imatrix

        imatrix = load_imatrix(imatrix_path)
    return make_plan(
        model, recipe, imatrix=imatrix, fallback=fallback, strict=strict, nonfinite=nonfinite, effort=effort
    )


def recipe_or_mix(name: str | None, *, pure: bool) -> Recipe | Mix | None:
    """What `-r` names; with `--pure` that must be a stock mix."""
    from ggplan.planning import find_recipe
    from ggplan.stock import Mix

    found = find_recipe(name) if name is not None else None
    if not pure:
        return found
    if not isinstance(found, Mix):
        raise click.UsageError("--pure belongs to one of llama-quantize's mixes, such as -r Q4_K_M")
    return found.purely()
