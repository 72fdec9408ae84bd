"""Options that several commands share, spelled and explained alike, and the names that are given to them.

    -m, --model    a model      -o, --output   a file to write         --json        data for programs
    -r, --recipe   a recipe     --force        replace what is there   -q, --quiet   errors alone on stderr
    --imatrix, --fallback, --pre, --header-only, -t/--threads

`open_noted` and `recipe_of_name` are the way from a name to what it stands for, in every command.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ggplan.cli.shaping import ShapingOptions, shaping_options
from ggplan.text import format_bytes

if TYPE_CHECKING:
    from ggplan.model import Model
    from ggplan.planning import Effort, FallbackTable, Nonfinite, Plan
    from ggplan.rules import Recipe
    from ggplan.stock import Mix

_MOST_READ = 4 << 20  # bytes of scales on a server that `plan` always reads
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


def json_option(what: str) -> Callable[[_Command], _Command]:
    """`--json`: print `what` as JSON."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON.")


def quiet_option(command: _Command) -> _Command:
    """`-q`, `--quiet`: errors stay, all else on stderr goes."""
    return click.option(
        "-q", "--quiet", is_flag=True, help="No progress bar, no notes, no warnings: errors only."
    )(command)


def force_option(what: str = "the file") -> Callable[[_Command], _Command]:
    """`--force`: replace `what` if it exists."""
    return click.option("--force", is_flag=True, help=f"Replace {what} if it exists.")


def output_option(what: str) -> Callable[[_Command], _Command]:
    """`-o`, `--output`: the file to write instead of standard output."""
    return click.option("-o", "--output", type=click.Path(), metavar="FILE", help=what)


def model_option(command: _Command) -> _Command:
    """`-m`, `--model`: what a recipe is looked at with."""
    return click.option(
        "-m", "--model", "model_name", metavar="MODEL",
        help="A checkpoint, a GGUF file, an inventory (a file, or a shipped one's name), or `-`.",
    )(command)  # fmt: skip


def fallback_option(command: _Command) -> _Command:
    """`--fallback`: the engine whose table replaces a type that a shape forbids."""
    return click.option(
        "--fallback", type=click.Choice(["llama.cpp", "ik"]),
        help="Whose table replaces a type that a shape forbids [default: as @target, else llama.cpp].",
    )(command)  # fmt: skip


def imatrix_option(command: _Command) -> _Command:
    """`--imatrix`: an importance matrix."""
    return click.option(
        "--imatrix", "imatrix_path", type=click.Path(), metavar="FILE",
        help="Importance matrix (GGUF or .dat) for the encoders that use it.",
    )(command)  # fmt: skip


def pre_option(command: _Command) -> _Command:
    """`--pre`: the pre-tokenizer, where the tokenizer is not recognised."""
    return click.option(
        "--pre", metavar="NAME",
        help="The pre-tokenizer's name in llama.cpp, where the tokenizer is not recognised.",
    )(command)  # fmt: skip


def converter_option(command: _Command) -> _Command:
    """`--converter`: a tree of llama.cpp whose converter reads the checkpoint."""
    return click.option(
        "--converter", type=click.Path(), metavar="DIR",
        help="A tree of llama.cpp, whose converter reads an architecture that ggplan does not know.",
    )(command)  # fmt: skip


def threads_option(command: _Command) -> _Command:
    """`-t`, `--threads`."""
    return click.option(
        "-t", "--threads", type=click.IntRange(min=1), metavar="N", help="Threads [default: one per CPU]."
    )(command)


def open_noted(
    name: str,
    *,
    pre: str | None = None,
    header_only: bool = False,
    weights: bool = False,
    converter: str | None = None,
    quiet: bool = False,
) -> Model:
    """The model that a name stands for, with the scales of its codes read; its notes go to stderr."""
    from ggplan.naming import model_named

    note_converter(converter, quiet=quiet)
    model = model_named(name, pre=pre, header_only=header_only, weights=weights, converter=converter)
    note_model(model, quiet=quiet)
    return with_scales_read(model, quiet=quiet)


def with_scales_read(model: Model, *, most: float = 0, quiet: bool = False) -> Model:
    """The model as `convert` has it: a tensor whose scales its type does not hold is decoded.

    Scales and zero points on a server, which may be gigabytes, are read only if they are `most` bytes at
    most; else a note says so.
    """
    from ggplan.planning.settling import bytes_to_read, count_open, settle

    n_unread = count_open(model)
    if not n_unread:
        return model
    from ggplan.sources.remote import is_remote

    if any(is_remote(path) for path in model.files) and (n_bytes := bytes_to_read(model)) > most:
        note(
            f"the scales of {n_unread:,} quantized tensors are on the server and are not read here "
            f"({format_bytes(n_bytes)}); `ggplan convert` reads them, decodes a tensor whose scales its type "
            "does not hold, and takes the type that its zero points need",
            quiet=quiet,
        )
        return model
    from ggplan.cli.progress import tensors_bar

    with tensors_bar("reading scales", quiet=quiet) as progress:
        return settle(model, progress)


def note_converter(converter: str | None, *, quiet: bool = False) -> None:
    """Tell that llama.cpp's converter is started, which takes seconds."""
    if converter is not None:
        note(f"starting llama.cpp's converter in {converter}", quiet=quiet)


def recipe_of_name(name: str, architecture: str = "", *, quiet: bool = False) -> Recipe:
    """The recipe that a name stands for; a mix is refused. Those of the architecture are nearest."""
    from ggplan.naming import recipe_named

    _note_other_meaning(name, quiet)
    return recipe_named(name, architecture)


def refuse_other_names(name: str) -> None:
    """Refuse a name that is no file here but of a shipped inventory, a recipe, a mix or on a server."""
    from ggplan.errors import NoSuchCheckpointError
    from ggplan.naming import kind_named
    from ggplan.sources.remote import is_address
    from ggplan.text import printable

    if is_address(name):
        raise NoSuchCheckpointError(
            f"{printable(name)} is on a server, and every byte of the file is read here",
            hint="download it first (`hf download`)",
        )
    if kind_named(name) in ("mix", "recipe", "inventory"):
        open_noted(name, weights=True)


def check_is_recipe(name: str, *, quiet: bool = False) -> None:
    """Refuse the name of a mix or a model; a file that is called as one of them is read, with a note."""
    from ggplan.naming import kind_named, recipe_named

    _note_other_meaning(name, quiet)
    if kind_named(name) in ("mix", "inventory"):
        recipe_named(name)


def recipe_or_mix_of_name(name: str, architecture: str = "", *, quiet: bool = False) -> Recipe | Mix:
    """The recipe or the mix that a name stands for. Recipes of the architecture are nearest."""
    from ggplan.naming import recipe_or_mix_named

    _note_other_meaning(name, quiet)
    return recipe_or_mix_named(name, architecture)


def _note_other_meaning(name: str, quiet: bool) -> None:
    from ggplan.naming import other_meaning

    if meaning := other_meaning(name):
        note(f"{name} is a file here, which is read; the name is also {meaning}", quiet=quiet)


def note(*lines: str, quiet: bool = False) -> None:
    """Notes on stderr, one a line."""
    from ggplan.text import printable

    for line in () if quiet else lines:
        click.echo(f"note: {printable(line)}", err=True)


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
    shaping: ShapingOptions
    pre: str | None
    converter: str | None
    quiet: bool


def planning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make a plan out of a model, as the argument `planning: PlanningOptions`."""
    command = as_one("planning", PlanningOptions)(command)
    command = as_one("shaping", ShapingOptions)(command)
    options: tuple[Callable[[Any], Any], ...] = (
        click.option(
            "-r", "--recipe", "recipe_name", metavar="RECIPE",
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
            "--effort", type=click.Choice(["default", "best"]), default="default", show_default=True,
            help="llama.cpp's bytes, or the least error in as many bytes, in up to ten times the time.",
        ),
        click.option("--strict", is_flag=True, help="Refuse any fallback that is not a chain of the recipe."),
        *shaping_options(),
        pre_option,
        converter_option,
        quiet_option,
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


def note_model(model: Model, *, quiet: bool = False) -> None:
    """Tell on stderr what a user should know of a model, and what would keep it from being converted."""
    from ggplan.errors import TokenizerError

    note(*model.notes, quiet=quiet)
    if (obstacle := model.obstacle) is not None:
        mendable = isinstance(obstacle, TokenizerError) and obstacle.hint
        hint = f"; to convert it, {obstacle.hint}" if mendable else "; `ggplan convert` refuses it"
        note(f"{obstacle.message}{hint}", quiet=quiet)


def plan_from(
    model_name: str, options: PlanningOptions, *, header_only: bool = False, convertible: bool = False
) -> Plan:
    """Open the model, load recipe and imatrix, and plan.

    Parameters
    ----------
    convertible
        Refuse a model that cannot be converted.
    """
    from ggplan.naming import model_named
    from ggplan.planning import assign, lay_out

    note_converter(options.converter, quiet=options.quiet)
    model = model_named(
        model_name,
        pre=options.pre,
        header_only=header_only,
        weights=convertible,
        converter=options.converter,
    )
    if convertible and model.obstacle is not None:
        raise model.obstacle
    note_model(model, quiet=options.quiet)
    imatrix = None
    if options.imatrix_path:
        from ggplan.imatrix import load_imatrix

        imatrix = load_imatrix(options.imatrix_path)
    n_notes = len(model.notes)
    model, imatrix = options.shaping.apply(model, imatrix)
    note(*model.notes[n_notes:], quiet=options.quiet)
    most = math.inf if convertible else max(_MOST_READ, model.n_bytes // 100)
    model = with_scales_read(model, most=most, quiet=options.quiet)
    recipe = _recipe_or_mix(options, model.architecture)
    return lay_out(
        model,
        assign(model, recipe, has_imatrix=imatrix is not None),
        imatrix=imatrix,
        fallback=options.fallback,
        strict=options.strict,
        nonfinite=options.nonfinite,
        effort=options.effort,
    )


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


def reuse_option(command: _Command) -> _Command:
    """`--reuse`, an earlier output."""
    return click.option(
        "--reuse",
        "reuse_path",
        type=click.Path(),
        metavar="OLD.gguf",
        help="Copy from this earlier output what would be encoded to the same bytes.",
    )(command)


def open_source_of(checkpoint: str, file: str, pre: str | None, converter: str | None, quiet: bool) -> Model:
    """The checkpoint; if its tokenizer is not recognised, with the pre-tokenizer that the file names.

    Only then: a fact that can be found without the file is never taken from it.
    """
    from pathlib import Path

    from ggplan.errors import TokenizerError
    from ggplan.naming import model_named
    from ggplan.verification.exactness import text_of
    from ggplan.verification.renamed import open_files

    note_converter(converter, quiet=quiet)
    source = None
    try:
        source = model_named(checkpoint, pre=pre, weights=True, converter=converter)
        unknown = source.obstacle if isinstance(source.obstacle, TokenizerError) else None
    except TokenizerError as error:  # llama.cpp's converter gives no model then
        unknown = error
    if unknown is not None:
        recorded = None if pre else text_of(open_files(Path(file)).model.metadata, "tokenizer.ggml.pre")
        if recorded is None:
            raise unknown
        source = model_named(checkpoint, pre=recorded, weights=True, converter=converter)
        note(f"the pre-tokenizer is the recorded one, {recorded}", quiet=quiet)
    assert source is not None
    if source.obstacle is not None:
        raise source.obstacle
    note_model(source, quiet=quiet)
    return source
