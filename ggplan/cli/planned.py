"""From command-line arguments to a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ggplan.cli.options import PlanningOptions
    from ggplan.planning import Plan
    from ggplan.rules import Recipe
    from ggplan.stock import Mix


def plan_from(model_path: str, options: PlanningOptions) -> Plan:
    """Open the model, load recipe and imatrix, and plan."""
    from ggplan.opening import open_model_or_inventory
    from ggplan.planning import make_plan

    recipe = _recipe_or_mix(options.recipe_name, options.pure)
    model = open_model_or_inventory(model_path, pre=options.pre)
    imatrix = None
    if options.imatrix_path:
        from ggplan.imatrix import load_imatrix

        imatrix = load_imatrix(options.imatrix_path)
    return make_plan(
        model,
        recipe,
        imatrix=imatrix,
        fallback=options.fallback,
        strict=options.strict,
        nonfinite=options.nonfinite,
        effort=options.effort,
    )


def _recipe_or_mix(name: str | None, pure: bool) -> Recipe | Mix | None:
    """What `-r` names; with `--pure` that must be a stock mix."""
    from ggplan.planning import find_recipe
    from ggplan.stock import Mix

    found = find_recipe(name) if name is not None else None
    if not pure:
        return found
    if not isinstance(found, Mix):
        raise click.UsageError("--pure belongs to one of llama-quantize's mixes, such as -r Q4_K_M")
    return found.purely()
