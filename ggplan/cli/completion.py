"""`ggplan completion`, and the values that a shell completes.

A shell asks by running `ggplan` with `_GGPLAN_COMPLETE` set (click's protocol). Only then are the arguments
of all commands given what they may be: the names of recipes, mixes, models and types that ship with ggplan.
What an argument takes is told by its name in the usage line, or by its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.options import quiet_option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic since click 8.2

VARIABLE = "_GGPLAN_COMPLETE"
_SHELLS = ("bash", "zsh", "fish")
_MOST_FILES = 1_000

_EPILOG = """\b
Examples:
  echo 'eval "$(ggplan completion bash)"' >> ~/.bashrc
  echo 'eval "$(ggplan completion zsh)"' >> ~/.zshrc       below the line with compinit
  ggplan completion fish > ~/.config/fish/completions/ggplan.fish
"""


@click.command("completion", epilog=_EPILOG, short_help="Print the script that completes ggplan in a shell.")
@click.argument("shell", type=click.Choice(_SHELLS))
@quiet_option
def completion_command(shell: str, quiet: bool) -> None:
    """Print a script that lets a shell complete ggplan's commands, options and names.

    With it the Tab key completes the names of shipped recipes, of llama-quantize's mixes, of models whose
    tensors ggplan knows, of types, lint codes and pre-tokenizers, and of files.

    Exits 0; 2 for wrong usage.
    """
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    # Not the shell's own `source`, which for bash starts bash to ask for its version.
    click.echo(ShellComplete.source(kind(click.Group(), {}, "ggplan", VARIABLE)))


def offer_values(group: click.Group) -> None:
    """Give the arguments of all commands below a group the values that a shell offers."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            offer_values(command)
        elif command is not None:
            for parameter in command.params:
                values = _values_of(parameter)
                if values is not None:
                    parameter.type = _Offered(parameter.type, *values)


class _Offered(ParamType):
    """A type of arguments with the values that a shell offers."""

    def __init__(self, kind: ParamType, values: Callable[[], Iterable[str]], takes_files: bool) -> None:
        self.name = kind.name
        self._kind, self._values, self._takes_files = kind, values, takes_files

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As without values."""
        return self._kind.convert(value, param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so, in any case, and files beside them; else what the shell makes of files."""
        from click.shell_completion import CompletionItem

        before, comma, last = incomplete.rpartition(",") if param.metavar == "CODES" else ("", "", incomplete)
        begun = last.lower()
        names = [before + comma + name for name in self._values() if name.lower().startswith(begun)]
        if not self._takes_files:
            return [CompletionItem(name) for name in names]
        if not names:
            return [CompletionItem(incomplete, type="file")]
        found = sorted({*names, *_files(incomplete)})
        return [CompletionItem(name) for name in found]


def _values_of(parameter: click.Parameter) -> tuple[Callable[[], Iterable[str]], bool] | None:
    """What an argument may be, and whether it may be a file instead; None where the shell knows as much."""
    if isinstance(parameter.type, click.Choice) or getattr(parameter, "is_flag", False):
        return None
    said = (parameter.metavar or "").strip("[].").partition("|")[0]
    return _VALUES.get(said) or _VALUES.get(parameter.name or "") or _VALUES.get(_kind_of(parameter.type))


def _kind_of(kind: ParamType) -> str:
    return "FILE" if isinstance(kind, click.Path) else ""


def _recipes() -> Iterator[str]:
    from ggplan.rules.loading import shipped_recipes

    yield from shipped_recipes()
    yield from _mixes()


def _mixes() -> tuple[str, ...]:
    from ggplan.stock import MIXES

    return tuple(mix.name for mix in MIXES)


def _models() -> tuple[str, ...]:
    from ggplan.inventories import names_of_inventories

    return tuple(names_of_inventories())


def _types() -> tuple[str, ...]:
    from ggplan.ggml_types import TYPES

    return tuple(row.name for row in TYPES if not row.internal)


def _codes() -> tuple[str, ...]:
    from ggplan.linting import lint_rules

    return tuple(lint_rules())


def _pretokenizers() -> tuple[str, ...]:
    from ggplan.arch.pretokenizers import PRETOKENIZER_NAMES

    return tuple(sorted(PRETOKENIZER_NAMES))


def _no_names() -> tuple[str, ...]:
    return ()


def _files(incomplete: str) -> list[str]:
    """The files and folders of the working folder whose names begin so."""
    if os.sep in incomplete:
        return []
    try:
        names = os.listdir()
    except OSError:
        return []
    is_hidden = incomplete.startswith(".")
    found = (name for name in names if name.startswith(incomplete) and (is_hidden or name[:1] != "."))
    return sorted(found)[:_MOST_FILES]


# By the word in the usage line, else by the argument's own name.
_VALUES: dict[str, tuple[Callable[[], Iterable[str]], bool]] = {
    "RECIPE": (_recipes, True),
    "MIX": (_mixes, False),
    "MODEL": (_models, True),
    "CHECKPOINT": (_models, True),
    "TYPE": (_types, False),
    "CODE": (_codes, False),
    "CODES": (_codes, False),
    "TENSOR": (_codes, False),
    "pre": (_pretokenizers, False),
    "FILE": (_no_names, True),
    "PATH": (_no_names, True),
    "A": (_recipes, True),
    "B": (_recipes, True),
    "recipe": (_recipes, True),
    "model": (_models, True),
    "checkpoint": (_models, True),
    "file": (_no_names, True),
    "output": (_no_names, True),
    "folder": (_no_names, True),
}
