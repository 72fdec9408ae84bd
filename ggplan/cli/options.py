"""Options that several commands share, spelled and explained alike, and the names that are given to them.

    -m, --model    a model      -o, --output   a file to write         --json        data for programs
    -r, --recipe   a recipe     --force        replace what is there   -q, --quiet   errors alone on stderr
    --imatrix, --fallback, -t/--threads

`ggplan.cli.opening` has those that say how a model is opened. It and `recipe_of_name` are the way from a name
to what it stands for, in every command.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
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


def calibration_option(command: _Command) -> _Command:
    """`--calibration`: the folder of a calibration."""
    return click.option(
        "--calibration", "calibration_path", type=click.Path(), metavar="DIR",
        help="A folder that `ggplan calibrate` made: blocks are chosen for the least error of what matrices "
        "make of its texts. It has an imatrix of its own.",
    )(command)  # fmt: skip


def threads_option(command: _Command) -> _Command:
    """`-t`, `--threads`."""
    return click.option(
        "-t", "--threads", type=click.IntRange(min=1), metavar="N", help="Threads [default: one per CPU]."
    )(command)


def recipe_of_name(name: str, architecture: str = "", *, quiet: bool = False) -> Recipe:
    """The recipe that a name stands for; a mix is refused. Those of the architecture are nearest."""
    from ggplan.naming import recipe_named

    _note_other_meaning(name, quiet)
    return recipe_named(name, architecture)


def refuse_other_names(name: str) -> None:
    """Refuse a name that is no file here but of a shipped inventory, a recipe, a mix or on a server."""
    from ggplan.errors import NoSuchCheckpointError
    from ggplan.naming import kind_named, model_named
    from ggplan.sources.remote import is_address
    from ggplan.text import printable

    if is_address(name):
        raise NoSuchCheckpointError(
            f"{printable(name)} is on a server, and every byte of the file is read here",
            hint="download it first (`hf download`)",
        )
    if kind_named(name) in ("mix", "recipe", "inventory"):
        model_named(name, weights=True)


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


def reuse_option(command: _Command) -> _Command:
    """`--reuse`, an earlier output."""
    return click.option(
        "--reuse",
        "reuse_path",
        type=click.Path(),
        metavar="OLD.gguf",
        help="Copy from this earlier output what would be encoded to the same bytes.",
    )(command)
