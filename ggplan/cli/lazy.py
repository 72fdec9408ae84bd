"""Groups of commands that import a command only when it is asked for."""

from __future__ import annotations

import importlib
from itertools import pairwise

import click

from ggplan.cli.trouble import hint_for
from ggplan.errors import Error
from ggplan.standard_input import EMPTY_NAME_HINT

_MAY_BE_EMPTY = ("--title",)


class LazyGroup(click.Group):
    """A group with a table of the places of its commands: name -> `module:attribute`."""

    def __init__(self, *args: object, homes: dict[str, str], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.homes = homes

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table."""
        return [*self.homes, *super().list_commands(ctx)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse an empty argument: `"$MODEL"` of an unset variable would be the current folder, or none."""
        for before, word in pairwise(["", *args]):
            option, equals, value = word.partition("=")
            empty = word == "" or (option.startswith("--") and equals and not value)
            said = option or (before if before.startswith("-") else "")
            if empty and said not in _MAY_BE_EMPTY:
                what = f"the value of {said}" if said else "an argument"
                raise click.UsageError(f"{what} is empty: {EMPTY_NAME_HINT}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; what an error says to do is said with that command's own options."""
        try:
            return super().invoke(ctx)
        except Error as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            if command is not None and not isinstance(command, click.Group):
                error.hint = hint_for(command, error.hint)
            raise

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return it."""
        if cmd_name not in self.homes:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.homes[cmd_name].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found
