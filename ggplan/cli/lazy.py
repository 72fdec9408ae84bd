"""Groups of commands that import a command only when it is asked for."""

from __future__ import annotations

import importlib

import click


class LazyGroup(click.Group):
    """A group with a table of the places of its commands: name -> `module:attribute`."""

    def __init__(self, *args: object, homes: dict[str, str], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.homes = homes

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table."""
        return [*self.homes, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return it."""
        if cmd_name not in self.homes:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.homes[cmd_name].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found
