"""`ggplan plan`: the types and sizes that a recipe gives a model, without reading a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ggplan.cli.options import header_only_option, plan_from, planning_options, reuse_option

if TYPE_CHECKING:
    from ggplan.cli.options import PlanningOptions

_EPILOG = """\b
Examples:
  ggplan plan GLM-4.5-Air -r glm4moe/hq4_k              size and bpw by class and by type
  ggplan plan air.gguf -r my.recipe --tensors           every tensor, and the rule that chose its type
  ggplan plan air.map -r my.recipe --json | jq .totals  from an inventory, for a program
  ggplan plan GLM-4.5-Air -r Q4_K_M                     what llama-quantize would make of it
  ggplan plan part.gguf -r my.recipe --header-only      of a file of which only the first bytes are there
  ggplan plan GLM-4.5-Air -r my.recipe --strict         fail if any shape needs a fallback
  ggplan plan GLM-4.5-Air -r my.recipe --reuse old.gguf   what need not be encoded again
"""


@click.command("plan", epilog=_EPILOG, short_help="Show what a recipe makes of a model, to the byte.")
@click.argument("model")
@planning_options
@header_only_option
@reuse_option
@click.option("--tensors", "show_tensors", is_flag=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole plan as JSON.")
@click.option("-o", "--output", type=click.Path(), help="Write the whole plan as JSON to this file.")
def plan_command(
    model: str,
    planning: PlanningOptions,
    header_only: bool,
    reuse_path: str | None,
    show_tensors: bool,
    as_json: bool,
    output: str | None,
) -> None:
    """Show what a recipe makes of MODEL, to the byte.

    MODEL is a Hugging Face folder, a GGUF file, or an inventory (a tensor map, or the JSON of
    `ggplan inspect --json`). No weight is read.
    """
    from ggplan.cli.output import findings_json, print_findings, print_plan, print_table
    from ggplan.linting import check_plan
    from ggplan.planning.importance import importance_refusal
    from ggplan.text import printable

    plan = plan_from(model, planning, header_only=header_only)
    report = check_plan(plan)
    reuse = None
    if reuse_path:
        from ggplan.conversion.reuse import find_reusable, open_earlier

        reuse = find_reusable(plan, open_earlier(reuse_path))
    if output or as_json:
        import json
        from pathlib import Path

        from ggplan.cli.reusing import reuse_json
        from ggplan.planning.export import plan_json

        found = {"diagnostics": findings_json(report)}
        document = json.dumps({**plan_json(plan), **found, **reuse_json(reuse, plan)}, indent=2)
        if output:
            Path(output).write_text(document + "\n", encoding="utf-8")
        if as_json:
            click.echo(document)
    if not as_json:
        if show_tensors:
            from ggplan.text import format_bytes

            print_table(
                [("tensor", "left"), ("shape", "left"), ("from", "left"), ("to", "left"),
                 ("size", "right"), ("chosen by", "left"), ("", "left")],
                (
                    [
                        t.name,
                        " × ".join(str(n) for n in t.tensor.shape),
                        t.tensor.stored_as,
                        t.type.name,
                        format_bytes(t.n_bytes),
                        t.chosen_by,
                        f"fallback from {t.asked.name}" if t.asked else "",
                    ]
                    for t in plan.tensors
                ),
            )  # fmt: skip
        print_plan(plan)
        if reuse is not None:
            from ggplan.cli.reusing import describe_reuse

            click.echo(describe_reuse(reuse, plan, proven=False))
    print_findings(report, err=True)
    if (refusal := importance_refusal(plan)) is not None:
        click.echo(f"error: `ggplan convert` refuses this: {printable(refusal.message)}", err=True)
        click.echo(f"help: {refusal.hint}", err=True)
