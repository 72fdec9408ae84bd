"""`ggplan convert`: write the GGUF of a plan."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ggplan.cli.options import planning_options

if TYPE_CHECKING:
    from ggplan.conversion import ConversionResult
    from ggplan.planning import FallbackTable, Nonfinite, Plan

_EPILOG = """\b
Examples:
  ggplan convert GLM-4.5-Air air-hq4_k.gguf -r glm4moe/hq4_k
  ggplan convert air-bf16.gguf air.gguf -r my.recipe --imatrix air.imatrix.gguf --threads 8
  ggplan convert my-model model-Q4_K_M.gguf -r Q4_K_M   llama-quantize's types and bytes
  ggplan convert my-model model-bf16.gguf               every tensor keeps its type
  ggplan convert my-model out.gguf -r my.recipe --pre llama-bpe
"""


@click.command("convert", epilog=_EPILOG, short_help="Write the GGUF file, in one pass.")
@click.argument("model")
@click.argument("output", type=click.Path())
@planning_options
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads [default: one per CPU].")
@click.option("--allow-requantize", is_flag=True, help="Encode tensors that are quantized already.")
@click.option("--force", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no notes.")
def convert_command(
    model: str,
    output: str,
    recipe_name: str | None,
    pure: bool,
    imatrix_path: str | None,
    fallback: FallbackTable,
    nonfinite: Nonfinite,
    strict: bool,
    pre: str | None,
    threads: int | None,
    allow_requantize: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert MODEL to the GGUF file OUTPUT, in one pass.

    MODEL is a Hugging Face folder or a GGUF file. OUTPUT appears when it is complete.
    """
    from ggplan.cli.output import print_diagnostics, print_json
    from ggplan.cli.planned import plan_from

    plan = plan_from(model, recipe_name, imatrix_path, fallback, strict, pre, nonfinite, pure)
    print_diagnostics(plan, quiet=quiet)
    result = run_conversion(plan, output, threads, allow_requantize, force, quiet)
    if as_json:
        print_json(
            {
                "schema": "ggplan/conversion@1",
                "path": str(result.path),
                "bytes": result.n_bytes,
                "weights": result.n_weights,
                "bits_per_weight": plan.bits_per_weight,
                "seconds": round(result.seconds, 3),
            }
        )
    else:
        click.echo(describe(plan, result))


def run_conversion(
    plan: Plan, output: str, threads: int | None, allow_requantize: bool, force: bool, quiet: bool
) -> ConversionResult:
    """Convert, with a progress bar on stderr where that is a terminal."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from ggplan.cli.output import console
    from ggplan.conversion import convert
    from ggplan.text import printable

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console(sys.stderr),
        disable=quiet or not sys.stderr.isatty(),
        transient=True,
    )
    with bar:
        task = bar.add_task(printable(output), total=plan.tensor_bytes)
        return convert(
            plan,
            output,
            threads=threads,
            allow_requantize=allow_requantize,
            force=force,
            progress=lambda n_bytes: bar.advance(task, n_bytes),
        )


def describe(plan: Plan, result: ConversionResult) -> str:
    """One line about a finished conversion."""
    from ggplan.cli.output import format_count
    from ggplan.text import format_bytes, printable

    return (
        f"wrote {printable(str(result.path))}: {format_bytes(result.n_bytes)}, "
        f"{plan.bits_per_weight:.3f} bpw, {format_count(result.n_weights)} weights in {result.seconds:.1f} s"
    )
