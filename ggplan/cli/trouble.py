"""How errors are shown and what the program exits with: one style, one place.

Two lines on stderr: `error: ` with what is wrong and where, and `help: ` with what to do instead.

Exit codes: 0 done; 1 the work failed, or a check found a fault; 2 wrong usage, and for `diff`, as for
diff(1), any error; 130 interrupted; 143 terminated.
"""

from __future__ import annotations

import re
from typing import IO, Any

import click

from ggplan.errors import Error
from ggplan.text import printable

_HEADER_ONLY = r"--header-only\b(?!`)"
_AS_RECIPE = r"give it with `(-r ([^`]+))`"


class TroubleError(click.ClickException):
    """An error of `diff`, where 1 says that the sides differ."""

    exit_code = 2

    def __init__(self, error: Error | OSError) -> None:
        super().__init__(str(error))
        self.error = error

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it as every error is printed."""
        say_error(self.error)


def hint_for(command: click.Command, hint: str) -> str:
    """A hint with options that this command has, or else with the command that has them."""
    from ggplan.stock import is_mix

    own = {option for parameter in command.params for option in parameter.opts}
    if "--header-only" not in own:
        hint = re.sub(_HEADER_ONLY, "`ggplan inspect --header-only`", hint)
    if "-r" in own and own & {"model", "checkpoint", "-m"}:
        return hint
    if "--mix" in own and (named := re.search(_AS_RECIPE, hint)) and is_mix(named[2]):
        return re.sub(_AS_RECIPE, r"`ggplan rules from MODEL --mix \g<2>` writes it as a recipe", hint)
    return re.sub(_AS_RECIPE, r"`ggplan plan MODEL \g<1>` says what it gives a model", hint)


def say_error(error: Error | OSError) -> None:
    """Print an error and its hint on stderr."""
    if isinstance(error, Error):
        say(error.message if error.is_rendered else f"error: {error.message}")
        if error.hint:
            say(f"help: {error.hint}")
        return
    name = f" ({printable(str(error.filename))})" if error.filename else ""
    say(f"error: {error.strerror or error}{name}")


def say_usage_error(error: click.ClickException) -> None:
    """Print what is wrong with a command line, and where its use is explained."""
    if isinstance(error, TroubleError | click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    if isinstance(error.__cause__, Error):
        say_error(error.__cause__)
        if error.__cause__.hint:
            return
    else:
        say(f"error: {' '.join(error.format_message().split())}")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        say(f"help: see `{error.ctx.command_path} --help`")


def say(line: str) -> None:
    """A line on stderr."""
    click.echo(line, err=True)
