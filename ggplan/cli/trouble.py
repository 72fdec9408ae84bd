"""How errors are shown and what the program exits with: one style, one place.

Two lines on stderr: `error: ` with what is wrong and where, and `help: ` with what to do instead.

Exit codes: 0 done; 1 the work failed, or a check found a fault; 2 wrong usage, and for `diff`, as for
diff(1), any error; 130 interrupted; 143 terminated.
"""

from __future__ import annotations

from typing import IO, Any

import click

from ggplan.errors import Error
from ggplan.text import printable


class TroubleError(click.ClickException):
    """An error of `diff`, where 1 says that the sides differ."""

    exit_code = 2

    def __init__(self, error: Error | OSError) -> None:
        super().__init__(str(error))
        self.error = error

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it as every error is printed."""
        say_error(self.error)


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
    else:
        say(f"error: {error.format_message()}")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        say(f"help: see `{error.ctx.command_path} --help`")


def say(line: str) -> None:
    """A line on stderr."""
    click.echo(line, err=True)
