"""`ggplan plan`: the types and sizes that a recipe gives a model, without reading a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ggplan.cli.findings import FindingOptions, finding_options
from ggplan.cli.options import force_option, json_option, note, output_option, reuse_option
from ggplan.cli.planning import plan_from, planning_options

if TYPE_CHECKING:
    from ggplan.cli.planning import PlanningOptions

_EPILOG = """\b
Examples:
  ggplan plan GLM-4.5-Air -r glm4moe/hq4_k              size and bpw by class and by type
  ggplan plan air.gguf -r my.recipe --tensors           every tensor, and the rule that chose its type
  ggplan plan air.map -r my.recipe --json | jq .totals  from an inventory, for a program
  ggplan plan hf://zai-org/GLM-4.5-Air -r glm4moe/hq4_k   of a checkpoint on the hub, by its headers alone
  ggplan plan https://host/air.gguf -r my.recipe        of a GGUF file on any server
  ggplan plan GLM-4.5-Air -r Q4_K_M                     what llama-quantize would make of it
  ggplan plan part.gguf -r my.recipe --header-only      of a file of which only the first bytes are there
  ggplan plan GLM-4.5-Air -r my.recipe --strict         fail if any shape needs a fallback
  ggplan plan GLM-4.5-Air -r my.recipe --reuse old.gguf   what need not be encoded again
  ggplan plan GLM-4.5-Air -r my.recipe --mtp drop       without the block that only drafts tokens
"""


@click.command("plan", epilog=_EPILOG, short_help="Show what a recipe makes of a model, to the byte.")
@click.argument("model")
@planning_options(header_only=True)
@reuse_option
@finding_options
@click.option("--tensors", "show_tensors", is_flag=True, help="List every tensor.")
@output_option("Write the whole plan as JSON to this file.")
@force_option("the file of -o")
@json_option("the whole plan")
def plan_command(
    model: str,
    planning: PlanningOptions,
    reuse_path: str | None,
    findings: FindingOptions,
    show_tensors: bool,
    output: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Show what a recipe makes of MODEL, to the byte.

    MODEL is a Hugging Face folder, a GGUF file, the address of one (hf://org/name[@revision][/file.gguf],
    https://host/model.gguf), an inventory (a tensor map, or the JSON of
    `ggplan inspect --json`), the name of one that ships with ggplan (GLM-4.5-Air), or `-` for an inventory on
    standard input. No weight is read; of a checkpoint that is quantized, its scales are. "GPU" and "RAM" say
    where llama.cpp puts a tensor with the options -ngl 99 --cpu-moe, and tokens per second what that gives in
    an empty context: on the machine of `ggplan machine --write`, else on an example, whose bandwidths are
    said. `ggplan fit` places a plan on a machine.

    Exits 0, even where convert would refuse the plan; 1 if there is no plan; 2 for wrong usage.
    """
    from ggplan.cli.findings import findings_json, print_findings
    from ggplan.cli.output import print_plan, write_new
    from ggplan.cli.usual import usual_notes
    from ggplan.linting import check_plan
    from ggplan.planning.importance import importance_refusal
    from ggplan.text import printable

    plan = plan_from(model, planning)
    report = check_plan(plan, findings.selection)
    reuse = None
    if reuse_path:
        from ggplan.conversion.reuse import find_reusable, open_earlier

        reuse = find_reusable(plan, open_earlier(reuse_path))
    if output or as_json:
        import json

        from ggplan.cli.reusing import reuse_json
        from ggplan.cli.usual import speed_json
        from ggplan.planning.export import plan_json

        found = {"speed": speed_json(plan), "diagnostics": findings_json(report)}
        document = json.dumps({**plan_json(plan), **found, **reuse_json(reuse, plan)}, indent=2)
        if output:
            write_new(document + "\n", output, force=force, quiet=planning.quiet)
        if as_json:
            click.echo(document)
    if not as_json:
        print_plan(plan, every_tensor=show_tensors)
        if reuse is not None:
            from ggplan.cli.reusing import describe_reuse

            click.echo(describe_reuse(reuse, plan, proven=False))
    note(*usual_notes(), quiet=planning.quiet)
    refusal = importance_refusal(plan)
    # Of a recipe, the refusal says what GP204 does; of a mix, only that says why.
    says_it_too = refusal is not None and plan.assignment.mix is None
    told = report.without("GP204") if says_it_too else report
    print_findings(told.errors() if planning.quiet else told, notes=findings.shows_notes, err=True)
    if refusal is not None:
        click.echo(f"error: `ggplan convert` refuses this: {printable(refusal.message)}", err=True)
        click.echo(f"help: {refusal.hint}", err=True)
