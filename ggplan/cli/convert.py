"""`ggplan convert`: write the GGUF of a plan."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.findings import FindingOptions, finding_options
from ggplan.cli.holdout import HoldoutOptions, holdout_options
from ggplan.cli.options import as_one, force_option, json_option, note, reuse_option, threads_option
from ggplan.cli.planning import PlanningOptions, check_fold, folded_plan, plan_from, planning_options
from ggplan.cli.sizes import ByteCount

if TYPE_CHECKING:
    from ggplan.conversion import ConversionResult, ConvertOptions
    from ggplan.folding import Fold
    from ggplan.model import Model
    from ggplan.planning import Plan

_EPILOG = """\b
Examples:
  ggplan convert GLM-4.5-Air air-hq4_k.gguf -r glm4moe/hq4_k
  ggplan convert air-bf16.gguf air.gguf -r my.recipe --imatrix imatrix.gguf
  ggplan convert my-model q4.gguf -r Q4_K_M   llama-quantize's types and bytes
  ggplan convert my-model bf16.gguf           every tensor keeps its type
  ggplan convert my-model q3.gguf -r Q3_K_M --calibration my.calib
  ggplan convert my-model q3.gguf -r Q3_K_M --calibration my.calib --correct
  ggplan convert my-model q3.gguf -r Q3_K_M --calibration my.calib \\
    --holdout default                         and measure what it gained
  ggplan convert hf://zai-org/GLM-4.5-Air air.gguf -r glm4moe/hq4_k
  ggplan convert my-model new.gguf -r new.recipe --reuse old.gguf
  ggplan convert my-model out.gguf -r my.recipe --split-max-size 48G
  ggplan convert my-model out.gguf -r my.recipe --pre llama-bpe
  ggplan convert my-model draft.gguf -r my.recipe --mtp only
  ggplan convert my-model small.gguf -r my.recipe --prune-layers 21,22
  ggplan convert my-moe half.gguf --imatrix moe.gguf --keep-experts 64

Stopped by Ctrl-C, a full disk, a power cut or the network? Give the same command again: it continues where it
stopped.
"""


class _FoldType(click.ParamType["Fold"]):
    """What `--fold` takes: `awq`, `awq:0.25`, `smooth:0.5`."""

    name = "fold"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Fold:
        """Parse it."""
        from ggplan.errors import PlanError
        from ggplan.folding import Fold, parse_fold

        if isinstance(value, Fold):
            return value
        try:
            return parse_fold(str(value))
        except PlanError as error:
            self.fail(f"{error.message}; {error.hint}", param, ctx)


@dataclass(frozen=True, slots=True)
class WritingOptions:
    """The options of the command line for writing; `ConvertOptions` with names instead of models."""

    threads: int | None
    memory: int | None
    split_max_bytes: int | None
    split_max_tensors: int | None
    split_like: str | None
    reuse_path: str | None
    allow_requantize: bool
    force: bool
    restart: bool
    no_resume: bool

    def of(self, plan: Plan) -> ConvertOptions:
        """The options for a plan; `--split-like source` is its model."""
        from ggplan.conversion import ConvertOptions

        return ConvertOptions(
            threads=self.threads,
            memory=self.memory,
            allow_requantize=self.allow_requantize,
            force=self.force,
            split_max_bytes=self.split_max_bytes,
            split_max_tensors=self.split_max_tensors,
            split_like=_model_to_split_like(plan, self.split_like),
            reuse=self.reuse_path,
            restart=self.restart,
            resume=not self.no_resume,
        )


@click.command("convert", epilog=_EPILOG, short_help="Write the GGUF file, in one pass.")
@click.argument("model")
@click.argument("output", type=click.Path())
@planning_options(header_only=False)
@click.option(
    "--fold",
    type=_FoldType(),
    metavar="awq|smooth[:ALPHA]",
    help="With --calibration: fold scales of columns into the norms and up projections before, as AWQ or "
    "SmoothQuant do. It gave nothing where it was measured.",
)
@threads_option
@click.option("--allow-requantize", is_flag=True, help="Encode tensors that are quantized already.")
@click.option(
    "--memory",
    type=ByteCount(1024),
    metavar="SIZE",
    help="Memory for weights being converted, besides the program's own; with --calibration for moments too, "
    "but for one Hessian (4 n^2 bytes for n columns) a thread [default: 1G, with --calibration 8G].",
)
@click.option(
    "--split-max-size",
    "split_max_bytes",
    type=ByteCount(1000),
    metavar="SIZE",
    help="Write OUTPUT-00001-of-N.gguf and so on, each with at most this many bytes of tensors (48G, 500M).",
)
@click.option(
    "--split-max-tensors",
    type=click.IntRange(min=1),
    metavar="N",
    help="The same, each with at most N tensors.",
)
@click.option(
    "--split-like",
    metavar="MODEL",
    help="The same, with each tensor in the same file as in this model; `source` is the model that is read.",
)
@reuse_option
@holdout_options
@finding_options
@click.option(
    "--no-assert", is_flag=True, help="Write it even if an @assert or @test of the recipe does not hold."
)
@force_option("OUTPUT, once the new file is complete,")
@click.option("--restart", is_flag=True, help="Discard an unfinished OUTPUT.part and begin again.")
@click.option(
    "--no-resume", is_flag=True, help="Keep no journal: a run that is stopped leaves nothing behind."
)
@json_option("the result")
@as_one("writing", WritingOptions)
def convert_command(
    model: str,
    output: str,
    planning: PlanningOptions,
    writing: WritingOptions,
    holdout: HoldoutOptions,
    findings: FindingOptions,
    fold: Fold | None,
    no_assert: bool,
    as_json: bool,
) -> None:
    """Convert MODEL to the GGUF file OUTPUT, in one pass.

    MODEL is a Hugging Face folder or a GGUF file, or the address of one: weights on a server (hf://org/name,
    https://host/model.gguf) are read as they are needed, and no copy of them is kept. OUTPUT appears when it
    is complete, with the SHA-256 of each tensor beside it (OUTPUT.sha256). Until then the work is in
    OUTPUT.part and OUTPUT.part.journal, and the same command continues where it was stopped.

    Exits 0 once OUTPUT is whole; 1 if it could not be written, or if the recipe has errors or an @assert or
    @test that does not hold; 2 for wrong usage.
    """
    # NumPy's threads for matrix products, which no conversion needs, would spin beside the first chunks.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ggplan.cli.findings import print_findings
    from ggplan.cli.guidance import guidance_notes, uncorrected_notes
    from ggplan.cli.holdout import holdout_json, prepared, print_holdout, run_holdout
    from ggplan.cli.output import print_json
    from ggplan.errors import PlanError
    from ggplan.linting import check_plan
    from ggplan.planning.importance import importance_refusal
    from ggplan.planning.outcomes import outcomes
    from ggplan.sources.remote import is_remote
    from ggplan.text import printable

    quiet = planning.quiet
    holdout.check(planning.calibration_path)
    if fold is not None:
        check_fold(planning)
    unfolded = plan = plan_from(model, planning, convertible=True)
    if fold is not None:
        plan = folded_plan(plan, planning, fold)
    report = check_plan(plan, findings.selection)
    if importance_refusal(plan) is not None:
        rest = report.without("GP204")
        if no_assert or not rest.errors().diagnostics:
            report = rest  # the error that follows says the same
    if any(is_remote(path) for path in plan.model.files):
        note(
            "the weights are read in pieces, each checked for its place and the file's version; the SHA-256 "
            "of whole files is not checked",
            quiet=quiet,
        )
    if plan.feedback is not None:
        note(*guidance_notes(plan, other_weights=planning.other_weights), quiet=quiet)
    print_findings(report.errors() if quiet else report, notes=findings.shows_notes, err=True)
    if (broken := len(report.errors().diagnostics)) and not no_assert:
        raise PlanError(
            f"nothing is written: the recipe has {broken:,} error{'s' * (broken > 1)} for this model",
            hint="correct the rules or the promises, or give --no-assert",
        )
    wanted = prepared(plan, output, holdout)
    options = writing.of(plan)
    note(*pace_notes(plan, options), quiet=quiet)
    result = run_conversion(plan, output, options, quiet=quiet)
    note(*uncorrected_notes(result.uncorrected), *result.notes, quiet=quiet)
    if not quiet and not as_json:
        if result.reuse is not None:
            from ggplan.cli.reusing import describe_reuse

            click.echo(describe_reuse(result.reuse, plan, proven=True))
        click.echo(describe_conversion(plan, result))
        for outcome in outcomes(plan.tensors):
            click.echo(printable(outcome.told))
    held_out = () if wanted is None else run_holdout(unfolded, result, wanted, options, quiet=quiet)
    if as_json:
        from ggplan.cli.reusing import reuse_json
        from ggplan.planning.export import codes_json

        print_json(
            {
                "schema": "ggplan/conversion@1",
                "path": str(result.path),
                "paths": [str(path) for path in result.paths],
                "manifest": str(result.manifest),
                "bytes": result.n_bytes,
                "weights": result.n_weights,
                "bits_per_weight": plan.bits_per_weight,
                "resumed_bytes": result.resumed_bytes,
                "seconds": round(result.seconds, 3),
                "codes": codes_json(plan),
                **reuse_json(result.reuse, plan),
                **({"uncorrected": dict(result.uncorrected)} if result.uncorrected else {}),
                **({"holdout": holdout_json(held_out)} if held_out else {}),
            }
        )
    elif held_out:
        print_holdout(held_out, quiet=quiet)


def run_conversion(
    plan: Plan, output: str, options: ConvertOptions, *, quiet: bool = False
) -> ConversionResult:
    """Convert, with a progress bar on stderr where that is a terminal."""
    from ggplan.cli.progress import bytes_bar
    from ggplan.cli.signals import orderly_stop
    from ggplan.conversion import convert
    from ggplan.text import printable

    bar = bytes_bar(quiet=quiet)
    kept = 0

    def resumed(n_bytes: int) -> None:
        # A reset counts these bytes as done without counting them in the speed.
        nonlocal kept
        kept += n_bytes
        bar.reset(task, completed=kept)

    with orderly_stop(), bar:
        task = bar.add_task(printable(output), total=plan.tensor_bytes)
        return convert(
            plan,
            output,
            options,
            progress=lambda n_bytes: bar.advance(task, n_bytes),
            resumed=resumed,
        )


def pace_notes(plan: Plan, options: ConvertOptions) -> list[str]:
    """A line if the memory is not enough for the threads that were asked for."""
    from ggplan.conversion.streaming import pace_of, threads_of

    pace, asked = pace_of(plan, options), threads_of(plan, options)
    if pace.n_threads == asked:
        return []
    return [f"the memory is enough for {pace.n_threads:,} of {asked:,} threads; give more with --memory"]


def _model_to_split_like(plan: Plan, named: str | None) -> Model | None:
    """The model that `--split-like` names."""
    from pathlib import Path

    from ggplan.naming import model_named

    if named is None:
        return None
    is_source = Path(named) == plan.model.path or (named == "source" and not Path(named).exists())
    return plan.model if is_source else model_named(named)


def describe_conversion(plan: Plan, result: ConversionResult) -> str:
    """One line about a finished conversion."""
    from ggplan.cli.output import format_count
    from ggplan.text import format_bytes, printable

    files = f" and {len(result.paths) - 1} more files" if len(result.paths) > 1 else ""
    kept = result.resumed_bytes
    earlier = f", {format_bytes(kept)} of it in an earlier run" if kept else ""
    return (
        f"wrote {printable(str(result.path))}{files}: {format_bytes(result.n_bytes)}, "
        f"{plan.bits_per_weight:.3f} bpw, {format_count(result.n_weights)} weights "
        f"in {result.seconds:.1f} s{earlier}"
    )
