"""`ggplan rules`: write, check and understand recipes. Each subcommand has a module of its own."""

from __future__ import annotations

import click

from ggplan.cli.lazy import LazyGroup

# A command is imported when it is asked for. Add one by adding a line.
COMMANDS = {
    "check": "ggplan.cli.rules_check:check_command",
    "explain": "ggplan.cli.rules_explain:explain_command",
    "test": "ggplan.cli.rules_test:test_command",
    "fmt": "ggplan.cli.rules_fmt:fmt_command",
    "new": "ggplan.cli.rules_new:new_command",
    "list": "ggplan.cli.rules_list:list_command",
    "from": "ggplan.cli.rules_from:from_command",
    "import": "ggplan.cli.rules_import:import_command",
    "export": "ggplan.cli.rules_export:export_command",
}

_EPILOG = """\b
Examples:
  ggplan rules check my.recipe -m GLM-4.5-Air       what is wrong with it, and what to write instead
  ggplan rules explain output.weight -r my.recipe   why does this tensor get its type?
  ggplan rules new -m GLM-4.5-Air                   a commented recipe to start from
"""


@click.group(
    "rules", cls=LazyGroup, homes=COMMANDS, epilog=_EPILOG, short_help="Write, check and explain recipes."
)
def rules_group() -> None:
    """Write, check and understand recipes.

    A model is a checkpoint, a GGUF file, an inventory, or the name of one that ships with ggplan
    (GLM-4.5-Air, DeepSeek-V3, ...). Without one, the shipped inventory is taken that the recipe is for:
    the one it names, or the one of its `@arch` that it fits best.
    """
