"""`ggplan rules explain`: why a tensor gets its type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ggplan.cli.options import fallback_option, json_option, model_option, quiet_option

if TYPE_CHECKING:
    from ggplan.linting.explaining import Explanation
    from ggplan.planning import FallbackTable

_EPILOG = """\b
Examples:
  ggplan rules explain blk.7.ffn_down_exps.weight -r glm4moe/hq4_k -m GLM-4.5-Air
  ggplan rules explain output.weight -r my.recipe --json
"""


@click.command("explain", epilog=_EPILOG, short_help="Show why a tensor gets its type.")
@click.argument("tensor")
@click.option(
    "-r", "--recipe", "recipe_name", required=True, metavar="RECIPE", help="A recipe file, or a shipped one."
)
@model_option
@fallback_option
@json_option("the explanation")
@quiet_option
def explain_command(
    tensor: str,
    recipe_name: str,
    model_name: str | None,
    fallback: FallbackTable | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show every rule that matches TENSOR, which one decides, and what its shape does to the type.

    Exits 0; 1 if there is no such tensor, or the recipe or model cannot be read; 2 for wrong usage.
    """
    from ggplan.cli.rules_subject import recipe_and_model
    from ggplan.linting.explaining import explain

    recipe, model = recipe_and_model(recipe_name, model_name, quiet=quiet)
    found = explain(model, recipe, tensor, fallback)
    if as_json:
        import json

        click.echo(json.dumps(_json(found), indent=2, ensure_ascii=True))
    else:
        _print(found)


def _print(found: Explanation) -> None:
    from ggplan.text import format_bytes, printable

    tensor = found.tensor
    shape = " × ".join(map(str, tensor.shape))
    roles = ", ".join(found.roles) or "no known role"
    places = [{"cpu": "RAM", "gpu": "GPU"}[device] for device in found.devices]
    place = f"meant for {' and '.join(places)}" if places else "loaded only to draft tokens"
    click.echo(f"{printable(tensor.name)}: {shape}, {tensor.stored_as}; {roles}; {place}")
    if found.protected:
        click.echo(f"protected: {found.protected}, so rules with quantized types pass it over")
    click.echo()
    rows = [
        (s.rule.where if s.rule else "@default", _pattern(s.rule), s.choice.text, s.outcome)
        for s in found.steps
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    for (where, pattern, types, outcome), step in zip(rows, found.steps, strict=True):
        mark = "→" if step.outcome == "decides" else " "
        line = f"{mark} {where:<{widths[0]}}  {pattern:<{widths[1]}} = {types:<{widths[2]}}  {outcome}"
        click.echo(printable(line))
        for trial in found.trials if step.outcome == "decides" else ():
            click.echo(f"{'':>{widths[0] + 4}}{trial.type.name}: {trial.reason}")
    if not found.steps:
        click.echo("  no rule matches it")
    if found.fault:
        click.echo(f"  {printable(found.fault)}")
    size, was = format_bytes(found.n_bytes), format_bytes(tensor.n_bytes)
    told = f"{size}, {found.bits_per_weight:.4g} bpw ({was} as {tensor.type})"
    click.echo(f"\n{found.type} by {found.chosen_by}: {told}")


def _pattern(rule: object) -> str:
    from ggplan.rules import Rule

    if not isinstance(rule, Rule):
        return ""
    return f"@role {rule.pattern}" if rule.roles else rule.pattern


def _json(found: Explanation) -> dict[str, object]:
    return {
        "schema": "ggplan/explanation@1",
        "tensor": found.tensor.name,
        "shape": list(found.tensor.shape),
        "source_type": found.tensor.stored_as,
        "roles": list(found.roles),
        "device": found.devices[0] if found.devices else None,
        "devices": list(found.devices),
        "protected": found.protected,
        "rules": [
            {
                "file": s.choice.file,
                "line": s.choice.line,
                "pattern": _pattern(s.rule) or "@default",
                "types": s.choice.text,
                "outcome": s.outcome,
            }
            for s in found.steps
        ],
        "trials": [{"type": t.type.name, "fits": t.fits, "reason": t.reason} for t in found.trials],
        "type": found.type.name,
        "chosen_by": found.chosen_by,
        "bytes": found.n_bytes,
        "bits_per_weight": found.bits_per_weight,
        "fault": found.fault,
    }
