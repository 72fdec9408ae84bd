"""From the options of `plan` and `convert` to a plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.opening import OpeningOptions, opening_options, with_scales_read
from ggplan.cli.options import (
    as_one,
    calibration_option,
    fallback_option,
    imatrix_option,
    note,
    quiet_option,
    recipe_or_mix_of_name,
)

if TYPE_CHECKING:
    from ggplan.folding import Fold
    from ggplan.planning import Effort, FallbackTable, Feedback, Nonfinite, Plan
    from ggplan.planning.guidance import Method
    from ggplan.rules import Recipe
    from ggplan.stock import Mix

_MOST_READ = 4 << 20  # bytes of scales on a server that `plan` always reads


@dataclass(frozen=True, slots=True)
class PlanningOptions:
    """The values of `planning_options`."""

    recipe_name: str | None
    pure: bool
    imatrix_path: str | None
    fallback: FallbackTable | None
    nonfinite: Nonfinite
    effort: Effort | None
    calibration_path: str | None
    broad: bool
    method: Method | None
    correct: bool
    other_weights: bool
    strict: bool
    opening: OpeningOptions
    quiet: bool


def planning_options(
    *, header_only: bool, several: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that make a plan out of a model, as the argument `planning: PlanningOptions`.

    `header_only` is whether the command reads no weights, so that `--header-only` is one of them. With
    `several`, `-r` can be repeated: all are the argument `recipe_names`, of which the command makes
    `recipe_name`.
    """
    options: tuple[Callable[[Any], Any], ...] = (
        click.option(
            "-r", "--recipe", "recipe_names" if several else "recipe_name", metavar="RECIPE",
            multiple=several,
            help="A recipe file, the name of a shipped one (glm4moe/hq4_k), or one of llama-quantize's mixes "
            "(Q4_K_M). Default: keep all types.",
        ),
        click.option(
            "--pure", is_flag=True, help="With a mix: its own type for every tensor, without exceptions."
        ),
        imatrix_option,
        fallback_option,
        click.option(
            "--nonfinite", type=click.Choice(["refuse", "zero", "keep"]), default="refuse", show_default=True,
            help="Weights that are NaN or infinite: an error, zeros, or kept in f32, f16 and bf16.",
        ),
        click.option(
            "--effort", type=click.Choice(["default", "best", "feedback"]),
            help="default: llama.cpp's bytes. best: the least error of the weights in as many bytes, in up "
            "to ten times the time. feedback: the least error of what matrices make of a calibration's "
            "texts.  [default: feedback with --calibration, else default]",
        ),
        calibration_option,
        click.option(
            "--broad", is_flag=True,
            help="With --calibration: rely less on its texts, for uses that they do not cover (damping 0.3 "
            "instead of 0.1).",
        ),
        click.option(
            "--method", type=click.Choice(["feedback", "gptq", "gptq:act-order"]),
            help="With --calibration: error feedback and descent, or error feedback alone, as GPTQ does it, "
            "perhaps from the most important column to the least.  [default: feedback]",
        ),
        click.option(
            "--correct", is_flag=True,
            help="With --calibration: choose each layer's blocks for the inputs that the quantized layers "
            "before it give. Much less loss at 2 and 3 bits; runs the checkpoint in torch.",
        ),
        click.option(
            "--other-weights", is_flag=True,
            help="With --calibration: accept one of a model with other weights, such as the one that this "
            "model was fine-tuned from.",
        ),
        click.option("--strict", is_flag=True, help="Refuse any fallback that is not a chain of the recipe."),
        opening_options(header_only=header_only, imatrix=True),
        quiet_option,
    )  # fmt: skip

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = as_one("planning", PlanningOptions)(command)
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def plan_from(model_name: str, options: PlanningOptions, *, convertible: bool = False) -> Plan:
    """Open the model, load recipe and imatrix, and plan.

    Parameters
    ----------
    convertible
        Refuse a model that cannot be converted.
    """
    from ggplan.planning import assign, lay_out

    quiet = options.quiet
    imatrix = None
    feedback = _feedback(options)
    if feedback is not None:
        imatrix = feedback.calibration.imatrix
    elif options.imatrix_path:
        from ggplan.imatrix import load_imatrix

        imatrix = load_imatrix(options.imatrix_path)
    model, imatrix = options.opening.open(
        model_name, imatrix, weights=convertible, convertible=convertible, quiet=quiet
    )
    most = math.inf if convertible else max(_MOST_READ, model.n_bytes // 100)
    model = with_scales_read(model, most=most, quiet=quiet)
    recipe = _recipe_or_mix(options, model.architecture)

    return lay_out(
        model,
        assign(model, recipe, has_imatrix=imatrix is not None),
        imatrix=imatrix,
        fallback=options.fallback,
        strict=options.strict,
        nonfinite=options.nonfinite,
        effort=options.effort,
        feedback=feedback,
    )


def check_fold(options: PlanningOptions) -> None:
    """Refuse options that do not go with `--fold`."""
    if options.calibration_path is None:
        raise click.UsageError("--fold needs --calibration DIR; see `ggplan calibrate --help`")
    if options.correct:
        raise click.UsageError(
            "--correct runs the checkpoint's own weights, and --fold changes its weights: leave out one of "
            "them; --fold gained nothing where it was measured"
        )


def folded_plan(plan: Plan, options: PlanningOptions, fold: Fold) -> Plan:
    """The plan of the same types for the model with scales in it; says what was done."""
    from ggplan.calibration import Calibration
    from ggplan.cli.guidance import changed_note
    from ggplan.folding import fold as folded
    from ggplan.planning import lay_out

    feedback = _feedback(options)
    assert feedback is not None
    calibration = feedback.calibration
    assert isinstance(calibration, Calibration)
    note(*changed_note(calibration, plan.model, other_weights=options.other_weights), quiet=options.quiet)
    types = {planned.name: planned.type for planned in plan.tensors}
    n_notes = len(plan.model.notes)
    model, fitting = folded(plan.model, fold, calibration, types, feedback.lam)
    note(*model.notes[n_notes:], quiet=options.quiet)
    return lay_out(
        model,
        plan.assignment,
        imatrix=fitting.imatrix,
        fallback=plan.fallback,
        strict=options.strict,
        nonfinite=plan.nonfinite,
        effort=plan.effort,
        feedback=replace(feedback, calibration=fitting),
    )


def _feedback(options: PlanningOptions) -> Feedback | None:
    """The calibration that `--calibration` names, and how it is used."""
    if options.calibration_path is None:
        choices = (
            (options.broad, "--broad"),
            (options.method, "--method"),
            (options.correct, "--correct"),
            (options.other_weights, "--other-weights"),
        )
        for given, option in choices:
            if given:
                raise click.UsageError(f"{option} is for --calibration: it says how a calibration is used")
        if options.effort == "feedback":
            raise click.UsageError("--effort feedback needs --calibration DIR; see `ggplan calibrate --help`")
        return None
    if options.effort not in (None, "feedback"):
        raise click.UsageError(
            f"--calibration is for --effort feedback; for --effort {options.effort} give its imatrix: "
            f"--imatrix {options.calibration_path}/imatrix.gguf"
        )
    if options.imatrix_path is not None:
        raise click.UsageError("--calibration has an imatrix of its own: leave out --imatrix")
    if options.correct and options.method == "gptq:act-order":
        raise click.UsageError(
            "--correct encodes in the order of columns, and --method gptq:act-order by their importance: "
            "leave out --correct, or take --method gptq"
        )
    from ggplan.calibration import open_calibration
    from ggplan.planning import Feedback
    from ggplan.planning.guidance import BROAD_LAMBDA, LAMBDA

    lam = BROAD_LAMBDA if options.broad else LAMBDA
    calibration = open_calibration(options.calibration_path)
    return Feedback(calibration, options.method or "feedback", lam, options.correct)


def _recipe_or_mix(options: PlanningOptions, architecture: str) -> Recipe | Mix | None:
    """The recipe or mix that `-r` names; with `--pure` it must be a mix."""
    from ggplan.stock import Mix

    name = options.recipe_name
    found = None
    if name is not None:
        found = recipe_or_mix_of_name(name, architecture, quiet=options.quiet)
    if not options.pure:
        return found
    if not isinstance(found, Mix):
        raise click.UsageError("--pure belongs to one of llama-quantize's mixes, such as -r Q4_K_M")
    return found.purely()
