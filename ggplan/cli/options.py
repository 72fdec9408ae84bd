"""Options that several commands share, as one value for each command, and the plan made from them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ggplan.model import Model
    from ggplan.planning import Effort, FallbackTable, Nonfinite, Plan
    from ggplan.rules import Recipe
    from ggplan.stock import Mix

_Command = TypeVar("_Command", bound=Callable[..., Any])


def as_one(parameter: str, kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the options named as the fields of a dataclass become one argument of that class."""
    fields = [field.name for field in dataclasses.fields(kind)]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def called(**arguments: Any) -> Any:
            value = kind(**{name: arguments.pop(name) for name in fields})
            return command(**arguments, **{parameter: value})

        return called

    return decorate


@dataclass(frozen=True, slots=True)
class PlanningOptions:
    """The values of `planning_options`."""

    recipe_name: str | None
    pure: bool
    imatrix_path: str | None
    fallback: FallbackTable | None
    nonfinite: Nonfinite
    effort: Effort
    strict: bool
    pre: str | None


def planning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make a plan out of a model, as the argument `planning: PlanningOptions`."""
    command = as_one("planning", PlanningOptions)(command)
    options = (
        click.option(
            "-r", "--recipe", "recipe_name", metavar="RECIPE",
            help="A recipe file, the name of a shipped one (glm4moe/hq4_k), or one of llama-quantize's mixes "
            "(Q4_K_M). Default: keep all types.",
        ),
        click.option(
            "--pure", is_flag=True, help="With a mix: its own type for every tensor, without exceptions."
        ),
        click.option(
            "--imatrix", "imatrix_path", type=click.Path(), metavar="FILE",
            help="Importance matrix (GGUF or .dat) for the encoders that use it.",
        ),
        click.option(
            "--fallback", type=click.Choice(["llama.cpp", "ik"]),
            help="Whose table replaces a type that a shape forbids [default: as @target, else llama.cpp].",
        ),
        click.option(
            "--nonfinite", type=click.Choice(["refuse", "zero", "keep"]), default="refuse", show_default=True,
            help="Weights that are NaN or infinite: an error, zeros, or kept in f32, f16 and bf16.",
        ),
        click.option(
            "--effort", type=click.Choice(["default", "best"]), default="default", show_default=True,
            help="llama.cpp's bytes, or the least error in as many bytes, in up to ten times the time.",
        ),
        click.option("--strict", is_flag=True, help="Refuse any fallback that is not a chain of the recipe."),
        click.option(
            "--pre", metavar="NAME",
            help="The pre-tokenizer's name in llama.cpp, where the tokenizer is not recognised.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def header_only_option(command: _Command) -> _Command:
    """`--header-only`, for commands that read no weights."""
    return click.option(
        "--header-only",
        is_flag=True,
        help="Also read a file that is cut short, or a set of which files are missing: no weights are read.",
    )(command)


def open_noted(
    name: str, *, pre: str | None = None, header_only: bool = False, shipped: bool = True, quiet: bool = False
) -> Model:
    """Open a model and print its notes to stderr, and what would keep it from being converted.

    Parameters
    ----------
    shipped
        Take the inventory of this name that ships with ggplan where there is no file.
    quiet
        Print nothing.
    """
    from ggplan.opening import open_model, open_model_or_inventory

    opening = open_model_or_inventory if shipped else open_model
    model = opening(name, pre=pre, header_only=header_only)
    if not quiet:
        print_notes(model)
    return model


def print_notes(model: Model) -> None:
    """Print what a user should know of a model, to stderr."""
    for note in model.notes:
        click.echo(f"note: {note}", err=True)
    from ggplan.errors import TokenizerError

    if (obstacle := model.obstacle) is not None:
        mendable = isinstance(obstacle, TokenizerError) and obstacle.hint
        hint = f"; to convert it, {obstacle.hint}" if mendable else "; `ggplan convert` refuses it"
        click.echo(f"note: {obstacle.message}{hint}", err=True)


def plan_from(
    model_path: str,
    options: PlanningOptions,
    *,
    header_only: bool = False,
    convertible: bool = False,
    quiet: bool = False,
) -> Plan:
    """Open the model, load recipe and imatrix, and plan.

    Parameters
    ----------
    convertible
        Refuse a model that cannot be converted.
    """
    from ggplan.opening import open_model_or_inventory
    from ggplan.planning import make_plan

    model = open_model_or_inventory(model_path, pre=options.pre, header_only=header_only)
    if convertible and model.obstacle is not None:
        raise model.obstacle
    if not quiet:
        print_notes(model)
    recipe = _recipe_or_mix(options.recipe_name, options.pure, model.architecture)
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


def _recipe_or_mix(name: str | None, pure: bool, architecture: str) -> Recipe | Mix | None:
    """The recipe or mix that `-r` names; with `--pure` it must be a mix."""
    from ggplan.planning import find_recipe
    from ggplan.stock import Mix

    found = find_recipe(name, architecture) if name is not None else None
    if not pure:
        return found
    if not isinstance(found, Mix):
        raise click.UsageError("--pure belongs to one of llama-quantize's mixes, such as -r Q4_K_M")
    return found.purely()


def reuse_option(command: _Command) -> _Command:
    """`--reuse`, an earlier output."""
    return click.option(
        "--reuse",
        "reuse_path",
        type=click.Path(),
        metavar="OLD.gguf",
        help="Copy from this earlier output what would be encoded to the same bytes.",
    )(command)
