"""The linter of recipes: what a recipe says against what it will do, each finding with a code and a remedy.

    >>> report = check_recipe("my.recipe")
    >>> [(d.code, d.line, d.column) for d in report.diagnostics]

Every code has a module in `ggplan.linting.rules` with its page, its check, its findings and their fixes;
`rule` says what a rule is made of, `engine` asks them, `ignoring` says which findings are told.
"""

from typing import TYPE_CHECKING

from ggplan.linting.case import subject_of
from ggplan.linting.check import Report, check_plan, check_recipe
from ggplan.linting.engine import lint_rules
from ggplan.linting.ignoring import Selection, selection

if TYPE_CHECKING:
    from ggplan.linting.fixing import Fixed as Fixed
    from ggplan.linting.fixing import fix_recipe as fix_recipe

__all__ = [
    "Fixed",
    "Report",
    "Selection",
    "check_plan",
    "check_recipe",
    "fix_recipe",
    "lint_rules",
    "selection",
    "subject_of",
]

if not TYPE_CHECKING:  # a type checker that saw it would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name in ("Fixed", "fix_recipe"):  # which `--fix` alone needs
            from ggplan.linting import fixing

            return getattr(fixing, name)
        raise AttributeError(f"module 'ggplan.linting' has no attribute {name!r}", name=name)
